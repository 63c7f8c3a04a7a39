//! What holds for an engine of one process only: its locks, and the order in which it publishes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use serde_json::value::RawValue;

use super::*;
use crate::clock::Clock;
use crate::engine::{Append, Bounds, QueueBounds, Registrar};
use crate::hub::{HubEvent, Interest, Transport};
use crate::message::{Author, Kind, Message, UserId};

fn settings() -> Settings {
    let bounds = Bounds { messages: 100_000, bytes: 64 << 20, age: Duration::from_secs(60) };
    Settings {
        mailbox: bounds,
        history: bounds,
        total_bytes: 256 << 20,
        dedup_window: Duration::from_secs(120),
        dedup_ids: 1000,
        sessions_per_user: 8,
        shares: false,
        queue: QueueBounds { messages: 10, bytes: 64 << 20 },
        clock: Clock::Wall,
    }
}

fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

fn message(to: &Address) -> Append {
    let payload = RawValue::from_string("7".to_owned()).unwrap();
    let message = Message { kind: Kind::Message, from: None, payload, ts: 1, reference: None };
    Append::new(to.clone(), message, Author::Anonymous)
}

/// Panics while a part of the store is locked, as a defect there would.
fn break_store(engine: &Embedded) {
    let broken = catch_unwind(AssertUnwindSafe(|| {
        let _shard = engine.shared.index.lock_for_test(&Address::Session(session("B")));
        panic!("a defect, for the test");
    }));
    assert!(broken.is_err());
}

async fn assert_broken(engine: &Embedded) {
    let mailbox = Address::Session(session("A"));
    let unavailable = Err(EngineError::Unavailable { reason: BROKEN.into() });
    assert_eq!(engine.append(message(&mailbox)).await, unavailable);
    assert_eq!(engine.end(&session("A"), Duration::ZERO).await, unavailable);
    let register = Register {
        session: session("A"),
        user: None,
        ttl: Duration::ZERO,
        by: Registrar::Token { until: 0 },
    };
    assert!(matches!(engine.register(&register).await, Err(RegisterError::Engine(_))));
    assert!(matches!(engine.read(&mailbox, Seq(5), 9).await, Err(EngineError::Unreadable { .. })));
    assert!(engine.registration(&session("A")).is_none() && !engine.is_revoked(&session("A")));
    assert_eq!((engine.waiting(&mailbox).await, engine.expire().messages), (0, 0));
    engine.trim(&mailbox, Seq(9));
    assert_eq!(engine.health().failing, [BROKEN.into()]);
    assert_eq!(engine.fatal().reason().as_deref(), Some(BROKEN));
}

#[tokio::test]
async fn a_store_that_panicked_in_memory_is_not_used_again() {
    let engine = Embedded::in_memory(settings(), Hubs::new(2));
    let mailbox = Address::Session(session("A"));
    engine.append(message(&mailbox)).await.unwrap();
    assert!(engine.health().failing.is_empty() && engine.fatal().reason().is_none());
    break_store(&engine);
    assert_broken(&engine).await;
}

#[tokio::test]
async fn a_store_that_panicked_fails_its_waiters_and_is_recovered_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let mailbox = Address::Session(session("A"));
    let open = || Embedded::open(settings(), Hubs::new(2), dir.path(), Durability::Fsync).unwrap();
    let engine = open();
    let (epoch, seq) = (engine.epoch(), engine.append(message(&mailbox)).await.unwrap());
    break_store(&engine);
    assert_broken(&engine).await;
    engine.close();
    drop(engine);
    let engine = open();
    let batch = engine.read(&mailbox, Seq::START, 9).await.unwrap();
    assert_eq!((batch.items.len(), batch.cursor, engine.epoch()), (1, seq, epoch), "nothing is lost");
}

#[tokio::test]
async fn who_waits_for_a_commit_is_told_when_the_store_breaks() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut writer) =
        Embedded::open_stepped(settings(), Hubs::new(2), dir.path(), Durability::Os).unwrap();
    let commit = engine.append(message(&Address::Session(session("A"))));
    break_store(&engine);
    assert!(!writer.turn(), "nothing is written any more");
    assert!(matches!(commit.await, Err(EngineError::Unavailable { .. })));
    writer.finish();
}

/// Panics when the last reader leaves.
#[derive(Debug)]
struct PanickingInterest;

impl Interest for PanickingInterest {
    fn first_reader(&self, _: &Address) {}

    fn last_reader_left(&self, _: &Address) {
        panic!("a defect, for the test");
    }
}

#[tokio::test]
async fn a_panic_of_the_writer_fails_its_waiters_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mailbox = Address::Session(session("A"));
    let hubs = Hubs::watched(2, Arc::new(PanickingInterest));
    let engine = Embedded::open(settings(), hubs.clone(), dir.path(), Durability::Fsync).unwrap();
    let _reader = hubs.join(&mailbox, Seq::START, Transport::Websocket, 9).unwrap();
    // The writer tells the reader that its session has ended.
    let ended = engine.end(&session("A"), Duration::ZERO);
    let reason = engine.fatal().declared().await;
    assert!(reason.contains("writer"), "{reason}");
    assert!(matches!(ended.await, Err(EngineError::Unavailable { .. })));
    let refused = engine.append(message(&mailbox)).await;
    assert_eq!(refused, Err(EngineError::Unavailable { reason: Arc::clone(&reason) }));
    assert_eq!(engine.health().failing, [reason]);
}

#[tokio::test]
async fn damage_that_a_commit_meets_is_fatal() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut writer) = stepped(dir.path());
    let other = rusqlite::Connection::open(dir.path().join("store.db")).unwrap();
    let damage =
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = 1000000 WHERE name = 'floors';
                  PRAGMA schema_version = 99";
    other.execute_batch(damage).unwrap();
    let append = engine.append(message(&Address::Session(session("A"))));
    assert!(writer.turn() && !writer.turn(), "nothing is written afterwards");
    assert!(matches!(append.await, Err(EngineError::Unavailable { .. })));
    assert!(engine.fatal().reason().unwrap().contains("damaged"));
    writer.finish();
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_knows_repeats() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut writer) =
        Embedded::open_stepped(settings(), Hubs::new(2), dir.path(), Durability::Os).unwrap();
    let mailbox = Address::Session(session("A"));
    let with_id = || Append { id: Some(crate::message::MessageId::new("1").unwrap()), ..message(&mailbox) };
    let first = engine.append(with_id());
    let others: Vec<Commit> = (1..10).map(|_| engine.append(message(&mailbox))).collect();
    let refused = engine.append(message(&mailbox)).now_or_never();
    assert!(matches!(refused, Some(Err(EngineError::Overloaded { messages: 10, .. }))));
    let repeat = engine.append(with_id());
    assert!(writer.turn());
    assert_eq!(first.await.unwrap(), repeat.await.unwrap());
    assert!(engine.append(message(&mailbox)).now_or_never().is_none(), "there is room again");
    drop(others);
    writer.finish();
}

#[tokio::test]
async fn in_memory_messages_are_published_in_commit_order_when_append_returns() {
    let hubs = Hubs::new(1 << 14);
    let engine = Embedded::in_memory(settings(), hubs.clone());
    let mailbox = Address::Session(session("A"));
    let (reader, mut events) = hubs.join(&mailbox, Seq::START, Transport::Websocket, 9).unwrap();
    let published = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    let own = engine.append(message(&mailbox)).now_or_never().unwrap().unwrap();
                    let newest = engine.newest(&mailbox, own).now_or_never().unwrap().unwrap();
                    assert!(newest >= own);
                    published.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let mut last = Seq::START;
    for _ in 0..published.into_inner() {
        // What append has returned is published: nothing has to be waited for.
        let HubEvent::Stored { prev, publication } = events.try_recv().unwrap() else { panic!("no message") };
        assert_eq!(prev, last);
        last = publication.seq().unwrap();
    }
    assert!(events.try_recv().is_err());
    reader.leave();
}

fn stepped(dir: &Path) -> (Embedded, Writer) {
    Embedded::open_stepped(settings(), Hubs::new(16), dir, Durability::Os).unwrap()
}

#[tokio::test]
async fn a_turn_commits_publishes_and_confirms_what_is_queued() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut writer) = stepped(dir.path());
    let mailbox = Address::Session(session("A"));
    let (reader, mut events) =
        engine.shared.hubs.join(&mailbox, Seq::START, Transport::Websocket, 9).unwrap();
    let commits: Vec<Commit> = (0..3).map(|_| engine.append(message(&mailbox))).collect();
    assert_eq!(engine.read(&mailbox, Seq::START, 9).await.unwrap().items.len(), 0, "nothing is committed");
    assert!(events.try_recv().is_err());
    assert!(writer.turn() && !writer.turn());
    let mut last = Seq::START;
    for commit in commits {
        let seq = commit.await.unwrap();
        let HubEvent::Stored { prev, publication } = events.try_recv().unwrap() else { panic!("no message") };
        assert_eq!((publication.seq(), prev), (Some(seq), last));
        last = seq;
    }
    assert_eq!(engine.read(&mailbox, Seq::START, 9).await.unwrap().cursor, last);
    reader.leave();
    writer.finish();
}

#[tokio::test]
async fn a_failed_commit_refuses_messages_and_keeps_other_changes_for_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut writer) = stepped(dir.path());
    let mailbox = Address::Session(session("A"));
    let register = Register {
        session: session("B"),
        user: None,
        ttl: Duration::from_secs(60),
        by: Registrar::Token { until: 0 },
    };
    let other = rusqlite::Connection::open(dir.path().join("store.db")).unwrap();
    other.execute_batch("ALTER TABLE message RENAME TO hidden").unwrap();
    let (append, registered) = (engine.append(message(&mailbox)), engine.register(&register));
    assert!(writer.turn());
    assert!(matches!(append.await, Err(EngineError::Unavailable { .. })));
    assert!(matches!(registered.await, Err(RegisterError::Engine(_))));
    assert_eq!(engine.health().failing.len(), 1);
    other.execute_batch("ALTER TABLE hidden RENAME TO message").unwrap();
    drop(other);
    assert!(writer.turn(), "the registration is still to be written");
    assert!(engine.health().failing.is_empty());
    let append = engine.append(message(&mailbox));
    assert!(writer.turn());
    let seq = append.await.unwrap();
    writer.finish();
    drop(engine);
    let (engine, writer) = stepped(dir.path());
    assert!(engine.registration(&session("B")).is_some());
    assert_eq!(
        engine.read(&mailbox, Seq::START, 9).await.unwrap().cursor,
        seq,
        "and the refused message is not there"
    );
    assert_eq!(engine.waiting(&mailbox).await, 1);
    writer.finish();
}

fn of_backend(name: &str, user: &str) -> Register {
    let (session, user) = (session(name), Some(UserId::new(user).unwrap()));
    Register { session, user, ttl: Duration::from_secs(60), by: Registrar::Backend { proof: false } }
}

#[tokio::test]
async fn a_registration_and_an_end_are_visible_after_their_commit() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut writer) = stepped(dir.path());
    let (a, mailbox) = (session("A"), Address::Session(session("A")));
    let registered = engine.register(&of_backend("A", "ann"));
    assert!(engine.registration(&a).is_none());
    assert!(writer.turn());
    registered.await.unwrap();
    assert_eq!(engine.registration(&a).unwrap().user, UserId::new("ann").ok());
    let stored = engine.append(message(&mailbox));
    assert!(writer.turn());
    stored.await.unwrap();

    let (reader, mut events) =
        engine.shared.hubs.join(&mailbox, Seq::START, Transport::Websocket, 9).unwrap();
    let ended = engine.end(&a, Duration::from_secs(60));
    assert!(engine.registration(&a).is_some() && reader.ended().is_none());
    assert_eq!(engine.waiting(&mailbox).await, 1);
    assert!(writer.turn());
    ended.await.unwrap();
    assert!(engine.registration(&a).is_none() && engine.is_revoked(&a) && reader.ended().is_some());
    assert!(matches!(events.try_recv(), Ok(HubEvent::Ended(_))));
    assert_eq!(engine.waiting(&mailbox).await, 0);
    // The rows of the messages are still there.
    engine.abandon();
    writer.finish();
    reader.leave();
    drop(engine);
    let (engine, writer) = stepped(dir.path());
    assert!(engine.is_revoked(&a));
    assert_eq!(
        engine.read(&mailbox, Seq::START, 9).await.unwrap().items.len(),
        0,
        "the mailbox does not come back"
    );
    writer.finish();
}

#[tokio::test]
async fn a_failed_commit_leaves_registrations_and_ends_undone() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut writer) = stepped(dir.path());
    let registered = engine.register(&of_backend("A", "ann"));
    assert!(writer.turn());
    registered.await.unwrap();
    let other = rusqlite::Connection::open(dir.path().join("store.db")).unwrap();
    other.execute_batch("ALTER TABLE directory RENAME TO hidden").unwrap();
    let ended = engine.end(&session("A"), Duration::from_secs(60));
    let registered = engine.register(&of_backend("B", "bob"));
    assert!(writer.turn());
    assert!(matches!(ended.await, Err(EngineError::Unavailable { .. })));
    assert!(matches!(registered.await, Err(RegisterError::Engine(_))));
    other.execute_batch("ALTER TABLE hidden RENAME TO directory").unwrap();
    drop(other);
    while writer.turn() {}
    assert!(engine.registration(&session("A")).is_some() && !engine.is_revoked(&session("A")));
    assert!(engine.registration(&session("B")).is_none());
    writer.finish();
    drop(engine);
    let (engine, writer) = stepped(dir.path());
    assert!(engine.registration(&session("A")).is_some() && engine.registration(&session("B")).is_none());
    writer.finish();
}

#[tokio::test]
async fn of_two_users_the_first_one_gets_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut writer) = stepped(dir.path());
    let first = engine.register(&of_backend("A", "ann"));
    let second = engine.register(&of_backend("A", "bob"));
    let token = Register { by: Registrar::Token { until: 0 }, ..of_backend("A", "bob") };
    assert_eq!(engine.register(&token).await, Err(RegisterError::Taken));
    while writer.turn() {}
    first.await.unwrap();
    assert_eq!(second.await, Err(RegisterError::Taken));
    assert_eq!(engine.registration(&session("A")).unwrap().user, UserId::new("ann").ok());
    writer.finish();
}

#[tokio::test]
async fn a_closed_store_has_written_everything_and_refuses_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let mailbox = Address::Session(session("A"));
    let open = || Embedded::open(settings(), Hubs::new(16), dir.path(), Durability::Os).unwrap();
    let engine = open();
    let commits: Vec<Commit> = (0..5).map(|_| engine.append(message(&mailbox))).collect();
    engine.trim(&mailbox, Seq(1));
    engine.close();
    for commit in commits {
        commit.await.unwrap();
    }
    let refused = engine.append(message(&mailbox)).now_or_never();
    assert!(matches!(refused, Some(Err(EngineError::Unavailable { .. }))));
    assert!(!dir.path().join("store.db-wal").exists() && !dir.path().join("running").exists());
    drop(engine);
    assert_eq!(open().read(&mailbox, Seq::START, 9).await.unwrap().items.len(), 5);
}

#[tokio::test]
async fn an_abandoned_store_is_left_as_by_a_killed_process() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut writer) = stepped(dir.path());
    let mailbox = Address::Session(session("A"));
    let stored = engine.append(message(&mailbox));
    assert!(writer.turn());
    let seq = stored.await.unwrap();
    let lost = engine.append(message(&mailbox));
    engine.abandon();
    assert!(!writer.turn());
    writer.finish();
    drop(engine);
    assert!(lost.await.is_err());
    assert!(dir.path().join("store.db-wal").exists() && dir.path().join("running").exists());
    let (engine, writer) = stepped(dir.path());
    let batch = engine.read(&mailbox, Seq::START, 9).await.unwrap();
    assert_eq!((batch.items.len(), batch.cursor), (1, seq));
    writer.finish();
}
