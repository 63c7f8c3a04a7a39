//! Crashes: a message that was confirmed is delivered in order, under one seq, and stored once.
//!
//! The process is killed, or the machine loses power, under load. The senders repeat each message that was not
//! answered, with the same id. The readers use all transports and acknowledge now and then.

mod disk;
pub mod load;
pub mod readers;

use std::collections::HashMap;

use disk::Disk;
use load::{Habits, Load, MAILBOXES};
use readers::{Name, name};
use serde_json::json;

use crate::common::*;

fn is_long() -> bool {
    std::env::var_os("X0_MSG_LONG_TESTS").is_some()
}

const MANY: [&str; 4] = ["--mailbox-messages", "10000000", "--poll-timeout", "2s"];

#[tokio::test]
async fn a_killed_server_loses_nothing_and_repeats_no_send() {
    let rounds = if is_long() { 50 } else { 5 };
    let dir = tempfile::tempdir().unwrap();
    let mut load = Load::start(Habits::one_server(true));
    for _ in 0..rounds {
        let server = TestServer::at(dir.path(), &MANY).await;
        load.on(&server, fastrand::usize(50..1500)).await;
        load.place.send_replace(Vec::new());
        server.kill().await;
    }
    let server = TestServer::at(dir.path(), &MANY).await;
    load.place.send_replace(vec![server.address]);
    let sent = load.answered().await;
    load.verify().await;
    println!("{sent} messages, {rounds} kills");
    let report = check_json(dir.path());
    assert_eq!(report["intact"], true, "{report}");
    server.stop().await;
}

/// A sender's last 1,000 ids are known after a kill, though another one sent more.
#[tokio::test]
async fn a_killed_server_knows_the_last_thousand_ids_of_each_sender() {
    let dir = tempfile::tempdir().unwrap();
    let array = |sender: &str, round: usize| -> serde_json::Value {
        let send =
            |n| json!({ "id": format!("{sender}-{round}-{n}"), "to": { "session": "A" }, "payload": n });
        (0..1000).map(send).collect()
    };
    let send = async |server: &TestServer, sender: &str, round| {
        let sent = server.post(&format!("/v1/messages?session={sender}"), array(sender, round)).await;
        assert_eq!(sent.status, 200);
        sent.json()
    };
    let server = TestServer::at(dir.path(), &MANY).await;
    let sent = send(&server, "S", 0).await;
    for round in 0..3 {
        send(&server, "F", round).await;
    }
    server.kill().await;
    let server = TestServer::at(dir.path(), &MANY).await;
    assert_eq!(send(&server, "S", 0).await, sent);
    assert_eq!(server.get("/v1/sessions/A").await.json()["pending"], 4000);
    server.stop().await;
}

/// The number of confirmed messages that are missing or wrong after power cuts at this level.
async fn lost_by_power_cuts(disk: &mut Disk, level: &str, rounds: usize) -> usize {
    let mut load = Load::start(Habits::one_server(false));
    let args = ["--mailbox-messages", "10000000", "--durability", level];
    for _ in 0..rounds {
        let server = TestServer::at(&disk.store(), &args).await;
        load.on(&server, fastrand::usize(300..1500)).await;
        load.place.send_replace(Vec::new());
        disk.cut(server).await;
    }
    let server = TestServer::at(&disk.store(), &args).await;
    load.place.send_replace(vec![server.address]);
    load.answered().await;
    let mut lost = 0;
    for mailbox in MAILBOXES {
        let expected = load.expected(mailbox);
        let found = server.read_all(mailbox).await.messages;
        let got: HashMap<Name, u64> = found.iter().map(|(seq, payload)| (name(payload), *seq)).collect();
        lost += expected.iter().filter(|(name, seq)| got.get(name) != Some(seq)).count();
    }
    server.kill().await;
    lost
}

#[tokio::test]
async fn power_cuts_lose_nothing_at_fsync_and_something_at_os() {
    let mut disk = match Disk::new() {
        Ok(disk) => disk,
        Err(reason) => {
            println!("not tested: this machine gives no loop device with a file system ({reason})");
            return;
        }
    };
    let rounds = if is_long() { 50 } else { 3 };
    assert_eq!(lost_by_power_cuts(&mut disk, "fsync", rounds).await, 0);
    std::fs::remove_dir_all(disk.store()).unwrap();
    let lost = lost_by_power_cuts(&mut disk, "os", 3).await;
    assert!(lost > 0, "without syncing, power cuts must lose something, or this test proves nothing");
    println!("fsync: {rounds} cuts, nothing lost; os: {lost} lost");
}
