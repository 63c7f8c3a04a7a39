//! Several threads use one engine at once: the order of each address, its bounds and all sums hold.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::runtime::Builder;

use crate::clock::Clock;
use crate::engine::embedded::{Durability, Embedded, Storage};
use crate::engine::{Append, Batch, Bounds, EngineError, QueueBounds, Settings};
use crate::hub::Hubs;
use crate::message::{
    Address, Author, Item, Kind, Message, MessageId, SenderName, Seq, SessionId, TopicName,
};

const THREADS: usize = 4;

/// Messages of each thread.
const EACH: usize = 600;

/// Messages in one mailbox.
const MAILBOX: usize = 40;

fn settings() -> Settings {
    let mailbox = Bounds { messages: MAILBOX, bytes: 1 << 20, age: Duration::from_secs(3600) };
    Settings {
        mailbox,
        history: Bounds { messages: 10, ..mailbox },
        total_bytes: 64 << 10,
        dedup_window: Duration::from_secs(120),
        dedup_ids: 100_000,
        sessions_per_user: 8,
        shares: true,
        queue: QueueBounds { messages: 1000, bytes: 16 << 20 },
        clock: Clock::Wall,
    }
}

fn mailbox(name: &str) -> Address {
    Address::Session(SessionId::new(name).unwrap())
}

fn own(thread: usize) -> Address {
    mailbox(&format!("own-{thread}"))
}

/// Where the receipts for what a thread sends go.
fn sender(thread: usize) -> Address {
    mailbox(&format!("sender-{thread}"))
}

fn topic() -> Address {
    Address::Topic(TopicName::new("t").unwrap())
}

fn append(thread: usize, n: usize, to: &Address, receipt: bool) -> Append {
    let payload = RawValue::from_string(format!("[{thread},{n}]")).unwrap();
    let message = Message { kind: Kind::Message, from: None, payload, ts: 1, reference: None };
    let author = Author::Session(sender(thread).session().unwrap().clone());
    let id = MessageId::new(&format!("{n}")).ok();
    let payer = SenderName::new(&format!("user-{thread}")).ok();
    Append { id, payer, receipt, ..Append::new(to.clone(), message, author) }
}

/// Reads everything after `after`. Seqs increase, and nothing is missing.
fn read(engine: &Embedded, address: &Address, after: Seq) -> (Vec<(Seq, String, Kind)>, Seq) {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let Batch { items, cursor, .. } = runtime.block_on(engine.read(address, after, 64)).unwrap();
    let mut found = Vec::new();
    for item in items {
        match item {
            Item::Message(message) => {
                found.push((message.seq().unwrap(), message.payload().to_owned(), message.kind()));
            }
            // Only a history loses messages that nobody has acknowledged.
            Item::Gap(gap) => assert!(matches!(address, Address::Topic(_)), "{gap:?} at {address}"),
        }
    }
    assert!(found.iter().is_sorted_by(|a, b| a.0 < b.0) && found.iter().all(|(seq, ..)| *seq > after));
    (found, cursor)
}

/// Reads and acknowledges everything. Returns how many receipts were among it.
fn drain(engine: &Embedded, address: &Address, after: &mut Seq) -> usize {
    let (found, cursor) = read(engine, address, *after);
    engine.trim(address, cursor);
    *after = cursor;
    found.iter().filter(|(_, _, kind)| *kind == Kind::Receipt).count()
}

/// Sends to a mailbox that all share, to one of its own, and to a topic. Returns how many messages the shared mailbox has taken
/// with a receipt to come, how many in all, and how many receipts have come.
fn send(engine: &Embedded, shared: &Address, thread: usize) -> (usize, usize, usize) {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let (own, sender, topic) = (own(thread), sender(thread), topic());
    let (mut own_at, mut sender_at) = (Seq::START, Seq::START);
    let (mut wanted, mut taken, mut receipts) = (0, 0, 0);
    for n in 0..EACH {
        let (to, receipt) = match n % 3 {
            0 => (shared, n % 2 == 0),
            1 => (&own, false),
            _ => (&topic, false),
        };
        let commits = [(); 2].map(|()| engine.append(append(thread, n, to, receipt)));
        let [first, again] = commits.map(|commit| runtime.block_on(commit));
        match first {
            Ok(seq) => {
                assert_eq!(again, Ok(seq), "a repeat is the same message");
                wanted += usize::from(receipt);
                taken += usize::from(to == shared);
            }
            Err(
                EngineError::MailboxFull { .. }
                | EngineError::StoreFull { .. }
                | EngineError::QuotaExceeded(_)
                | EngineError::NoRoomForReceipt { .. },
            ) => {
                // There may have been room for the second one.
                wanted += usize::from(receipt && again.is_ok());
                taken += usize::from(to == shared && again.is_ok());
            }
            Err(other) => panic!("{other}"),
        }
        if n % 20 == 19 {
            drain(engine, &own, &mut own_at);
            receipts += drain(engine, &sender, &mut sender_at);
        }
    }
    (wanted, taken, receipts)
}

/// Reads the mailbox that all share until the senders have ended. Returns how many messages came.
fn receive(engine: &Embedded, shared: &Address, sending: &AtomicUsize) -> usize {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let (mut at, mut count, mut last) = (Seq::START, 0, HashMap::new());
    loop {
        let is_over = sending.load(Ordering::SeqCst) == 0;
        assert!(runtime.block_on(engine.waiting(shared)) <= MAILBOX);
        let (found, cursor) = read(engine, shared, at);
        for (_, payload, _) in &found {
            let [thread, n]: [usize; 2] = serde_json::from_str(payload).unwrap();
            assert!(last.insert(thread, n).is_none_or(|before| before < n), "in the order of its sender");
        }
        count += found.len();
        if is_over && found.is_empty() {
            return count;
        }
        at = cursor;
        engine.trim(shared, cursor);
        std::thread::yield_now();
    }
}

/// One sender less, also after a panic: otherwise the others would wait for ever.
struct Ends<'a>(&'a AtomicUsize);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn run(storage: &Storage) {
    let engine = Embedded::start(settings(), Hubs::new(None), storage).unwrap();
    let (shared, sending) = (mailbox("shared"), AtomicUsize::new(THREADS));
    let (wanted, taken, mut receipts, came) = std::thread::scope(|scope| {
        let (engine, shared, sending) = (&engine, &shared, &sending);
        let receiver = scope.spawn(move || receive(engine, shared, sending));
        let janitor = scope.spawn(move || {
            while sending.load(Ordering::SeqCst) > 0 {
                assert_eq!(engine.expire().messages, 0);
                std::thread::yield_now();
            }
        });
        let senders = (0..THREADS).map(|thread| {
            scope.spawn(move || {
                let _ends = Ends(sending);
                send(engine, shared, thread)
            })
        });
        let senders: Vec<_> = senders.collect();
        let sums = senders.into_iter().map(|sender| sender.join().unwrap());
        let (wanted, taken, receipts) = sums.fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
        janitor.join().unwrap();
        (wanted, taken, receipts, receiver.join().unwrap())
    });
    assert!(taken > 0 && wanted > 0, "the mailbox has taken some");
    assert_eq!(came, taken, "each message comes once");
    engine.shared.index.assert_consistent();
    let left = |engine: &Embedded| {
        let addresses = (0..THREADS).map(own).chain([topic(), shared.clone()]);
        addresses.map(|address| read(engine, &address, Seq::START).0).collect::<Vec<_>>()
    };
    let before = left(&engine);
    engine.close();
    let engine = match storage {
        Storage::Memory => engine,
        Storage::Directory(..) => {
            drop(engine);
            Embedded::start(settings(), Hubs::new(None), storage).unwrap()
        }
    };
    assert_eq!(left(&engine), before, "a restart finds the same");
    engine.shared.index.assert_consistent();
    receipts +=
        (0..THREADS).map(|thread| drain(&engine, &sender(thread), &mut { Seq::START })).sum::<usize>();
    assert_eq!(receipts, wanted, "each receipt comes once");
    for address in (0..THREADS).map(own).chain([topic()]) {
        engine.trim(&address, Seq(u64::MAX));
    }
    engine.shared.index.assert_empty();
}

#[test]
fn threads_share_an_engine_in_memory() {
    run(&Storage::Memory);
}

#[test]
fn threads_share_an_engine_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    run(&Storage::Directory(dir.path().to_owned(), Durability::Os));
}
