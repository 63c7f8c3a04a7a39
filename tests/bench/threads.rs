//! Whether two threads do twice as much as one: hubs, engine and readers of one process, without sockets.
//!
//!     cargo bench --bench threads [-- SECONDS]
//!
//! Each thread has mailboxes of its own. It appends to one of them, takes the message as a reader does, and acknowledges it.
//! What two threads wait for is what all mailboxes share. Seven rounds of one thread and of two, in turn. At level `os` each
//! thread has 64 messages in flight, and one writer commits those of all threads.
//!
//! The rates need two cores that nothing else uses. The rest does not: the CPU that a message takes its thread, and how often
//! a thread had to wait. Where two threads do not disturb each other, both are the same for one thread and for two.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use serde_json::value::RawValue;
use tokio::runtime::{Builder, Runtime};
use x0_msg_server::clock::Clock;
use x0_msg_server::config::Config;
use x0_msg_server::engine::embedded::{Durability, Embedded, Storage};
use x0_msg_server::engine::{Append, Engine};
use x0_msg_server::hub::{Hubs, Transport};
use x0_msg_server::message::{Address, Author, Item, Kind, Message, SenderName, Seq, SessionId};
use x0_msg_server::server::engine_settings;
use x0_msg_server::subscriber::{Start, Subscriber};

/// Mailboxes of each thread.
const MAILBOXES: usize = 1000;

/// Messages in flight of each thread, where a commit takes time.
const IN_FLIGHT: usize = 64;

const ROUNDS: usize = 7;

/// A mailbox with its reader.
struct Mailbox {
    address: Address,
    reader: Subscriber,
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// What threads have done.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    messages: u64,
    /// What the threads themselves used.
    cpu: Duration,
    /// How often they gave their core away, to wait.
    waits: u64,
}

impl Done {
    fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.cpu += other.cpu;
        self.waits += other.waits;
    }

    fn text(&self) -> String {
        let messages = self.messages as f64;
        let cpu = self.cpu.as_secs_f64() * 1e6 / messages;
        format!("{cpu:.2} µs of CPU and {:.4} waits a message", self.waits as f64 / messages)
    }
}

/// How often this thread has waited so far.
fn waits() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
}

/// How long this thread has run so far.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("a thread runs forwards")
}

struct Bench {
    engine: Engine,
    hubs: Hubs,
    message: Message,
    in_flight: usize,
}

impl Bench {
    fn new(storage: &Storage, in_flight: usize) -> Self {
        let (settings, hubs) = (engine_settings(&Config::default(), Clock::Wall), Hubs::new(None));
        let engine = Embedded::start(settings, hubs.clone(), storage).expect("a store").into();
        let payload = format!(r#"{{"text":"{}"}}"#, "x".repeat(117));
        let payload = RawValue::from_string(payload).expect("JSON");
        let from = SenderName::new("sender").ok();
        let message = Message { kind: Kind::Message, from, payload, ts: 1_763_886_000_000, reference: None };
        Self { engine, hubs, message, in_flight }
    }

    fn mailboxes(&self, thread: usize) -> Vec<Mailbox> {
        let mailbox = |n: usize| {
            let name = format!("thread-{thread}-session-{n:06}");
            let address = Address::Session(SessionId::new(&name).expect("a name"));
            let start = Start { cursor: Seq::START, epoch: self.engine.epoch() };
            let most = (Transport::Websocket, 8);
            let reader = Subscriber::new(&self.engine, &self.hubs, &address, start, most);
            let mut reader = reader.expect("the first reader");
            runtime().block_on(reader.ready()).expect("an empty mailbox");
            Mailbox { address, reader }
        };
        (0..MAILBOXES).map(mailbox).collect()
    }

    fn append(&self, address: &Address) -> Append {
        Append::new(address.clone(), self.message.clone(), Author::Anonymous)
    }

    /// Sends and reads until it is told to stop.
    fn work(&self, mailboxes: &mut [Mailbox], stop: &AtomicBool) -> Done {
        let (runtime, mut messages, mut at) = (runtime(), 0, 0);
        let begun = (cpu(), waits());
        while !stop.load(Ordering::Relaxed) {
            let group = at..(at + self.in_flight).min(mailboxes.len());
            at = if group.end == mailboxes.len() { 0 } else { group.end };
            let group = &mut mailboxes[group];
            let commits: Vec<_> =
                group.iter().map(|mailbox| self.engine.append(self.append(&mailbox.address))).collect();
            for (mailbox, mut commit) in group.iter_mut().zip(commits) {
                let known = (&mut commit).now_or_never();
                let seq = known.unwrap_or_else(|| runtime.block_on(commit)).expect("it is stored");
                self.take(mailbox, seq);
                messages += 1;
            }
        }
        Done { messages, cpu: cpu() - begun.0, waits: waits() - begun.1 }
    }

    /// Takes a message that was published, and acknowledges it.
    fn take(&self, Mailbox { address, reader }: &mut Mailbox, seq: Seq) {
        let item = reader.try_next();
        assert!(matches!(&item, Some(Item::Message(message)) if message.seq() == Some(seq)), "{item:?}");
        reader.mark_sent(seq);
        if let Some(through) = self.hubs.acknowledge(address, seq) {
            self.engine.trim(address, through);
        }
    }

    /// Messages a second of so many threads together. Adds what they have done.
    fn rate(&self, mailboxes: &mut [Vec<Mailbox>], time: Duration, done: &mut Done) -> f64 {
        let (stop, start) = (AtomicBool::new(false), Barrier::new(mailboxes.len() + 1));
        std::thread::scope(|scope| {
            let work = |mailboxes: &mut Vec<Mailbox>| {
                start.wait();
                self.work(mailboxes, &stop)
            };
            let threads: Vec<_> =
                mailboxes.iter_mut().map(|mailboxes| scope.spawn(move || work(mailboxes))).collect();
            start.wait();
            let begun = Instant::now();
            std::thread::sleep(time);
            stop.store(true, Ordering::Relaxed);
            let mut all = Done::default();
            threads.into_iter().for_each(|thread| all.add(thread.join().expect("no panic")));
            done.add(all);
            all.messages as f64 / begun.elapsed().as_secs_f64()
        })
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(level: &str, storage: &Storage, in_flight: usize, time: Duration) {
    let bench = Bench::new(storage, in_flight);
    let mut mailboxes: Vec<_> = (0..2).map(|thread| bench.mailboxes(thread)).collect();
    let (mut one, mut two, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let [mut of_one, mut of_two] = [Done::default(); 2];
    for _ in 0..ROUNDS {
        one.push(bench.rate(&mut mailboxes[..1], time, &mut of_one));
        two.push(bench.rate(&mut mailboxes, time, &mut of_two));
        ratios.push(two[two.len() - 1] / one[one.len() - 1]);
    }
    let best = |rates: &[f64]| rates.iter().copied().fold(0.0, f64::max);
    println!(
        "{level}: one thread {:.0} messages/s, two {:.0} (best of {ROUNDS}); ratio {:.2} (median)",
        best(&one),
        best(&two),
        median(ratios)
    );
    println!("{level}: one thread: {}; two: {}", of_one.text(), of_two.text());
}

fn main() {
    let seconds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1.0);
    let (time, dir) = (Duration::from_secs_f64(seconds), tempfile::tempdir().expect("a directory"));
    measure("memory", &Storage::Memory, 1, time);
    let storage = Storage::Directory(dir.path().to_owned(), Durability::Os);
    measure("os", &storage, IN_FLIGHT, time);
}
