use std::task::{Context, Poll};

use futures::FutureExt;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use serde_json::{Value, json};
use tokio::time::{Instant, advance};

use super::*;
use crate::protocol::{Close, Resume, To};
use crate::transport::testing::{gateway, open_caller, send, session};

/// The peer of a conversation, on channels instead of a socket.
struct Peer {
    input: UnboundedSender<Result<Message, axum::Error>>,
    output: UnboundedReceiver<Message>,
}

impl Peer {
    fn say(&self, frame: &Value) {
        self.input.unbounded_send(Ok(Message::text(frame.to_string()))).unwrap();
    }

    async fn hear(&mut self) -> Value {
        match self.output.next().await {
            Some(Message::Text(text)) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

/// Runs a conversation of session A, whose welcome was read, beside its peer.
fn start(gateway: &Arc<Gateway>) -> (tokio::task::JoinHandle<End>, Peer) {
    let (input, mut stream) = unbounded();
    let (sink, output) = unbounded();
    let gateway = Arc::clone(gateway);
    let running = tokio::spawn(async move {
        let mut conversation = Conversation::new(gateway, None);
        let flow = conversation.begin(open_caller("A"), &Resume::default()).await;
        let mut sink = sink.sink_map_err(axum::Error::new);
        converse(&mut conversation, flow, &mut sink, &mut stream).await
    });
    (running, Peer { input, output })
}

fn code(end: &End) -> Option<Close> {
    match end {
        End::Close(code, _) => Some(*code),
        End::Disconnected => None,
    }
}

#[tokio::test(start_paused = true)]
async fn frames_are_answered_and_messages_delivered() {
    let gateway = gateway(&[]);
    let (running, mut peer) = start(&gateway);
    assert_eq!(peer.hear().await["type"], "welcome");
    peer.say(&json!({ "type": "send", "id": "c-1", "to": { "session": "A" }, "payload": 7 }));
    let both = [peer.hear().await, peer.hear().await];
    assert!(both.iter().any(|frame| frame["type"] == "sent" && frame["id"] == "c-1"), "{both:?}");
    assert!(both.iter().any(|frame| frame["type"] == "message" && frame["payload"] == 7), "{both:?}");
    drop(peer.input);
    assert_eq!(running.await.unwrap(), End::Disconnected);
}

#[tokio::test(start_paused = true)]
async fn a_flushed_message_counts_as_sent() {
    let gateway = gateway(&[]);
    let (_running, mut peer) = start(&gateway);
    peer.hear().await;
    let seq = send(&gateway, To::Session(session("A")), &json!(1), false).await;
    assert_eq!(peer.hear().await["seq"], json!(seq));
    peer.say(&json!({ "type": "ping" }));
    assert_eq!(peer.hear().await["type"], "pong");
    gateway.broker.ack(&session("A"), seq, None).await.unwrap();
    assert_eq!(gateway.broker.session(&session("A")).await.waiting, 0, "no reader is waited for");
}

#[tokio::test(start_paused = true)]
async fn an_idle_peer_is_pinged_and_then_closed() {
    let (running, mut peer) = start(&gateway(&[]));
    peer.hear().await;
    let begun = Instant::now();
    assert_eq!(peer.output.next().await, Some(Message::Ping(axum::body::Bytes::new())));
    assert_eq!(begun.elapsed().as_secs(), 25);
    assert_eq!(code(&running.await.unwrap()), Some(Close::Silent));
    assert_eq!(begun.elapsed().as_secs(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_stopping_server_ends_the_conversation() {
    let gateway = gateway(&[]);
    let (running, mut peer) = start(&gateway);
    peer.hear().await;
    gateway.shutdown.cancel();
    assert_eq!(code(&running.await.unwrap()), Some(Close::GoingAway));
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_rejected_client_is_written_before_the_end() {
    let gateway = gateway(&["--connections-per-session", "1"]);
    let (_running, mut first) = start(&gateway);
    first.hear().await;
    let (running, mut second) = start(&gateway);
    assert_eq!(second.hear().await["code"], "rate_limited");
    assert_eq!(code(&running.await.unwrap()), Some(Close::Overloaded));
}

/// A sink that takes nothing once its buffer is full, as a socket whose peer does not read.
struct Stuck;

impl Sink<Message> for Stuck {
    type Error = axum::Error;

    fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        Poll::Ready(Ok(()))
    }

    fn start_send(self: Pin<&mut Self>, _: Message) -> Result<(), axum::Error> {
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        Poll::Pending
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_still_read_and_then_disconnected() {
    let gateway = gateway(&["--heartbeat", "10s"]);
    let (input, mut stream) = unbounded();
    let mut conversation = Conversation::new(Arc::clone(&gateway), None);
    let flow = conversation.begin(open_caller("A"), &Resume::default()).await;
    let begun = Instant::now();
    let say = |frame: Value| input.unbounded_send(Ok(Message::text(frame.to_string()))).unwrap();
    say(json!({ "type": "send", "to": { "session": "B" }, "payload": 1 }));
    let talking = async {
        // The peer still sends, so that its silence does not end it.
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            say(json!({ "type": "ping" }));
        }
        std::future::pending::<()>().await;
    };
    let mut sink = Stuck;
    let end = tokio::select! {
        end = converse(&mut conversation, flow, &mut sink, &mut stream) => end,
        () = talking => unreachable!(),
    };
    assert_eq!(end, End::Disconnected);
    assert!(begun.elapsed() >= WRITE_TIMEOUT && begun.elapsed() <= WRITE_TIMEOUT + Duration::from_secs(10));
    assert_eq!(gateway.broker.session(&session("B")).await.waiting, 1, "the send was read");
}

#[tokio::test(start_paused = true)]
async fn the_closing_handshake_sends_the_reason_and_waits_for_the_peer() {
    let (input, mut stream) = unbounded::<Result<Message, axum::Error>>();
    let (mut sink, mut output) = unbounded();
    let end = End::Close(Close::SessionEnded, "é".repeat(100));
    let closing = close(&mut sink, &mut stream, end);
    futures::pin_mut!(closing);
    assert!((&mut closing).now_or_never().is_none());
    let Some(Message::Close(Some(frame))) = output.next().await else { panic!("no close frame") };
    assert_eq!((frame.code, frame.reason.len()), (4502, 122));
    advance(Duration::from_secs(1)).await;
    assert!((&mut closing).now_or_never().is_none());
    drop(input);
    closing.await;
}

#[test]
fn a_close_reason_is_cut_at_a_character() {
    assert_eq!(close_reason("short".to_owned()), "short");
    assert_eq!(close_reason("x".repeat(200)).len(), MAX_CLOSE_REASON);
    let cut = close_reason("é".repeat(100));
    assert_eq!((cut.len(), cut.chars().count()), (122, 61));
}
