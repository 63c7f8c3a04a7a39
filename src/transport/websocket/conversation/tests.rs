use std::future::poll_fn;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::advance;

use super::*;
use crate::grant::{Backend, Client, Grant, SKEW};
use crate::link::WRITE_TIMEOUT;
use crate::message::Seq;
use crate::protocol::{Resume, To};
use crate::transport::testing::{gateway, open_caller, send, session, token_caller, topic};

mod credentials;
mod lending;

const CONTINUE: ControlFlow<End> = ControlFlow::Continue(());

/// A conversation that nobody has begun yet.
fn silent(gateway: &Arc<Gateway>) -> Conversation {
    Conversation::new(Arc::clone(gateway), None)
}

/// A conversation of a session, whose welcome was read.
async fn begun(gateway: &Arc<Gateway>, name: &str) -> Conversation {
    let mut conversation = silent(gateway);
    assert_eq!(conversation.begin(open_caller(name), &Resume::default()).await, CONTINUE);
    assert_eq!(take(&mut conversation)["type"], "welcome");
    conversation
}

/// Steps with a text frame.
async fn read(conversation: &mut Conversation, frame: &Value) -> ControlFlow<End> {
    let flow = hear(conversation, Received::Text(frame.to_string())).await;
    match conversation.identifying.as_mut() {
        Some(identifying) => {
            let identity = poll_fn(|cx| identifying.poll_identity(cx)).await;
            conversation.step(Event::Identified(identity)).await
        }
        None => flow,
    }
}

/// Steps with a message of the peer.
async fn hear(conversation: &mut Conversation, received: Received) -> ControlFlow<End> {
    conversation.step(Event::Read(Some(Ok(received)))).await
}

/// Steps with a text frame after which the conversation goes on.
async fn say(conversation: &mut Conversation, frame: &Value) {
    assert_eq!(read(conversation, frame).await, CONTINUE);
}

/// The only frame in the output.
fn take(conversation: &mut Conversation) -> Value {
    let frame = take_next(conversation);
    assert_eq!(conversation.output.len(), 0, "{:?}", conversation.output);
    frame
}

/// The first frame in the output.
fn take_next(conversation: &mut Conversation) -> Value {
    conversation.output.pop().expect("a frame").json()
}

/// Takes what is ready, and returns it with all that waits.
fn fill(conversation: &mut Conversation) -> Vec<Value> {
    conversation.fill();
    std::iter::from_fn(|| conversation.output.pop()).map(|frame| frame.json()).collect()
}

/// A peer whose socket takes nothing from now on.
fn block(conversation: &mut Conversation) {
    let (mut full, _peer) = tokio::io::duplex(1);
    let waker = std::task::Waker::noop();
    let mut cx = std::task::Context::from_waker(waker);
    assert!(conversation.output.poll_flush(&mut cx, &mut full).is_pending());
}

/// Waits for the next item of the mailbox, and steps with it.
async fn deliver(conversation: &mut Conversation) -> ControlFlow<End> {
    let item = conversation.mailbox.as_mut().unwrap().next().await;
    conversation.step(Event::Mailbox(item.map(Ok))).await
}

fn closes_with(flow: &ControlFlow<End>, code: Close) -> bool {
    matches!(flow, ControlFlow::Break(End::Close(close, _)) if *close == code)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_no_hello_is_closed_at_the_deadline() {
    let mut conversation = silent(&gateway(&[]));
    advance(Duration::from_millis(9_999)).await;
    assert_eq!(conversation.step(Event::Tick).await, CONTINUE);
    assert_eq!(conversation.timers.tick(), Instant::now() + Duration::from_millis(1));
    advance(Duration::from_millis(1)).await;
    assert!(closes_with(&conversation.step(Event::Tick).await, Close::NoHello));
}

#[tokio::test(start_paused = true)]
async fn a_hello_is_welcomed_and_ends_the_deadline() {
    let mut conversation = silent(&gateway(&[]));
    say(&mut conversation, &json!({ "type": "hello", "session": "A" })).await;
    let welcome = take(&mut conversation);
    assert_eq!((&welcome["type"], &welcome["session"]), (&json!("welcome"), &json!("A")));
    advance(Duration::from_secs(10)).await;
    assert_eq!(conversation.step(Event::Tick).await, CONTINUE);
}

#[tokio::test(start_paused = true)]
async fn a_hello_names_a_session_and_only_once() {
    let mut conversation = silent(&gateway(&[]));
    say(&mut conversation, &json!({ "type": "hello" })).await;
    assert_eq!(take(&mut conversation)["code"], "bad_request");
    say(&mut conversation, &json!({ "type": "hello", "session": "A" })).await;
    take(&mut conversation);
    say(&mut conversation, &json!({ "type": "hello", "session": "B" })).await;
    let refused = take(&mut conversation);
    assert!(refused["message"].as_str().unwrap().contains("already speaks for `A`"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_rejected_hello_is_answered_and_ends_the_conversation() {
    let gateway = gateway(&["--connections-per-session", "1"]);
    let _first = begun(&gateway, "A").await;
    let mut second = silent(&gateway);
    let flow = read(&mut second, &json!({ "type": "hello", "session": "A" })).await;
    assert!(closes_with(&flow, Close::Overloaded), "{flow:?}");
    assert_eq!(take(&mut second)["code"], "rate_limited");
}

#[tokio::test(start_paused = true)]
async fn a_page_of_a_foreign_origin_gets_no_error_frame() {
    let mut conversation = silent(&gateway(&[]));
    let refusal = Refusal::new(Code::Forbidden, "foreign").closing(Close::OriginRefused);
    assert!(closes_with(&conversation.reject(refusal), Close::OriginRefused));
    assert_eq!(conversation.output.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn before_hello_only_pings_are_answered() {
    let mut conversation = silent(&gateway(&[]));
    say(&mut conversation, &json!({ "type": "ping" })).await;
    assert_eq!(take(&mut conversation), json!({ "type": "pong" }));
    say(&mut conversation, &json!({ "type": "send", "id": "c-1", "to": { "session": "B" }, "payload": 1 }))
        .await;
    let refused = take(&mut conversation);
    assert_eq!((&refused["code"], &refused["id"]), (&json!("unauthorized"), &json!("c-1")));
    for frame in [json!({ "type": "ack", "seq": 1 }), json!({ "type": "subscribe", "topic": "t" })] {
        say(&mut conversation, &frame).await;
        assert_eq!(take(&mut conversation)["code"], "unauthorized", "{frame}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_understood_is_answered_and_the_conversation_goes_on() {
    let mut conversation = begun(&gateway(&[]), "A").await;
    say(&mut conversation, &json!({ "type": "bye" })).await;
    assert_eq!(take(&mut conversation)["code"], "bad_request");
    assert_eq!(hear(&mut conversation, Received::Binary).await, CONTINUE);
    assert_eq!(take(&mut conversation)["code"], "bad_request");
    assert_eq!(hear(&mut conversation, Received::Pong).await, CONTINUE);
    assert_eq!(conversation.output.len(), 0);
    assert_eq!(hear(&mut conversation, Received::Ping(b"abc".to_vec())).await, CONTINUE);
    let pong = format!("{:?}", conversation.output.pop().unwrap());
    assert_eq!(pong, format!("{:?}", Frame::pong(b"abc".to_vec())));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_closes_or_breaks_off_is_disconnected() {
    let gateway = gateway(&[]);
    for event in [Event::Read(None), Event::Read(Some(Err(ReadError::Disconnected))), Event::Unwritable] {
        let flow = begun(&gateway, "A").await.step(event).await;
        assert_eq!(flow, ControlFlow::Break(End::Disconnected));
    }
    let closes = Received::Close(vec![3, 232]);
    let flow = hear(&mut begun(&gateway, "A").await, closes).await;
    assert_eq!(flow, ControlFlow::Break(End::PeerClosed(vec![3, 232])));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_has_a_close_code() {
    let gateway = gateway(&[]);
    for (error, code) in [
        (ReadError::TooBig(1), Close::TooBig),
        (ReadError::NoRoom, Close::Overloaded),
        (ReadError::NotUtf8, Close::NotUtf8),
        (ReadError::Protocol("wrong"), Close::Protocol),
    ] {
        let event = Event::Read(Some(Err(error)));
        assert!(closes_with(&begun(&gateway, "A").await.step(event).await, code), "{code:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_may_be_large_after_hello_only() {
    let mut conversation = silent(&gateway(&["--max-payload", "100000"]));
    assert_eq!(conversation.read_limit(), Some(64 * 1024));
    say(&mut conversation, &json!({ "type": "hello", "session": "A" })).await;
    assert_eq!(conversation.read_limit(), Some(100_000 + ENVELOPE));
    assert_eq!(silent(&gateway(&["--max-payload", "1024"])).read_limit(), Some(1024 + ENVELOPE));
}

#[tokio::test(start_paused = true)]
async fn sends_are_answered_in_their_order() {
    let gateway = gateway(&[]);
    let mut conversation = begun(&gateway, "A").await;
    for n in 0..3 {
        let frame = json!({ "type": "send", "id": format!("c-{n}"), "to": { "session": "B" }, "payload": n });
        say(&mut conversation, &frame).await;
    }
    while let Some((id, sending)) = conversation.sends.pop_front() {
        assert_eq!(conversation.step(Event::Stored(id, sending.await)).await, CONTINUE);
    }
    let mut last = 0;
    for n in 0..3 {
        let sent = take_next(&mut conversation);
        assert_eq!((&sent["type"], &sent["id"]), (&json!("sent"), &json!(format!("c-{n}"))));
        assert!(sent["seq"].as_u64().unwrap() > last);
        last = sent["seq"].as_u64().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_send_is_answered_with_its_id() {
    let mut conversation = begun(&gateway(&["--max-payload", "1024"]), "A").await;
    let payload = "x".repeat(2000);
    say(
        &mut conversation,
        &json!({ "type": "send", "id": "c-1", "to": { "session": "B" }, "payload": payload }),
    )
    .await;
    let refused = take(&mut conversation);
    assert_eq!((&refused["code"], &refused["id"]), (&json!("too_large"), &json!("c-1")));
    let full = Err(BrokerError::NoSuchSession);
    _ = conversation.step(Event::Stored(Some(MessageId::new("c-2").unwrap()), full)).await;
    let refused = take(&mut conversation);
    assert_eq!((&refused["code"], &refused["id"]), (&json!("not_found"), &json!("c-2")));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_while_too_many_answers_wait() {
    let mut conversation = begun(&gateway(&[]), "A").await;
    for _ in 0..MAX_WAITING {
        assert!(conversation.read_limit().is_some());
        say(&mut conversation, &json!({ "type": "ping" })).await;
    }
    assert!(conversation.read_limit().is_none());
    fill(&mut conversation);
    assert!(conversation.read_limit().is_some());
    // Long answers count by their bytes.
    let nonsense = json!({ "type": "x".repeat(1000) });
    while conversation.read_limit().is_some() {
        say(&mut conversation, &nonsense).await;
    }
    assert!(conversation.output.owned() < MAX_ANSWERS + 8 * 1024);
}

#[tokio::test(start_paused = true)]
async fn a_message_is_written_and_counts_as_sent_when_it_is_flushed() {
    let gateway = gateway(&[]);
    let mut conversation = begun(&gateway, "A").await;
    let seq = send(&gateway, To::Session(session("A")), &json!(7), false).await;
    assert_eq!(deliver(&mut conversation).await, CONTINUE);
    let written = fill(&mut conversation);
    assert_eq!((&written[0]["seq"], &written[0]["payload"]), (&json!(seq), &json!(7)));
    let sent = |conversation: &Conversation| conversation.mailbox.as_ref().unwrap().sent_through();
    assert!(sent(&conversation) < seq);
    conversation.on_flushed();
    assert_eq!(sent(&conversation), seq);
}

#[tokio::test(start_paused = true)]
async fn a_write_takes_along_what_is_ready_up_to_a_batch() {
    let gateway = gateway(&[]);
    let mut conversation = begun(&gateway, "A").await;
    for n in 0..5 {
        send(&gateway, To::Session(session("A")), &json!([n, "x".repeat(6000)]), false).await;
    }
    assert_eq!(deliver(&mut conversation).await, CONTINUE);
    assert_eq!(fill(&mut conversation).len(), 3);
    assert_eq!(fill(&mut conversation).len(), 2);
    assert_eq!(fill(&mut conversation).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_more_is_taken_while_the_peer_takes_nothing() {
    let gateway = gateway(&[]);
    let mut conversation = begun(&gateway, "A").await;
    send(&gateway, To::Session(session("A")), &json!(1), false).await;
    send(&gateway, To::Session(session("A")), &json!(2), false).await;
    assert_eq!(deliver(&mut conversation).await, CONTINUE);
    block(&mut conversation);
    conversation.fill();
    assert_eq!(conversation.output.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_cursor_of_another_epoch_is_told_as_a_gap() {
    let gateway = gateway(&[]);
    let seq = send(&gateway, To::Session(session("A")), &json!(1), false).await;
    let mut conversation = silent(&gateway);
    let hello = json!({ "type": "hello", "session": "A", "after": 17, "epoch": "other" });
    say(&mut conversation, &hello).await;
    assert_eq!(take(&mut conversation)["type"], "welcome");
    assert_eq!(deliver(&mut conversation).await, CONTINUE);
    let gap = take(&mut conversation);
    assert_eq!((&gap["type"], &gap["reason"], &gap["from"]), (&json!("gap"), &json!("epoch"), &json!(17)));
    assert_eq!(deliver(&mut conversation).await, CONTINUE);
    assert_eq!(take(&mut conversation)["seq"], json!(seq));
}

#[tokio::test(start_paused = true)]
async fn an_ack_deletes_what_was_sent_and_not_more_than_there_is() {
    let gateway = gateway(&[]);
    let mut conversation = begun(&gateway, "A").await;
    let seq = send(&gateway, To::Session(session("A")), &json!(1), false).await;
    assert_eq!(deliver(&mut conversation).await, CONTINUE);
    fill(&mut conversation);
    conversation.on_flushed();
    say(&mut conversation, &json!({ "type": "ack", "seq": seq })).await;
    assert_eq!(conversation.output.len(), 0, "an ack has no answer");
    drop(conversation);
    let mut again = begun(&gateway, "A").await;
    assert!(fill(&mut again).is_empty());
    say(&mut again, &json!({ "type": "ack", "seq": seq.0 + 1 })).await;
    assert_eq!(take(&mut again)["code"], "not_found");
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_a_session_has_nothing_to_acknowledge() {
    let gateway = gateway(&[]);
    let mut conversation = silent(&gateway);
    let caller = Caller { grant: Grant::Open { session: None, manages: false }, address: None };
    assert_eq!(conversation.begin(caller, &Resume::default()).await, CONTINUE);
    assert!(take(&mut conversation).get("session").is_none());
    say(&mut conversation, &json!({ "type": "ack", "seq": 1 })).await;
    assert_eq!(take(&mut conversation)["code"], "unauthorized");
}

#[tokio::test(start_paused = true)]
async fn a_topic_is_read_between_subscribe_and_unsubscribe() {
    let gateway = gateway(&[]);
    let mut conversation = begun(&gateway, "A").await;
    say(&mut conversation, &json!({ "type": "subscribe", "topic": "t" })).await;
    let subscribed = take(&mut conversation);
    assert_eq!((&subscribed["type"], &subscribed["recovered"]), (&json!("subscribed"), &json!(true)));
    send(&gateway, To::Topic(topic("t")), &json!(1), false).await;
    let (name, item) = conversation.topics.next().await;
    assert_eq!(conversation.step(Event::Topic(name, item)).await, CONTINUE);
    let message = take(&mut conversation);
    assert_eq!((&message["topic"], &message["payload"]), (&json!("t"), &json!(1)));
    say(&mut conversation, &json!({ "type": "unsubscribe", "topic": "t" })).await;
    assert_eq!(take(&mut conversation)["type"], "unsubscribed");
    assert!(conversation.topics.is_empty());
    say(&mut conversation, &json!({ "type": "unsubscribe", "topic": "t" })).await;
    assert_eq!(take(&mut conversation)["code"], "not_found");
}

#[tokio::test(start_paused = true)]
async fn the_topics_of_a_connection_are_limited() {
    let mut conversation = begun(&gateway(&["--max-topics", "1"]), "A").await;
    for (name, answer) in [("a", "subscribed"), ("a", "subscribed"), ("b", "error")] {
        say(&mut conversation, &json!({ "type": "subscribe", "topic": name })).await;
        assert_eq!(take(&mut conversation)["type"], answer, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_ping_is_sent_every_heartbeat_unless_a_write_is_in_progress() {
    let mut conversation = begun(&gateway(&[]), "A").await;
    assert_eq!(conversation.step(Event::Tick).await, CONTINUE);
    assert_eq!(conversation.output.len(), 0);
    advance(Duration::from_secs(25)).await;
    assert_eq!(conversation.step(Event::Tick).await, CONTINUE);
    assert!(conversation.output.pop().unwrap().is_ping());
    assert_eq!(conversation.timers.tick(), Instant::now() + Duration::from_secs(25));
    say(&mut conversation, &json!({ "type": "ping" })).await;
    block(&mut conversation);
    advance(Duration::from_secs(25)).await;
    assert_eq!(conversation.step(Event::Tick).await, CONTINUE);
    assert_eq!(conversation.output.len(), 1, "the pong");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_silent_for_two_heartbeats_is_closed() {
    let mut conversation = begun(&gateway(&[]), "A").await;
    advance(Duration::from_secs(40)).await;
    say(&mut conversation, &json!({ "type": "ping" })).await;
    advance(Duration::from_secs(49)).await;
    assert_eq!(conversation.step(Event::Tick).await, CONTINUE);
    advance(Duration::from_secs(1)).await;
    assert!(closes_with(&conversation.step(Event::Tick).await, Close::Silent));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_disconnected() {
    let mut conversation = begun(&gateway(&["--heartbeat", "60s"]), "A").await;
    say(&mut conversation, &json!({ "type": "ping" })).await;
    block(&mut conversation);
    advance(WRITE_TIMEOUT).await;
    assert_eq!(conversation.step(Event::Tick).await, ControlFlow::Break(End::Disconnected));
}

#[tokio::test(start_paused = true)]
async fn a_backend_whose_key_is_gone_is_closed() {
    let mut conversation = silent(&gateway(&[]));
    let backend = Backend {
        name: "b".into(),
        from: None,
        send: None,
        topics: None,
        presence: None,
        sessions: false,
        ops: false,
        mailbox: None,
        key_digest: [0; 32],
    };
    let caller = Caller { grant: Grant::Backend(backend.into()), address: None };
    assert_eq!(conversation.begin(caller, &Resume::default()).await, CONTINUE);
    assert!(closes_with(&conversation.step(Event::Tick).await, Close::Unauthorized));
}

#[tokio::test(start_paused = true)]
async fn nothing_counts_after_the_end_of_the_session() {
    let gateway = gateway(&[]);
    let mut conversation = begun(&gateway, "A").await;
    let seq = send(&gateway, To::Session(session("A")), &json!(1), false).await;
    gateway.broker.end(&session("A")).await.unwrap();
    for event in [
        Event::Read(Some(Ok(Received::Text(json!({ "type": "ack", "seq": seq }).to_string())))),
        Event::Mailbox(None),
        Event::Tick,
        Event::Shutdown,
    ] {
        assert!(closes_with(&conversation.step(event).await, Close::SessionEnded));
        assert_eq!(conversation.output.len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_says_so() {
    let mut conversation = begun(&gateway(&[]), "A").await;
    assert!(closes_with(&conversation.step(Event::Shutdown).await, Close::GoingAway));
    assert_eq!(conversation.mailbox.as_ref().unwrap().sent_through(), Seq::START);
}

#[tokio::test(start_paused = true)]
async fn a_window_holds_what_is_not_acknowledged_back() {
    let gateway = gateway(&[]);
    let mut conversation = silent(&gateway);
    say(&mut conversation, &json!({ "type": "hello", "session": "A", "window": 2 })).await;
    assert_eq!(take(&mut conversation)["type"], "welcome");
    let mut seqs = Vec::new();
    for n in 0..5 {
        seqs.push(send(&gateway, To::Session(session("A")), &json!(n), false).await);
    }
    conversation.mailbox.as_mut().unwrap().ready().await.unwrap();
    let payloads =
        |frames: Vec<Value>| frames.iter().map(|frame| frame["payload"].clone()).collect::<Vec<_>>();
    assert_eq!(payloads(fill(&mut conversation)), [json!(0), json!(1)]);
    say(&mut conversation, &json!({ "type": "ack", "seq": seqs[0] })).await;
    assert_eq!(payloads(fill(&mut conversation)), [json!(2)]);
    // Another tab's acknowledgement opens nothing.
    gateway.broker.ack(&session("A"), seqs[2], None).await.unwrap();
    assert_eq!(payloads(fill(&mut conversation)), Vec::<Value>::new());
    say(&mut conversation, &json!({ "type": "ack", "seq": seqs[2] })).await;
    assert_eq!(payloads(fill(&mut conversation)), [json!(3), json!(4)]);
}
