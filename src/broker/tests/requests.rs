//! Requests and their answers.

use super::*;
use crate::protocol::ReplyTo;

fn asking(to: To, id: &str) -> SendRequest {
    SendRequest { id: MessageId::new(id).ok(), request: true, ..request(to, "1") }
}

/// The `reply_to` of the next message of a mailbox.
async fn reply_to(broker: &Broker, name: &str) -> String {
    let (mut reader, _) = broker.mailbox(&session(name), &Resume::default(), Transport::Poll).await.unwrap();
    let message = loop {
        match reader.next().await.unwrap() {
            Item::Message(message) => break message,
            Item::Gap(gap) => assert_eq!(gap.reason, GapReason::Expired),
        }
    };
    let frame: serde_json::Value = serde_json::from_str(message.frame().as_str()).unwrap();
    frame["reply_to"].as_str().unwrap().to_owned()
}

async fn answer(broker: &Broker, grant: &Grant, reply_to: &str, payload: &str) -> Result<Seq, BrokerError> {
    let send = request(To::Reply(ReplyTo::new(reply_to.to_owned()).unwrap()), payload);
    broker.send(grant, send).await?.await.map(|result| result.seq.unwrap())
}

/// A broker where sessions `A` of ann and `B` of bob are registered.
async fn registered(broker: Broker) -> Broker {
    for (name, of) in [("A", "ann"), ("B", "bob")] {
        broker.register(&session(name), Some(user(of)), TTL, false).await.unwrap();
    }
    broker
}

async fn one_answer_is_stored_at(broker: Broker) {
    let broker = registered(broker).await;
    let (ann, bob) = (client(&broker, "A", "ann"), client(&broker, "B", "bob"));
    broker.send(&ann, asking(To::User(user("bob")), "q")).await.unwrap().await.unwrap();
    let reply_to = reply_to(&broker, "B").await;
    let denied = answer(&broker, &ann, &reply_to, "1").await.unwrap_err();
    assert!(matches!(denied, BrokerError::Denied(_)), "{denied}");
    let first = answer(&broker, &bob, &reply_to, "1").await.unwrap();
    assert_eq!(answer(&broker, &bob, &reply_to, "1").await.unwrap(), first, "a repeat");
    let second = answer(&broker, &bob, &reply_to, "2").await.unwrap_err();
    assert!(second.to_string().contains("has been answered"), "{second}");
}

#[tokio::test]
async fn one_answer_is_stored_at_each_engine() {
    one_answer_is_stored_at(broker(true).0).await;
    for seed in 0..4 {
        one_answer_is_stored_at(on_a_node(seed)).await;
    }
}

#[tokio::test]
async fn a_request_is_over_with_its_time_and_with_its_requester() {
    let (broker, clock) = broker(true);
    let broker = registered(broker).await;
    let (ann, bob) = (client(&broker, "A", "ann"), client(&broker, "B", "bob"));
    let short = SendRequest { ttl: Some(TTL / 4), ..asking(To::User(user("bob")), "q") };
    broker.send(&ann, short).await.unwrap().await.unwrap();
    let expired = reply_to(&broker, "B").await;
    clock.advance(TTL / 4);
    assert_eq!(answer(&broker, &bob, &expired, "1").await, Err(BrokerError::RequestExpired));
    broker.send(&ann, asking(To::User(user("bob")), "r")).await.unwrap().await.unwrap();
    let late = reply_to(&broker, "B").await;
    clock.advance(TTL / 2);
    broker.register(&session("B"), Some(user("bob")), TTL, false).await.unwrap();
    broker.end(&session("A")).await.unwrap();
    assert_eq!(answer(&broker, &bob, &late, "1").await, Err(BrokerError::RequesterGone));
}

#[tokio::test]
async fn an_answer_for_a_session_without_a_user_needs_its_registration() {
    let (broker, _) = broker(true);
    let broker = registered(broker).await;
    let (nobody, handle) = (session("N"), broker.handle(&session("N")));
    broker.register(&nobody, None, TTL, false).await.unwrap();
    let requester = Grant::Client(Client::new(nobody.clone(), handle, None, Proof::SessionId).into());
    broker.send(&requester, asking(To::User(user("bob")), "q")).await.unwrap().await.unwrap();
    let (reply_to, bob) = (reply_to(&broker, "B").await, client(&broker, "B", "bob"));
    answer(&broker, &bob, &reply_to, "1").await.unwrap();
    broker.end(&nobody).await.unwrap();
    assert_eq!(answer(&broker, &bob, &reply_to, "1").await, Err(BrokerError::RequesterGone));
    // Its next holder did not ask.
    broker.register(&nobody, None, TTL, false).await.unwrap();
    assert_eq!(answer(&broker, &bob, &reply_to, "1").await, Err(BrokerError::RequesterGone));
}

#[tokio::test]
async fn the_next_holder_of_a_session_answers_nothing_that_the_last_one_was_asked() {
    for next in [None, Some(user("cid"))] {
        let (broker, _) = broker(true);
        let broker = registered(broker).await;
        let (nobody, handle) = (session("N"), broker.handle(&session("N")));
        broker.register(&nobody, None, TTL, false).await.unwrap();
        let ann = client(&broker, "A", "ann");
        let to = To::Session(SessionId::new(&handle.to_string()).unwrap());
        broker.send(&ann, asking(to, "q")).await.unwrap().await.unwrap();
        let reply_to = reply_to(&broker, "N").await;
        let holder = |user| Grant::Client(Client::new(nobody.clone(), handle, user, Proof::SessionId).into());
        broker.end(&nobody).await.unwrap();
        broker.register(&nobody, next.clone(), TTL, false).await.unwrap();
        let denied = answer(&broker, &holder(next), &reply_to, "1").await.unwrap_err();
        assert!(denied.to_string().contains("is for the reader of the mailbox"), "{denied}");
    }
}
