//! The socket of one connection: reads, writes and the closing handshake.
//!
//! The task never waits for its peer to read. While the peer takes nothing, it goes on reading, and answers wait in a
//! bounded queue. When the queue is full, it stops reading instead. Each wake-up hears everything that has come, takes
//! everything that is ready, and writes once.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{Either, ready};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::edge::{Caller, Gateway, Refusal};
use crate::protocol::{Close, Resume};
use crate::transport::websocket::conversation::{Conversation, End};
use crate::transport::websocket::event::Event;
use crate::transport::websocket::handshake::Handshake;
use crate::transport::websocket::seldom::Seldom;
use crate::transport::websocket::socket::{Frame, Output, Socket};
use crate::transport::websocket::window::Window;

/// How long the closing handshake may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A tick that comes later than this was held up by this process, and says nothing about the peer.
const LATE: Duration = Duration::from_secs(1);

/// Most bytes of a close reason (RFC 6455 section 5.5).
const MAX_CLOSE_REASON: usize = 123;

/// Serves a connection that hyper has, once it is upgraded, until it ends. `running` is held as long.
pub(super) fn run(
    gateway: Arc<Gateway>,
    upgrade: OnUpgrade,
    handshake: Result<Handshake, Refusal>,
    running: TaskTrackerToken,
) -> impl Future<Output = ()> + Send {
    upgrade.then(move |upgraded| match upgraded {
        Ok(upgraded) => {
            let socket = Socket::new(TokioIo::new(upgraded), &gateway.budget);
            Either::Left(serve(gateway, socket, Output::default(), handshake, running))
        }
        Err(error) => {
            tracing::debug!(%error, "the connection ended before it was a WebSocket");
            Either::Right(ready(()))
        }
    })
}

/// Serves a socket until it ends, after the output that it begins with. `running` is held as long.
///
/// Not an async function: its future would hold its arguments besides what they become. The memory of a future is held
/// by each idle connection.
pub(super) fn serve<S: AsyncRead + AsyncWrite + Send + Unpin>(
    gateway: Arc<Gateway>,
    mut socket: Socket<S>,
    output: Output,
    handshake: Result<Handshake, Refusal>,
    running: TaskTrackerToken,
) -> impl Future<Output = ()> + Send {
    let address = handshake.as_ref().ok().and_then(|handshake| handshake.address);
    let mut conversation = Conversation::new(gateway, address);
    conversation.output = output;
    let (mut flow, caller, permit) = match handshake {
        Ok(Handshake { caller, window, permit, link, .. }) => {
            link.into_iter().for_each(|link| conversation.timers.watch(link));
            conversation.window = Window::new(window.filter(|_| caller.is_some()));
            (ControlFlow::Continue(()), caller, Some(permit))
        }
        Err(refusal) => (conversation.reject(refusal), None, None),
    };
    async move {
        if let Some(caller) = caller {
            flow = Box::pin(begin(&mut conversation, caller)).await;
        }
        let end = converse(&mut conversation, flow, &mut socket).await;
        let (output, limit) = (std::mem::take(&mut conversation.output), conversation.message_limit());
        // It leaves the hubs before the closing handshake.
        drop((conversation, permit));
        _ = timeout(CLOSE_TIMEOUT, close(&mut socket, output, limit, end)).await;
        drop(running);
    }
}

/// Begins a conversation with a caller that the handshake names.
async fn begin(conversation: &mut Conversation, caller: Box<(Caller, Resume)>) -> ControlFlow<End> {
    let (caller, resume) = *caller;
    conversation.begin(caller, &resume).await
}

/// Steps from event to event until the conversation ends.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    conversation: &mut Conversation,
    mut flow: ControlFlow<End>,
    socket: &mut Socket<S>,
) -> End {
    let tick = pin!(sleep_until(conversation.timers.tick()));
    // Not a clone of the token: that takes a lock which all connections share.
    let gateway = Arc::clone(conversation.gateway());
    let shutdown = pin!(gateway.shutdown.cancelled());
    let mut seldom = Seldom::new(tick, shutdown);
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
        seldom.set_tick(conversation.timers.tick());
        let event = poll_fn(|cx| poll_event(cx, conversation, socket, &mut seldom)).await;
        if matches!(event, Event::Tick) && seldom.tick().elapsed() > LATE {
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
    match conversation.poll_stored(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(event) => Some(event),
        Poll::Pending => None,
    }
}

/// Writes what waits, and polls for the next event. While something is to be written nothing more is taken from mailbox
/// and topics. While too many answers wait, nothing is read from the peer. While nothing happens, the output is lent.
fn poll_event<S: AsyncRead + AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    conversation: &mut Conversation,
    socket: &mut Socket<S>,
    seldom: &mut Seldom<'_, impl Future<Output = ()>>,
) -> Poll<Event> {
    conversation.take_output_back();
    if let Poll::Ready(event) = seldom.poll(cx) {
        return Poll::Ready(event);
    }
    if !conversation.output.is_flushed() {
        match socket.poll_flush(cx, &mut conversation.output) {
            Poll::Ready(Ok(())) => conversation.on_flushed(),
            Poll::Ready(Err(_)) => return Poll::Ready(Event::Unwritable),
            Poll::Pending => {}
        }
    }
    // Neither a peer that sends without a pause nor one that has much to read keeps the other side waiting.
    for reads in [conversation.reads_next, !conversation.reads_next] {
        let event = match (reads, conversation.read_limit()) {
            (true, Some(limit)) => socket.poll_read(cx, limit).map(Event::Read),
            (true, None) => Poll::Pending,
            (false, _) => conversation.poll_event(cx),
        };
        if event.is_ready() {
            conversation.reads_next = !reads;
            return event;
        }
    }
    // A peer that is asleep is woken by a message more often than by its own.
    conversation.reads_next = false;
    conversation.lend_output();
    Poll::Pending
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
