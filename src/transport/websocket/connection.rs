//! The socket of one connection: reads, writes and the closing handshake.
//!
//! The task never waits for its peer to read. While the peer takes nothing, it goes on reading, and answers wait in a
//! bounded queue. When the queue is full, it stops reading instead. Each wake-up hears everything that has come, takes
//! everything that is ready, and writes once.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{Either, pending, ready};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::broker::{BrokerError, Sending};
use crate::edge::{Gateway, Refusal};
use crate::engine::EngineError;
use crate::grant::Grant;
use crate::limits::ConnectionPermit;
use crate::message::{Item, MessageId};
use crate::protocol::{Close, SendResult};
use crate::subscriber::Subscriber;
use crate::transport::websocket::conversation::{Conversation, End, Identifying};
use crate::transport::websocket::event::Event;
use crate::transport::websocket::handshake::Handshake;
use crate::transport::websocket::socket::{Frame, Output, Socket, SocketEvent};
use crate::transport::websocket::window::Window;

/// How long the closing handshake may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A tick that comes later than this was held up by this process, and says nothing about the peer.
const LATE: Duration = Duration::from_secs(1);

/// Most bytes of a close reason (RFC 6455 section 5.5).
const MAX_CLOSE_REASON: usize = 123;

/// Serves a connection, once it is upgraded, until it ends. `running` is held as long.
pub(super) fn run(
    gateway: Arc<Gateway>,
    upgrade: OnUpgrade,
    handshake: Box<Result<Handshake, Refusal>>,
    running: TaskTrackerToken,
) -> impl Future<Output = ()> + Send {
    upgrade.then(move |upgraded| match upgraded {
        Ok(upgraded) => Either::Left(serve(gateway, TokioIo::new(upgraded), handshake, running)),
        Err(error) => {
            tracing::debug!(%error, "the connection ended before it was a WebSocket");
            Either::Right(ready(()))
        }
    })
}

/// Not an async function: its future would hold its arguments besides what they become. The memory of a future is held
/// by each idle connection.
fn serve<S: AsyncRead + AsyncWrite + Send + Unpin>(
    gateway: Arc<Gateway>,
    stream: S,
    handshake: Box<Result<Handshake, Refusal>>,
    running: TaskTrackerToken,
) -> impl Future<Output = ()> + Send {
    let mut socket = Socket::new(stream, &gateway.budget);
    async move {
        let (end, output, limit) = {
            // Dropped with the conversation, before the closing handshake: it has left the hubs then.
            let (mut conversation, flow, _permit) = Box::pin(begin(gateway, *handshake)).await;
            let end = converse(&mut conversation, flow, &mut socket).await;
            let limit = conversation.message_limit();
            (end, std::mem::take(&mut conversation.output), limit)
        };
        _ = timeout(CLOSE_TIMEOUT, close(&mut socket, output, limit, end)).await;
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
        Ok(Handshake { caller: Some((caller, resume)), permit, window, .. }) => {
            conversation.window = Window::new(window);
            (conversation.begin(caller, &resume).await, Some(permit))
        }
        Ok(Handshake { caller: None, permit, .. }) => (ControlFlow::Continue(()), Some(permit)),
        Err(refusal) => (conversation.reject(refusal), None),
    };
    (conversation, flow, permit)
}

/// Steps from event to event until the conversation ends.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    conversation: &mut Conversation,
    mut flow: ControlFlow<End>,
    socket: &mut Socket<S>,
) -> End {
    let mut tick = pin!(sleep_until(conversation.timers.tick()));
    let shutdown = conversation.shutdown().clone();
    let mut shutdown = pin!(shutdown.cancelled());
    loop {
        while flow.is_continue()
            && let Some(event) = ready_event(conversation, socket)
        {
            flow = conversation.step(event).await;
        }
        if let ControlFlow::Break(end) = flow {
            return end;
        }
        conversation.fill();
        conversation.timers.watch_write(conversation.output.blocked());
        // A tick that comes early does nothing, and sets the next one. Most connections end before.
        if tick.is_elapsed() || tick.deadline() > conversation.timers.tick() {
            tick.as_mut().reset(conversation.timers.tick());
        }
        let event = next_event(conversation, socket, tick.as_mut(), shutdown.as_mut()).await;
        if matches!(event, Event::Tick) && tick.deadline().elapsed() > LATE {
            conversation.timers.paused(Instant::now());
        }
        conversation.received = socket.received();
        flow = conversation.step(event).await;
    }
}

/// What can be handled before the next write: a message that is read already, or a send that is stored.
fn ready_event<S: AsyncRead + AsyncWrite + Unpin>(
    conversation: &mut Conversation,
    socket: &mut Socket<S>,
) -> Option<Event> {
    let limit = conversation.read_limit()?;
    if let Some(received) = socket.buffered(limit) {
        return Some(Event::Read(Some(received)));
    }
    let (id, result) = next_stored(&mut conversation.sends).now_or_never()?;
    Some(Event::Stored(id, result))
}

/// Waits for the next event. While something is to be written nothing more is taken from mailbox and topics. While too
/// many answers wait, nothing is read from the peer.
///
/// # Cancel safety
/// Nothing is lost when the future is dropped.
async fn next_event<S: AsyncRead + AsyncWrite + Unpin>(
    conversation: &mut Conversation,
    socket: &mut Socket<S>,
    tick: Pin<&mut Sleep>,
    shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Event {
    let (flushed, limit) = (conversation.output.is_flushed(), conversation.read_limit());
    let reads_topics = flushed && !conversation.topics.is_empty();
    tokio::select! {
        event = socket.event(&mut conversation.output, limit) => match event {
            SocketEvent::Read(read) => Event::Read(read),
            SocketEvent::Flushed(flushed) => Event::Flushed(flushed),
        },
        result = identity(conversation.identifying.as_mut()) => Event::Identified(result),
        item = next_admitted(conversation.mailbox.as_mut(), &conversation.window), if flushed => Event::Mailbox(item),
        (topic, item) = conversation.topics.next(), if reads_topics => Event::Topic(topic, item),
        (id, result) = next_stored(&mut conversation.sends) => Event::Stored(id, result),
        () = tick => Event::Tick,
        () = shutdown => Event::Shutdown,
    }
}

/// The next item of the mailbox that the window admits. Without a mailbox it waits for ever.
async fn next_admitted(
    mailbox: Option<&mut Subscriber>,
    window: &Window,
) -> Option<Result<Item, EngineError>> {
    match mailbox {
        Some(mailbox) => mailbox.next_if(|item| window.admits(item)).await,
        None => pending().await,
    }
}

async fn identity(identifying: Option<&mut Identifying>) -> Result<Grant, Refusal> {
    match identifying {
        Some(identifying) => identifying.identity().await,
        None => pending().await,
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

/// Writes what waits and the close frame, and waits for the peer's.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut Socket<S>,
    mut output: Output,
    limit: usize,
    end: End,
) {
    let (payload, is_answer) = match end {
        End::Close(code, text) => (close_payload(code, text), false),
        End::PeerClosed(payload) => (payload, true),
        End::Disconnected => return,
    };
    output.push(Frame::close(payload));
    // A server closes the connection first (RFC 6455 section 7.1.1).
    if socket.flush(&mut output).await.is_ok() && !is_answer {
        socket.wait_for_close(limit).await;
    }
}

/// The payload of a close frame. The text is cut to the size of a close reason, at a character boundary.
fn close_payload(code: Close, mut text: String) -> Vec<u8> {
    let end = (0..=MAX_CLOSE_REASON.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    [&(code as u16).to_be_bytes()[..], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests;
