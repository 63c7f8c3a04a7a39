//! The state of one connection, and what each event does to it. Knows no socket: it can be tested without one.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::time::Instant;

use crate::broker::{BrokerError, Sending};
use crate::edge::{Caller, Gateway, Refusal};
use crate::engine::EngineError;
use crate::hub::EndReason;
use crate::link::LentOutput;
use crate::message::{Item, MessageId, TopicName};
use crate::metrics::{self, Limit, SentBy};
use crate::protocol::{Close, Code, ENVELOPE, SendResult, ServerFrame, Transport};
use crate::subscriber::Subscriber;
use crate::transport::reading::ReadFailures;
use crate::transport::topics::TopicReaders;
use crate::transport::websocket::event::Event;
use crate::transport::websocket::socket::{Frame, Output, ReadError, Received};
use crate::transport::websocket::timers::Timers;
use crate::transport::websocket::window::Window;

mod credentials;
mod identifying;
mod lending;
mod requests;

use identifying::Identifying;

/// Bytes of output after which mailbox and topics wait.
const BATCH: usize = 16 * 1024;

/// Most frames that wait to be written, and most sends that wait to be stored. Beyond that nothing is read.
const MAX_WAITING: usize = 256;

/// Bytes of waiting answers beyond which nothing is read.
const MAX_ANSWERS: usize = 64 * 1024;

/// Most bytes of a message before `hello`.
const BEFORE_HELLO: usize = 64 * 1024;

/// How a conversation ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The server closes the connection, with a code and a reason.
    Close(Close, String),
    /// The peer closes the connection. It gets the payload of its close frame back.
    PeerClosed(Vec<u8>),
    /// The connection is broken.
    Disconnected,
}

impl End {
    /// The end of the readers of a session.
    fn of_session(reason: EndReason) -> Self {
        let (close, text) = match reason {
            EndReason::SessionEnded => (Close::SessionEnded, "the session was ended"),
            EndReason::OwnerChanged => (Close::OwnerChanged, "the session belongs to another user now"),
        };
        Self::Close(close, text.to_owned())
    }
}

/// The state of one connection.
pub(super) struct Conversation {
    gateway: Arc<Gateway>,
    /// The client's address.
    address: Option<IpAddr>,
    /// The caller, once it is identified.
    caller: Option<Caller>,
    /// Whether the client was told that its token has expired.
    expiry_notified: bool,
    /// The subscription to the caller's mailbox. A backend has none.
    pub(super) mailbox: Option<Subscriber>,
    pub(super) topics: TopicReaders,
    /// How much of the mailbox may be on its way.
    pub(super) window: Window,
    read_failures: ReadFailures,
    /// Frames to be written.
    pub(super) output: Output,
    /// The output as it is lent while the connection rests. Made when the first topic is read.
    lent: Option<Arc<LentOutput>>,
    /// A `hello` whose caller is not known yet. Meanwhile nothing is read from the peer.
    identifying: Option<Identifying>,
    /// Sends in their order, waiting to be stored. At [`MAX_WAITING`] nothing is read from the peer.
    pub(super) sends: VecDeque<(Option<MessageId>, Sending)>,
    pub(super) timers: Timers,
    /// Bytes received from the peer so far.
    pub(super) received: u64,
    /// Whether the peer is read before other events are looked for.
    pub(super) reads_next: bool,
}

impl Conversation {
    pub(super) fn new(gateway: Arc<Gateway>, address: Option<IpAddr>) -> Self {
        let timers = Timers::new(gateway.config.heartbeat, gateway.config.hello_timeout);
        Self {
            gateway,
            address,
            caller: None,
            expiry_notified: false,
            mailbox: None,
            topics: TopicReaders::default(),
            window: Window::default(),
            read_failures: ReadFailures::default(),
            output: Output::default(),
            lent: None,
            identifying: None,
            sends: VecDeque::new(),
            timers,
            received: 0,
            reads_next: false,
        }
    }

    /// What it works with.
    pub(super) fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Acts on one event. What there is to say waits in the output; a break is the end of the conversation.
    pub(super) async fn step(&mut self, event: Event) -> ControlFlow<End> {
        // Nothing counts that a client says after the end of its session.
        if let Some(reason) = self.session_ended() {
            return ControlFlow::Break(End::of_session(reason));
        }
        match event {
            Event::Read(Some(Ok(received))) => return self.on_received(received).await,
            Event::Read(Some(Err(error))) => return ControlFlow::Break(self.unreadable(&error)),
            Event::Identified(result) => return Box::pin(self.on_identified(result)).await,
            Event::Mailbox(Some(item)) => self.deliver(None, item),
            Event::Mailbox(None) => return ControlFlow::Break(End::of_session(EndReason::SessionEnded)),
            Event::Topic(topic, item) => self.deliver(Some(&topic), item),
            Event::Stored(id, result) => self.on_stored(id.as_ref(), result),
            Event::Tick => {
                self.confirm_proof().await;
                return self.on_tick(Instant::now());
            }
            Event::Shutdown => {
                let text = "the server is going away".to_owned();
                return ControlFlow::Break(End::Close(Close::GoingAway, text));
            }
            Event::Read(None) | Event::Unwritable => return ControlFlow::Break(End::Disconnected),
        }
        ControlFlow::Continue(())
    }

    /// Why the caller's session has ended; `None` while it has not.
    fn session_ended(&self) -> Option<EndReason> {
        self.mailbox.as_ref().and_then(Subscriber::ended)
    }

    /// Acts on a message from the peer.
    async fn on_received(&mut self, received: Received) -> ControlFlow<End> {
        self.timers.message_received(self.received);
        match received {
            Received::Text(text) => return self.on_frame(&text).await,
            Received::Binary => {
                let text = "binary frames are not part of this protocol; send JSON in text frames";
                self.refuse(None, &Refusal::new(Code::BadRequest, text));
            }
            Received::Ping(payload) => self.output.push(Frame::pong(payload)),
            Received::Pong => {}
            Received::Close(payload) => return ControlFlow::Break(End::PeerClosed(payload)),
        }
        ControlFlow::Continue(())
    }

    /// Answers a send.
    fn on_stored(&mut self, id: Option<&MessageId>, result: Result<SendResult, BrokerError>) {
        match result {
            Ok(result) => {
                metrics::count_answer(SentBy::Websocket, None);
                self.answer(&ServerFrame::Sent { id, result });
            }
            Err(error) => self.refuse_send(id, &error.into()),
        }
    }

    /// What was flushed is sent: an acknowledgement by another tab may delete it.
    pub(super) fn on_flushed(&mut self) {
        if let Some(mailbox) = &mut self.mailbox
            && mailbox.delivered() > mailbox.sent_through()
        {
            mailbox.mark_sent(mailbox.delivered());
        }
    }

    /// Polls for an event that does not come from the peer, nor seldom. While something is to be written, mailbox and topics
    /// wait.
    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(identifying) = &mut self.identifying
            && let Poll::Ready(result) = identifying.poll_identity(cx)
        {
            return Poll::Ready(Event::Identified(result));
        }
        if self.output.is_flushed() {
            if let Some(mailbox) = &mut self.mailbox
                && let Poll::Ready(item) = mailbox.poll_next_if(cx, |item| self.window.admits(item))
            {
                return Poll::Ready(Event::Mailbox(item));
            }
            if let Poll::Ready((topic, item)) = self.topics.poll_next(cx) {
                return Poll::Ready(Event::Topic(topic, item));
            }
        }
        self.poll_stored(cx)
    }

    /// Polls the oldest send.
    pub(super) fn poll_stored(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let Some((_, sending)) = self.sends.front_mut() else { return Poll::Pending };
        let result = ready!(Pin::new(sending).poll(cx));
        let id = self.sends.pop_front().and_then(|(id, _)| id);
        Poll::Ready(Event::Stored(id, result))
    }

    /// Checks all deadlines, and sets the next tick.
    fn on_tick(&mut self, now: Instant) -> ControlFlow<End> {
        let blocked = self.output.blocked();
        if self.timers.write_timed_out(now, blocked) {
            return ControlFlow::Break(End::Disconnected);
        }
        if self.hello_awaited() && self.timers.hello_timed_out(now) {
            let text = format!("no hello within {} s", self.gateway.config.hello_timeout.as_secs_f32());
            return ControlFlow::Break(End::Close(Close::NoHello, text));
        }
        self.timers.look(now, self.received);
        if self.timers.is_silent(now, blocked) {
            let text = format!("nothing heard for {} s", self.timers.silence_limit().as_secs_f32());
            return ControlFlow::Break(End::Close(Close::Silent, text));
        }
        self.recheck_credentials()?;
        // While a write is in progress, its timeout tells whether the peer lives.
        if self.timers.take_ping(now) && blocked.is_none() {
            self.output.push(Frame::ping());
        }
        self.schedule_tick(now);
        ControlFlow::Continue(())
    }

    fn hello_awaited(&self) -> bool {
        self.caller.is_none() && self.identifying.is_none()
    }

    /// Sets the next tick.
    fn schedule_tick(&mut self, now: Instant) {
        self.timers.schedule_tick(now, self.hello_awaited(), self.expires_in());
    }

    /// The most bytes of the next message; `None` while nothing more may be read from the peer.
    pub(super) fn read_limit(&self) -> Option<usize> {
        let has_room = self.output.len() < MAX_WAITING
            && self.output.owned() < MAX_ANSWERS
            && self.sends.len() < MAX_WAITING
            && self.identifying.is_none();
        has_room.then(|| self.message_limit())
    }

    /// The most bytes of a message.
    pub(super) fn message_limit(&self) -> usize {
        let limit = self.gateway.config.max_payload + ENVELOPE;
        if self.caller.is_some() { limit } else { limit.min(BEFORE_HELLO) }
    }

    /// Takes what mailbox and topics have ready, up to a batch. While the peer takes nothing, they wait. After the end of
    /// its session the caller reads no topic either.
    pub(super) fn fill(&mut self) {
        while self.session_ended().is_none()
            && self.output.blocked().is_none()
            && self.output.waiting() < BATCH
            && let Some((topic, item)) =
                self.topics.try_next_after(self.mailbox.as_mut(), |item| self.window.admits(item))
        {
            self.deliver(topic.as_ref(), item);
        }
    }

    fn deliver(&mut self, topic: Option<&TopicName>, item: Result<Item, EngineError>) {
        if let (None, Ok(item)) = (topic, &item) {
            self.window.delivered(item);
        }
        self.output.push(match item {
            Ok(Item::Message(publication)) => {
                metrics::count_delivered(Transport::Websocket, 1);
                Frame::publication(publication)
            }
            Err(error) => match self.read_failures.note(error) {
                Some(refusal) => return self.refuse(None, &refusal),
                None => return,
            },
            Ok(Item::Gap(gap)) => {
                Frame::text(ServerFrame::gap(topic, gap, || self.gateway.broker.epoch()).encode())
            }
        });
    }

    fn answer(&mut self, frame: &ServerFrame<'_>) {
        self.output.push(Frame::text(frame.encode()));
    }

    /// Answers a frame with an error. The conversation goes on.
    fn refuse(&mut self, id: Option<&MessageId>, refusal: &Refusal) {
        self.note(refusal);
        self.output.push(Frame::text(refusal.frame(id)));
    }

    fn note(&self, refusal: &Refusal) {
        refusal.note(("websocket", SentBy::Websocket), self.address);
    }

    /// Answers a send with an error.
    fn refuse_send(&mut self, id: Option<&MessageId>, refusal: &Refusal) {
        metrics::count_answer(SentBy::Websocket, Some(refusal.code));
        self.refuse(id, refusal);
    }

    /// The end after a message that cannot be read. No error frame comes before it.
    fn unreadable(&self, error: &ReadError) -> End {
        let (close, code, limit) = match error {
            ReadError::TooBig(_) => (Close::TooBig, Code::TooLarge, Some(Limit::Payload)),
            ReadError::NoRoom => (Close::Overloaded, Code::Overloaded, Some(Limit::Memory)),
            ReadError::NotUtf8 => (Close::NotUtf8, Code::BadRequest, None),
            ReadError::Protocol(_) => (Close::Protocol, Code::BadRequest, None),
            ReadError::Disconnected => return End::Disconnected,
        };
        // Before a `hello`, less is read than a message may have.
        if let Some(limit) = limit.filter(|limit| *limit != Limit::Payload || self.caller.is_some()) {
            metrics::limited(limit).count();
        }
        self.note(&Refusal::new(code, error.to_string()));
        End::Close(close, error.to_string())
    }

    /// Answers with an error, and ends the conversation.
    pub(super) fn reject(&mut self, refusal: Refusal) -> ControlFlow<End> {
        // A page of a foreign origin gets no error frame.
        match refusal.close {
            Close::OriginRefused => self.note(&refusal),
            _ => self.refuse(None, &refusal),
        }
        ControlFlow::Break(End::Close(refusal.close, refusal.message))
    }
}

#[cfg(test)]
mod tests;
