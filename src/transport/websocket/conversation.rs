//! The state of one connection, and what each event does to it. Knows no socket: it can be tested without one.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::ws::Message;
use futures::{Sink, SinkExt};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_util::sync::CancellationToken;

use crate::broker::{BrokerError, Sending};
use crate::edge::{Caller, Gateway, Refusal};
use crate::message::{Item, MessageId, TopicName};
use crate::protocol::{Close, Code, SendResult, ServerFrame};
use crate::subscriber::Subscriber;
use crate::transport::topics::TopicReaders;
use crate::transport::websocket::event::Event;
use crate::transport::websocket::timers::Timers;

mod credentials;
mod requests;

/// Bytes of frames that are flushed together.
const BATCH: usize = 16 * 1024;

/// Most frames that wait to be written, and most sends that wait to be stored. Beyond that nothing is read.
const MAX_WAITING: usize = 256;

/// How a conversation ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The server closes the connection, with a code and a reason.
    Close(Close, String),
    /// The peer closes the connection, or it is broken.
    Disconnected,
}

impl End {
    fn session_ended() -> Self {
        Self::Close(Close::SessionEnded, "the session was ended".to_owned())
    }

    /// The end after a message that cannot be read.
    fn unreadable(error: axum::Error) -> Self {
        let error = error.into_inner();
        match error.downcast_ref::<WsError>() {
            Some(WsError::Capacity(_)) => Self::Close(Close::TooBig, format!("frame too big: {error}")),
            Some(WsError::Utf8(_)) => Self::Close(Close::NotUtf8, "text frames must be UTF-8".to_owned()),
            Some(WsError::Protocol(_)) => Self::Close(Close::Protocol, format!("{error}")),
            _ => Self::Disconnected,
        }
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
    /// Messages to be written before anything else. At [`MAX_WAITING`] nothing is read from the peer.
    outbox: VecDeque<Message>,
    /// Sends in their order, waiting to be stored. At [`MAX_WAITING`] nothing is read from the peer.
    pub(super) sends: VecDeque<(Option<MessageId>, Sending)>,
    pub(super) timers: Timers,
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
            outbox: VecDeque::new(),
            sends: VecDeque::new(),
            timers,
        }
    }

    /// Fires when the server stops.
    pub(super) fn shutdown(&self) -> &CancellationToken {
        &self.gateway.shutdown
    }

    /// Acts on one event. What there is to say waits in the outbox; a break is the end of the conversation.
    pub(super) async fn step(&mut self, event: Event) -> ControlFlow<End> {
        // Nothing counts that a client says after the end of its session.
        if self.mailbox.as_ref().is_some_and(Subscriber::has_ended) {
            return ControlFlow::Break(End::session_ended());
        }
        match event {
            Event::Read(Some(Ok(message))) => return self.on_message(message).await,
            Event::Read(Some(Err(error))) => return ControlFlow::Break(End::unreadable(error)),
            Event::Mailbox(Some(item)) => self.outbox.push_back(self.message_of(None, &item)),
            Event::Mailbox(None) => return ControlFlow::Break(End::session_ended()),
            Event::Topic(topic, item) => self.outbox.push_back(self.message_of(Some(&topic), &item)),
            Event::Stored(id, result) => self.on_stored(id.as_ref(), result),
            Event::Flushed(Ok(())) => self.on_flushed(),
            Event::Tick => return self.on_tick(Instant::now()),
            Event::Shutdown => {
                let text = "the server is going away".to_owned();
                return ControlFlow::Break(End::Close(Close::GoingAway, text));
            }
            Event::Read(None) | Event::Flushed(Err(_)) => return ControlFlow::Break(End::Disconnected),
        }
        ControlFlow::Continue(())
    }

    /// Acts on a message from the peer.
    async fn on_message(&mut self, message: Message) -> ControlFlow<End> {
        self.timers.frame_received();
        match message {
            Message::Text(text) => {
                let expiry = self.next_expiry();
                self.on_frame(&text).await?;
                // A fresh token expires at another time.
                if self.next_expiry() != expiry {
                    self.timers.tick_now();
                }
            }
            Message::Binary(_) => {
                let text = "binary frames are not part of this protocol; send JSON in text frames";
                self.refuse(None, &Refusal::new(Code::BadRequest, text));
            }
            // tungstenite answers pings and closes by itself, with the next read or write.
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return ControlFlow::Break(End::Disconnected),
        }
        ControlFlow::Continue(())
    }

    /// Answers a send.
    fn on_stored(&mut self, id: Option<&MessageId>, result: Result<SendResult, BrokerError>) {
        match result {
            Ok(result) => self.answer(&ServerFrame::Sent { id, result }),
            Err(error) => self.refuse(id, &error.into()),
        }
    }

    /// What was flushed is sent: an acknowledgement by another tab may delete it.
    fn on_flushed(&mut self) {
        self.timers.write_finished();
        if let Some(mailbox) = &mut self.mailbox {
            mailbox.mark_sent(mailbox.delivered());
        }
    }

    /// Checks all deadlines, and sets the next tick.
    fn on_tick(&mut self, now: Instant) -> ControlFlow<End> {
        if self.timers.write_timed_out(now) {
            return ControlFlow::Break(End::Disconnected);
        }
        if self.caller.is_none() && self.timers.hello_timed_out(now) {
            let text = format!("no hello within {} s", self.gateway.config.hello_timeout.as_secs_f32());
            return ControlFlow::Break(End::Close(Close::NoHello, text));
        }
        self.timers.look(now);
        if self.timers.is_silent(now) {
            let text = format!("nothing heard for {} s", self.timers.silence_limit().as_secs_f32());
            return ControlFlow::Break(End::Close(Close::Silent, text));
        }
        self.recheck_credentials()?;
        // While a write is in progress, its timeout tells whether the peer lives.
        if self.timers.take_ping(now) && !self.timers.is_writing() {
            self.outbox.push_back(Message::Ping(Bytes::new()));
        }
        let expires_in = self.expires_in();
        self.timers.schedule_tick(now, self.caller.is_none(), expires_in);
        ControlFlow::Continue(())
    }

    /// Whether there is something to be written, and no write is in progress.
    pub(super) fn has_output(&self) -> bool {
        !self.timers.is_writing() && !self.outbox.is_empty()
    }

    /// Whether more may be read from the peer.
    pub(super) fn has_room(&self) -> bool {
        self.outbox.len() < MAX_WAITING && self.sends.len() < MAX_WAITING
    }

    /// Feeds a batch to the sink: the outbox, then what the hubs have ready.
    pub(super) async fn feed<S: Sink<Message> + Unpin>(&mut self, sink: &mut S) -> Result<(), S::Error> {
        let mut fed = 0;
        while fed < BATCH {
            let Some(message) = self.outbox.pop_front().or_else(|| self.ready()) else { break };
            fed += 4 + if let Message::Text(text) = &message { text.len() } else { 0 };
            sink.feed(message).await?;
        }
        if fed > 0 {
            self.timers.write_started(fed);
        }
        Ok(())
    }

    /// The next message that mailbox or topics have ready.
    fn ready(&mut self) -> Option<Message> {
        let (topic, item) = self.topics.try_next_after(self.mailbox.as_mut())?;
        Some(self.message_of(topic.as_ref(), &item))
    }

    fn message_of(&self, topic: Option<&TopicName>, item: &Item) -> Message {
        Message::Text(match item {
            Item::Message(message) => message.frame().clone(),
            Item::Gap(gap) => ServerFrame::gap(topic, *gap, || self.gateway.broker.epoch()).encode().into(),
        })
    }

    fn answer(&mut self, frame: &ServerFrame<'_>) {
        self.outbox.push_back(Message::Text(frame.encode().into()));
    }

    /// Answers a frame with an error. The conversation goes on.
    fn refuse(&mut self, id: Option<&MessageId>, refusal: &Refusal) {
        self.outbox.push_back(Message::Text(refusal.frame(id).into()));
    }

    /// Answers with an error, and ends the conversation.
    pub(super) fn reject(&mut self, refusal: Refusal) -> ControlFlow<End> {
        // A page of a foreign origin gets no error frame.
        if refusal.close != Close::OriginRefused {
            self.refuse(None, &refusal);
        }
        ControlFlow::Break(End::Close(refusal.close, refusal.message))
    }
}

#[cfg(test)]
mod tests;
