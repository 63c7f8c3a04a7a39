//! Durable sends: 64 in flight, 256 bytes, 10,000 mailboxes, each message acknowledged after 10 ms.
//!
//!     cargo bench --bench durable [-- SECONDS]
//!
//! Three systems in turn, five rounds: the floor (append and `fdatasync` of whatever waits, nothing else), the engine,
//! and the server over WebSocket. As root, it also counts the bytes that reach a device for each byte of payload, on a
//! file system in a file in memory.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message as Frame;
use x0_msg_server::clock::Clock;
use x0_msg_server::config::Config;
use x0_msg_server::engine::embedded::{Durability, Embedded, Storage};
use x0_msg_server::engine::{Append, Engine};
use x0_msg_server::hub::Hubs;
use x0_msg_server::message::{Address, Author, Kind, Message, SenderName, SessionId};
use x0_msg_server::server::engine_settings;

#[path = "server.rs"]
mod server;

const IN_FLIGHT: usize = 64;
const PAYLOAD: usize = 256;
const MAILBOXES: usize = 10_000;
const ACK_AFTER: Duration = Duration::from_millis(10);
const ROUNDS: usize = 5;

#[derive(Debug, Clone, Copy)]
struct Figures {
    per_second: f64,
    p50: f64,
    p99: f64,
    max: f64,
}

fn figures(mut times: Vec<Duration>, elapsed: Duration) -> Figures {
    times.sort();
    let at = |per_mille: usize| times[(times.len() - 1) * per_mille / 1000].as_secs_f64() * 1000.0;
    Figures {
        per_second: times.len() as f64 / elapsed.as_secs_f64(),
        p50: at(500),
        p99: at(990),
        max: at(1000),
    }
}

fn payload() -> Box<RawValue> {
    let text = format!("\"{}\"", "x".repeat(PAYLOAD - 2));
    RawValue::from_string(text).expect("a string is JSON")
}

/// One writer that appends whatever waits to a file, and syncs it.
fn floor(dir: &Path, time: Duration, runtime: &tokio::runtime::Runtime) -> Figures {
    let (queue, waiting) = mpsc::sync_channel::<oneshot::Sender<()>>(4096);
    let mut file = File::create(dir.join("floor")).expect("a file");
    let writer = std::thread::spawn(move || {
        let record = [b'x'; PAYLOAD + 32];
        while let Ok(first) = waiting.recv() {
            let mut group = vec![first];
            group.extend(waiting.try_iter().take(4095));
            let bytes = record.repeat(group.len());
            file.write_all(&bytes).expect("room");
            file.sync_data().expect("a disk");
            for waiter in group {
                _ = waiter.send(());
            }
        }
    });
    let figures = runtime.block_on(closed_loop(time, move |_| {
        let (told, stored) = oneshot::channel();
        queue.send(told).expect("the writer lives");
        async move { stored.await.expect("stored") }
    }));
    writer.join().expect("no panic");
    figures
}

/// 64 tasks. Each of them sends its next message when the last one is stored.
async fn closed_loop<F: Future<Output = ()> + Send>(
    time: Duration,
    send: impl Fn(usize) -> F + Send + Sync + 'static,
) -> Figures {
    let send = Arc::new(send);
    let begun = Instant::now();
    let tasks: Vec<_> = (0..IN_FLIGHT)
        .map(|_| {
            let send = Arc::clone(&send);
            let run = async move {
                let mut times = Vec::new();
                while begun.elapsed() < time {
                    let start = Instant::now();
                    send(fastrand::usize(..MAILBOXES)).await;
                    times.push(start.elapsed());
                }
                times
            };
            tokio::spawn(run)
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.expect("no panic"));
    }
    figures(times, begun.elapsed())
}

/// The engine alone.
fn engine(dir: &Path, durability: Durability, time: Duration, runtime: &tokio::runtime::Runtime) -> Figures {
    let _guard = runtime.enter();
    let settings = engine_settings(&Config::default(), Clock::Wall);
    let storage = Storage::Directory(dir.join("engine"), durability);
    let engine = Engine::from(Embedded::start(settings, Hubs::new(16), &storage).expect("a store"));
    let addresses: Arc<Vec<Address>> = Arc::new(
        (0..MAILBOXES)
            .map(|n| Address::Session(SessionId::new(&format!("session-{n}")).expect("a name")))
            .collect(),
    );
    let (acks, mut due) = tokio::sync::mpsc::unbounded_channel();
    let acker = engine.clone();
    let names = Arc::clone(&addresses);
    let acking = runtime.spawn(async move {
        while let Some((at, mailbox, seq)) = due.recv().await {
            tokio::time::sleep_until(at).await;
            acker.trim(&names[mailbox], seq);
        }
    });
    let payload = payload();
    let sender = engine.clone();
    let from = SenderName::new("sender").expect("a name");
    let author = Author::Session(SessionId::new("sender").expect("a name"));
    let figures = runtime.block_on(closed_loop(time, move |mailbox| {
        let message = Message {
            kind: Kind::Message,
            from: Some(from.clone()),
            payload: payload.clone(),
            ts: 0,
            reference: None,
        };
        let append = Append::new(addresses[mailbox].clone(), message, author.clone());
        let commit = sender.append(append);
        let acks = acks.clone();
        async move {
            let seq = commit.await.expect("stored");
            _ = acks.send((tokio::time::Instant::now() + ACK_AFTER, mailbox, seq));
        }
    }));
    runtime.block_on(acking).expect("no panic");
    engine.close();
    figures
}

/// The server: eight sockets send, with eight messages in flight each, to eight sockets that acknowledge.
fn system(time: Duration, runtime: &tokio::runtime::Runtime) -> Figures {
    const SOCKETS: usize = 8;
    let (_server, address) = server::start(&["--mailbox-messages", "1000000"]);
    runtime.block_on(async {
        let connect = |session: String| {
            let url = format!("ws://{address}/ws?session={session}");
            async move { connect_async(url).await.expect("a socket").0 }
        };
        let mut readers = Vec::new();
        for n in 0..SOCKETS {
            let mut socket = connect(format!("R{n}")).await;
            readers.push(tokio::spawn(async move {
                let mut count = 0;
                while let Some(Ok(Frame::Text(text))) = socket.next().await {
                    count += 1;
                    if count % 64 == 0 {
                        let message: Value = serde_json::from_str(&text).expect("JSON");
                        let ack = json!({ "type": "ack", "seq": message["seq"] }).to_string();
                        _ = socket.send(Frame::text(ack)).await;
                    }
                }
            }));
        }
        let begun = Instant::now();
        let mut senders = Vec::new();
        for n in 0..SOCKETS {
            let mut socket = connect(format!("S{n}")).await;
            senders.push(tokio::spawn(async move {
                let body = "x".repeat(PAYLOAD - 2);
                let send = json!({ "type": "send", "to": { "session": format!("R{n}") }, "payload": body })
                    .to_string();
                let welcome = socket.next().await;
                assert!(matches!(welcome, Some(Ok(Frame::Text(_)))));
                let mut started = std::collections::VecDeque::new();
                let mut times = Vec::new();
                loop {
                    while started.len() < IN_FLIGHT / SOCKETS && begun.elapsed() < time {
                        started.push_back(Instant::now());
                        socket.feed(Frame::text(send.clone())).await.expect("open");
                    }
                    socket.flush().await.expect("open");
                    let Some(start) = started.pop_front() else { return times };
                    match socket.next().await {
                        Some(Ok(Frame::Text(text))) => assert!(text.contains(r#""sent""#), "{text}"),
                        other => panic!("{other:?}"),
                    }
                    times.push(start.elapsed());
                }
            }));
        }
        let mut times = Vec::new();
        for sender in senders {
            times.extend(sender.await.expect("no panic"));
        }
        let figures = figures(times, begun.elapsed());
        readers.iter().for_each(tokio::task::JoinHandle::abort);
        figures
    })
}

fn median(rounds: &[Figures]) -> Figures {
    let of = |get: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(get).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Figures { per_second: of(|f| f.per_second), p50: of(|f| f.p50), p99: of(|f| f.p99), max: of(|f| f.max) }
}

fn print(name: &str, rounds: &[Figures], floor: &[Figures]) {
    let (own, floor) = (median(rounds), median(floor));
    println!(
        "{name:<22} {:>8.0}/s = {:.2} x floor; p50 {:.2} ms, p99 {:.2} ms = {:.1} x floor, max {:.1} ms",
        own.per_second,
        own.per_second / floor.per_second,
        own.p50,
        own.p99,
        own.p99 / floor.p99,
        own.max
    );
}

/// A file system in a file in memory, on its own device.
struct Device {
    dir: PathBuf,
    name: String,
}

impl Device {
    fn new() -> Option<Self> {
        let dir = PathBuf::from(format!("/dev/shm/x0-msg-bench-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("mounted")).ok()?;
        let image = dir.join("image");
        File::create(&image).ok()?.set_len(2 << 30).ok()?;
        let image = image.to_str()?;
        let output = Command::new("losetup").args(["--find", "--show", image]).output().ok()?;
        let name = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        let device = Self { dir, name };
        let run = |program: &str, args: &[&str]| {
            Command::new(program).args(args).status().is_ok_and(|status| status.success())
        };
        let mounted = device.dir.join("mounted");
        let made =
            run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", &device.name])
                && run("mount", &[&device.name, mounted.to_str()?]);
        made.then_some(device)
    }

    /// The number of bytes that were written to the device.
    fn written(&self) -> f64 {
        _ = Command::new("sync").arg("-f").arg(self.dir.join("mounted")).status();
        let name = self.name.trim_start_matches("/dev/");
        let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).expect("Linux says it");
        let sectors: f64 = stat.split_whitespace().nth(6).and_then(|n| n.parse().ok()).expect("a number");
        sectors * 512.0
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        _ = Command::new("umount").arg(self.dir.join("mounted")).status();
        _ = Command::new("losetup").args(["--detach", &self.name]).status();
        _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn main() {
    let seconds = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(3.0);
    let time = Duration::from_secs_f64(seconds);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (mut floors, mut fsync, mut os, mut whole) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let dir = tempfile::tempdir_in(".").expect("a directory on the disk");
        floors.push(floor(dir.path(), time, &runtime));
        fsync.push(engine(dir.path(), Durability::Fsync, time, &runtime));
        drop(dir);
        let dir = tempfile::tempdir_in(".").expect("a directory on the disk");
        os.push(engine(dir.path(), Durability::Os, time, &runtime));
        whole.push(system(time, &runtime));
    }
    print("floor", &floors, &floors);
    print("engine, fsync", &fsync, &floors);
    print("engine, os", &os, &floors);
    print("over WebSocket, fsync", &whole, &floors);
    let Some(device) = Device::new() else {
        println!("device bytes: not counted (needs root, loop devices and /dev/shm)");
        return;
    };
    let dir = device.dir.join("mounted");
    let per_byte = |figures: Figures, before: f64| {
        (device.written() - before) / (figures.per_second * seconds * PAYLOAD as f64)
    };
    let before = device.written();
    let floor = per_byte(floor(&dir, time, &runtime), before);
    let before = device.written();
    let engine = per_byte(engine(&dir, Durability::Fsync, time, &runtime), before);
    println!("device bytes for each byte of payload: floor {floor:.1}, engine {engine:.1}");
}
