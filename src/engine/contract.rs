//! One suite of promises, run on every engine and level. Each test names the promise it keeps.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

use super::*;
use crate::clock::Clock;
use crate::engine::embedded::{Durability, Storage};
use crate::hub::Hubs;
use crate::hub::{HubEvent, Transport};
use crate::message::{GapReason, Kind, Publication, SenderName, SessionId, TopicName, UserId};
use crate::subscriber::{Start, Subscriber};

fn bounds() -> Bounds {
    Bounds { messages: 5, bytes: 1 << 20, age: Duration::from_secs(3600) }
}

fn settings() -> Settings {
    Settings {
        mailbox: bounds(),
        history: bounds(),
        total_bytes: 16 << 20,
        dedup_window: Duration::from_secs(120),
        dedup_ids: 1000,
        sessions_per_user: 8,
        queue: QueueBounds { messages: 10_000, bytes: 64 << 20 },
        clock: Clock::follow_tokio(),
    }
}

/// Where a level keeps its stores.
struct Lab {
    level: Option<Durability>,
    dir: tempfile::TempDir,
}

impl Lab {
    fn new(level: Option<Durability>) -> Self {
        Self { level, dir: tempfile::tempdir().unwrap() }
    }

    fn storage(&self) -> Storage {
        match self.level {
            None => Storage::Memory,
            Some(durability) => Storage::Directory(self.dir.path().join("store"), durability),
        }
    }

    /// A new engine, or what an earlier one left.
    fn open(&self, settings: Settings) -> (Engine, Hubs) {
        let hubs = Hubs::new(4);
        (Embedded::start(settings, hubs.clone(), &self.storage()).unwrap().into(), hubs)
    }

    /// A new engine.
    fn engine_with(&self, settings: Settings) -> (Engine, Hubs) {
        if let Storage::Directory(dir, _) = self.storage()
            && dir.exists()
        {
            std::fs::remove_dir_all(dir).unwrap();
        }
        self.open(settings)
    }

    fn engine(&self) -> (Engine, Hubs) {
        self.engine_with(settings())
    }

    /// Ends an engine in order or as a crash does, and opens what it left.
    fn again(&self, engine: Engine, crash: bool) -> Engine {
        match &engine {
            Engine::Embedded(embedded) if crash => embedded.abandon(),
            engine => engine.close(),
        }
        drop(engine);
        self.open(settings()).0
    }
}

macro_rules! suite {
    ($($time:ident $levels:tt $($name:ident)*;)*) => { $($(
        mod $name {
            suite!(@levels $time $levels $name);
        }
    )*)* };
    (@levels $time:ident [$($level:ident)*] $name:ident) => { $(suite!(@one $time $level $name);)* };
    (@one $time:ident memory $name:ident) => { suite!(@test $time memory None, $name); };
    (@one $time:ident os $name:ident) => {
        suite!(@test $time os Some(crate::engine::embedded::Durability::Os), $name);
    };
    (@one $time:ident fsync $name:ident) => {
        suite!(@test $time fsync Some(crate::engine::embedded::Durability::Fsync), $name);
    };
    (@test real $level:ident $durability:expr, $name:ident) => {
        #[tokio::test]
        async fn $level() {
            super::$name(super::Lab::new($durability)).await
        }
    };
    (@test paused $level:ident $durability:expr, $name:ident) => {
        #[tokio::test(start_paused = true)]
        async fn $level() {
            super::$name(super::Lab::new($durability)).await
        }
    };
}

suite! {
    real [memory os fsync]
        seqs_increase_and_reads_are_in_order
        a_place_in_the_order_is_taken_when_append_is_called
        a_short_read_has_reached_the_end
        what_is_committed_is_published_in_commit_order_and_can_be_read
        a_mailbox_loses_only_what_is_trimmed_and_says_so
        trimming_beyond_the_end_does_not_touch_what_comes_later
        a_full_mailbox_refuses_and_keeps_what_it_has
        a_mailbox_is_bounded_in_bytes_too
        all_together_are_bounded_and_trimming_makes_room
        a_history_drops_its_oldest_and_says_so
        a_refused_message_is_not_remembered_as_sent
        remembered_ids_are_bounded
        empty_addresses_cost_nothing_and_no_hole_goes_untold
        what_someone_reads_is_not_forgotten
        a_reader_behind_everything_ends_even_if_what_it_waits_for_is_gone
        a_receipt_has_its_room_kept_in_the_senders_mailbox;
    paused [memory os fsync]
        messages_end_with_their_time_and_every_hole_is_told_once_in_order
        a_topic_keeps_nothing_longer_than_its_age
        a_retry_with_the_same_id_is_stored_once
        a_sender_that_asks_is_told_what_became_of_its_message
        a_seq_is_given_once_when_receipts_come_in_between
        a_hole_is_told_up_to_its_end
        registered_sessions_are_found_by_their_user_until_they_end;
    real [os fsync]
        what_is_stored_is_there_after_a_crash
        registrations_survive_restarts
        a_reader_of_the_disk_sees_what_one_of_the_memory_sees;
}
fn mailbox(name: &str) -> Address {
    Address::Session(SessionId::new(name).unwrap())
}

fn topic(name: &str) -> Address {
    Address::Topic(TopicName::new(name).unwrap())
}

fn from(sender: &str, payload: &str) -> Message {
    Message {
        kind: Kind::Message,
        from: Some(SenderName::new(sender).unwrap()),
        payload: RawValue::from_string(payload.to_owned()).unwrap(),
        ts: 0,
    }
}

fn author(name: &str) -> Author {
    Author::Session(SessionId::new(name).unwrap())
}

fn append(address: &Address, payload: &str) -> Append {
    let author = author("S");
    Append {
        address: address.clone(),
        message: from("S", payload),
        author,
        id: None,
        ttl: None,
        receipt: false,
    }
}

fn publication(live: HubEvent) -> Arc<Publication> {
    live_parts(live).1
}

fn live_parts(live: HubEvent) -> (Seq, Arc<Publication>) {
    match live {
        HubEvent::Stored { prev, publication } => (prev, publication),
        HubEvent::Volatile(publication) => (Seq::START, publication),
        other => panic!("{other:?}"),
    }
}

fn embedded(engine: &Engine) -> &Embedded {
    let Engine::Embedded(embedded) = engine;
    embedded
}

async fn put(engine: &Engine, address: &Address, payload: &str) -> Seq {
    engine.append(append(address, payload)).await.unwrap()
}

async fn put_id(engine: &Engine, address: &Address, sender: &str, id: &str, payload: &str) -> Seq {
    let id = Some(MessageId::new(id).unwrap());
    let append =
        Append { author: author(sender), message: from(sender, payload), id, ..append(address, payload) };
    engine.append(append).await.unwrap()
}

async fn put_ttl(engine: &Engine, address: &Address, payload: &str, seconds: u64) -> Seq {
    let ttl = Some(Duration::from_secs(seconds));
    engine.append(Append { ttl, ..append(address, payload) }).await.unwrap()
}

/// What a read finds, as text: payloads, and gaps as `from..to reason`.
async fn found(engine: &Engine, address: &Address, after: Seq) -> Vec<String> {
    engine.read(address, after, 100).await.items.iter().map(text).collect()
}

fn text(item: &Item) -> String {
    match item {
        Item::Message(message) => message.payload().to_owned(),
        Item::Gap(gap) => format!("{}..{} {:?}", gap.from, gap.to, gap.reason),
    }
}

fn gap(from: Seq, to: Seq, reason: GapReason) -> String {
    format!("{from}..{to} {reason:?}")
}

async fn expire_all(engine: &Engine) {
    while engine.expire().more {
        tokio::task::yield_now().await;
    }
}

async fn seqs_increase_and_reads_are_in_order(lab: Lab) {
    let (engine, _) = lab.engine();
    let (a, b) = (mailbox("A"), mailbox("B"));
    let first = put(&engine, &a, "1").await;
    put(&engine, &b, "10").await;
    let second = put(&engine, &a, "2").await;
    assert!(second > first);
    assert_eq!(found(&engine, &a, Seq::START).await, ["1", "2"]);
    assert_eq!(found(&engine, &a, first).await, ["2"]);
    assert_eq!(found(&engine, &b, Seq::START).await, ["10"]);
    assert_eq!(engine.newest(&a, Seq::START).await, second);
}

async fn a_place_in_the_order_is_taken_when_append_is_called(lab: Lab) {
    let (engine, _) = lab.engine();
    let a = mailbox("A");
    let first = engine.append(append(&a, "1"));
    let second = engine.append(append(&a, "2"));
    let (second, first) = (second.await.unwrap(), first.await.unwrap());
    assert!(first < second);
    // A dropped commit is stored all the same.
    drop(engine.append(append(&a, "3")));
    put(&engine, &mailbox("B"), "1").await;
    assert_eq!(found(&engine, &a, Seq::START).await, ["1", "2", "3"]);
}

async fn a_short_read_has_reached_the_end(lab: Lab) {
    let (engine, _) = lab.engine();
    let a = mailbox("A");
    for n in 1..=5 {
        put(&engine, &a, &n.to_string()).await;
    }
    let batch = engine.read(&a, Seq::START, 3).await;
    assert_eq!(batch.items.len(), 3);
    assert!(batch.more);
    let batch = engine.read(&a, batch.cursor, 3).await;
    assert_eq!(batch.items.iter().map(text).collect::<Vec<_>>(), ["4", "5"]);
    assert!(!batch.more);
}

async fn what_is_committed_is_published_in_commit_order_and_can_be_read(lab: Lab) {
    let (engine, hubs) = lab.engine();
    let a = mailbox("A");
    let (_seat, mut live) = hubs.join(&a, Seq::START, Transport::Websocket, usize::MAX).unwrap();
    let first = put(&engine, &a, "1").await;
    let second = put(&engine, &a, "2").await;
    engine.publish_volatile(&a, &from("S", "0"));
    let one = live_parts(live.try_recv().unwrap());
    assert_eq!((one.0, one.1.seq()), (Seq::START, Some(first)));
    let two = live_parts(live.try_recv().unwrap());
    assert_eq!((two.0, two.1.seq()), (first, Some(second)));
    let volatile = live_parts(live.try_recv().unwrap());
    assert_eq!((volatile.1.seq(), volatile.1.payload()), (None, "0"));
    assert_eq!(found(&engine, &a, Seq::START).await, ["1", "2"]);
}

async fn a_mailbox_loses_only_what_is_trimmed_and_says_so(lab: Lab) {
    let (engine, _) = lab.engine();
    let a = mailbox("A");
    let first = put(&engine, &a, "1").await;
    let second = put(&engine, &a, "2").await;
    engine.trim(&a, second);
    engine.trim(&a, first);
    let third = put(&engine, &a, "3").await;
    assert_eq!(found(&engine, &a, first).await, [gap(first, second, GapReason::Acknowledged), "3".into()]);
    assert_eq!(found(&engine, &a, second).await, ["3"]);
    assert_eq!(found(&engine, &a, Seq::START).await, ["3"], "a new reader misses nothing");
    assert_eq!(engine.position(&a).await, Position { floor: second, expired: Seq::START, newest: third });
}

async fn trimming_beyond_the_end_does_not_touch_what_comes_later(lab: Lab) {
    let (engine, _) = lab.engine();
    let a = mailbox("A");
    put(&engine, &a, "1").await;
    engine.trim(&a, Seq(u64::MAX));
    put(&engine, &a, "2").await;
    assert_eq!(found(&engine, &a, Seq::START).await, ["2"]);
}

async fn a_full_mailbox_refuses_and_keeps_what_it_has(lab: Lab) {
    let (engine, _) = lab.engine();
    let a = mailbox("A");
    let first = put(&engine, &a, "1").await;
    for n in 2..=5 {
        put(&engine, &a, &n.to_string()).await;
    }
    let full = engine.append(append(&a, "6")).await.unwrap_err();
    assert!(matches!(full, EngineError::MailboxFull { messages: 5, .. }), "{full:?}");
    assert!(full.to_string().contains("at most 5 messages"), "{full}");
    put(&engine, &mailbox("B"), "1").await;
    engine.trim(&a, first);
    put(&engine, &a, "6").await;
    assert_eq!(found(&engine, &a, first).await, ["2", "3", "4", "5", "6"]);
}

async fn a_mailbox_is_bounded_in_bytes_too(lab: Lab) {
    let small = Bounds { bytes: 2000, ..bounds() };
    let (engine, _) = lab.engine_with(Settings { mailbox: small, ..settings() });
    let a = mailbox("A");
    let long = format!("\"{}\"", "x".repeat(900));
    put(&engine, &a, &long).await;
    let full = engine.append(append(&a, &long)).await.unwrap_err();
    assert!(matches!(full, EngineError::MailboxFull { messages: 1, .. }), "{full:?}");
    assert_eq!(found(&engine, &a, Seq::START).await.len(), 1);
}

async fn all_together_are_bounded_and_trimming_makes_room(lab: Lab) {
    let (engine, _) = lab.engine_with(Settings { total_bytes: 1000, ..settings() });
    let mut stored = Vec::new();
    let full = loop {
        let address = mailbox(&format!("S{}", stored.len()));
        match engine.append(append(&address, "1")).await {
            Ok(seq) => stored.push((address, seq)),
            Err(error) => break error,
        }
    };
    assert_eq!(full, EngineError::StoreFull { limit: 1000 });
    assert!((2..10).contains(&stored.len()), "{}", stored.len());
    engine.trim(&stored[0].0, stored[0].1);
    put(&engine, &mailbox("late"), "1").await;
}

async fn a_history_drops_its_oldest_and_says_so(lab: Lab) {
    let (engine, _) = lab.engine();
    let news = topic("news");
    let mut seqs = Vec::new();
    for n in 1..=8 {
        seqs.push(put(&engine, &news, &n.to_string()).await);
    }
    assert_eq!(found(&engine, &news, Seq::START).await, ["4", "5", "6", "7", "8"]);
    assert_eq!(found(&engine, &news, seqs[2]).await, ["4", "5", "6", "7", "8"]);
    let holed = found(&engine, &news, seqs[0]).await;
    assert_eq!(holed[0], gap(seqs[0], seqs[2], GapReason::Expired));
    assert_eq!(holed[1..], ["4", "5", "6", "7", "8"]);
}

async fn messages_end_with_their_time_and_every_hole_is_told_once_in_order(lab: Lab) {
    for swept in [false, true] {
        let (engine, _) = lab.engine();
        let a = mailbox("A");
        let first = put(&engine, &a, "1").await;
        let second = put_ttl(&engine, &a, "2", 10).await;
        let third = put(&engine, &a, "3").await;
        let fourth = put_ttl(&engine, &a, "4", 5).await;
        let fifth = put_ttl(&engine, &a, "5", 10).await;
        tokio::time::advance(Duration::from_secs(9)).await;
        let hole = gap(third, fourth, GapReason::Expired);
        assert_eq!(found(&engine, &a, Seq::START).await, ["1", "2", "3", &hole, "5"]);
        tokio::time::advance(Duration::from_secs(1)).await;
        if swept {
            expire_all(&engine).await;
        }
        let all = found(&engine, &a, first).await;
        let holes = [(first, second), (third, fifth)].map(|(from, to)| gap(from, to, GapReason::Expired));
        assert_eq!(all, [&holes[0], "3", &holes[1]], "swept: {swept}");
        let sixth = put(&engine, &a, "6").await;
        let rest = found(&engine, &a, fourth).await;
        assert_eq!(rest, [gap(fourth, fifth, GapReason::Expired), "6".into()], "swept: {swept}");
        assert_eq!(found(&engine, &a, fifth).await, ["6"]);
        engine.trim(&a, sixth);
        assert_eq!(found(&engine, &a, sixth).await, [""; 0]);
    }
}

async fn a_topic_keeps_nothing_longer_than_its_age(lab: Lab) {
    let (engine, _) = lab.engine();
    let news = topic("news");
    put_ttl(&engine, &news, "1", 1_000_000).await;
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_eq!(found(&engine, &news, Seq::START).await, [""; 0]);
    assert_eq!(engine.expire().messages, 1);
}

async fn a_retry_with_the_same_id_is_stored_once(lab: Lab) {
    let (engine, _) = lab.engine();
    let (a, b) = (mailbox("A"), mailbox("B"));
    let first = put_id(&engine, &a, "S", "c-1", "1").await;
    assert_eq!(put_id(&engine, &a, "S", "c-1", "0").await, first);
    assert_ne!(put_id(&engine, &a, "T", "c-1", "2").await, first, "another sender");
    assert_ne!(put_id(&engine, &b, "S", "c-1", "3").await, first, "another receiver");
    assert_eq!(found(&engine, &a, Seq::START).await, ["1", "2"]);
    // Also after it was read and acknowledged.
    engine.trim(&a, engine.newest(&a, Seq::START).await);
    assert_eq!(put_id(&engine, &a, "S", "c-1", "1").await, first);
    assert_eq!(found(&engine, &a, Seq::START).await, [""; 0]);
    tokio::time::advance(Duration::from_secs(120)).await;
    assert_ne!(put_id(&engine, &a, "S", "c-1", "1").await, first, "the window is over");
}

async fn a_refused_message_is_not_remembered_as_sent(lab: Lab) {
    let (engine, _) = lab.engine();
    let a = mailbox("A");
    for n in 1..=5 {
        put(&engine, &a, &n.to_string()).await;
    }
    let id = Some(MessageId::new("c-1").unwrap());
    let again = || Append { id: id.clone(), ..append(&a, "6") };
    engine.append(again()).await.unwrap_err();
    engine.trim(&a, engine.newest(&a, Seq::START).await);
    engine.append(again()).await.unwrap();
    assert_eq!(found(&engine, &a, Seq::START).await, ["6"]);
}

async fn remembered_ids_are_bounded(lab: Lab) {
    let (engine, _) = lab.engine_with(Settings { dedup_ids: 10, ..settings() });
    let first = put_id(&engine, &topic("t"), "S", "c-0", "0").await;
    for n in 1..=11 {
        put_id(&engine, &topic("t"), "S", &format!("c-{n}"), "1").await;
    }
    assert_ne!(put_id(&engine, &topic("t"), "S", "c-0", "0").await, first, "the oldest is forgotten first");
}

async fn empty_addresses_cost_nothing_and_no_hole_goes_untold(lab: Lab) {
    let (engine, _) = lab.engine();
    let mut last = Seq::START;
    for n in 0..1000 {
        let address = mailbox(&format!("S{n}"));
        last = put(&engine, &address, "1").await;
        engine.trim(&address, last);
    }
    embedded(&engine).forget_empty();
    assert_eq!(embedded(&engine).logs(), 0);
    // Who returns with a cursor from before may have missed something, and is told.
    let a = mailbox("S1");
    assert_eq!(found(&engine, &a, Seq(last.0 - 900)).await.len(), 1);
    put(&engine, &a, "2").await;
    let told = found(&engine, &a, Seq(last.0 - 900)).await;
    assert_eq!(told, [gap(Seq(last.0 - 900), last, GapReason::Acknowledged), "2".into()]);
    assert_eq!(found(&engine, &a, Seq::START).await, ["2"]);
}

async fn what_someone_reads_is_not_forgotten(lab: Lab) {
    let (engine, hubs) = lab.engine();
    let a = mailbox("A");
    let (seat, _live) = hubs.join(&a, Seq::START, Transport::Websocket, usize::MAX).unwrap();
    let first = put(&engine, &a, "1").await;
    engine.trim(&a, first);
    embedded(&engine).forget_empty();
    assert_eq!(engine.position(&a).await.floor, first);
    seat.leave();
    embedded(&engine).forget_empty();
    assert_eq!(embedded(&engine).logs(), 0);
}

async fn next(subscriber: &mut Subscriber) -> String {
    text(&tokio::time::timeout(Duration::from_secs(10), subscriber.next()).await.unwrap().unwrap())
}

async fn a_reader_behind_everything_ends_even_if_what_it_waits_for_is_gone(lab: Lab) {
    let (engine, hubs) = lab.engine();
    let a = mailbox("A");
    let mut subscriber = Subscriber::new(
        &engine,
        &hubs,
        &a,
        Start { cursor: Seq::START, epoch: engine.epoch() },
        (Transport::Websocket, usize::MAX),
    )
    .unwrap();
    for n in 1..=5 {
        put(&engine, &a, &n.to_string()).await;
    }
    // Overflows the hub, and deletes what the reader would have to read.
    engine.trim(&a, engine.newest(&a, Seq::START).await);
    put(&engine, &a, "6").await;
    assert_eq!(next(&mut subscriber).await, "6");
}

/// Receipts come into the sender's mailbox, once, when the message leaves.
async fn a_sender_that_asks_is_told_what_became_of_its_message(lab: Lab) {
    let (engine, hubs) = lab.engine();
    let (a, s) = (mailbox("A"), mailbox("S"));
    let (_seat, mut live) = hubs.join(&s, Seq::START, Transport::Websocket, usize::MAX).unwrap();
    let ask = |id: &str, payload: &str, ttl: u64| Append {
        id: Some(MessageId::new(id).unwrap()),
        receipt: true,
        ttl: Some(Duration::from_secs(ttl)),
        ..append(&a, payload)
    };
    let first = engine.append(ask("c-1", "1", 100)).await.unwrap();
    assert_eq!(engine.append(ask("c-1", "1", 100)).await.unwrap(), first, "a retry asks for nothing more");
    engine.append(ask("c-2", "2", 10)).await.unwrap();
    assert_eq!(found(&engine, &s, Seq::START).await, [""; 0]);
    engine.trim(&a, first);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(engine.expire().messages, 1);
    engine.trim(&a, engine.newest(&a, Seq::START).await);
    // Two live publications: both are committed.
    let mut frames = Vec::new();
    for _ in 0..2 {
        frames.push(publication(live.recv().await.unwrap()).frame().as_str().to_owned());
    }
    assert!(frames[0].contains(r#""id":"c-1","state":"acknowledged"}"#), "{frames:?}");
    assert!(frames[1].contains(r#""id":"c-2","state":"expired"}"#), "{frames:?}");
    assert_eq!(engine.read(&s, Seq::START, 10).await.items.len(), 2);
    engine.trim(&s, engine.newest(&a, Seq::START).await);
    assert_eq!(found(&engine, &s, Seq::START).await, [""; 0], "receipts have no receipts");
}

/// Expiring makes room for a message, and receipts for what expired take seqs of their own.
async fn a_seq_is_given_once_when_receipts_come_in_between(lab: Lab) {
    let (engine, _) = lab.engine();
    let (a, s) = (mailbox("A"), mailbox("S"));
    let mut seqs = Vec::new();
    for n in 0..5 {
        let id = Some(MessageId::new(&format!("c-{n}")).unwrap());
        let ttl = Some(Duration::from_secs(10));
        let append = Append { id, ttl, receipt: n < 3, ..append(&a, "1") };
        seqs.push(engine.append(append).await.unwrap());
    }
    tokio::time::advance(Duration::from_secs(10)).await;
    // The mailbox is full of what has ended, and nobody has swept it.
    for n in 0..3 {
        seqs.push(put(&engine, &a, &n.to_string()).await);
    }
    put(&engine, &mailbox("B"), "1").await;
    let receipts = engine.read(&s, Seq::START, 10).await.items;
    for item in &receipts {
        let Item::Message(message) = item else { panic!("{item:?}") };
        seqs.push(message.seq().unwrap());
    }
    assert_eq!(receipts.len(), 3);
    assert_eq!(found(&engine, &a, Seq::START).await, ["0", "1", "2"]);
    seqs.sort();
    let count = seqs.len();
    seqs.dedup();
    assert_eq!(seqs.len(), count, "{seqs:?}");
}

/// What ends before it is committed is neither dropped before nor does it hold up anything.
#[tokio::test(start_paused = true)]
async fn a_message_may_end_before_it_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut writer) =
        Embedded::open_stepped(settings(), Hubs::new(4), dir.path(), Durability::Os).unwrap();
    let engine = Engine::from(engine);
    let a = mailbox("A");
    let commit = engine.append(Append { ttl: Some(Duration::from_millis(1)), ..append(&a, "1") });
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(engine.expire().messages, 0);
    assert!(writer.turn());
    commit.await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(engine.expire().messages, 1);
    assert_eq!(found(&engine, &a, Seq::START).await, [""; 0]);
    engine.close();
    writer.finish();
}

/// Holes that grow from both sides are still one hole, up to its end.
async fn a_hole_is_told_up_to_its_end(lab: Lab) {
    let (engine, _) = lab.engine();
    let a = mailbox("A");
    let first = put(&engine, &a, "1").await;
    let second = put_ttl(&engine, &a, "2", 20).await;
    let third = put_ttl(&engine, &a, "3", 10).await;
    put(&engine, &a, "4").await;
    for _ in 0..2 {
        tokio::time::advance(Duration::from_secs(10)).await;
        expire_all(&engine).await;
    }
    assert_eq!(found(&engine, &a, first).await, [gap(first, third, GapReason::Expired), "4".into()]);
    assert_eq!(found(&engine, &a, second).await, [gap(second, third, GapReason::Expired), "4".into()]);
}

async fn a_receipt_has_its_room_kept_in_the_senders_mailbox(lab: Lab) {
    let (engine, _) = lab.engine();
    let s = mailbox("S");
    for n in 0..5 {
        let id = Some(MessageId::new(&format!("c-{n}")).unwrap());
        let to = mailbox(&format!("R{n}"));
        engine.append(Append { id, receipt: true, ..append(&to, "1") }).await.unwrap();
    }
    let id = Some(MessageId::new("c-5").unwrap());
    let refused = engine.append(Append { id, receipt: true, ..append(&mailbox("R5"), "1") }).await;
    assert_eq!(refused, Err(EngineError::NoRoomForReceipt { messages: 5, limit: 5 }));
    let refused = engine.append(append(&s, "1")).await.unwrap_err();
    assert!(matches!(refused, EngineError::MailboxFull { messages: 5, .. }), "{refused:?}");
}

/// Everything that was answered is there; nothing that was acknowledged in order is.
async fn what_is_stored_is_there_after_a_crash(lab: Lab) {
    for crash in [false, true] {
        let (engine, _) = lab.engine();
        let (a, b, news) = (mailbox("A"), mailbox("B"), topic("news"));
        let (epoch, origin) = (engine.epoch(), engine.origin(&a));
        let first = put(&engine, &a, "1").await;
        let second = put(&engine, &a, "2").await;
        let third = put_id(&engine, &a, "S", "c-3", "3").await;
        let id = Some(MessageId::new("c-4").unwrap());
        engine.append(Append { id, receipt: true, ..append(&a, "4") }).await.unwrap();
        let emptied = put(&engine, &b, "1").await;
        for n in 1..=8 {
            put(&engine, &news, &n.to_string()).await;
        }
        engine.trim(&a, first);
        engine.trim(&b, emptied);
        // Deletions ride on this one's commit.
        let last = put(&engine, &topic("other"), "1").await;
        let engine = lab.again(engine, crash);
        assert_eq!((engine.epoch(), engine.origin(&a)), (epoch, origin), "crash: {crash}");
        assert!(engine.newest(&a, Seq::START).await >= last);
        assert_eq!(found(&engine, &a, Seq::START).await, ["2", "3", "4"]);
        assert_eq!(found(&engine, &a, first).await, ["2", "3", "4"], "nothing was missed");
        assert_eq!(found(&engine, &news, Seq::START).await, ["4", "5", "6", "7", "8"]);
        assert_eq!(found(&engine, &b, Seq::START).await, [""; 0]);
        assert_eq!(found(&engine, &b, emptied).await, [""; 0], "the emptied mailbox is remembered");
        let told = found(&engine, &b, Seq(emptied.0 - 1)).await;
        assert_eq!(told, [gap(Seq(emptied.0 - 1), emptied, GapReason::Acknowledged)]);
        assert_eq!(put_id(&engine, &a, "S", "c-3", "3").await, third, "ids survive");
        let next = put(&engine, &b, "2").await;
        assert!(next > last);
        engine.trim(&a, second);
        engine.trim(&a, engine.newest(&a, Seq::START).await);
        // The receipt that was promised before.
        put(&engine, &b, "3").await;
        let mut receipts = Vec::new();
        while receipts.is_empty() {
            receipts = engine.read(&mailbox("S"), Seq::START, 10).await.items;
        }
        assert_eq!(receipts.len(), 1, "crash: {crash}");
    }
}

/// More than is kept in memory: what is read from the disk is the same, byte for byte.
async fn a_reader_of_the_disk_sees_what_one_of_the_memory_sees(lab: Lab) {
    let many = Settings { mailbox: Bounds { messages: 1000, ..bounds() }, ..settings() };
    let (engine, _) = lab.engine_with(many);
    let a = mailbox("A");
    for n in 0..150 {
        put(&engine, &a, &format!("{{ \"n\" : {n}, \"s\":\"\\ud800 é\" }}")).await;
    }
    let frames = |batch: &Batch| -> Vec<String> {
        let frame = |item: &Item| match item {
            Item::Message(message) => message.frame().as_str().to_owned(),
            Item::Gap(gap) => panic!("{gap:?}"),
        };
        batch.items.iter().map(frame).collect()
    };
    let before = frames(&engine.read(&a, Seq::START, 200).await);
    assert_eq!(before.len(), 150);
    engine.close();
    drop(engine);
    let (engine, _) = lab.open(many);
    assert_eq!(frames(&engine.read(&a, Seq::START, 200).await), before);
    // In pieces, while the read ones are deleted.
    let mut cursor = Seq::START;
    let mut after = Vec::new();
    loop {
        let batch = engine.read(&a, cursor, 7).await;
        after.extend(frames(&batch));
        cursor = batch.cursor;
        engine.trim(&a, cursor);
        if !batch.more {
            break;
        }
    }
    assert_eq!(after, before);
}

async fn registered_sessions_are_found_by_their_user_until_they_end(lab: Lab) {
    let (engine, _) = lab.engine();
    let session = |name: &str| SessionId::new(name).unwrap();
    let (ann, bob) = (UserId::new("ann").unwrap(), UserId::new("bob").unwrap());
    let (short, long) = (Duration::from_secs(10), Duration::from_secs(100));
    let register = |name: &str, user: Option<&UserId>, ttl, by| {
        engine.register(&Register { session: session(name), user: user.cloned(), ttl, by })
    };
    let backend = Registrar::Backend;
    register("1", Some(&ann), short, backend).await.unwrap();
    register("2", Some(&ann), long, backend).await.unwrap();
    register("3", None, long, backend).await.unwrap();
    assert_eq!(engine.sessions_of(&ann), [session("1"), session("2")]);
    assert_eq!(engine.registration(&session("3")).unwrap().user, None);
    // A session does not change hands, and its user is kept by who names none.
    assert_eq!(register("2", Some(&bob), long, backend).await.unwrap_err(), RegisterError::Taken);
    assert_eq!(register("2", Some(&bob), long, Registrar::Token).await.unwrap_err(), RegisterError::Taken);
    register("2", None, long, backend).await.unwrap();
    assert_eq!(engine.registration(&session("2")).unwrap().user, Some(ann.clone()));
    engine.end(&session("2"), Duration::ZERO).await.unwrap();
    register("2", Some(&bob), long, Registrar::Token).await.unwrap();
    assert_eq!(
        (engine.sessions_of(&ann), engine.sessions_of(&bob)),
        (vec![session("1")], vec![session("2")])
    );
    tokio::time::advance(short).await;
    assert_eq!(engine.sessions_of(&ann), []);
    assert_eq!(engine.registration(&session("1")), None);
    // Ended, and barred to tokens until a backend says otherwise, or the time is over.
    engine.end(&session("2"), long).await.unwrap();
    assert!(engine.is_revoked(&session("2")) && engine.session_of(engine.handle(&session("2"))).is_none());
    assert_eq!(register("2", Some(&bob), long, Registrar::Token).await.unwrap_err(), RegisterError::Ended);
    expire_all(&engine).await;
    assert_eq!((engine.sessions_of(&bob), engine.registration(&session("2"))), (vec![], None));
    assert!(engine.registration(&session("3")).is_some());
    assert_eq!(engine.session_of(engine.handle(&session("3"))), Some(session("3")));
    register("2", Some(&ann), long, backend).await.unwrap();
    assert_eq!(engine.sessions_of(&ann), [session("2")]);
}

async fn registrations_survive_restarts(lab: Lab) {
    for crash in [false, true] {
        let (engine, _) = lab.engine();
        let session = |n: usize| SessionId::new(&format!("S{n}")).unwrap();
        let ann = UserId::new("ann").unwrap();
        for n in 0..5 {
            let (user, ttl, by) = (Some(ann.clone()), Duration::from_secs(100), Registrar::Backend);
            engine.register(&Register { session: session(n), user, ttl, by }).await.unwrap();
        }
        engine.end(&session(3), Duration::from_secs(100)).await.unwrap();
        let handle = engine.handle(&session(4));
        let before = engine.registration(&session(4));
        let engine = lab.again(engine, crash);
        assert_eq!(engine.sessions_of(&ann), [0, 1, 2, 4].map(session), "crash: {crash}");
        assert_eq!(engine.registration(&session(4)), before);
        assert_eq!(engine.session_of(handle), Some(session(4)));
        assert!(engine.is_revoked(&session(3)));
    }
}
