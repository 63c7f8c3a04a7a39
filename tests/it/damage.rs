//! Damaged files of a store: the damage is detected and reported. No payload is wrong, no loss is silent.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::common::*;

/// Copies a store whose server is not running.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Copies a store and keeps the inode of the database, so that the server does not take the copy for a backup.
fn copy_in_place(from: &Path, to: &Path) {
    let bytes = fs::read(from.join("bytes")).or_else(|_| {
        fs::copy(from.join("store.db"), from.join("bytes"))?;
        fs::read(from.join("bytes"))
    });
    copy(from, to);
    fs::remove_file(to.join("store.db")).unwrap();
    fs::remove_file(to.join("bytes")).unwrap();
    fs::hard_link(from.join("store.db"), to.join("store.db")).unwrap();
    fs::write(to.join("store.db"), bytes.unwrap()).unwrap();
}

/// Makes a store with confirmed messages, and ends its server by a crash (the log remains) or a stop.
async fn store(dir: &Path, crash: bool, messages: usize) -> BTreeMap<u64, Value> {
    let server = TestServer::at(dir, &[]).await;
    let mut sent = BTreeMap::new();
    for start in (0..messages).step_by(100) {
        let payloads: Vec<Value> =
            (start..start + 100).map(|n| json!({ "n": n, "x": "y".repeat(n % 500) })).collect();
        let sends: Vec<Value> =
            payloads.iter().map(|payload| json!({ "to": { "session": "B" }, "payload": payload })).collect();
        let reply = server.post("/v1/messages", json!(sends)).await.json();
        for (answer, payload) in reply.as_array().unwrap().iter().zip(payloads) {
            sent.insert(answer["seq"].as_u64().unwrap(), payload);
        }
    }
    if crash {
        server.kill().await;
    } else {
        server.stop().await;
    }
    sent
}

/// Checks that every message that was found is as it was sent. Returns whether one is missing.
fn compare(sent: &BTreeMap<u64, Value>, found: &BTreeMap<u64, Value>, what: &str) -> bool {
    for (seq, payload) in found {
        assert_eq!(sent.get(seq), Some(payload), "{what}: seq {seq} is not what was sent");
    }
    found.len() < sent.len()
}

/// Opens a damaged copy. If messages are missing, the log, `check` and a gap must say so.
async fn survive(dir: &Path, sent: &BTreeMap<u64, Value>, epoch: &str, what: &str) -> &'static str {
    let (intact, report) = check(dir);
    match TestServer::try_at(dir).await {
        Err(log) => {
            assert!(log.contains("store.db"), "{what}: {log}");
            assert!(!intact, "{what}: {report}");
            "refused"
        }
        Ok(server) => {
            let Mailbox { epoch: now, messages: found, gaps } = server.read_all("B").await;
            let log = server.kill().await;
            if compare(sent, &found, what) {
                let said = log.contains("stored messages may be missing") && now != epoch;
                let told = log.contains("is damaged") && gaps.iter().any(|gap| gap["reason"] == "lost");
                assert!(
                    said || told,
                    "{what}: {} of {} are there, and nobody said so\n{log}",
                    found.len(),
                    sent.len()
                );
                assert!(!intact, "{what}: {report}");
                "partly"
            } else {
                "all"
            }
        }
    }
}

#[tokio::test]
async fn flipped_bits_are_never_a_wrong_payload_and_never_a_silent_loss() {
    let rounds = if std::env::var_os("X0_MSG_LONG_TESTS").is_some() { 500 } else { 24 };
    let dir = tempfile::tempdir().unwrap();
    let mut seen = BTreeMap::<_, usize>::new();
    for crash in [true, false] {
        let origin = dir.path().join(format!("origin-{crash}"));
        let sent = store(&origin, crash, 1500).await;
        let epoch = check_json(&origin)["epoch"].as_str().unwrap().to_owned();
        for round in 0..rounds {
            let seed = fastrand::u64(..);
            let mut random = fastrand::Rng::with_seed(seed);
            let broken = dir.path().join("broken");
            copy_in_place(&origin, &broken);
            let file = if crash && random.bool() { "store.db-wal" } else { "store.db" };
            let mut bytes = fs::read(broken.join(file)).unwrap();
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            for _ in 0..random.usize(1..4) {
                bytes[random.usize(..used)] ^= 1 << random.u32(..8);
            }
            fs::write(broken.join(file), bytes).unwrap();
            let what = format!("crash {crash}, round {round}, seed {seed}, {file}");
            *seen.entry((file, survive(&broken, &sent, &epoch, &what).await)).or_default() += 1;
            fs::remove_dir_all(&broken).unwrap();
        }
    }
    println!("{seen:?}");
}

#[tokio::test]
async fn truncated_and_missing_files_are_detected() {
    let dir = tempfile::tempdir().unwrap();
    let origin = dir.path().join("origin");
    let sent = store(&origin, true, 1500).await;
    let log_of = async |name: &str, damage: &dyn Fn(&Path)| {
        let broken = dir.path().join(name);
        copy_in_place(&origin, &broken);
        damage(&broken);
        match TestServer::try_at(&broken).await {
            Err(log) => (log, None),
            Ok(server) => {
                let found = server.read_all("B").await.messages;
                compare(&sent, &found, name);
                (server.kill().await, Some(found))
            }
        }
    };
    let cut = |name: &'static str, keep: f64| {
        move |dir: &Path| {
            let file = fs::File::options().write(true).open(dir.join(name)).unwrap();
            let length = file.metadata().unwrap().len();
            file.set_len((length as f64 * keep) as u64).unwrap();
        }
    };
    let (log, found) = log_of("wal-cut", &cut("store.db-wal", 0.01)).await;
    assert!(log.contains("store.db-wal was cut short"), "{log}");
    assert!(found.unwrap().len() < sent.len());
    let (log, _) = log_of("wal-missing", &|dir| fs::remove_file(dir.join("store.db-wal")).unwrap()).await;
    assert!(log.contains("store.db-wal is missing"), "{log}");
    let (log, found) = log_of("db-missing", &|dir| fs::remove_file(dir.join("store.db")).unwrap()).await;
    assert!(found.is_none(), "a store without its file is not started empty");
    assert!(log.contains("store.db is missing") && log.contains("backup"), "{log}");

    // The same for a store after a stop, where everything is in one file.
    let origin = dir.path().join("whole");
    let sent = store(&origin, false, 1500).await;
    assert!(!origin.join("store.db-wal").exists());
    for (keep, what) in [(0.5, "half"), (0.0, "nothing")] {
        let broken = dir.path().join(what);
        copy_in_place(&origin, &broken);
        cut("store.db", keep)(&broken);
        let (intact, report) = check(&broken);
        assert!(!intact, "{report}");
        match TestServer::try_at(&broken).await {
            Err(log) => assert!(log.contains("damaged") || log.contains("missing"), "{what}: {log}"),
            Ok(server) => {
                let found = server.read_all("B").await.messages;
                let log = server.kill().await;
                assert!(compare(&sent, &found, what), "{what}");
                assert!(
                    !found.is_empty() && log.contains("saved") && log.contains("missing"),
                    "{what}: {log}"
                );
                // The damaged files are kept for inspection.
                let aside = fs::read_dir(&broken).unwrap();
                let aside =
                    aside.flatten().find(|file| file.file_name().to_str().unwrap().starts_with("damaged-"));
                assert!(aside.unwrap().path().join("store.db").exists());
            }
        }
    }
}

/// An unfinished write at a crash is not damage.
#[tokio::test]
async fn a_torn_last_write_is_discarded_and_logged() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::at(dir.path(), &[]).await;
    for n in 0..20 {
        server.send("A", "B", json!(n)).await;
    }
    let epoch = server.get("/v1/messages?session=B&wait=0").await.json()["epoch"].clone();
    server.kill().await;
    // An unfinished page after the last commit.
    let wal = dir.path().join("store.db-wal");
    let mut bytes = fs::read(&wal).unwrap();
    let salt = bytes[16..24].to_vec();
    let frame = (32..).step_by(4120).find(|at| bytes[at + 8..at + 16] != salt).unwrap();
    bytes[frame..frame + 8].copy_from_slice(&[0, 0, 0, 5, 0, 0, 0, 0]);
    bytes[frame + 8..frame + 16].copy_from_slice(&salt);
    bytes[frame + 30] = 7;
    fs::write(&wal, bytes).unwrap();
    let server = TestServer::try_at(dir.path()).await.unwrap();
    let answer = server.get("/v1/messages?session=B&wait=0").await;
    assert_eq!(answer.payloads(), (0..20).map(|n| json!(n)).collect::<Vec<_>>());
    assert_eq!(answer.json()["epoch"], epoch, "nothing was lost: the same epoch");
    server.stop().await;
}

#[tokio::test]
async fn a_store_in_use_or_of_a_newer_format_or_another_program_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::at(dir.path(), &[]).await;
    let log = TestServer::try_at(dir.path()).await.err().unwrap();
    assert!(log.contains("another process uses the store") && log.contains("--data-dir"), "{log}");
    let (intact, report) = check(dir.path());
    assert!(intact && report.contains("a server uses this store now"), "{report}");
    server.stop().await;
    fs::write(dir.path().join("format"), "x0-msg-server store, format 4\n").unwrap();
    let log = TestServer::try_at(dir.path()).await.err().unwrap();
    assert!(log.contains("format 4") && log.contains("newer"), "{log}");
    fs::write(dir.path().join("format"), "x0-msg-server store, format 1\n").unwrap();
    TestServer::try_at(dir.path()).await.unwrap().stop().await;

    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("store.db"), "no database at all, but something of somebody else's").unwrap();
    let log = TestServer::try_at(other.path()).await.err().unwrap();
    assert!(log.contains("store.db"), "{log}");
    assert_eq!(fs::read(other.path().join("store.db")).unwrap()[..2], *b"no", "it is left alone");
}

/// A restored backup assigns seqs that were assigned before, so it gets a new epoch.
#[tokio::test]
async fn a_copied_store_begins_a_new_epoch_and_keeps_its_messages() {
    let dir = tempfile::tempdir().unwrap();
    let (store, backup) = (dir.path().join("store"), dir.path().join("backup"));
    let server = TestServer::at(&store, &[]).await;
    server.send("A", "B", json!("before")).await;
    let epoch = server.get("/v1/messages?session=B&wait=0").await.json()["epoch"].clone();
    server.stop().await;
    copy(&store, &backup);
    let server = TestServer::at(&store, &[]).await;
    let lost = server.send("A", "B", json!("after the backup")).await;
    server.stop().await;
    let server = TestServer::at(&backup, &[]).await;
    let next = server.send("A", "B", json!("after the restore")).await;
    assert!(next > lost, "no seq is given twice");
    let target = format!("/v1/messages?session=B&after={lost}&epoch={}&wait=0", epoch.as_str().unwrap());
    let answer = server.get(&target).await;
    assert_ne!(answer.json()["epoch"], epoch);
    assert_eq!(answer.payloads(), [json!("before"), json!("after the restore")]);
    assert_eq!(answer.json()["gaps"][0]["reason"], "epoch");
    let log = server.stop().await;
    assert!(log.contains("a copy of another one"), "{log}");
    // The epoch changes once only.
    let server = TestServer::at(&backup, &[]).await;
    let log = server.stop().await;
    assert!(!log.contains("a new epoch begins"), "{log}");
}

#[tokio::test]
async fn check_reports_what_a_store_holds_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (intact, report) = check(dir.path());
    assert!(!intact && report.contains("there is no store"), "{report}");
    for crash in [false, true] {
        let dir = dir.path().join(crash.to_string());
        store(&dir, crash, 200).await;
        let server = TestServer::at(&dir, &[]).await;
        server.post("/v1/messages", json!({ "to": { "topic": "news" }, "payload": 1 })).await;
        if crash {
            server.kill().await;
        } else {
            server.stop().await;
        }
        let bytes = |name: &str| fs::read(dir.join(name)).ok();
        let before = (bytes("store.db"), bytes("store.db-wal"));
        let (intact, report) = check(&dir);
        assert!(intact, "{report}");
        for line in ["mailboxes  1", "topics     1", "messages   201", "oldest     20"] {
            assert!(report.contains(line), "{line}: {report}");
        }
        assert!((bytes("store.db"), bytes("store.db-wal")) == before, "crash: {crash}");
    }
}

/// A reader that brings a position and no epoch is told once that messages may be missing after it, at each door, and gets
/// the intact ones.
#[tokio::test]
async fn a_position_without_its_epoch_is_told_a_loss_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, backup) = (dir.path().join("store"), dir.path().join("backup"));
    let to_all = async |server: &TestServer, n: u64| {
        let mut seqs = [0; 3];
        for (seq, session) in seqs.iter_mut().zip(["B", "C", "D"]) {
            *seq = server.send("A", session, json!(n)).await;
        }
        seqs
    };
    let server = TestServer::at(&store, &[]).await;
    let first = to_all(&server, 1).await;
    let second = to_all(&server, 2).await;
    server.stop().await;
    copy(&store, &backup);
    let server = TestServer::at(&store, &[]).await;
    let lost = to_all(&server, 3).await;
    server.stop().await;
    let server = TestServer::at(&backup, &[]).await;
    // On a socket, after the intact message and before what comes later.
    let mut socket = server.ws(&format!("?session=B&after={}", first[0])).await;
    assert_eq!(socket.recv().await["type"], "welcome");
    assert_eq!(socket.payload().await, 2);
    let gap = socket.recv().await;
    assert_eq!((&gap["from"], &gap["reason"]), (&json!(second[0]), &json!("lost")), "{gap}");
    let through = gap["to"].as_u64().unwrap();
    assert!(through > lost[2]);
    // On a stream, to a reader who had what is lost.
    let mut events = Events::open(&server, "?session=C", Some(lost[1])).await;
    assert_eq!(events.next().await.name, "welcome");
    let told = events.next().await;
    assert_eq!(told.name, "gap");
    assert_eq!((&told.data["to"], &told.data["reason"]), (&json!(through), &json!("lost")), "{told:?}");
    to_all(&server, 4).await;
    assert_eq!(socket.payload().await, 4);
    assert_eq!(events.next().await.data["payload"], 4);
    // By polls: what comes after the gap is told without it.
    let polled = server.get(&format!("/v1/messages?session=D&after={}&wait=0", second[2])).await;
    assert_eq!(polled.payloads(), [4]);
    let gap = &polled.json()["gaps"][0];
    assert_eq!((&gap["to"], &gap["reason"]), (&json!(through), &json!("lost")), "{gap}");
    let polled = server.get(&format!("/v1/messages?session=D&after={through}&wait=0")).await;
    assert_eq!(polled.payloads(), [4]);
    assert!(polled.json()["gaps"].as_array().is_none_or(Vec::is_empty), "{}", polled.body);
    // What the broker remembers of it survives a restart.
    server.kill().await;
    let server = TestServer::at(&backup, &[]).await;
    let polled = server.get(&format!("/v1/messages?session=B&after={}&wait=0", second[0])).await;
    assert_eq!(polled.json()["gaps"][0]["reason"], "lost", "{}", polled.body);
}
