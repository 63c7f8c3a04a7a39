//! The socket of one connection: reads, writes and the closing handshake.
//!
//! The task never waits for its peer to read. While a write is in progress it goes on reading, and answers wait in a
//! bounded queue. When the queue is full, it stops reading instead. Each wake-up writes everything that is ready and
//! flushes once.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures::future::pending;
use futures::{Sink, SinkExt, Stream, StreamExt};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::broker::{BrokerError, Sending};
use crate::edge::{Gateway, Refusal};
use crate::limits::ConnectionPermit;
use crate::link::WRITE_TIMEOUT;
use crate::message::MessageId;
use crate::protocol::SendResult;
use crate::transport::reading::next_item;
use crate::transport::websocket::conversation::{Conversation, End};
use crate::transport::websocket::event::Event;
use crate::transport::websocket::handshake::Handshake;

/// How long the closing handshake may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A tick that comes later than this was held up by this process, and says nothing about the peer.
const LATE: Duration = Duration::from_secs(1);

/// Most bytes of a close reason (RFC 6455 section 5.5).
const MAX_CLOSE_REASON: usize = 123;

/// Serves a connection until it ends. `running` is held as long.
///
/// Not an async function: its future would hold its arguments besides what they become. The memory of a future is held
/// by each idle connection.
pub(super) fn run(
    gateway: Arc<Gateway>,
    socket: WebSocket,
    handshake: Box<Result<Handshake, Refusal>>,
    running: TaskTrackerToken,
) -> impl Future<Output = ()> + Send {
    let (mut sink, mut stream) = socket.split();
    async move {
        let end = {
            // Dropped with the conversation, before the closing handshake: it has left the hubs then.
            let (mut conversation, flow, _permit) = Box::pin(begin(gateway, *handshake)).await;
            converse(&mut conversation, flow, &mut sink, &mut stream).await
        };
        _ = timeout(CLOSE_TIMEOUT, close(&mut sink, &mut stream, end)).await;
        drop(running);
    }
}

/// Begins a conversation with what the handshake says.
async fn begin(
    gateway: Arc<Gateway>,
    handshake: Result<Handshake, Refusal>,
) -> (Conversation, ControlFlow<End>, Option<ConnectionPermit>) {
    let address = handshake.as_ref().ok().and_then(|handshake| handshake.address);
    let mut conversation = Conversation::new(gateway, address);
    if let Some(link) = handshake.as_ref().ok().and_then(|handshake| handshake.link.clone()) {
        conversation.timers.watch(link);
    }
    let (flow, permit) = match handshake {
        Ok(Handshake { caller: Some((caller, resume)), permit, .. }) => {
            (conversation.begin(caller, &resume).await, Some(permit))
        }
        Ok(Handshake { caller: None, permit, .. }) => (ControlFlow::Continue(()), Some(permit)),
        Err(refusal) => (conversation.reject(refusal), None),
    };
    (conversation, flow, permit)
}

/// Steps from event to event until the conversation ends.
async fn converse(
    conversation: &mut Conversation,
    mut flow: ControlFlow<End>,
    sink: &mut (impl Sink<Message, Error = axum::Error> + Unpin),
    stream: &mut (impl Stream<Item = Result<Message, axum::Error>> + Unpin),
) -> End {
    let mut tick = pin!(sleep_until(conversation.timers.tick()));
    let shutdown = conversation.shutdown().clone();
    let mut shutdown = pin!(shutdown.cancelled());
    loop {
        if conversation.has_output() && !write(conversation, sink).await {
            return End::Disconnected;
        }
        if let ControlFlow::Break(end) = flow {
            return end;
        }
        if tick.is_elapsed() || tick.deadline() != conversation.timers.tick() {
            tick.as_mut().reset(conversation.timers.tick());
        }
        let event = next_event(conversation, sink, stream, tick.as_mut(), shutdown.as_mut()).await;
        if matches!(event, Event::Tick) && tick.deadline().elapsed() > LATE {
            conversation.timers.paused(Instant::now());
        }
        flow = conversation.step(event).await;
    }
}

/// Waits for the next event. While a write is in progress nothing more is taken from mailbox and topics. While too
/// many answers wait, nothing is read from the peer.
///
/// # Cancel safety
/// Nothing is lost when the future is dropped.
async fn next_event(
    conversation: &mut Conversation,
    sink: &mut (impl Sink<Message, Error = axum::Error> + Unpin),
    stream: &mut (impl Stream<Item = Result<Message, axum::Error>> + Unpin),
    tick: Pin<&mut Sleep>,
    shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Event {
    let (writing, has_room) = (conversation.timers.is_writing(), conversation.has_room());
    let reads_topics = !writing && !conversation.topics.is_empty();
    tokio::select! {
        flushed = sink.flush(), if writing => Event::Flushed(flushed),
        message = stream.next(), if has_room => Event::Read(message),
        item = next_item(conversation.mailbox.as_mut()), if !writing => Event::Mailbox(item),
        (topic, item) = conversation.topics.next(), if reads_topics => Event::Topic(topic, item),
        (id, result) = next_stored(&mut conversation.sends) => Event::Stored(id, result),
        () = tick => Event::Tick,
        () = shutdown => Event::Shutdown,
    }
}

async fn next_stored(
    sends: &mut VecDeque<(Option<MessageId>, Sending)>,
) -> (Option<MessageId>, Result<SendResult, BrokerError>) {
    let Some((_, sending)) = sends.front_mut() else { return pending().await };
    let result = sending.await;
    let id = sends.pop_front().and_then(|(id, _)| id);
    (id, result)
}

/// Feeds a batch to the socket. `false` if the connection is broken, or takes nothing.
async fn write(conversation: &mut Conversation, sink: &mut (impl Sink<Message> + Unpin)) -> bool {
    matches!(timeout(WRITE_TIMEOUT, conversation.feed(sink)).await, Ok(Ok(())))
}

/// Sends the close frame, or lets tungstenite answer the peer's, and waits for the end of the stream.
async fn close(
    sink: &mut (impl Sink<Message> + Unpin),
    stream: &mut (impl Stream<Item = Result<Message, axum::Error>> + Unpin),
    end: End,
) {
    if let End::Close(code, text) = end {
        let frame = CloseFrame { code: code as u16, reason: close_reason(text).into() };
        if sink.send(Message::Close(Some(frame))).await.is_err() {
            return;
        }
    }
    _ = sink.flush().await;
    while let Some(Ok(_)) = stream.next().await {}
}

/// Cuts a text to the size of a close reason, at a character boundary.
fn close_reason(mut text: String) -> String {
    let end = (0..=MAX_CLOSE_REASON.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

#[cfg(test)]
mod tests;
