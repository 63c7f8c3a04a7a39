use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio::time::{Instant, advance};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::budget::Budget;
use crate::link::WRITE_TIMEOUT;
use crate::protocol::To;
use crate::transport::testing::{gateway, open_caller, send, session};

/// The peer of a conversation.
struct Peer(WebSocketStream<DuplexStream>);

impl Peer {
    async fn say(&mut self, frame: &Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        match self.0.next().await {
            Some(Ok(Message::Text(text))) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

/// Runs a conversation of session A on a stream.
fn start_on(gateway: &Arc<Gateway>, stream: DuplexStream) -> tokio::task::JoinHandle<End> {
    let gateway = Arc::clone(gateway);
    tokio::spawn(async move {
        let mut conversation = Conversation::new(gateway, None);
        let flow = conversation.begin(open_caller("A"), &Resume::default()).await;
        let mut socket = Socket::new(stream, &Budget::new(Budget::MOST));
        let end = converse(&mut conversation, flow, &mut socket).await;
        let (output, limit) = (std::mem::take(&mut conversation.output), conversation.message_limit());
        let ended = match &end {
            End::Close(code, text) => End::Close(*code, text.clone()),
            End::PeerClosed(payload) => End::PeerClosed(payload.clone()),
            End::Disconnected => End::Disconnected,
        };
        _ = timeout(CLOSE_TIMEOUT, close(&mut socket, output, limit, ended)).await;
        end
    })
}

/// Runs a conversation of session A beside its peer.
async fn start(gateway: &Arc<Gateway>) -> (tokio::task::JoinHandle<End>, Peer) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let running = start_on(gateway, ours);
    (running, Peer(WebSocketStream::from_raw_socket(theirs, Role::Client, None).await))
}

fn code(end: &End) -> Option<Close> {
    match end {
        End::Close(code, _) => Some(*code),
        End::PeerClosed(_) | End::Disconnected => None,
    }
}

#[tokio::test(start_paused = true)]
async fn frames_are_answered_and_messages_delivered() {
    let gateway = gateway(&[]);
    let (running, mut peer) = start(&gateway).await;
    assert_eq!(peer.hear().await["type"], "welcome");
    peer.say(&json!({ "type": "send", "id": "c-1", "to": { "session": "A" }, "payload": 7 })).await;
    let both = [peer.hear().await, peer.hear().await];
    assert!(both.iter().any(|frame| frame["type"] == "sent" && frame["id"] == "c-1"), "{both:?}");
    assert!(both.iter().any(|frame| frame["type"] == "message" && frame["payload"] == 7), "{both:?}");
    drop(peer);
    assert_eq!(running.await.unwrap(), End::Disconnected);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_closes_gets_its_close_frame_back() {
    let (running, mut peer) = start(&gateway(&[])).await;
    peer.hear().await;
    let close =
        tokio_tungstenite::tungstenite::protocol::CloseFrame { code: 4321.into(), reason: "bye".into() };
    peer.0.close(Some(close.clone())).await.unwrap();
    assert_eq!(peer.0.next().await.unwrap().unwrap(), Message::Close(Some(close)));
    assert!(peer.0.next().await.is_none());
    assert!(matches!(running.await.unwrap(), End::PeerClosed(_)));
}

#[tokio::test(start_paused = true)]
async fn a_flushed_message_counts_as_sent() {
    let gateway = gateway(&[]);
    let (_running, mut peer) = start(&gateway).await;
    peer.hear().await;
    let seq = send(&gateway, To::Session(session("A")), &json!(1), false).await;
    assert_eq!(peer.hear().await["seq"], json!(seq));
    peer.say(&json!({ "type": "ping" })).await;
    assert_eq!(peer.hear().await["type"], "pong");
    gateway.broker.ack(&session("A"), seq, None).await.unwrap();
    assert_eq!(gateway.broker.session(&session("A")).await.waiting, 0, "no reader is waited for");
}

#[tokio::test(start_paused = true)]
async fn an_idle_peer_is_pinged_and_then_closed() {
    let (running, mut peer) = start(&gateway(&[])).await;
    peer.hear().await;
    let begun = Instant::now();
    let mut from = peer.0.get_mut();
    let mut ping = [0; 2];
    tokio::io::AsyncReadExt::read_exact(&mut from, &mut ping).await.unwrap();
    assert_eq!(ping, [0x89, 0]);
    assert_eq!(begun.elapsed().as_secs(), 25);
    let mut close = [0; 4];
    tokio::io::AsyncReadExt::read_exact(&mut from, &mut close).await.unwrap();
    assert_eq!(close[2..], 4002_u16.to_be_bytes());
    assert_eq!(begun.elapsed().as_secs(), 50);
    assert_eq!(code(&running.await.unwrap()), Some(Close::Silent));
    assert_eq!(begun.elapsed().as_secs(), 52, "the closing handshake is not waited for longer");
}

#[tokio::test(start_paused = true)]
async fn a_stopping_server_ends_the_conversation() {
    let gateway = gateway(&[]);
    let (running, mut peer) = start(&gateway).await;
    peer.hear().await;
    gateway.shutdown.cancel();
    assert_eq!(code(&running.await.unwrap()), Some(Close::GoingAway));
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_rejected_client_is_written_before_the_end() {
    let gateway = gateway(&["--connections-per-session", "1"]);
    let (_running, mut first) = start(&gateway).await;
    first.hear().await;
    let (running, mut second) = start(&gateway).await;
    assert_eq!(second.hear().await["code"], "rate_limited");
    assert_eq!(code(&running.await.unwrap()), Some(Close::Overloaded));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_still_read_and_then_disconnected() {
    let gateway = gateway(&["--heartbeat", "10s"]);
    // Less than a welcome.
    let (ours, theirs) = tokio::io::duplex(64);
    let running = start_on(&gateway, ours);
    let begun = Instant::now();
    let (_never_read, mut to_server) = tokio::io::split(theirs);
    let mut say = async |frame: Value| {
        let text = frame.to_string();
        let mut bytes = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
        bytes.extend_from_slice(text.as_bytes());
        tokio::io::AsyncWriteExt::write_all(&mut to_server, &bytes).await.unwrap();
    };
    say(json!({ "type": "send", "to": { "session": "B" }, "payload": 1 })).await;
    // The peer still sends, so that its silence does not end it.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(9)).await;
        say(json!({ "type": "ping" })).await;
    }
    assert_eq!(running.await.unwrap(), End::Disconnected);
    assert_eq!(begun.elapsed(), WRITE_TIMEOUT);
    assert_eq!(gateway.broker.session(&session("B")).await.waiting, 1, "the send was read");
}

#[tokio::test(start_paused = true)]
async fn a_slow_peer_is_not_disconnected_while_it_takes_something() {
    let gateway = gateway(&["--heartbeat", "10s"]);
    let (ours, mut theirs) = tokio::io::duplex(1024);
    let mut running = start_on(&gateway, ours);
    send(&gateway, To::Session(session("A")), &json!("x".repeat(10_000)), false).await;
    let mut part = [0; 1000];
    let mut taken = 0;
    for _ in 0..8 {
        // Longer than two heartbeats. Its pongs would wait behind the message.
        assert!(timeout(Duration::from_secs(25), &mut running).await.is_err());
        taken += tokio::io::AsyncReadExt::read(&mut theirs, &mut part).await.unwrap();
    }
    assert_eq!(taken, 8000);
    assert_eq!(running.await.unwrap(), End::Disconnected);
}

#[tokio::test(start_paused = true)]
async fn the_closing_handshake_sends_the_reason_and_waits_for_the_peer() {
    let (ours, theirs) = tokio::io::duplex(1024);
    let mut peer = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
    let end = End::Close(Close::SessionEnded, "é".repeat(100));
    let mut socket = Socket::new(ours, &Budget::new(Budget::MOST));
    let closing = close(&mut socket, Output::default(), 1000, end);
    futures::pin_mut!(closing);
    assert!((&mut closing).now_or_never().is_none());
    let Some(Ok(Message::Close(Some(frame)))) = peer.next().await else { panic!("no close frame") };
    assert_eq!((u16::from(frame.code), frame.reason.len()), (4502, 122));
    advance(Duration::from_secs(1)).await;
    // The answer of the peer is written by its next read.
    assert!(peer.next().now_or_never().is_none_or(|end| end.is_none()));
    closing.await;
}

#[test]
fn a_close_reason_is_cut_at_a_character() {
    let reason = |text: String| String::from_utf8(close_payload(Close::TooBig, text).split_off(2)).unwrap();
    assert_eq!(reason("short".to_owned()), "short");
    assert_eq!(reason("x".repeat(200)).len(), MAX_CLOSE_REASON);
    let cut = reason("é".repeat(100));
    assert_eq!((cut.len(), cut.chars().count()), (122, 61));
    assert_eq!(close_payload(Close::TooBig, String::new()), [3, 241]);
}
