//! Crashes: a message that was confirmed is delivered in order, under one seq, and stored once.
//!
//! The process is killed, or the machine loses power, under load. The senders repeat each message that was not
//! answered, with the same id. The readers use all transports and acknowledge now and then.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

use crate::common::*;

const SENDERS: usize = 4;
const MAILBOXES: [&str; 4] = ["by-websocket", "by-poll", "by-sse", "by-x0"];
/// The unanswered messages of a sender, at most.
const WINDOW: usize = 16;

/// The name of a message: its sender, and its number at this sender.
type Name = (usize, u64);

/// The answers that the senders received.
#[derive(Default)]
struct Ledger {
    /// The confirmed seq of each message, by mailbox and name.
    confirmed: Mutex<HashMap<(&'static str, Name), u64>>,
    /// Notified at each confirmation.
    changed: Notify,
    stop: AtomicBool,
}

/// The current address of the server; `None` while there is no server.
type Where = watch::Receiver<Option<std::net::SocketAddr>>;

async fn address(place: &mut Where) -> std::net::SocketAddr {
    soon(place.wait_for(Option::is_some)).await.unwrap().unwrap()
}

/// Sends until `stop` is set and every message is answered. Returns the number of messages.
async fn sender(me: usize, mut place: Where, ledger: Arc<Ledger>) -> u64 {
    let mut next = 0;
    let mut unanswered: VecDeque<u64> = VecDeque::new();
    let mailbox = |n: u64| MAILBOXES[(n as usize + me) % MAILBOXES.len()];
    let frame = |n: u64| {
        let payload = json!({ "s": me, "n": n, "fill": "x".repeat(n as usize * 7 % 300) });
        let id = format!("{me}-{n}");
        Message::text(
            json!({ "type": "send", "id": id, "to": { "session": mailbox(n) }, "payload": payload })
                .to_string(),
        )
    };
    loop {
        let url = format!("ws://{}/ws?session=S{me}", address(&mut place).await);
        let Ok((mut socket, _)) = connect_async(url).await else {
            tokio::task::yield_now().await;
            continue;
        };
        // Unanswered messages go first, in order.
        for n in &unanswered {
            _ = socket.feed(frame(*n)).await;
        }
        _ = socket.flush().await;
        loop {
            let stopping = ledger.stop.load(Ordering::SeqCst);
            if stopping && unanswered.is_empty() {
                return next;
            }
            while !stopping && unanswered.len() < WINDOW {
                unanswered.push_back(next);
                _ = socket.feed(frame(next)).await;
                next += 1;
            }
            if socket.flush().await.is_err() {
                break;
            }
            let Some(Ok(frame)) = socket.next().await else { break };
            let Message::Text(text) = frame else { continue };
            let answer: Value = serde_json::from_str(&text).unwrap();
            match answer["type"].as_str().unwrap() {
                "sent" => {
                    let n = unanswered.pop_front().unwrap();
                    assert_eq!(answer["id"], format!("{me}-{n}"), "answers come in order");
                    let seq = answer["seq"].as_u64().unwrap();
                    ledger.confirmed.lock().unwrap().insert((mailbox(n), (me, n)), seq);
                    ledger.changed.notify_one();
                }
                "welcome" => {}
                _ => panic!("{answer}"),
            }
        }
    }
}

/// What one reader received.
#[derive(Default)]
struct Got {
    seqs: HashMap<Name, u64>,
    names: BTreeMap<u64, Name>,
    /// The numbers of each sender's messages, in the order of their first arrival.
    firsts: HashMap<usize, Vec<u64>>,
    repeats: usize,
}

fn name(payload: &Value) -> Name {
    (payload["s"].as_u64().unwrap() as usize, payload["n"].as_u64().unwrap())
}

impl Got {
    /// Checks that each message has one seq, and each seq one message.
    fn message(&mut self, seq: u64, payload: &Value) {
        let name = name(payload);
        let known = *self.names.entry(seq).or_insert(name);
        assert_eq!(known, name, "seq {seq} is two messages");
        match self.seqs.insert(name, seq) {
            Some(before) => {
                assert_eq!(before, seq, "message {name:?} has two seqs");
                self.repeats += 1;
            }
            None => self.firsts.entry(name.0).or_default().push(name.1),
        }
    }

    /// The x0 client receives no seq for a single message.
    fn unnumbered(&mut self, payload: &Value) {
        let name = name(payload);
        match self.seqs.insert(name, 0) {
            Some(_) => self.repeats += 1,
            None => self.firsts.entry(name.0).or_default().push(name.1),
        }
    }

    fn has(&self, expected: &[Name]) -> bool {
        expected.iter().all(|name| self.seqs.contains_key(name))
    }
}

/// What a reader received so far.
#[derive(Default)]
struct Shared {
    got: Mutex<Got>,
    /// Notified at each change.
    changed: Notify,
}

impl Shared {
    fn message(&self, seq: u64, payload: &Value) {
        self.got.lock().unwrap().message(seq, payload);
        self.changed.notify_one();
    }

    fn unnumbered(&self, payload: &Value) {
        self.got.lock().unwrap().unnumbered(payload);
        self.changed.notify_one();
    }

    /// Waits until it has these messages. Panics if the reader ends before.
    async fn complete(&self, names: &[Name], reader: &mut JoinHandle<()>) {
        while !self.got.lock().unwrap().has(names) {
            tokio::select! {
                () = self.changed.notified() => {}
                ended = &mut *reader => panic!("the reader ended: {ended:?}"),
            }
        }
    }
}

async fn by_websocket(mut place: Where, got: Arc<Shared>) {
    let mut cursor = 0;
    loop {
        let query = if cursor > 0 { format!("&after={cursor}") } else { String::new() };
        let url = format!("ws://{}/ws?session=by-websocket{query}", address(&mut place).await);
        let Ok((mut socket, _)) = connect_async(url).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let mut last = 0;
        while let Some(Ok(frame)) = socket.next().await {
            let Message::Text(text) = frame else { continue };
            let frame: Value = serde_json::from_str(&text).unwrap();
            if frame["type"] != "message" {
                continue;
            }
            let seq = frame["seq"].as_u64().unwrap();
            assert!(seq > last, "one socket sees increasing seqs");
            last = seq;
            got.message(seq, &frame["payload"]);
            cursor = seq;
            if fastrand::u8(..8) == 0 {
                _ = socket.send(Message::text(json!({ "type": "ack", "seq": seq }).to_string())).await;
            }
        }
    }
}

/// Connects once there is a server.
async fn connect(place: &mut Where) -> Http {
    loop {
        match tokio::net::TcpStream::connect(address(place).await).await {
            Ok(stream) => return Http::on(stream, "x").await,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

async fn by_poll(mut place: Where, got: Arc<Shared>) {
    let mut cursor = None;
    loop {
        let mut http = connect(&mut place).await;
        loop {
            let after = cursor.map_or(String::new(), |cursor: u64| format!("&after={cursor}"));
            let target = format!("/v1/messages?session=by-poll&wait=5{after}");
            let Ok(reply) = http.try_request("GET", &target, &[], "").await else { break };
            assert_eq!(reply.status, 200, "{}", reply.body);
            let answer = reply.json();
            for message in answer["messages"].as_array().unwrap() {
                got.message(message["seq"].as_u64().unwrap(), &message["payload"]);
            }
            cursor = answer["seq"].as_u64().filter(|seq| *seq > 0);
        }
    }
}

async fn by_sse(mut place: Where, got: Arc<Shared>) {
    let mut last = None;
    loop {
        let place = address(&mut place).await;
        let Ok(mut events) = Events::try_open(place, "?session=by-sse", last).await else {
            tokio::task::yield_now().await;
            continue;
        };
        while let Some(event) = events.try_next().await {
            if let Some(seq) = event.id
                && event.name == "message"
            {
                got.message(seq, &event.data["payload"]);
                last = Some(seq);
            }
        }
    }
}

async fn by_x0(mut place: Where, got: Arc<Shared>) {
    loop {
        let mut http = connect(&mut place).await;
        loop {
            let body = x0_poll("by-x0").to_string();
            let Ok(reply) = http.try_request("POST", &x0_target(), &[], body).await else { break };
            for message in x0_messages(&reply) {
                got.unnumbered(&message);
            }
        }
    }
}

/// Senders and readers that follow the server from one start to the next.
struct Load {
    place: watch::Sender<Option<std::net::SocketAddr>>,
    ledger: Arc<Ledger>,
    senders: Vec<JoinHandle<u64>>,
    readers: Vec<(&'static str, JoinHandle<()>, Arc<Shared>)>,
}

impl Load {
    fn start(reading: bool) -> Self {
        let (place, at) = watch::channel(None);
        let ledger = Arc::<Ledger>::default();
        let senders =
            (0..SENDERS).map(|me| tokio::spawn(sender(me, at.clone(), Arc::clone(&ledger)))).collect();
        let mut readers = Vec::new();
        if reading {
            let shared = Arc::<Shared>::default;
            let (one, two, three, four) = (shared(), shared(), shared(), shared());
            readers = vec![
                (MAILBOXES[0], tokio::spawn(by_websocket(at.clone(), Arc::clone(&one))), one),
                (MAILBOXES[1], tokio::spawn(by_poll(at.clone(), Arc::clone(&two))), two),
                (MAILBOXES[2], tokio::spawn(by_sse(at.clone(), Arc::clone(&three))), three),
                (MAILBOXES[3], tokio::spawn(by_x0(at, Arc::clone(&four))), four),
            ];
        }
        Self { place, ledger, senders, readers }
    }

    /// Puts load on this server until so many messages are confirmed.
    async fn on(&self, server: &TestServer, messages: usize) {
        self.place.send_replace(Some(server.address));
        let before = self.confirmed();
        soon(async {
            while self.confirmed() < before + messages {
                self.ledger.changed.notified().await;
            }
        })
        .await;
    }

    fn confirmed(&self) -> usize {
        self.ledger.confirmed.lock().unwrap().len()
    }

    /// Stops the senders once every message is answered. Returns the number of messages.
    async fn answered(&mut self) -> u64 {
        self.ledger.stop.store(true, Ordering::SeqCst);
        let mut sent = 0;
        for sender in self.senders.drain(..) {
            sent += soon(sender).await.unwrap();
        }
        assert_eq!(sent as usize, self.confirmed());
        sent
    }

    fn expected(&self, mailbox: &str) -> HashMap<Name, u64> {
        let confirmed = self.ledger.confirmed.lock().unwrap();
        confirmed.iter().filter(|((to, _), _)| *to == mailbox).map(|((_, name), seq)| (*name, *seq)).collect()
    }

    /// Waits until every reader has every message, and compares them.
    async fn verify(mut self) {
        for (mailbox, mut reader, shared) in std::mem::take(&mut self.readers) {
            let expected = self.expected(mailbox);
            let names: Vec<Name> = expected.keys().copied().collect();
            let complete = shared.complete(&names, &mut reader);
            if tokio::time::timeout(SOON, complete).await.is_err() {
                let got = shared.got.lock().unwrap();
                let mut missing: Vec<_> =
                    expected.iter().filter(|(name, _)| !got.seqs.contains_key(name)).collect();
                missing.sort();
                panic!("{mailbox} misses {} of {}: {missing:?}", missing.len(), expected.len());
            }
            reader.abort();
            let got = shared.got.lock().unwrap();
            assert_eq!(got.seqs.len(), expected.len(), "{mailbox}: nothing that was not sent");
            for (name, seq) in expected {
                let at = got.seqs[&name];
                assert!(at == seq || mailbox == "by-x0", "{mailbox}: {name:?} was told {seq}, came as {at}");
            }
            for (sender, order) in &got.firsts {
                assert!(
                    order.is_sorted(),
                    "{mailbox}: the messages of {sender} came in another order: {order:?}"
                );
            }
        }
    }
}

fn is_long() -> bool {
    std::env::var_os("X0_MSG_LONG_TESTS").is_some()
}

const MANY: [&str; 4] = ["--mailbox-messages", "10000000", "--poll-timeout", "2s"];

#[tokio::test]
async fn a_killed_server_loses_nothing_and_repeats_no_send() {
    let rounds = if is_long() { 50 } else { 5 };
    let dir = tempfile::tempdir().unwrap();
    let mut load = Load::start(true);
    for _ in 0..rounds {
        let server = TestServer::at(dir.path(), &MANY).await;
        load.on(&server, fastrand::usize(50..1500)).await;
        load.place.send_replace(None);
        server.kill().await;
    }
    let server = TestServer::at(dir.path(), &MANY).await;
    load.place.send_replace(Some(server.address));
    let sent = load.answered().await;
    load.verify().await;
    println!("{sent} messages, {rounds} kills");
    let report = check_json(dir.path());
    assert_eq!(report["intact"], true, "{report}");
    server.stop().await;
}

/// A file system in a file. Its page cache is not in the file, so unsynced data is lost when the power is cut.
struct Disk {
    dir: TempDir,
    images: usize,
    mounted: Option<PathBuf>,
}

impl Disk {
    /// Fails with the reason if this machine cannot mount one.
    fn new() -> Result<Self, String> {
        let mut disk = Self { dir: tempfile::tempdir().unwrap(), images: 0, mounted: None };
        let image = disk.image();
        std::fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        output_of("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()])?;
        disk.mount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join(format!("image-{}", self.images))
    }

    fn mount(&mut self) -> Result<(), String> {
        let (image, at) = (self.image(), self.dir.path().join(format!("mounted-{}", self.images)));
        std::fs::create_dir(&at).unwrap();
        output_of("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()])?;
        self.mounted = Some(at);
        Ok(())
    }

    fn store(&self) -> PathBuf {
        self.mounted.as_ref().unwrap().join("store")
    }

    fn unmount(&mut self) {
        if let Some(at) = self.mounted.take() {
            output_of("umount", &[at.to_str().unwrap()]).unwrap();
        }
    }

    /// Cuts the power: only what has reached the disk remains.
    async fn cut(&mut self, server: TestServer) {
        server.signal(19);
        let image = self.image();
        self.images += 1;
        std::fs::copy(&image, self.image()).unwrap();
        server.kill().await;
        self.unmount();
        std::fs::remove_file(image).unwrap();
        self.mount().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// The number of confirmed messages that are missing or wrong after power cuts at this level.
async fn lost_by_power_cuts(disk: &mut Disk, level: &str, rounds: usize) -> usize {
    let mut load = Load::start(false);
    let args = ["--mailbox-messages", "10000000", "--durability", level];
    for _ in 0..rounds {
        let server = TestServer::at(&disk.store(), &args).await;
        load.on(&server, fastrand::usize(300..1500)).await;
        load.place.send_replace(None);
        disk.cut(server).await;
    }
    let server = TestServer::at(&disk.store(), &args).await;
    load.place.send_replace(Some(server.address));
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
