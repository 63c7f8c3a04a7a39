//! Tokens and ids of sessions that expire.

use super::*;
use crate::grant::{Proof, TokenExpiry};

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_told_and_then_closes_the_connection() {
    let gateway = gateway(&[]);
    let mut conversation = silent(&gateway);
    let expires = gateway.broker.now() + 5_000;
    assert_eq!(conversation.begin(token_caller(&gateway, "A", expires), &Resume::default()).await, CONTINUE);
    take(&mut conversation);
    assert_eq!(conversation.step(Event::Tick).await, CONTINUE);
    assert_eq!(conversation.timers.tick(), Instant::now() + Duration::from_secs(5));
    advance(Duration::from_secs(5)).await;
    assert_eq!(conversation.step(Event::Tick).await, CONTINUE);
    assert_eq!(take(&mut conversation)["code"], "unauthorized");
    advance(Duration::from_secs(SKEW)).await;
    say(&mut conversation, &json!({ "type": "ping" })).await;
    assert!(closes_with(&conversation.step(Event::Tick).await, Close::Unauthorized));
}

#[tokio::test(start_paused = true)]
async fn a_socket_with_a_session_id_ends_with_the_registration() {
    const ID: &str = "5f3c9a1be07d42886c0e9b7d13fa2465";
    let (dir, key) = (tempfile::tempdir().unwrap(), "0123456789abcdef0123456789abcdef");
    let file = dir.path().join("keys.toml");
    std::fs::write(
        &file,
        format!(
            "[[key]]
name = \"shop\"
key = \"{key}\""
        ),
    )
    .unwrap();
    for prolonged in [false, true] {
        let gateway = gateway(&["--auth", "token", "--api-key-file", file.to_str().unwrap()]);
        let (id, ttl) = (session(ID), Duration::from_secs(60));
        let register = async |proof| gateway.broker.register(&id, None, ttl, proof).await.unwrap();
        register(true).await;
        let (handle, proof) = (gateway.broker.handle(&id), Proof::SessionId);
        let client = Client::new(id.clone(), handle, None, proof);
        let mut conversation = silent(&gateway);
        let caller = Caller { grant: Grant::Client(client.into()), address: None };
        assert_eq!(conversation.begin(caller, &Resume::default()).await, CONTINUE);
        take(&mut conversation);
        assert_eq!(conversation.expires_in(), Some(ttl));
        advance(ttl - Duration::from_secs(1)).await;
        if prolonged {
            register(true).await;
            advance(Duration::from_secs(1)).await;
            say(&mut conversation, &json!({ "type": "ping" })).await;
            take(&mut conversation);
            assert_eq!(conversation.step(Event::Tick).await, CONTINUE);
            register(false).await;
        } else {
            advance(Duration::from_secs(1)).await;
            say(&mut conversation, &json!({ "type": "ping" })).await;
        }
        assert!(closes_with(&conversation.step(Event::Tick).await, Close::SessionEnded), "{prolonged}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fresh_token_is_welcomed_and_takes_away_what_it_does_not_allow() {
    let gateway = gateway(&[]);
    let caller = |expires, topics: &[&str]| {
        let (session, user) = (session("A"), crate::message::UserId::new("u").unwrap());
        let handle = gateway.broker.handle(&session);
        let mut client = Client::new(session, handle, Some(user), Proof::Token(TokenExpiry { at: expires }));
        client.topics = Some(serde_json::from_value(json!(topics)).unwrap());
        Caller { grant: Grant::Client(client.into()), address: None }
    };
    let mut conversation = silent(&gateway);
    let now = gateway.broker.now();
    assert_eq!(conversation.begin(caller(now + 5_000, &["a", "b"]), &Resume::default()).await, CONTINUE);
    take(&mut conversation);
    for name in ["a", "b"] {
        say(&mut conversation, &json!({ "type": "subscribe", "topic": name })).await;
        assert_eq!(take(&mut conversation)["type"], "subscribed");
    }
    advance(Duration::from_secs(5)).await;
    assert_eq!(conversation.step(Event::Tick).await, CONTINUE);
    take(&mut conversation);
    conversation.renew(caller(now + 60_000, &["a"])).await;
    assert_eq!(take_next(&mut conversation)["type"], "welcome");
    let unsubscribed = take(&mut conversation);
    assert_eq!((&unsubscribed["type"], &unsubscribed["topic"]), (&json!("unsubscribed"), &json!("b")));
    assert_eq!(conversation.next_expiry(), Some(now + 60_000));
    advance(Duration::from_secs(SKEW)).await;
    say(&mut conversation, &json!({ "type": "ping" })).await;
    take(&mut conversation);
    assert_eq!(conversation.step(Event::Tick).await, CONTINUE);
}
