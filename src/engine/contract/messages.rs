//! Order, room, trimming and reading.

use super::*;

/// Every stored message is published with the seq before it, or announced. Volatile ones are published.
pub(super) async fn what_is_committed_is_published_or_announced(lab: Lab) {
    let (engine, hubs) = lab.engine();
    let a = mailbox("A");
    let (handle, mut live) = hubs.join(&a, Seq::START, Transport::Websocket, usize::MAX).unwrap();
    // An engine of several machines subscribes before the first read.
    engine.read(&a, Seq::START, 1).await.unwrap();
    let first = put(&engine, &a, "1").await;
    publish_volatile(&engine, &a, "0");
    let second = put(&engine, &a, "2").await;
    let (mut reached, mut volatile) = (Seq::START, false);
    while reached < second || !volatile {
        match event(&mut live).await {
            HubEvent::Stored { prev, publication } => {
                let seq = publication.seq().unwrap();
                assert_eq!(prev, if seq == first { Seq::START } else { first });
                assert!(seq == first || seq == second);
                reached = reached.max(seq);
            }
            HubEvent::Volatile(publication) => {
                assert_eq!((publication.seq(), publication.payload()), (None, "0"));
                volatile = true;
            }
            HubEvent::Available(seq) => reached = reached.max(seq),
            other => panic!("{other:?}"),
        }
    }
    expect(&engine, &a, Seq::START, &["1", "2"]).await;
    handle.leave();
}

pub(super) async fn seqs_increase_and_reads_are_in_order(lab: Lab) {
    let (engine, _) = lab.engine();
    let (a, b) = (mailbox("A"), mailbox("B"));
    let first = put(&engine, &a, "1").await;
    put(&engine, &b, "10").await;
    let second = put(&engine, &a, "2").await;
    assert!(second > first);
    assert_eq!(found(&engine, &a, Seq::START).await, ["1", "2"]);
    assert_eq!(found(&engine, &a, first).await, ["2"]);
    assert_eq!(found(&engine, &b, Seq::START).await, ["10"]);
    assert!(engine.newest(&a, second).await.unwrap() >= second);
    assert!(engine.origin(&a) < first);
}

pub(super) async fn a_place_in_the_order_is_taken_when_append_is_called(lab: Lab) {
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

pub(super) async fn a_message_for_several_mailboxes_is_an_append_in_each(lab: Lab) {
    let (engine, _) = lab.engine();
    let [a, b, c] = ["A", "B", "C"].map(mailbox);
    let each = async |id: &str| {
        let append = Append { id: MessageId::new(id).ok(), ..append(&a, "1") };
        futures::future::join_all(engine.append_each(append, vec![b.clone(), c.clone()])).await
    };
    let before = put(&engine, &b, "0").await;
    let stored: Vec<Seq> = each("x").await.into_iter().map(Result::unwrap).collect();
    let is_sorted = before < stored[0] && stored.is_sorted_by(|one, next| one < next);
    assert!(is_sorted || !is_one_store(&engine), "{stored:?}");
    for (mailbox, seq) in [&a, &b, &c].into_iter().zip(&stored) {
        let items = items(&engine, mailbox, if *mailbox == b { 2 } else { 1 }).await;
        let Some(Item::Message(last)) = items.last() else { panic!("{items:?}") };
        let alone = Publication::encode(mailbox, Some(*seq), &from("S", "1"));
        assert_eq!((last.frame(), last.payload()), (alone.frame(), "1"));
    }
    let retried: Vec<Seq> = each("x").await.into_iter().map(Result::unwrap).collect();
    assert_eq!(retried, stored);
    // One that is full refuses it, and the others take it.
    for n in 2..5 {
        put(&engine, &b, &n.to_string()).await;
    }
    let [taken, full, last] = each("y").await.try_into().expect("one for each");
    assert!(
        taken.is_ok() && last.is_ok() && matches!(full, Err(EngineError::MailboxFull { .. })),
        "{full:?}"
    );
}

pub(super) async fn a_short_read_has_reached_the_end(lab: Lab) {
    let (engine, _) = lab.engine();
    let a = mailbox("A");
    for n in 1..=5 {
        put(&engine, &a, &n.to_string()).await;
    }
    let batch = engine.read(&a, Seq::START, 3).await.unwrap();
    assert_eq!(batch.items.len(), 3);
    assert!(batch.more);
    let batch = engine.read(&a, batch.cursor, 3).await.unwrap();
    assert_eq!(batch.items.iter().map(text).collect::<Vec<_>>(), ["4", "5"]);
    assert!(!batch.more);
}

pub(super) async fn a_mailbox_loses_only_what_is_trimmed_and_says_so(lab: Lab) {
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

pub(super) async fn trimming_beyond_the_end_does_not_touch_what_comes_later(lab: Lab) {
    let (engine, _) = lab.engine();
    let a = mailbox("A");
    put(&engine, &a, "1").await;
    engine.trim(&a, Seq(u64::MAX));
    put(&engine, &a, "2").await;
    assert_eq!(found(&engine, &a, Seq::START).await, ["2"]);
}

pub(super) async fn a_full_mailbox_refuses_and_keeps_what_it_has(lab: Lab) {
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

pub(super) async fn a_mailbox_is_bounded_in_bytes_too(lab: Lab) {
    let small = Bounds { bytes: 2000, ..bounds() };
    let (engine, _) = lab.engine_with(Settings { mailbox: small, ..lab.settings() });
    let a = mailbox("A");
    let long = format!("\"{}\"", "x".repeat(900));
    put(&engine, &a, &long).await;
    let full = engine.append(append(&a, &long)).await.unwrap_err();
    assert!(matches!(full, EngineError::MailboxFull { messages: 1, .. }), "{full:?}");
    assert_eq!(found(&engine, &a, Seq::START).await.len(), 1);
}

pub(super) async fn all_together_are_bounded_and_trimming_makes_room(lab: Lab) {
    let (engine, _) = lab.engine_with(Settings { total_bytes: 1000, ..lab.settings() });
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

pub(super) async fn a_history_drops_its_oldest_and_says_so(lab: Lab) {
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

pub(super) async fn a_refused_message_is_not_remembered_as_sent(lab: Lab) {
    let (engine, _) = lab.engine();
    let a = mailbox("A");
    for n in 1..=5 {
        put(&engine, &a, &n.to_string()).await;
    }
    let id = Some(MessageId::new("c-1").unwrap());
    let again = || Append { id: id.clone(), ..append(&a, "6") };
    engine.append(again()).await.unwrap_err();
    engine.trim(&a, Seq(u64::MAX));
    engine.append(again()).await.unwrap();
    assert_eq!(found(&engine, &a, Seq::START).await, ["6"]);
}

pub(super) async fn remembered_ids_are_bounded(lab: Lab) {
    let (engine, _) = lab.engine_with(Settings { dedup_ids: 10, ..lab.settings() });
    let first = put_id(&engine, &topic("t"), "S", "c-0", "0").await;
    for n in 1..=11 {
        put_id(&engine, &topic("t"), "S", &format!("c-{n}"), "1").await;
    }
    assert_ne!(put_id(&engine, &topic("t"), "S", "c-0", "0").await, first, "the oldest is forgotten first");
}

/// The last ids of an author are known for the whole window, however many another author sends.
pub(super) async fn a_flood_pushes_out_only_the_ids_of_its_author(lab: Lab) {
    let (engine, _) = lab.engine_with(Settings { dedup_ids: 20, ..lab.settings() });
    let mut mine = Vec::new();
    for n in 0..10 {
        mine.push(put_id(&engine, &topic("t"), "S", &format!("c-{n}"), "1").await);
    }
    let first = put_id(&engine, &topic("t"), "F", "f-0", "1").await;
    for n in 1..=100 {
        put_id(&engine, &topic("t"), "F", &format!("f-{n}"), "1").await;
    }
    for (n, seq) in mine.iter().enumerate() {
        assert_eq!(put_id(&engine, &topic("t"), "S", &format!("c-{n}"), "1").await, *seq, "c-{n}");
    }
    assert_ne!(put_id(&engine, &topic("t"), "F", "f-0", "1").await, first);
}

pub(super) async fn a_reader_behind_everything_ends_even_if_what_it_waits_for_is_gone(lab: Lab) {
    let (engine, hubs) = lab.engine();
    let a = mailbox("A");
    let mut subscriber = reader(&engine, &hubs, &a, Seq::START);
    for n in 1..=5 {
        put(&engine, &a, &n.to_string()).await;
    }
    // Overflows the hub, and deletes what the reader would have to read.
    engine.trim(&a, Seq(u64::MAX));
    put(&engine, &a, "6").await;
    assert_eq!(next(&mut subscriber).await, "6");
}
