//! What is written to a connection while it rests.

use std::mem::MaybeUninit;
use std::task::Waker;

use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::*;
use crate::link::testing::tcp_pair;
use crate::link::{MonitoredStream, SharedSocket};

/// A conversation with its connection, and the other end of that.
struct Connected {
    conversation: Conversation,
    stream: MonitoredStream<SharedSocket>,
    peer: TcpStream,
}

impl Connected {
    /// Begins with this frame, whose answer was read.
    async fn begin(gateway: &Arc<Gateway>, hello: &Value) -> Self {
        let (stream, link, peer) = tcp_pair().await;
        link.note_cleartext();
        let mut conversation = silent(gateway);
        conversation.timers.watch(link);
        say(&mut conversation, hello).await;
        let mut connected = Self { conversation, stream, peer };
        connected.flush().await;
        assert_eq!(connected.hear().await["type"], "welcome");
        connected
    }

    /// Writes what waits.
    async fn flush(&mut self) {
        let Self { conversation, stream, .. } = self;
        poll_fn(|cx| conversation.output.poll_flush(cx, stream)).await.unwrap();
    }

    /// Finds nothing to do, and lends the output.
    fn rest(&mut self) {
        self.conversation.take_output_back();
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(self.conversation.poll_event(cx).is_pending());
        self.conversation.lend_output();
    }

    /// The next frame that the peer gets.
    async fn hear(&mut self) -> Value {
        assert_eq!(self.peer.read_u8().await.unwrap(), 0x81);
        let len = match self.peer.read_u8().await.unwrap() {
            126 => self.peer.read_u16().await.unwrap().into(),
            len => usize::from(len),
        };
        let mut text = vec![0; len];
        self.peer.read_exact(&mut text).await.unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// Whether nothing has come for the peer. What is written on loopback has arrived when the write returns. The system is asked,
    /// since tokio may not know it yet.
    fn hears_nothing(&self) -> bool {
        let found = SockRef::from(&self.peer).peek(&mut [MaybeUninit::uninit()]);
        found.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

async fn send_to_a(gateway: &Gateway, payload: u32) -> Seq {
    send(gateway, To::Session(session("A")), &json!(payload), false).await
}

#[tokio::test]
async fn a_resting_connection_is_written_to_once_and_its_task_goes_on_behind_that() {
    let gateway = gateway(&[]);
    let mut connected = Connected::begin(&gateway, &json!({ "type": "hello", "session": "A" })).await;
    for round in 0..3 {
        connected.rest();
        let first = send_to_a(&gateway, round).await;
        let second = send_to_a(&gateway, 100 + round).await;
        assert_eq!(connected.hear().await["seq"], json!(first));
        assert!(connected.hears_nothing());
        connected.conversation.take_output_back();
        let mailbox = connected.conversation.mailbox.as_ref().unwrap();
        assert_eq!((mailbox.delivered(), mailbox.sent_through()), (first, first));
        let next = fill(&mut connected.conversation);
        assert_eq!((next.len(), &next[0]["seq"]), (1, &json!(second)));
        connected.flush().await;
        connected.conversation.on_flushed();
        say(&mut connected.conversation, &json!({ "type": "ack", "seq": second })).await;
        assert_eq!(gateway.broker.session(&session("A")).await.waiting, 0);
    }
}

#[tokio::test]
async fn what_is_written_to_a_resting_connection_counts_in_its_window() {
    let gateway = gateway(&[]);
    let hello = json!({ "type": "hello", "session": "A", "window": 1 });
    let mut connected = Connected::begin(&gateway, &hello).await;
    connected.rest();
    let first = send_to_a(&gateway, 1).await;
    assert_eq!(connected.hear().await["seq"], json!(first));
    connected.rest();
    let second = send_to_a(&gateway, 2).await;
    connected.rest();
    assert!(connected.hears_nothing());
    say(&mut connected.conversation, &json!({ "type": "ack", "seq": first })).await;
    assert_eq!(fill(&mut connected.conversation)[0]["seq"], json!(second));
}

#[tokio::test]
async fn nothing_is_written_to_a_connection_whose_session_has_ended() {
    let gateway = gateway(&[]);
    let mut connected = Connected::begin(&gateway, &json!({ "type": "hello", "session": "A" })).await;
    connected.rest();
    gateway.broker.end(&session("A")).await.unwrap();
    send_to_a(&gateway, 1).await;
    assert!(connected.hears_nothing());
    assert!(closes_with(&connected.conversation.step(Event::Tick).await, Close::SessionEnded));
}
