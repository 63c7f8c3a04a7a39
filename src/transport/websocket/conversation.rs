//! What is said over one WebSocket, apart from when it is read and written: who this is, what it asks, and what
//! waits to be answered.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use futures::stream::SplitSink;
use futures::{FutureExt, SinkExt};

use crate::broker::{BrokerError, Sending};
use crate::config::Auth;
use crate::edge::{Caller, Gateway, Refusal, SessionPolicy};
use crate::grant::{Grant, SKEW};
use crate::hub::Transport;
use crate::message::{Item, MessageId, Seq, SessionId, TopicName};
use crate::protocol::{ClientFrame, Close, Code, Malformed, Resume, SendRequest, SendResult, ServerFrame};
use crate::subscriber::Subscriber;
use crate::transport::topics::Topics;

/// A batch is flushed once it has this many bytes.
const BATCH: usize = 16 * 1024;

/// Answers that may wait to be written, and sends that may wait to be stored, before the socket is no longer
/// listened to.
const WAITING: usize = 256;

/// How a conversation ends.
pub(super) enum End {
    /// We close, and say why.
    Close(Close, String),
    /// The peer closes, or the connection is gone.
    Disconnected,
}

/// The write half, taken apart from the read half so that neither waits for the other.
pub(super) type Sink = SplitSink<WebSocket, Message>;

pub(super) struct Conversation {
    pub(super) gateway: Arc<Gateway>,
    /// The client's address.
    address: Option<IpAddr>,
    /// Who this is, once that is known.
    pub(super) caller: Option<Caller>,
    /// Whether it was told that its token has expired.
    expiry_notified: bool,
    /// A backend has none.
    pub(super) mailbox: Option<Subscriber>,
    pub(super) topics: Topics,
    /// Frames to be written before anything else; beyond [`WAITING`] the socket is not listened to.
    pub(super) answers: VecDeque<Utf8Bytes>,
    /// Sends in the order they came, waiting to be stored; beyond [`WAITING`] the socket is not listened to.
    pub(super) sends: VecDeque<(Option<MessageId>, Sending)>,
    /// Set by what ends the conversation.
    pub(super) end: Option<End>,
}

impl Conversation {
    pub(super) fn new(gateway: Arc<Gateway>, address: Option<IpAddr>) -> Self {
        Self {
            gateway,
            address,
            caller: None,
            expiry_notified: false,
            end: None,
            mailbox: None,
            topics: Topics::default(),
            answers: VecDeque::new(),
            sends: VecDeque::new(),
        }
    }

    fn answer(&mut self, frame: &ServerFrame<'_>) {
        self.answers.push_back(frame.encode().into());
    }

    pub(super) fn refuse(&mut self, id: Option<&MessageId>, refusal: &Refusal) {
        self.answers.push_back(refusal.frame(id).into());
    }

    /// Says why, and closes.
    pub(super) fn reject(&mut self, refusal: Refusal) {
        // A page that is not let in is told nothing but that.
        if refusal.close != Close::OriginRefused {
            self.refuse(None, &refusal);
        }
        self.end = Some(End::Close(refusal.close, refusal.message));
    }

    /// Begins to speak for whoever this is.
    pub(super) fn begin(&mut self, caller: Caller, resume: &Resume) {
        let broker = &self.gateway.broker;
        let mut floor = Seq::START;
        if let Some(session) = caller.grant.session() {
            match broker.mailbox(session, resume, Transport::Websocket) {
                Ok((mailbox, opening)) => {
                    self.mailbox = Some(mailbox);
                    floor = opening.seq;
                }
                Err(error) => return self.reject(error.into()),
            }
        }
        self.answers.push_back(self.gateway.welcome(&caller, floor).into());
        self.caller = Some(caller);
    }

    /// Acts on a `hello`: who this is, or a fresh token for who it was before.
    async fn hello(&mut self, session: Option<SessionId>, token: Option<String>, resume: Resume) {
        let open = self.gateway.identity.auth() == Auth::Open;
        match &self.caller {
            None if open && session.is_none() && token.is_none() => {
                self.refuse(None, &Malformed::Missing("session").into());
            }
            None => match self.gateway.identify(token.as_deref(), session, SessionPolicy::Create).await {
                Ok(grant) => self.begin(Caller { grant, address: self.address }, &resume),
                Err(refusal) => self.reject(refusal),
            },
            Some(Caller { grant, .. }) if open || token.is_none() => {
                let who = grant.session().map_or("a backend", |session| session.as_str());
                let text = format!("this socket already speaks for `{who}`; open another one");
                self.refuse(None, &Refusal::new(Code::BadRequest, text));
            }
            Some(Caller { grant, .. }) => {
                let own = grant.session().cloned();
                let user = grant.client().and_then(|client| client.user.clone());
                let is_same = |fresh: &Grant| {
                    fresh.session() == own.as_ref()
                        && fresh.client().and_then(|client| client.user.as_ref()) == user.as_ref()
                };
                match self
                    .gateway
                    .identify(token.as_deref(), session.or_else(|| own.clone()), SessionPolicy::Require)
                    .await
                {
                    Ok(fresh) if is_same(&fresh) => {
                        self.renew(Caller { grant: fresh, address: self.address })
                    }
                    Ok(_) => {
                        let text = "this token is for another session, or another user, than this socket speaks for; open another one";
                        self.refuse(None, &Refusal::new(Code::Forbidden, text));
                    }
                    // What it showed before stays good as long as it is.
                    Err(refusal) => self.refuse(None, &refusal),
                }
            }
        }
    }

    /// Goes on with a fresh token, and with what that allows.
    fn renew(&mut self, caller: Caller) {
        // One that has expired by the clock is good for some seconds, and is not asked for again.
        self.expiry_notified =
            caller.grant.client().is_some_and(|client| client.expires <= self.gateway.broker.now());
        let floor = caller.grant.session().map_or(Seq::START, |session| self.gateway.broker.floor(session));
        self.answers.push_back(self.gateway.welcome(&caller, floor).into());
        for topic in self.topics.names() {
            if caller.grant.may_read(&topic).is_err() {
                self.topics.remove(&topic);
                self.answer(&ServerFrame::Unsubscribed { topic: &topic });
            }
        }
        self.caller = Some(caller);
    }

    /// When something is to be done about its token, in Unix milliseconds: it is told, and then closed.
    pub(super) fn expires(&self) -> Option<u64> {
        let client = self.caller.as_ref()?.grant.client()?;
        Some(if self.expiry_notified { client.good_until() } else { client.expires })
    }

    /// Whether its session was ended.
    pub(super) fn has_ended(&self) -> bool {
        self.mailbox.as_ref().is_some_and(Subscriber::has_ended)
    }

    /// Looks now and then whether what it has shown is still good.
    pub(super) fn recheck_credentials(&mut self) {
        match self.caller.as_ref().map(|caller| &caller.grant) {
            Some(Grant::Backend(backend)) if !self.gateway.identity.knows_backend(backend) => {
                self.end =
                    Some(End::Close(Close::Unauthorized, "this API key is no longer known".to_owned()));
            }
            Some(Grant::Client(client)) => {
                // A registration that ends before the token does is prolonged.
                self.gateway.prolong(client);
                self.expire();
            }
            _ => {}
        }
    }

    /// Tells that the token has expired, or ends the conversation where that was told before.
    fn expire(&mut self) {
        if self.expires().is_none_or(|at| at > self.gateway.broker.now()) {
            return;
        }
        if self.expiry_notified {
            let text = "the token has expired".to_owned();
            self.end = Some(End::Close(Close::Unauthorized, text));
            return;
        }
        self.expiry_notified = true;
        let text = format!(
            "the token has expired; send a fresh one within {SKEW} s: {{\"type\":\"hello\",\"token\":\"…\"}}"
        );
        self.refuse(None, &Refusal::new(Code::Unauthorized, text));
    }

    /// Acts on one text frame. What is wrong with it is answered; only a `hello` can end the conversation.
    pub(super) async fn on_frame(&mut self, text: &str) {
        let frame = match ClientFrame::decode(text) {
            Ok(frame) => frame,
            Err(bad) => return self.refuse(bad.id.as_ref(), &bad.reason.into()),
        };
        let Some(caller) = &self.caller else {
            return match frame {
                ClientFrame::Hello { session, token, resume } => {
                    // Boxed: what it takes is not kept by every idle socket.
                    Box::pin(self.hello(session, token, resume)).await;
                }
                ClientFrame::Ping => self.answer(&ServerFrame::Pong),
                ClientFrame::Send(SendRequest { id, .. }) => self.refuse(id.as_ref(), &hello_first()),
                _ => self.refuse(None, &hello_first()),
            };
        };
        match frame {
            ClientFrame::Hello { session, token, resume } => {
                Box::pin(self.hello(session, token, resume)).await;
            }
            ClientFrame::Send(send) => self.send(send),
            ClientFrame::Ack(seq) => {
                let acked = match caller.session() {
                    Ok(session) => self.gateway.broker.ack(session, seq, None).map_err(Refusal::from),
                    Err(refusal) => Err(refusal),
                };
                if let Err(refusal) = acked {
                    self.refuse(None, &refusal);
                }
            }
            ClientFrame::Subscribe { topic, resume } => self.subscribe(&topic, &resume),
            ClientFrame::Unsubscribe(topic) => {
                if self.topics.remove(&topic) {
                    self.answer(&ServerFrame::Unsubscribed { topic: &topic });
                } else {
                    let text = format!("topic `{topic}` is not subscribed to on this socket");
                    self.refuse(None, &Refusal::new(Code::NotFound, text));
                }
            }
            ClientFrame::Ping => self.answer(&ServerFrame::Pong),
        }
    }

    fn send(&mut self, send: SendRequest) {
        let id = send.id.clone();
        let Some(caller) = &self.caller else { return };
        match self.gateway.send(caller, send) {
            Err(refusal) => self.refuse(id.as_ref(), &refusal),
            Ok(mut sending) => {
                // What is stored at once is answered at once, unless older sends still wait. What is not stored has
                // nothing to wait for.
                let ready = self.sends.is_empty() || matches!(sending, Sending::Volatile(_));
                let now = if ready { (&mut sending).now_or_never() } else { None };
                match now {
                    Some(stored) => self.sent(id.as_ref(), stored),
                    None => self.sends.push_back((id, sending)),
                }
            }
        }
    }

    pub(super) fn sent(&mut self, id: Option<&MessageId>, stored: Result<SendResult, BrokerError>) {
        match stored {
            Ok(stored) => self.answer(&ServerFrame::Sent { id, result: stored }),
            Err(error) => self.refuse(id, &error.into()),
        }
    }

    fn subscribe(&mut self, topic: &TopicName, resume: &Resume) {
        let most = self.gateway.config.max_topics;
        if self.topics.len() >= most && !self.topics.contains(topic) {
            return self.refuse(None, &Refusal::too_many_topics(most));
        }
        let Some(caller) = &self.caller else { return };
        if let Err(denied) = caller.grant.may_read(topic) {
            return self.refuse(None, &BrokerError::from(denied).into());
        }
        let (subscriber, opening) = self.gateway.broker.topic(topic, resume, Transport::Websocket);
        self.topics.insert(topic.clone(), subscriber);
        let (seq, recovered) = (opening.seq, opening.recovered);
        self.answer(&ServerFrame::Subscribed { topic, seq, recovered });
    }

    /// Feeds what is ready, up to a batch: answers, then `first`, then what the hubs hold. Answers whether
    /// there is something to flush.
    pub(super) async fn feed(
        &mut self,
        sink: &mut Sink,
        first: Option<Utf8Bytes>,
    ) -> Result<bool, axum::Error> {
        let mut fed = 0;
        let mut next = first;
        while fed < BATCH {
            let answer = self.answers.pop_front();
            let Some(frame) = answer.or_else(|| next.take()).or_else(|| self.ready()) else { break };
            fed += frame.len() + 4;
            sink.feed(Message::Text(frame)).await?;
        }
        // Only answers can push the item that woke us up out of its batch; it goes before anything newer.
        if let Some(frame) = next {
            self.answers.push_back(frame);
        }
        Ok(fed > 0)
    }

    fn ready(&mut self) -> Option<Utf8Bytes> {
        if let Some(item) = self.mailbox.as_mut().and_then(Subscriber::try_next) {
            return Some(frame_of(None, &item));
        }
        self.topics.try_next().map(|(topic, item)| frame_of(Some(&topic), &item))
    }

    /// What was flushed has been passed on: an acknowledgement by another tab may delete it.
    pub(super) fn flushed(&mut self) {
        if let Some(mailbox) = &mut self.mailbox {
            mailbox.mark_sent(mailbox.delivered());
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.answers.len() < WAITING && self.sends.len() < WAITING
    }
}

fn hello_first() -> Refusal {
    Refusal::new(
        Code::Unauthorized,
        r#"say who you are first: {"type":"hello","session":"…"}, or with a `token` where the server wants one"#,
    )
}

pub(super) fn frame_of(topic: Option<&TopicName>, item: &Item) -> Utf8Bytes {
    match item {
        Item::Message(message) => message.frame().clone(),
        Item::Gap(gap) => ServerFrame::Gap { topic, gap: *gap }.encode().into(),
    }
}
