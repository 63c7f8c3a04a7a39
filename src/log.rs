//! The log: lines wait in a bounded queue, and a thread writes them to standard error.
//!
//! Logging never blocks, fails or panics, whatever standard error is: a pipe that nobody reads, a pipe without a reader, a
//! full disk. Lines that find no space in the queue, or that cannot be written, are lost. Their number is logged as soon
//! as lines can be written again.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use std::{env, mem, panic, thread};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, registry};

use crate::sync::lock;

mod libraries;
mod recent;
mod repeated;

pub(crate) use recent::{RecentEvent, recent};
pub(crate) use repeated::Repeated;

use libraries::Libraries;
use recent::Recent;

/// Most bytes in the queue. The thread may hold as many again.
const QUEUE_BYTES: usize = 1 << 20;

/// How long the end of the process waits until the log is written.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// The queue of the log of this process, once it has started.
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// How many lines of the log were lost since the start.
pub(crate) fn lost_lines() -> u64 {
    QUEUE.get().map_or(0, |queue| lock(&queue.shared.waiting).lost)
}

/// The log of this process. Dropping it waits, for a short time, until everything is written.
#[derive(Debug)]
pub struct Log {
    queue: Queue,
    levels: Levels,
}

/// The levels of the log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Levels(Handle<Targets, Registry>);

impl Levels {
    /// Sets other levels, as of [`Log::start`].
    pub fn set(&self, levels: &Targets, is_explicit: bool) {
        // It fails only if the log has ended.
        _ = self.0.reload(in_force(levels, is_explicit).0);
    }
}

impl Log {
    /// Logs text to a terminal and JSON elsewhere, at these levels. `RUST_LOG` overrides them unless they are explicit: set by
    /// a flag or by their environment variable. Panics are logged too.
    ///
    /// # Errors
    /// Standard error has no second descriptor, or the thread does not start.
    pub fn start(levels: &Targets, is_explicit: bool) -> io::Result<Self> {
        let (queue, stderr) = (Queue::default(), io::stderr());
        let out = StandardError(File::from(stderr.as_fd().try_clone_to_owned()?));
        _ = QUEUE.set(queue.clone());
        let taken = queue.clone();
        let report = |lost: u64| {
            tracing::warn!(lost, "lines of the log were lost; this is their number since the start")
        };
        thread::Builder::new().name("log".to_owned()).spawn(move || taken.write_to(out, report))?;
        let lines = queue.clone();
        let (levels, invalid) = in_force(levels, is_explicit);
        let (levels, handle) = reload::Layer::new(levels);
        let log = fmt::layer().log_internal_errors(false).with_writer(move || lines.clone());
        if stderr.is_terminal() {
            registry()
                .with(levels)
                .with(log.with_target(false))
                .with(Recent)
                .with(Libraries::default())
                .init();
        } else {
            registry()
                .with(levels)
                .with(log.json().flatten_event(true))
                .with(Recent)
                .with(Libraries::default())
                .init();
        }
        if let Some(error) = invalid {
            tracing::warn!(%error, "RUST_LOG is not valid, and is ignored; write levels like debug, or info,x0_msg_server::broker=trace");
        }
        // The hook of the standard library writes to standard error itself, and so may block.
        panic::set_hook(Box::new(|panic| {
            let backtrace = Backtrace::capture();
            match backtrace.status() {
                BacktraceStatus::Captured => tracing::error!(%panic, %backtrace, "a thread panicked"),
                _ => tracing::error!(%panic, "a thread panicked"),
            }
        }));
        Ok(Self { queue, levels: Levels(handle) })
    }

    /// The levels, which can change.
    #[must_use]
    pub fn levels(&self) -> Levels {
        self.levels.clone()
    }

    /// Writes a line as it is, after those that wait.
    pub fn line(&self, line: &str) {
        self.queue.push(format!("{line}\n").as_bytes());
    }
}

/// The levels that `RUST_LOG` names, unless others are explicit. And what is wrong with `RUST_LOG`, if it is ignored.
fn in_force(levels: &Targets, is_explicit: bool) -> (Targets, Option<ParseError>) {
    let named = env::var_os("RUST_LOG").filter(|text| !is_explicit && !text.is_empty());
    match named.map(|text| text.to_string_lossy().parse()) {
        Some(Ok(named)) => (named, None),
        Some(Err(error)) => (levels.clone(), Some(error)),
        None => (levels.clone(), None),
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.wait_until_written(END_TIMEOUT);
    }
}

/// Lines on their way to standard error. Cheap to clone.
#[derive(Debug, Clone, Default)]
struct Queue {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Held for a copy of one line.
    waiting: Mutex<Waiting>,
    /// Notified when lines come, and when the thread has written what it took.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Whole lines, in their order.
    text: Vec<u8>,
    /// Whether the thread holds lines that are not written yet.
    writing: bool,
    /// Lines that were lost since the start.
    lost: u64,
}

impl Queue {
    /// Adds a line, or counts it as lost if the queue is full.
    fn push(&self, line: &[u8]) {
        let mut waiting = lock(&self.shared.waiting);
        if waiting.text.len() + line.len() > QUEUE_BYTES {
            waiting.lost += 1;
            return;
        }
        waiting.text.extend_from_slice(line);
        drop(waiting);
        self.shared.changed.notify_all();
    }

    /// Waits for lines, and takes all of them.
    fn take(&self) -> Vec<u8> {
        let waiting = lock(&self.shared.waiting);
        let waiting = self.shared.changed.wait_while(waiting, |waiting| waiting.text.is_empty());
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        waiting.writing = true;
        mem::take(&mut waiting.text)
    }

    /// Writes lines for ever. `report` logs the number of lost lines.
    fn write_to(&self, out: impl Write, report: impl Fn(u64)) {
        let mut out = LineWriter { out, torn: false };
        let mut reported = 0;
        loop {
            let unwritten = out.write_lines(&self.take());
            let lost = {
                let mut waiting = lock(&self.shared.waiting);
                waiting.lost += unwritten;
                waiting.lost
            };
            if unwritten == 0 && lost > reported {
                report(lost);
                reported = lost;
            }
            lock(&self.shared.waiting).writing = false;
            self.shared.changed.notify_all();
        }
    }

    /// Waits until all lines are written or lost, at most for this time.
    fn wait_until_written(&self, limit: Duration) {
        let waiting = lock(&self.shared.waiting);
        let unwritten = |waiting: &mut Waiting| waiting.writing || !waiting.text.is_empty();
        drop(self.shared.changed.wait_timeout_while(waiting, limit, unwritten));
    }
}

/// Takes whole lines, as `tracing_subscriber` writes them.
impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes whole lines. A line that was cut by an error is ended before the next one.
struct LineWriter<W> {
    out: W,
    /// Whether the last line has no end.
    torn: bool,
}

impl<W: Write> LineWriter<W> {
    /// How many of these lines were not written.
    fn write_lines(&mut self, mut text: &[u8]) -> u64 {
        if self.torn && self.out.write_all(b"\n").is_err() {
            return count_lines(text);
        }
        self.torn = false;
        while !text.is_empty() {
            match self.out.write(text) {
                Ok(0) => return count_lines(text),
                Ok(length) => {
                    self.torn = text[length - 1] != b'\n';
                    text = &text[length..];
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return count_lines(text),
            }
        }
        0
    }
}

fn count_lines(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Standard error by a descriptor of its own. `std::io::stderr` has a lock that a blocked write would hold.
struct StandardError(File);

impl Write for StandardError {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(text) {
                // A program that shares the pipe has made it non-blocking.
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait_until_writable()?,
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StandardError {
    fn wait_until_writable(&self) -> io::Result<()> {
        match poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// What the output does with the next write.
    type Answer = io::Result<usize>;

    /// An output that answers each write as the test says, and hands over what it took.
    struct Output {
        answers: Receiver<Answer>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Output {
        fn write(&mut self, text: &[u8]) -> Answer {
            let length = self.answers.recv().unwrap_or(Ok(usize::MAX))?.min(text.len());
            _ = self.written.send(text[..length].to_vec());
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A queue whose thread writes to an output, and the numbers of lost lines that it reports.
    fn queue() -> (Queue, Sender<Answer>, Receiver<Vec<u8>>, Receiver<u64>) {
        let (queue, (answer, answers), (written, texts)) = (Queue::default(), channel(), channel());
        let (reports, reported) = channel();
        let taken = queue.clone();
        thread::spawn(move || {
            taken.write_to(Output { answers, written }, move |lost| _ = reports.send(lost));
        });
        (queue, answer, texts, reported)
    }

    #[test]
    fn a_queue_that_nobody_empties_drops_lines_and_reports_how_many() {
        let (queue, answer, texts, reported) = queue();
        queue.push(b"first\n");
        while !lock(&queue.shared.waiting).writing {
            thread::yield_now();
        }
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        for _ in 0..QUEUE_BYTES / line.len() + 3 {
            queue.push(&line);
        }
        assert_eq!(lock(&queue.shared.waiting).text.len(), QUEUE_BYTES, "it is full");
        answer.send(Ok(usize::MAX)).unwrap();
        assert_eq!(texts.recv().unwrap(), b"first\n");
        assert_eq!(reported.recv().unwrap(), 3);
        drop(answer);
        assert_eq!(texts.recv().unwrap().len(), QUEUE_BYTES);
        queue.wait_until_written(Duration::MAX);
        assert!(reported.try_recv().is_err(), "reported once");
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_a_torn_one_is_ended() {
        let (queue, answer, texts, reported) = queue();
        queue.push(b"one\ntwo\nthree\n");
        answer.send(Ok(6)).unwrap();
        answer.send(Err(ErrorKind::StorageFull.into())).unwrap();
        assert_eq!(texts.recv().unwrap(), b"one\ntw");
        queue.wait_until_written(Duration::MAX);
        assert!(reported.try_recv().is_err(), "nothing can be written yet");
        drop(answer);
        queue.push(b"four\n");
        assert_eq!(texts.recv().unwrap(), b"\n");
        assert_eq!(texts.recv().unwrap(), b"four\n");
        assert_eq!(reported.recv().unwrap(), 2);
    }

    #[test]
    fn waiting_for_an_output_that_is_blocked_ends() {
        let (queue, _answer, _texts, _reported) = queue();
        queue.push(b"never written\n");
        queue.wait_until_written(Duration::from_millis(10));
        let waiting = lock(&queue.shared.waiting);
        assert!(waiting.writing || !waiting.text.is_empty());
    }
}
