//! What is about the memory of this process: of the embedded engine only.

use super::*;
use crate::message::Publication;

fn live_parts(live: HubEvent) -> (Seq, Arc<Publication>) {
    match live {
        HubEvent::Stored { prev, publication } => (prev, publication),
        HubEvent::Volatile(publication) => (Seq::START, publication),
        other => panic!("{other:?}"),
    }
}

fn embedded(engine: &Engine) -> &Embedded {
    match engine {
        Engine::Embedded(embedded) => embedded,
        engine => panic!("{engine:?}"),
    }
}

pub(super) async fn empty_addresses_cost_nothing_and_no_hole_goes_untold(lab: Lab) {
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
    // What others have forgotten may be above, but not all that was ever given.
    let tells = |to| told[0] == gap(Seq(last.0 - 900), Seq(to), GapReason::Acknowledged);
    assert!((last.0 - 899..=last.0).any(tells), "{told:?}");
    assert_eq!(told[1..], ["2"]);
    assert_eq!(found(&engine, &a, Seq::START).await, ["2"]);
}

pub(super) async fn what_someone_reads_is_not_forgotten(lab: Lab) {
    let (engine, hubs) = lab.engine();
    let a = mailbox("A");
    let (handle, _live) = hubs.join(&a, Seq::START, Transport::Websocket, usize::MAX).unwrap();
    let first = put(&engine, &a, "1").await;
    engine.trim(&a, first);
    embedded(&engine).forget_empty();
    assert_eq!(engine.position(&a).await.floor, first);
    handle.leave();
    embedded(&engine).forget_empty();
    assert_eq!(embedded(&engine).logs(), 0);
}

/// What ends before it is committed is neither dropped before nor does it hold up anything.
#[tokio::test]
async fn a_message_may_end_before_it_is_committed() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::manual());
    let (engine, mut writer) =
        Embedded::open_stepped(settings(clock), Hubs::new(4), dir.path(), Durability::Os).unwrap();
    let engine = Engine::from(engine);
    let a = mailbox("A");
    let commit = engine.append(Append { ttl: Some(Duration::from_millis(1)), ..append(&a, "1") });
    clock.advance(Duration::from_secs(1));
    assert_eq!(engine.expire().messages, 0);
    assert!(writer.turn());
    commit.await.unwrap();
    clock.advance(Duration::from_secs(1));
    assert_eq!(engine.expire().messages, 1);
    assert_eq!(found(&engine, &a, Seq::START).await, [""; 0]);
    engine.close();
    writer.finish();
}

/// More than is kept in memory: what is read from the disk is the same, byte for byte.
pub(super) async fn a_reader_of_the_disk_sees_what_one_of_the_memory_sees(lab: Lab) {
    let many = Settings { mailbox: Bounds { messages: 1000, ..bounds() }, ..lab.settings() };
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
    let before = frames(&engine.read(&a, Seq::START, 200).await.unwrap());
    assert_eq!(before.len(), 150);
    engine.close();
    drop(engine);
    let (engine, _) = lab.open(many);
    assert_eq!(frames(&engine.read(&a, Seq::START, 200).await.unwrap()), before);
    // In pieces, while the read ones are deleted.
    let mut cursor = Seq::START;
    let mut after = Vec::new();
    loop {
        let batch = engine.read(&a, cursor, 7).await.unwrap();
        after.extend(frames(&batch));
        cursor = batch.cursor;
        engine.trim(&a, cursor);
        if !batch.more {
            break;
        }
    }
    assert_eq!(after, before);
}

pub(super) async fn what_is_committed_is_published_at_once_and_in_order(lab: Lab) {
    let (engine, hubs) = lab.engine();
    let a = mailbox("A");
    let (_handle, mut live) = hubs.join(&a, Seq::START, Transport::Websocket, usize::MAX).unwrap();
    let first = put(&engine, &a, "1").await;
    let second = put(&engine, &a, "2").await;
    publish_volatile(&engine, &a, "0");
    let one = live_parts(live.try_recv().unwrap());
    assert_eq!((one.0, one.1.seq()), (Seq::START, Some(first)));
    let two = live_parts(live.try_recv().unwrap());
    assert_eq!((two.0, two.1.seq()), (first, Some(second)));
    let volatile = live_parts(live.try_recv().unwrap());
    assert_eq!((volatile.1.seq(), volatile.1.payload()), (None, "0"));
    assert_eq!(found(&engine, &a, Seq::START).await, ["1", "2"]);
}

pub(super) async fn expired_messages_are_counted(lab: Lab) {
    let (engine, _) = lab.engine();
    let (a, news) = (mailbox("A"), topic("news"));
    put_ttl(&engine, &a, "1", 10).await;
    put_ttl(&engine, &a, "2", 20).await;
    put_ttl(&engine, &news, "1", 1_000_000).await;
    lab.clock.advance(Duration::from_secs(10));
    assert_eq!(engine.expire().messages, 1);
    assert_eq!(engine.expire(), Expired { messages: 0, more: false });
    lab.clock.advance(Duration::from_secs(3590));
    assert_eq!(engine.expire().messages, 2);
    assert_eq!(engine.waiting(&mailbox("A")).await, 0);
}
