//! The mailbox of a backend: it keeps the promises of a mailbox, and no registration touches it.

use super::*;
use crate::message::BackendName;

fn backend(name: &str) -> Address {
    Address::Backend(BackendName::new(name).unwrap())
}

fn asking(to: &Address, id: &str, author: Author) -> Append {
    let id = Some(MessageId::new(id).unwrap());
    Append { id, author, receipt: true, ..append(to, "1") }
}

/// Order, gaps, ids, times to live and bounds are those of any mailbox. A session, a topic and a backend of one name are
/// three places.
pub(super) async fn the_mailbox_of_a_backend_is_one_of_its_own(lab: Lab) {
    let (engine, _) = lab.engine();
    let (shop, session, news) = (backend("shop"), mailbox("shop"), topic("shop"));
    let first = put_id(&engine, &shop, "S", "c-1", "1").await;
    let second = put(&engine, &shop, "2").await;
    put_id(&engine, &session, "S", "c-1", r#""of the session""#).await;
    put_id(&engine, &news, "S", "c-1", r#""of the topic""#).await;
    assert_eq!(put_id(&engine, &shop, "S", "c-1", "1").await, first, "a retry");
    expect(&engine, &shop, Seq::START, &["1", "2"]).await;
    engine.trim(&shop, first);
    expect(&engine, &shop, Seq::START, &["2"]).await;
    let before = Seq(first.0 - 1);
    expect(&engine, &shop, before, &[&gap(before, first, GapReason::Acknowledged), "2"]).await;
    let expiring = put_ttl(&engine, &shop, "3", 10).await;
    lab.clock.advance(Duration::from_secs(10));
    expect(&engine, &shop, second, &[&gap(second, expiring, GapReason::Expired)]).await;
    for n in 1..bounds().messages {
        put(&engine, &shop, &n.to_string()).await;
    }
    let refused = engine.append(append(&shop, "9")).await.unwrap_err();
    assert!(matches!(refused, EngineError::MailboxFull { messages: 5, .. }), "{refused:?}");
    expect(&engine, &session, Seq::START, &[r#""of the session""#]).await;
    expect(&engine, &news, Seq::START, &[r#""of the topic""#]).await;
}

/// The end of a session of the same name, and an owner that changes, do not touch it.
pub(super) async fn the_end_of_a_session_of_the_same_name_leaves_a_backend_alone(lab: Lab) {
    let (engine, hubs) = lab.engine();
    let (shop, name) = (backend("shop"), SessionId::new("shop").unwrap());
    let mut subscriber = reader(&engine, &hubs, &shop, Seq::START);
    put(&engine, &shop, "1").await;
    put(&engine, &mailbox("shop"), "2").await;
    engine.append(asking(&mailbox("R"), "c-1", author("shop"))).await.unwrap();
    engine.end(&name, Duration::from_secs(60)).await.unwrap();
    assert_eq!(next(&mut subscriber).await, "1");
    assert!(subscriber.ended().is_none());
    expect(&engine, &shop, Seq::START, &["1"]).await;
}

/// What waits, the ids and the receipts to come are there after a crash.
pub(super) async fn the_mailbox_of_a_backend_survives_restarts(lab: Lab) {
    for crash in [false, true] {
        let (engine, _) = lab.engine();
        let (shop, a) = (backend("shop"), mailbox("A"));
        let author = || Author::Backend("shop".into());
        let first = put_id(&engine, &shop, "S", "c-1", "1").await;
        let second = put(&engine, &shop, "2").await;
        let asked = engine.append(asking(&a, "c-2", author())).await.unwrap();
        let to_itself = engine.append(asking(&shop, "c-3", author())).await.unwrap();
        let engine = lab.again(engine, crash);
        expect(&engine, &shop, Seq::START, &["1", "2", "1"]).await;
        assert_eq!(put_id(&engine, &shop, "S", "c-1", "1").await, first, "ids survive");
        engine.trim(&shop, second);
        engine.trim(&a, asked);
        let receipt = waiting_receipt(&engine, &shop, to_itself).await;
        assert!(receipt.contains(r#""id":"c-2","state":"acknowledged"}"#), "crash: {crash}: {receipt}");
        expect(&engine, &mailbox("shop"), Seq::START, &[]).await;
    }
}

/// The frame of the receipt after this position.
async fn waiting_receipt(engine: &Engine, mailbox: &Address, after: Seq) -> String {
    loop {
        if let Some(Item::Message(message)) = engine.read(mailbox, after, 1).await.unwrap().items.first() {
            assert_eq!(message.kind(), Kind::Receipt);
            return message.frame().as_str().to_owned();
        }
        tokio::task::yield_now().await;
    }
}
