//! SIGUSR2: a new process takes over, and no client notices.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::watch;

use crate::common::*;

mod behind_haproxy;
mod clients;

use clients::{Load, Reader};

const SIGUSR2: i32 = 12;

/// A broker that hands over: the process that serves now. It is killed when dropped.
struct Upgraded {
    server: TestServer,
    pid: u32,
}

impl Upgraded {
    fn new(server: TestServer) -> Self {
        let pid = server.child.id().unwrap();
        Self { server, pid }
    }

    /// Hands over to a new process, and waits until that serves.
    async fn upgrade(&mut self) {
        let log = self.server.log_from_here();
        let before = self.server.log_so_far().len();
        signal(self.pid, SIGUSR2);
        log.contains("another process has taken over").await;
        let log = self.server.log_so_far();
        let entries = log[before..].lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let pid = entries.filter_map(|entry| entry["pid"].as_u64()).next_back();
        self.pid = u32::try_from(pid.expect("the log names the new process")).unwrap();
    }

    /// Stops the process that serves; the log of all.
    async fn stop(self) -> String {
        let log = self.server.log_from_here();
        signal(self.pid, 15);
        log.contains("\"stopped\"").await;
        self.server.log_so_far()
    }
}

impl Drop for Upgraded {
    fn drop(&mut self) {
        // It may have ended.
        _ = std::process::Command::new("kill").args(["-9", &self.pid.to_string()]).output();
    }
}

/// How many x0 pages, sockets and event streams there are, sends a second, and hand-overs.
fn size() -> (usize, usize, usize, u32, usize) {
    match std::env::var_os("X0_MSG_LONG_TESTS").is_some() {
        true => (200, 200, 50, 500, 10),
        false => (20, 20, 8, 150, 3),
    }
}

#[tokio::test]
async fn no_client_notices_that_new_processes_take_over() {
    let (pages, sockets, streams, rate, times) = size();
    let mut broker =
        Upgraded::new(TestServer::with(&["--connections-per-address", "0", "--send-rate", "0"]).await);
    let load = Load::new(broker.server.address);
    let kinds = [(Reader::X0, pages), (Reader::Socket, sockets), (Reader::Events, streams)];
    let (mut senders, mut readers) = (Vec::new(), Vec::new());
    for (kind, count) in kinds {
        let names: Vec<String> = (0..count).map(|n| format!("{kind:?}-{n}")).collect();
        let mut expected = Vec::new();
        for name in &names {
            let (sender, receiver) = watch::channel(None);
            readers.push(tokio::spawn(load.clone().read(kind, name.clone(), receiver)));
            expected.push(sender);
        }
        senders.push((tokio::spawn(load.clone().send(names, rate / 3)), expected));
    }
    for _ in 0..times {
        broker.upgrade().await;
        // Some messages between two hand-overs.
        let mut http = broker.server.http().await;
        for n in 0..20 {
            let body = json!({ "to": { "session": "between" }, "payload": n });
            assert_eq!(http.post("/v1/messages?session=between", body).await.status, 200);
        }
    }
    load.end();
    for (sender, expected) in senders {
        let sent = soon(sender).await.expect("no send has failed");
        for (expected, sent) in expected.iter().zip(sent) {
            expected.send_replace(Some(sent));
        }
    }
    for reader in readers {
        soon(reader).await.expect("every message comes once and in order");
    }
    let [delivery, answer] = load.slowest();
    println!("{times} hand-overs: slowest delivery {delivery:?}, slowest answer {answer:?}");
    let between = broker.server.read_all("between").await;
    assert_eq!(between.messages.len(), 20 * times);
    let log = broker.stop().await;
    assert!(!log.contains("ERROR"), "{log}");
}

/// A connection without a request, and one with half of a request, go on in the new process.
#[tokio::test]
async fn connections_that_wait_for_nothing_stay_open() {
    let mut broker = Upgraded::new(TestServer::start().await);
    let mut idle = broker.server.http().await;
    assert_eq!(idle.get("/v1/messages?session=A&wait=0").await.status, 200);
    // hyper serves this one.
    let mut idle_page = broker.server.http().await;
    assert_eq!(idle_page.get("/healthz").await.status, 200);
    let mut half = TcpStream::connect(broker.server.address).await.unwrap();
    half.write_all(b"GET /v1/messages?session=A&wa").await.unwrap();
    let mut half_page = TcpStream::connect(broker.server.address).await.unwrap();
    half_page.write_all(b"GET /healthz HTTP/1.1\r\nho").await.unwrap();
    // Whether they were accepted before the first hand-over does not matter.
    for _ in 0..2 {
        broker.upgrade().await;
        assert_eq!(idle.get("/v1/messages?session=A&wait=0").await.status, 200);
        assert_eq!(idle_page.get("/healthz").await.status, 200);
    }
    half.write_all(b"it=0 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    half_page.write_all(b"st: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    for stream in [&mut half, &mut half_page] {
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    broker.stop().await;
}

/// What an x0 page has received is not sent again by the new process, though the page has not polled since.
#[tokio::test]
async fn receipts_are_settled_before_the_store_goes() {
    let mut broker = Upgraded::new(TestServer::start().await);
    let mut page = broker.server.http().await;
    broker.server.send("B", "A", json!({ "n": 1 })).await;
    assert_eq!(page.x0("A").await.len(), 1);
    broker.upgrade().await;
    broker.server.send("B", "A", json!({ "n": 2 })).await;
    assert_eq!(page.x0("A").await, [json!({ "n": 2 })]);
    broker.stop().await;
}

fn script(dir: &Path, text: &str) -> String {
    let path = dir.join("x0-msg-server");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A copy of the program, which a test replaces.
async fn replaceable(dir: &Path) -> TestServer {
    let binary = dir.join("x0-msg-server");
    fs::copy(BINARY, &binary).unwrap();
    TestServer::spawn(&dir.join("data"), Command::new(binary)).await
}

/// A new process that does not get ready changes nothing: not even a waiting poll is answered.
#[tokio::test]
async fn a_new_process_that_does_not_start_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Upgraded::new(replaceable(dir.path()).await);
    let mut http = broker.server.http().await;
    let poll = tokio::spawn(async move { http.get("/v1/messages?session=A&wait=30").await });
    let mut socket = broker.server.session("C").await;
    broker.server.attached("A", 1).await;
    for program in ["#!/bin/sh\nexit 3\n", "no program", "#!/bin/sh\nexec 0<&-\nexec sleep 1\n"] {
        fs::remove_file(dir.path().join("x0-msg-server")).unwrap();
        script(dir.path(), program);
        let log = broker.server.log_from_here();
        signal(broker.pid, SIGUSR2);
        log.contains("the hand-over has failed; this process goes on").await;
    }
    socket.ping().await;
    broker.server.send("B", "A", json!(1)).await;
    assert_eq!(soon(poll).await.unwrap().payloads(), [json!(1)]);
    broker.stop().await;
}

/// A new process whose settings are wrong does not take over.
#[tokio::test]
async fn a_new_process_with_wrong_settings_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("settings.toml");
    fs::write(&settings, "poll-timeout = \"20s\"\n").unwrap();
    let mut command = Command::new(BINARY);
    command.arg("--config").arg(&settings);
    let mut broker = Upgraded::new(TestServer::spawn(&dir.path().join("data"), command).await);
    fs::write(&settings, "poll-timeuot = \"20s\"\n").unwrap();
    let log = broker.server.log_from_here();
    signal(broker.pid, SIGUSR2);
    log.contains("the hand-over has failed; this process goes on").await;
    assert_eq!(broker.server.get("/readyz").await.status, 200);
    fs::write(&settings, "poll-timeout = \"21s\"\n").unwrap();
    broker.upgrade().await;
    broker.stop().await;
}

/// A new process that ends after it was ready: the old one opens the store again, and serves at the same sockets.
#[tokio::test]
async fn the_old_process_serves_again_if_the_new_one_ends() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Upgraded::new(replaceable(dir.path()).await);
    let seq = broker.server.send("B", "A", json!("kept")).await;
    assert!(seq > 0);
    fs::remove_file(dir.path().join("x0-msg-server")).unwrap();
    // It gets ready, and cannot open a store in the end.
    script(dir.path(), &format!("#!/bin/sh\nX0_MSG_DATA_DIR=/proc/nowhere exec {BINARY} \"$@\"\n"));
    let log = broker.server.log_from_here();
    signal(broker.pid, SIGUSR2);
    log.contains("this one serves again").await;
    let mut http = broker.server.http().await;
    assert_eq!(http.get("/v1/messages?session=A&wait=0").await.payloads(), [json!("kept")]);
    let log = broker.stop().await;
    assert!(log.contains("/proc/nowhere"), "{log}");
}

/// A peer that does not answer the close frame holds up the others for some seconds at most.
#[tokio::test]
async fn a_slow_reader_does_not_hold_up_the_others_for_long() {
    let mut broker = Upgraded::new(TestServer::start().await);
    // It does not answer the close frame.
    let stuck = broker.server.session("stuck").await;
    let begun = std::time::Instant::now();
    broker.upgrade().await;
    assert!(begun.elapsed() < Duration::from_secs(20));
    drop(stuck);
    broker.stop().await;
}
