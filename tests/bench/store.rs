//! The cost of a large store and of many sessions.
//!
//!     cargo bench --bench store [-- MESSAGES MAILBOXES SESSIONS]
//!
//! It fills a store (1 M messages of 256 bytes in 100 k mailboxes) and starts the server on it. It reports the time of
//! the start, the memory above that of an empty store, and the time to read one mailbox. It acknowledges every message
//! and reports the size of the store. At last 200 k sessions connect, get a message, acknowledge it and leave.

use std::path::Path;
use std::time::{Duration, Instant};

use http::Http;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use server::Server;
use x0_msg_server::clock::Clock;
use x0_msg_server::config::Config;
use x0_msg_server::engine::embedded::{Durability, Embedded, Storage};
use x0_msg_server::engine::{Append, Engine};
use x0_msg_server::hub::Hubs;
use x0_msg_server::message::{Address, Author, Kind, Message, MessageId, SenderName, SessionId};
use x0_msg_server::server::engine_settings;

#[path = "http.rs"]
mod http;
#[path = "memory.rs"]
mod memory;
#[path = "server.rs"]
mod server;

fn session(n: usize) -> String {
    format!("session-{n:08}")
}

/// Fills a store, with or without ids of messages.
fn fill(dir: &Path, messages: usize, mailboxes: usize, with_ids: bool) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let settings = engine_settings(&Config::default(), Clock::Wall);
    let storage = Storage::Directory(dir.to_owned(), Durability::Os);
    let engine = Engine::from(Embedded::start(settings, Hubs::new(16), &storage).expect("a store"));
    let payload = RawValue::from_string(format!("\"{}\"", "x".repeat(254))).expect("JSON");
    runtime.block_on(async {
        let mut commits = Vec::new();
        for n in 0..messages {
            let to = SessionId::new(&session((n * 7919) % mailboxes)).expect("a name");
            let message = Message {
                kind: Kind::Message,
                from: SenderName::new("sender").ok(),
                payload: payload.clone(),
                ts: Clock::Wall.now(),
                reference: None,
            };
            let id = MessageId::new(&n.to_string()).ok().filter(|_| with_ids);
            let append = Append { id, ..Append::new(Address::Session(to), message, Author::Anonymous) };
            commits.push(engine.append(append));
            if commits.len() == 4000 {
                for commit in commits.drain(..) {
                    commit.await.expect("stored");
                }
            }
        }
        for commit in commits {
            commit.await.expect("stored");
        }
    });
    engine.close();
}

/// A field of the memory of the server, in MiB.
fn memory(server: &Server, field: &str) -> f64 {
    memory::kib(&server.child, field) / 1024.0
}

fn call(http: &mut Http, method: &str, target: &str, body: &str) -> Value {
    http.request(method, target, body);
    serde_json::from_str(&http.answer()).expect("answers are JSON")
}

fn size(dir: &Path) -> f64 {
    let files = std::fs::read_dir(dir).expect("a directory");
    let bytes: u64 = files.flatten().filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum();
    bytes as f64 / f64::from(1 << 20)
}

fn start(dir: &Path) -> (Server, String, Duration) {
    let begun = Instant::now();
    let data = dir.to_str().expect("a path");
    let (server, address) = server::start(&["--data-dir", data]);
    (server, address, begun.elapsed())
}

fn stop(mut server: Server) {
    let pid = server.child.id().to_string();
    _ = std::process::Command::new("kill").arg(pid).status();
    _ = server.child.wait();
}

fn main() {
    let mut numbers = std::env::args().filter_map(|arg| arg.parse().ok());
    let mut number = |default| numbers.next().unwrap_or(default);
    let (messages, mailboxes, sessions) = (number(1_000_000), number(100_000), number(200_000));
    let dir = tempfile::tempdir_in(".").expect("a directory on the disk");
    let (full, empty) = (dir.path().join("full"), dir.path().join("empty"));

    let (server, _, opened) = start(&empty);
    let base = memory(&server, "VmRSS");
    println!("empty store: ready in {} ms, {base:.1} MiB", opened.as_millis());
    stop(server);
    let with_ids = dir.path().join("ids");
    fill(&with_ids, messages, mailboxes, true);
    let (server, _, opened) = start(&with_ids);
    println!(
        "{messages} messages of the last two minutes, each with an id: ready in {} ms, {:.1} MiB above empty",
        opened.as_millis(),
        memory(&server, "VmRSS") - base
    );
    stop(server);
    std::fs::remove_dir_all(&with_ids).expect("it is ours");
    fill(&full, messages, mailboxes, false);
    let (server, address, opened) = start(&full);
    let (now, peak) = (memory(&server, "VmRSS"), memory(&server, "VmHWM"));
    println!(
        "{messages} messages in {mailboxes} mailboxes, {:.0} MiB on disk: ready in {} ms, {:.1} MiB above empty (peak {:.1})",
        size(&full),
        opened.as_millis(),
        now - base,
        peak - base
    );

    let mut http = Http::connect(&address);
    let mut times = Vec::new();
    for n in 0..1000 {
        let target = format!("/v1/messages?session={}&wait=0", session((n * 97) % mailboxes));
        let begun = Instant::now();
        let answer = call(&mut http, "GET", &target, "");
        times.push(begun.elapsed());
        let count = answer["messages"].as_array().map_or(0, Vec::len);
        assert_eq!(count, messages / mailboxes);
    }
    times.sort();
    println!(
        "reading one mailbox of {} over HTTP: p50 {:.2} ms, p99 {:.2} ms",
        messages / mailboxes,
        times[500].as_secs_f64() * 1e3,
        times[990].as_secs_f64() * 1e3
    );

    // Acknowledges every message, with a seq above all of theirs.
    let last =
        call(&mut http, "POST", "/v1/messages", r#"{"to":{"session":"last"},"payload":1}"#)["seq"].clone();
    for chunk in (0..mailboxes).collect::<Vec<_>>().chunks(100) {
        for n in chunk {
            http.request("POST", "/v1/ack", &json!({ "session": session(*n), "seq": last }).to_string());
        }
        for _ in chunk {
            http.answer();
        }
    }
    let begun = Instant::now();
    while size(&full) > 40.0 && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(100));
    }
    println!(
        "all acknowledged: {:.1} MiB on disk {:.1} s later, {:.1} MiB of memory above empty",
        size(&full),
        begun.elapsed().as_secs_f64(),
        memory(&server, "VmRSS") - base
    );
    stop(server);
    let (server, _, opened) = start(&full);
    println!("started again: ready in {} ms, {:.1} MiB on disk", opened.as_millis(), size(&full));
    stop(server);

    let (server, address, _) = start(&empty);
    let base = memory(&server, "VmRSS");
    let mut http = Http::connect(&address);
    for round in 0..4 {
        for group in (0..sessions / 4).collect::<Vec<_>>().chunks(100) {
            let name = |n: &usize| format!("guest-{round}-{n}");
            let sends: Vec<Value> = group
                .iter()
                .map(|n| json!({ "to": { "session": name(n) }, "payload": { "welcome": n } }))
                .collect();
            let sent = call(&mut http, "POST", "/v1/messages", &json!(sends).to_string());
            let seqs: Vec<Value> =
                sent.as_array().expect("an array").iter().map(|s| s["seq"].clone()).collect();
            for (n, seq) in group.iter().zip(&seqs) {
                let got = call(&mut http, "GET", &format!("/v1/messages?session={}&wait=0", name(n)), "");
                assert_eq!(&got["messages"][0]["seq"], seq);
                call(&mut http, "POST", "/v1/ack", &json!({ "session": name(n), "seq": seq }).to_string());
            }
        }
        println!(
            "{} sessions came and left: {:.1} MiB above empty, {:.1} MiB on disk",
            (round + 1) * (sessions / 4),
            memory(&server, "VmRSS") - base,
            size(&empty)
        );
    }
    // A subscription of a poll stays for 15 s, and the allocator keeps freed memory for some seconds.
    for seconds in [20, 40] {
        std::thread::sleep(Duration::from_secs(20));
        println!("{seconds} s later: {:.1} MiB above empty", memory(&server, "VmRSS") - base);
    }
}
