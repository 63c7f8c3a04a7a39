//! Receipts: who gets them, and where their room comes from.

use super::*;

/// Receipts come into the sender's mailbox, once, when the message leaves.
pub(super) async fn a_sender_that_asks_is_told_what_became_of_its_message(lab: Lab) {
    let (engine, hubs) = lab.engine();
    let (a, s) = (mailbox("A"), mailbox("S"));
    let mut sender = reader(&engine, &hubs, &s, Seq::START);
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
    lab.clock.advance(Duration::from_secs(10));
    expire_all(&engine).await;
    engine.trim(&a, Seq(u64::MAX));
    let frames = [receipt(&mut sender).await, receipt(&mut sender).await];
    assert!(frames[0].contains(r#""id":"c-1","state":"acknowledged"}"#), "{frames:?}");
    assert!(frames[1].contains(r#""id":"c-2","state":"expired"}"#), "{frames:?}");
    assert_eq!(items(&engine, &s, 2).await.len(), 2);
    let newest = sender.delivered();
    engine.trim(&s, newest);
    assert_eq!(found(&engine, &s, Seq::START).await, [""; 0], "receipts have no receipts");
}

/// Expiring makes room for a message, and receipts for what expired take seqs of their own.
pub(super) async fn a_seq_is_given_once_when_receipts_come_in_between(lab: Lab) {
    let (engine, _) = lab.engine();
    let (a, s) = (mailbox("A"), mailbox("S"));
    let mut seqs = Vec::new();
    for n in 0..5 {
        let id = Some(MessageId::new(&format!("c-{n}")).unwrap());
        let ttl = Some(Duration::from_secs(10));
        let append = Append { id, ttl, receipt: n < 3, ..append(&a, "1") };
        seqs.push(engine.append(append).await.unwrap());
    }
    lab.clock.advance(Duration::from_secs(10));
    // The mailbox is full of what has ended, and nobody has swept it.
    for n in 0..3 {
        seqs.push(put(&engine, &a, &n.to_string()).await);
    }
    put(&engine, &mailbox("B"), "1").await;
    let receipts = items(&engine, &s, 3).await;
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

pub(super) async fn a_receipt_has_its_room_kept_in_the_senders_mailbox(lab: Lab) {
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

/// The frame of the next item, which is a receipt.
async fn receipt(subscriber: &mut Subscriber) -> String {
    match next_item(subscriber).await {
        Item::Message(message) if message.kind() == Kind::Receipt => message.frame().as_str().to_owned(),
        other => panic!("{other:?}"),
    }
}
