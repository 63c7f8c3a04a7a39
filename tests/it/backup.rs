//! `backup` and `restore`: a copy of a store that is in use, and a client that was ahead of it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::common::*;

async fn run(command: &str, copy: &Path, data: &Path) -> Output {
    let mut process = Command::new(BINARY);
    process.arg(command).arg(copy).arg("--data-dir").arg(data);
    soon(process.output()).await.unwrap()
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].concat().iter().map(|byte| char::from(*byte)).collect()
}

#[tokio::test]
async fn what_was_sent_before_a_backup_is_there_after_a_restore() {
    let dir = tempfile::tempdir().unwrap();
    let (data, copy) = (dir.path().join("data"), dir.path().join("copy"));
    let server = TestServer::at(&data, &["--send-rate", "0", "--mailbox-messages", "100000"]).await;
    // How many messages of each sender were answered.
    let sent: Arc<[AtomicU64; 2]> = Arc::default();
    let done = Arc::new(AtomicBool::new(false));
    let senders = [0, 1].map(|sender| {
        let (address, sent, done) = (server.address, Arc::clone(&sent), Arc::clone(&done));
        tokio::spawn(async move {
            let mut http = Http::connect(address).await;
            let mut n = 0;
            while !done.load(Ordering::SeqCst) {
                let body = json!({ "to": { "session": format!("to-{sender}") }, "payload": n });
                assert_eq!(http.post("/v1/messages?session=from", body).await.status, 200);
                n += 1;
                sent[sender].store(n, Ordering::SeqCst);
            }
        })
    });
    let enough = |least: u64| {
        let sent = Arc::clone(&sent);
        soon(async move {
            while sent.iter().any(|sent| sent.load(Ordering::SeqCst) < least) {
                tokio::task::yield_now().await;
            }
        })
    };
    enough(200).await;
    let seq = server.send("S", "A", json!("before")).await;
    let before = [0, 1].map(|sender| sent[sender].load(Ordering::SeqCst));
    let output = run("backup", &copy, &data).await;
    assert!(output.status.success() && said(&output).contains("intact"), "{output:?}");
    // The broker goes on.
    enough(before[0].max(before[1]) + 50).await;
    let after = server.send("S", "A", json!("after")).await;
    done.store(true, Ordering::SeqCst);
    for sender in senders {
        soon(sender).await.unwrap();
    }
    let epoch = server.read_all("S").await.epoch;
    server.stop().await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&copy), mode(&copy.join("store.db"))), (0o700, 0o600));
    let held = check_json(&copy);
    assert_eq!(held["intact"], true, "{held}");

    let restored = dir.path().join("restored");
    let output = run("restore", &copy, &restored).await;
    assert!(output.status.success() && said(&output).contains("new epoch"), "{output:?}");
    let server = TestServer::at(&restored, &[]).await;
    let log = server.log_so_far();
    assert!(log.contains("a copy of another one") && !log.contains("ERROR"), "{log}");
    for (sender, before) in before.into_iter().enumerate() {
        let mailbox = server.read_all(&format!("to-{sender}")).await;
        let numbers: Vec<u64> = mailbox.messages.values().map(|n| n.as_u64().unwrap()).collect();
        assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "each once, in order: {numbers:?}");
        assert!(numbers.len() as u64 >= before, "{} of {before}", numbers.len());
    }
    // A client that has read what was sent after the backup learns that this is not there, and gets the rest.
    let mut client = server.ws("").await;
    client.send(json!({ "type": "hello", "session": "A", "after": after, "epoch": epoch })).await;
    let welcome = client.recv().await;
    assert_ne!(welcome["epoch"], Value::from(epoch));
    let mut frames = Vec::new();
    while frames.len() < 2 {
        frames.push(client.recv().await);
    }
    assert!(frames.iter().any(|frame| frame["type"] == "gap"), "{frames:?}");
    assert!(frames.iter().any(|frame| frame["payload"] == "before" && frame["seq"] == seq), "{frames:?}");
    // No seq is given twice.
    assert!(server.send("S", "A", json!("later")).await > after);
    server.stop().await;
}

#[tokio::test]
async fn a_backup_overwrites_nothing_and_a_restore_neither() {
    let dir = tempfile::tempdir().unwrap();
    let (data, copy) = (dir.path().join("data"), dir.path().join("copy"));
    let output = run("backup", &copy, &data).await;
    assert!(!output.status.success() && said(&output).contains("there is no store"), "{output:?}");
    assert!(!copy.exists());
    let server = TestServer::at(&data, &[]).await;
    server.send("S", "A", json!(1)).await;
    // A store that nobody uses is copied too.
    server.stop().await;
    assert!(run("backup", &copy, &data).await.status.success());
    for (command, to) in [("backup", &data), ("restore", &data)] {
        let output = run(command, &copy, to).await;
        assert!(!output.status.success() && said(&output).contains("name an empty directory"), "{output:?}");
    }
    assert_eq!(check_json(&copy)["messages"], 1);
    // A copy that is damaged is not put back.
    let path = copy.join("store.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0x55);
    std::fs::write(&path, bytes).unwrap();
    let output = run("restore", &copy, &dir.path().join("restored")).await;
    assert!(!output.status.success() && said(&output).contains("is damaged"), "{output:?}");
}

#[cfg(feature = "nats")]
#[tokio::test]
async fn with_nats_a_backup_is_that_of_nats() {
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("settings.toml");
    std::fs::write(&settings, "engine = \"nats\"\n").unwrap();
    for command in ["backup", "restore"] {
        let mut process = Command::new(BINARY);
        process.arg(command).arg(dir.path().join("copy")).arg("--config").arg(&settings);
        let output = soon(process.output()).await.unwrap();
        assert!(!output.status.success() && said(&output).contains("nats stream backup"), "{output:?}");
    }
}
