//! A full or failing disk: sends are refused with the reason, reads and acks work, no confirmed message is missing,
//! and the server recovers by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::common::*;

/// A small file system in memory.
struct Small {
    at: PathBuf,
    _dir: tempfile::TempDir,
}

impl Small {
    /// Fails with the reason if this machine cannot mount one.
    fn new(size: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("small");
        std::fs::create_dir(&at).unwrap();
        output_of("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "none", at.to_str().unwrap()])?;
        Ok(Self { at, _dir: dir })
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        _ = output_of("umount", &[self.at.to_str().unwrap()]);
    }
}

const SESSIONS: usize = 20;

fn payload(n: usize) -> Value {
    json!({ "n": n, "x": "x".repeat(16_000) })
}

fn send(n: usize) -> Value {
    json!({ "id": format!("n-{n}"), "to": { "session": format!("B{}", n % SESSIONS) }, "payload": payload(n) })
}

/// Sends until the server refuses. Returns the confirmed messages by session, the refusal, and the refused number.
async fn fill(server: &TestServer, from: usize) -> (Vec<Vec<(u64, usize)>>, Reply, usize) {
    let mut confirmed = vec![Vec::new(); SESSIONS];
    let mut http = server.http().await;
    let mut n = from;
    loop {
        let reply = http.post("/v1/messages?session=A", send(n)).await;
        if reply.status != 200 {
            return (confirmed, reply, n);
        }
        confirmed[n % SESSIONS].push((reply.json()["seq"].as_u64().unwrap(), n));
        n += 1;
        assert!(n < from + 20_000, "the disk does not get full");
    }
}

/// Checks that every confirmed message is there as it was sent, and acknowledges it.
async fn check_and_acknowledge(server: &TestServer, confirmed: &[Vec<(u64, usize)>]) {
    for (session, expected) in confirmed.iter().enumerate() {
        let found = server.read_all(&format!("B{session}")).await.messages;
        let expected: BTreeMap<_, _> = expected.iter().map(|(seq, n)| (*seq, payload(*n))).collect();
        assert_eq!(found, expected, "B{session}");
    }
}

/// Checks that every confirmed message is there, without acknowledging it: a socket reads it.
async fn check_without_acknowledging(server: &TestServer, confirmed: &[Vec<(u64, usize)>]) {
    for (session, expected) in confirmed.iter().enumerate() {
        let mut socket = server.session(&format!("B{session}")).await;
        for (seq, n) in expected {
            let message = socket.message().await;
            assert_eq!((&message["seq"], &message["payload"]["n"]), (&json!(seq), &json!(n)));
        }
    }
}

/// Sends the refused message until it is stored. After such a refusal, the message may or may not be stored; the
/// same id makes the retry harmless.
async fn retry_until_stored(server: &TestServer, n: usize) -> u64 {
    soon(async {
        loop {
            let reply = server.post("/v1/messages?session=A", send(n)).await;
            match reply.status {
                200 => return reply.json()["seq"].as_u64().unwrap(),
                _ => assert!(
                    reply.code() == "unavailable" && reply.body.contains("no space"),
                    "{}",
                    reply.body
                ),
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_full_disk_refuses_senders_and_recovers_when_readers_make_room() {
    let small = match Small::new("64m") {
        Ok(small) => small,
        Err(reason) => {
            println!("not tested: this machine lets nobody mount a tmpfs ({reason})");
            return;
        }
    };
    let store = small.at.join("store");
    let server = TestServer::at(&store, &[]).await;
    let (confirmed, refusal, n) = fill(&server, 0).await;
    assert_eq!((refusal.status, refusal.code().as_str()), (503, "unavailable"));
    assert!(refusal.body.contains("no space is left"), "{}", refusal.body);
    assert_eq!(refusal.header("retry-after"), "1");
    let health = server.get("/healthz").await.json();
    let failing = health["failing"].as_array().unwrap();
    assert_eq!((&health["status"], failing.len()), (&json!("degraded"), 1), "{health}");
    assert!(failing[0].as_str().unwrap().contains("no space is left"), "{health}");
    assert_eq!(server.get("/readyz").await.status, 200, "acknowledgements make room");
    assert!(n > 500, "{n}");
    check_without_acknowledging(&server, &confirmed).await;

    // It is killed and started again while the disk is full.
    let log = server.kill().await;
    assert!(log.contains("cannot take messages now"), "{log}");
    let server = TestServer::at(&store, &[]).await;
    check_without_acknowledging(&server, &confirmed).await;
    let (more, _, n) = fill(&server, n).await;
    let confirmed: Vec<_> = confirmed.into_iter().zip(more).map(|(old, new)| [old, new].concat()).collect();
    let epoch = server.get("/healthz").await.json()["epoch"].clone();
    // A registration needs space too; the end of a session needs none.
    let register = async || server.http().await.request("PUT", "/v1/sessions/new", &[], "{}").await;
    let reply = register().await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "unavailable"));
    assert_eq!(server.http().await.request("DELETE", "/v1/sessions/new", &[], "").await.status, 204);

    // Half of the readers acknowledge on the full disk. That frees space without a restart.
    for (session, messages) in confirmed.iter().enumerate().skip(SESSIONS / 2) {
        let ack = json!({ "session": format!("B{session}"), "seq": messages.last().unwrap().0 });
        assert_eq!(server.post("/v1/ack", &ack).await.status, 200);
    }
    let seq = retry_until_stored(&server, n).await;
    assert_eq!(retry_until_stored(&server, n).await, seq, "the same id is stored once");
    soon(async { while server.get("/healthz").await.json()["status"] != "ok" {} }).await;
    assert_eq!(register().await.status, 200);
    let mut kept: Vec<_> = confirmed
        .iter()
        .enumerate()
        .map(|(n, messages)| if n < SESSIONS / 2 { messages.clone() } else { Vec::new() })
        .collect();
    kept[n % SESSIONS].push((seq, n));
    check_and_acknowledge(&server, &kept).await;
    let log = server.stop().await;
    assert!(log.contains("takes messages again"), "{log}");
    let server = TestServer::at(&store, &[]).await;
    assert_eq!(server.get("/healthz").await.json()["epoch"], epoch);
    server.stop().await;

    // Another process fills the disk to the last byte, and frees it.
    let server = TestServer::at(&store, &[]).await;
    let mut read = vec![Vec::new(); SESSIONS];
    for n in 50_000..50_040 {
        read[n % SESSIONS].push((retry_until_stored(&server, n).await, n));
    }
    let filler = small.at.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    let (_, refusal, n) = fill(&server, 100_000).await;
    assert_eq!(refusal.code(), "unavailable");
    check_without_acknowledging(&server, &read).await;
    let ack = json!({ "session": "B0", "seq": read[0].last().unwrap().0 });
    assert_eq!(server.post("/v1/ack", &ack).await.status, 200);
    drop(file);
    std::fs::remove_file(filler).unwrap();
    retry_until_stored(&server, n).await;
    server.stop().await;

    // On a read-only disk it does not start, and says why.
    output_of("mount", &["-o", "remount,ro", small.at.to_str().unwrap()]).unwrap();
    let log = TestServer::try_at(&store).await.err().unwrap();
    assert!(log.contains("Read-only file system"), "{log}");
}

#[tokio::test]
async fn a_session_ends_on_a_full_disk_though_a_registration_waits() {
    let small = match Small::new("48m") {
        Ok(small) => small,
        Err(reason) => {
            println!("not tested: this machine lets nobody mount a tmpfs ({reason})");
            return;
        }
    };
    let store = small.at.join("store");
    let server = TestServer::at(&store, &[]).await;
    let put = async |server: &TestServer, session: &str| {
        server.http().await.request("PUT", &format!("/v1/sessions/{session}"), &[], "{}").await
    };
    assert_eq!(put(&server, "B").await.status, 200);
    server.send("A", "B", json!("private")).await;
    let mut file = std::fs::File::create(small.at.join("filler")).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    // The room that was seen a moment ago counts for a moment.
    soon(async { while put(&server, "new").await.status == 200 {} }).await;
    assert_eq!(put(&server, "other").await.code(), "unavailable");
    assert_eq!(server.http().await.request("DELETE", "/v1/sessions/B", &[], "").await.status, 204);
    server.kill().await;
    let server = TestServer::at(&store, &[]).await;
    assert_eq!(server.get("/v1/sessions/B").await.status, 404, "after a crash too");
}

/// Starts a server with a limit on the size of its files: writes beyond it fail for another reason than space.
async fn limited(dir: &Path, bytes: u64) -> TestServer {
    let mut command = Command::new("prlimit");
    command.arg(format!("--fsize={bytes}:unlimited")).arg(BINARY);
    TestServer::spawn(dir, command).await
}

#[tokio::test]
async fn a_disk_that_fails_refuses_senders_and_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = limited(dir.path(), 20 << 20).await;
    let (confirmed, refusal, n) = fill(&server, 0).await;
    assert_eq!((refusal.status, refusal.code().as_str()), (503, "unavailable"));
    assert!(refusal.body.contains("--data-dir"), "{}", refusal.body);
    check_without_acknowledging(&server, &confirmed).await;
    let ack = json!({ "session": "B0", "seq": confirmed[0].last().unwrap().0 });
    assert_eq!(server.post("/v1/ack", &ack).await.status, 200);
    // The disk works again.
    let pid = server.child.id().unwrap().to_string();
    output_of("prlimit", &["--pid", &pid, "--fsize=unlimited"]).unwrap();
    let seq = retry_until_stored(&server, n).await;
    let mut kept: Vec<_> =
        confirmed.iter().enumerate().map(|(n, m)| if n == 0 { Vec::new() } else { m.clone() }).collect();
    kept[n % SESSIONS].push((seq, n));
    check_without_acknowledging(&server, &kept).await;
    server.kill().await;
    let server = TestServer::at(dir.path(), &[]).await;
    check_and_acknowledge(&server, &kept).await;
}

#[tokio::test]
async fn a_registration_and_an_end_that_are_refused_are_not_done() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::at(dir.path(), &[]).await;
    let call = async |method: &str, session: &str| {
        let body = if method == "PUT" { r#"{"user":"ann"}"# } else { "" };
        server.http().await.request(method, &format!("/v1/sessions/{session}"), &[], body).await
    };
    assert_eq!(call("PUT", "B").await.status, 200);
    server.send("A", "B", json!("first")).await;
    let mut reader = server.session("B").await;
    assert_eq!(reader.payload().await, "first");

    // Every write to a file fails.
    let pid = server.child.id().unwrap().to_string();
    let limit = |bytes: &str| output_of("prlimit", &["--pid", &pid, &format!("--fsize={bytes}:unlimited")]);
    limit("1").unwrap();
    for (method, session) in [("PUT", "new"), ("DELETE", "B")] {
        let reply = call(method, session).await;
        assert_eq!((reply.status, reply.code().as_str()), (503, "unavailable"), "{method}");
    }
    assert_eq!(call("GET", "new").await.status, 404, "it is not registered");
    let known = call("GET", "B").await.json();
    assert_eq!((&known["user"], &known["pending"]), (&json!("ann"), &json!(1)), "it has not ended");
    reader.ping().await;

    limit("unlimited").unwrap();
    soon(async { while call("PUT", "new").await.status != 200 {} }).await;
    server.send("A", "B", json!("second")).await;
    assert_eq!(reader.payload().await, "second");
    soon(async { while call("DELETE", "B").await.status != 204 {} }).await;
    assert_eq!(reader.closed().await.0, 4502);
    server.kill().await;
    let server = TestServer::at(dir.path(), &[]).await;
    assert_eq!(server.get("/v1/sessions/B").await.status, 404);
    assert_eq!(server.get("/v1/sessions/new").await.json()["user"], "ann");
}
