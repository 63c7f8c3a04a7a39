//! `GET /ws`: the native protocol over WebSocket, one task per socket.
//!
//! The task never waits for its peer to read: while a write is under way it goes on listening, and what it
//! has to answer waits in a bounded queue. When that is full it stops listening instead. A wake-up writes
//! everything that is ready and flushes once.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures::stream::{SplitSink, SplitStream, StreamExt};
use futures::{FutureExt, SinkExt};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Error as WsError;

use crate::broker::{BrokerError, Sending};
use crate::config::Auth;
use crate::edge::{
    Caller, Edge, Made, Query, Refusal, bearer, json, origin_refused, peer_of, too_many_topics,
};
use crate::hub::Transport;
use crate::identity::{Grant, SKEW};
use crate::limits::Place;
use crate::message::{Item, MessageId, Seq, SessionId, TopicName};
use crate::protocol::{
    ClientFrame, Close, Code, ENVELOPE, Malformed, Resume, SERVER, SUBPROTOCOL, Send, ServerFrame, Stored,
};
use crate::subscriber::Subscriber;
use crate::transport::topics::Topics;

/// tungstenite fills this with zeros at every poll of the input: its default of 128 KiB costs three times the
/// CPU and is held by every connection.
const READ_BUFFER: usize = 4 * 1024;

/// tungstenite starts writing by itself beyond this; more than a batch, so that feeding one does not wait. (After
/// a pong that the peer did not take it may: then the socket waits for its peer, and is dropped as any that
/// takes nothing.)
const WRITE_BUFFER: usize = 32 * 1024;

/// A batch is flushed once it has this many bytes.
const BATCH: usize = 16 * 1024;

/// Answers that may wait to be written, and sends that may wait to be stored, before the socket is no longer
/// listened to.
const WAITING: usize = 256;

/// How long the peer has for its side of the closing handshake.
const CLOSING: Duration = Duration::from_secs(2);

/// The routes of this transport.
pub fn routes(edge: Edge) -> Router {
    Router::new().route("/ws", any(upgrade)).with_state(edge)
}

/// Who connects, where the request itself tells.
struct Arrival {
    /// The client's address.
    address: Option<IpAddr>,
    /// Who asks, and from where to go on.
    caller: Option<(Caller, Resume)>,
    /// Counts among the connections of its address.
    _place: Place,
}

async fn arrive(edge: &Edge, head: &Parts) -> Result<Arrival, Refusal> {
    let headers = &head.headers;
    if !edge.lets_in(&head.uri, headers) {
        return Err(origin_refused(headers));
    }
    let address = edge.client_address(peer_of(&head.extensions), headers);
    let place = edge.place(address)?;
    let query = Query::of(&head.uri);
    if query.get("token").is_some() {
        let text = "a token does not belong into the address, where logs show it; put it into `hello`";
        return Err(Refusal::new(Code::BadRequest, text));
    }
    let (session, bearer) = (query.session()?, bearer(headers)?);
    // A browser cannot send the header: there the first frame says who it is.
    let says = bearer.is_some() || session.is_some() && edge.identity.auth() == Auth::Open;
    let mut caller = None;
    if says {
        let grant = edge.identify(bearer, session, Made::Welcome).await?;
        caller = Some((Caller { grant, address }, query.resume("after")?));
    }
    Ok(Arrival { address, caller, _place: place })
}

async fn upgrade(State(edge): State<Edge>, mut head: Parts) -> Response {
    let upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection> =
        WebSocketUpgrade::from_request_parts(&mut head, &()).await;
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => {
            let text = format!("this address speaks WebSocket (RFC 6455): {}", rejection.body_text());
            let refusal = Refusal::new(Code::BadRequest, text);
            let response = json(StatusCode::UPGRADE_REQUIRED, refusal.body());
            return ([(header::UPGRADE, "websocket")], response).into_response();
        }
    };
    let arrival = arrive(&edge, &head).await;
    let largest = edge.config.max_payload + ENVELOPE;
    // Taken before the upgrade, so that a shutdown in between waits for this socket too.
    let running = edge.tasks.token();
    upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(WRITE_BUFFER + 2 * largest)
        .max_message_size(largest)
        .max_frame_size(largest)
        .on_upgrade(move |socket| async move {
            converse(edge, socket, arrival).await;
            drop(running);
        })
}

/// What woke the task up.
enum Event {
    Frame(Option<Result<Message, axum::Error>>),
    Flushed(Result<(), axum::Error>),
    Item(Option<Item>),
    Topic(TopicName, Item),
    Stored(Option<MessageId>, Result<Stored, BrokerError>),
    Tick,
    Shutdown,
}

/// How a conversation ends.
enum End {
    /// We close, and say why.
    Close(Close, String),
    /// The peer closes, or the connection is gone.
    Over,
}

/// The write half, taken apart from the read half so that neither waits for the other.
type Sink = SplitSink<WebSocket, Message>;

struct Conversation {
    edge: Edge,
    /// The client's address.
    address: Option<IpAddr>,
    /// Who this is, once that is known.
    caller: Option<Caller>,
    /// Whether it was told that its token has expired.
    told: bool,
    /// A backend has none.
    mailbox: Option<Subscriber>,
    topics: Topics,
    /// Frames to be written before anything else; beyond [`WAITING`] the socket is not listened to.
    answers: VecDeque<Utf8Bytes>,
    /// Sends in the order they came, waiting to be stored; beyond [`WAITING`] the socket is not listened to.
    sends: VecDeque<(Option<MessageId>, Sending)>,
    /// Set by what ends the conversation.
    end: Option<End>,
}

impl Conversation {
    fn new(edge: Edge, address: Option<IpAddr>) -> Self {
        Self {
            edge,
            address,
            caller: None,
            told: false,
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

    fn refuse(&mut self, id: Option<&MessageId>, refusal: &Refusal) {
        self.answers.push_back(refusal.frame(id).into());
    }

    /// Says why, and closes.
    fn turn_away(&mut self, refusal: Refusal) {
        // A page that is not let in is told nothing but that.
        if refusal.close != Close::OriginRefused {
            self.refuse(None, &refusal);
        }
        self.end = Some(End::Close(refusal.close, refusal.message));
    }

    /// Begins to speak for whoever this is.
    fn begin(&mut self, caller: Caller, resume: &Resume) {
        let broker = &self.edge.broker;
        let mut floor = Seq::START;
        if let Some(session) = caller.grant.session() {
            match broker.mailbox(session, resume, Transport::Websocket) {
                Ok((mailbox, opening)) => {
                    self.mailbox = Some(mailbox);
                    floor = opening.seq;
                }
                Err(error) => return self.turn_away(error.into()),
            }
        }
        self.welcome(&caller, floor);
        self.caller = Some(caller);
    }

    fn welcome(&mut self, caller: &Caller, seq: Seq) {
        let client = caller.grant.client();
        let frame = ServerFrame::Welcome {
            session: caller.grant.session(),
            user: client.and_then(|client| client.user.as_ref()),
            handle: client.map(|client| client.handle),
            epoch: self.edge.broker.epoch(),
            seq,
            durability: self.edge.broker.durability(),
            heartbeat: self.edge.config.heartbeat.as_secs(),
            max_payload: self.edge.config.max_payload,
            server: SERVER,
        }
        .encode();
        self.answers.push_back(frame.into());
    }

    /// Acts on a `hello`: who this is, or a fresh token for who it was before.
    async fn hello(&mut self, session: Option<SessionId>, token: Option<String>, resume: Resume) {
        let open = self.edge.identity.auth() == Auth::Open;
        match &self.caller {
            None if open && session.is_none() && token.is_none() => {
                self.refuse(None, &Malformed::Missing("session").into());
            }
            None => match self.edge.identify(token.as_deref(), session, Made::Welcome).await {
                Ok(grant) => self.begin(Caller { grant, address: self.address }, &resume),
                Err(refusal) => self.turn_away(refusal),
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
                match self.edge.identify(token.as_deref(), session.or_else(|| own.clone()), Made::Never).await
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
        self.told = false;
        let floor = caller.grant.session().map_or(Seq::START, |session| self.edge.broker.floor(session));
        self.welcome(&caller, floor);
        for topic in self.topics.names() {
            if caller.grant.may_read(&topic).is_err() {
                self.topics.remove(&topic);
                self.answer(&ServerFrame::Unsubscribed { topic: &topic });
            }
        }
        self.caller = Some(caller);
    }

    /// When something is to be done about its token, in Unix milliseconds: it is told, and then closed.
    fn expires(&self) -> Option<u64> {
        let client = self.caller.as_ref()?.grant.client()?;
        Some(client.expires + if self.told { SKEW * 1000 } else { 0 })
    }

    /// Tells that the token has expired, or ends the conversation where that was told before.
    fn expire(&mut self) {
        if self.expires().is_none_or(|at| at > self.edge.broker.now()) {
            return;
        }
        if self.told {
            let text = "the token has expired".to_owned();
            self.end = Some(End::Close(Close::Unauthorized, text));
            return;
        }
        self.told = true;
        let text = format!(
            "the token has expired; send a fresh one within {SKEW} s: {{\"type\":\"hello\",\"token\":\"…\"}}"
        );
        self.refuse(None, &Refusal::new(Code::Unauthorized, text));
    }

    /// Acts on one text frame. What is wrong with it is answered; only a `hello` can end the conversation.
    async fn hear(&mut self, text: &str) {
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
                ClientFrame::Send(Send { id, .. }) => self.refuse(id.as_ref(), &hello_first()),
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
                    Ok(session) => self.edge.broker.ack(session, seq, None).map_err(Refusal::from),
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

    fn send(&mut self, send: Send) {
        let id = send.id.clone();
        let Some(caller) = &self.caller else { return };
        match self.edge.send(caller, send) {
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

    fn sent(&mut self, id: Option<&MessageId>, stored: Result<Stored, BrokerError>) {
        match stored {
            Ok(stored) => self.answer(&ServerFrame::Sent { id, stored }),
            Err(error) => self.refuse(id, &error.into()),
        }
    }

    fn subscribe(&mut self, topic: &TopicName, resume: &Resume) {
        let most = self.edge.config.max_topics;
        if self.topics.len() >= most && !self.topics.contains(topic) {
            return self.refuse(None, &too_many_topics(most));
        }
        let Some(caller) = &self.caller else { return };
        if let Err(denied) = caller.grant.may_read(topic) {
            return self.refuse(None, &BrokerError::from(denied).into());
        }
        let (subscriber, opening) = self.edge.broker.topic(topic, resume, Transport::Websocket);
        self.topics.insert(topic.clone(), subscriber);
        let (seq, recovered) = (opening.seq, opening.recovered);
        self.answer(&ServerFrame::Subscribed { topic, seq, recovered });
    }

    /// Feeds what is ready, up to a batch: answers, then `first`, then what the hubs hold. Answers whether
    /// there is something to flush.
    async fn feed(&mut self, sink: &mut Sink, first: Option<Utf8Bytes>) -> Result<bool, axum::Error> {
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
    fn flushed(&mut self) {
        if let Some(mailbox) = &mut self.mailbox {
            mailbox.pass(mailbox.handed());
        }
    }

    fn has_room(&self) -> bool {
        self.answers.len() < WAITING && self.sends.len() < WAITING
    }
}

fn hello_first() -> Refusal {
    Refusal::new(
        Code::Unauthorized,
        r#"say who you are first: {"type":"hello","session":"…"}, or with a `token` where the server wants one"#,
    )
}

fn frame_of(topic: Option<&TopicName>, item: &Item) -> Utf8Bytes {
    match item {
        Item::Message(message) => message.frame().clone(),
        Item::Gap(gap) => ServerFrame::Gap { topic, gap: *gap }.encode().into(),
    }
}

async fn next_of(mailbox: &mut Option<Subscriber>) -> Option<Item> {
    match mailbox {
        Some(mailbox) => mailbox.next().await,
        None => std::future::pending().await,
    }
}

async fn next_stored(
    sends: &mut VecDeque<(Option<MessageId>, Sending)>,
) -> (Option<MessageId>, Result<Stored, BrokerError>) {
    let Some((_, sending)) = sends.front_mut() else { return std::future::pending().await };
    let stored = sending.await;
    let id = sends.pop_front().and_then(|(id, _)| id);
    (id, stored)
}

async fn converse(edge: Edge, socket: WebSocket, arrival: Result<Arrival, Refusal>) {
    let (mut sink, mut stream) = socket.split();
    let (heartbeat, hello) = (edge.config.heartbeat, edge.config.hello_timeout);
    let shutdown = edge.shutdown.clone();
    let address = arrival.as_ref().ok().and_then(|arrival| arrival.address);
    let mut talk = Conversation::new(edge, address);
    let start = Instant::now();
    let (mut heard, mut next_ping) = (start, start + heartbeat);
    let mut unflushed = false;
    let mut place = None;
    match arrival {
        Ok(Arrival { caller, _place, .. }) => {
            place = Some(_place);
            if let Some((caller, resume)) = caller {
                talk.begin(caller, &resume);
            }
        }
        Err(refusal) => talk.turn_away(refusal),
    }
    let tick = sleep_until(next_ping.min(start + hello));
    let mut tick = pin!(tick);
    let end = loop {
        if !unflushed && !talk.answers.is_empty() {
            match talk.feed(&mut sink, None).await {
                Ok(fed) => unflushed = fed,
                Err(_) => break End::Over,
            }
        }
        if let Some(end) = talk.end.take() {
            break end;
        }
        let event = tokio::select! {
            flushed = sink.flush(), if unflushed => Event::Flushed(flushed),
            frame = stream.next(), if talk.has_room() => Event::Frame(frame),
            item = next_of(&mut talk.mailbox), if !unflushed => Event::Item(item),
            (topic, item) = talk.topics.next(), if !unflushed && !talk.topics.is_empty() => {
                Event::Topic(topic, item)
            }
            (id, stored) = next_stored(&mut talk.sends) => Event::Stored(id, stored),
            () = &mut tick => Event::Tick,
            () = shutdown.cancelled() => Event::Shutdown,
        };
        let first = match event {
            Event::Flushed(Ok(())) => {
                unflushed = false;
                talk.flushed();
                continue;
            }
            Event::Item(Some(item)) => frame_of(None, &item),
            Event::Topic(topic, item) => frame_of(Some(&topic), &item),
            Event::Stored(id, stored) => {
                talk.sent(id.as_ref(), stored);
                continue;
            }
            Event::Frame(Some(Ok(message))) => {
                heard = Instant::now();
                match message {
                    Message::Text(text) => {
                        let before = talk.expires();
                        talk.hear(&text).await;
                        // A token has its own time.
                        if talk.expires() != before {
                            tick.as_mut().reset(Instant::now());
                        }
                    }
                    Message::Binary(_) => {
                        let text = "binary frames are not part of this protocol; send JSON in text frames";
                        talk.refuse(None, &Refusal::new(Code::BadRequest, text));
                    }
                    // tungstenite answers pings and closes by itself, with the next read or write.
                    Message::Ping(_) | Message::Pong(_) => {}
                    Message::Close(_) => break End::Over,
                }
                continue;
            }
            Event::Frame(Some(Err(error))) => break unreadable(error),
            Event::Item(None) => break End::Close(Close::SessionEnded, "the session was ended".to_owned()),
            Event::Frame(None) | Event::Flushed(Err(_)) => break End::Over,
            Event::Shutdown => break End::Close(Close::GoingAway, "the server is going away".to_owned()),
            Event::Tick => {
                let now = Instant::now();
                talk.expire();
                if talk.caller.is_none() && now >= start + hello {
                    let text = format!("no hello within {} s", hello.as_secs_f32());
                    break End::Close(Close::NoHello, text);
                }
                if now >= heard + heartbeat * 2 {
                    let text = format!("nothing heard for {} s", (heartbeat * 2).as_secs_f32());
                    break End::Close(Close::Silent, text);
                }
                if now >= next_ping {
                    next_ping = now + heartbeat;
                    // While a write is under way the peer is busy, and a full socket ends by itself.
                    if !unflushed {
                        if sink.feed(Message::Ping(Bytes::new())).await.is_err() {
                            break End::Over;
                        }
                        unflushed = true;
                    }
                }
                let hello_due = if talk.caller.is_none() { start + hello } else { next_ping };
                let mut due = next_ping.min(hello_due);
                if let Some(expires) = talk.expires() {
                    // A clock that is set does no harm: it is looked at with every ping.
                    let left = expires.saturating_sub(talk.edge.broker.now());
                    due = due.min(now + Duration::from_millis(left));
                }
                tick.as_mut().reset(due);
                continue;
            }
        };
        match talk.feed(&mut sink, Some(first)).await {
            Ok(fed) => unflushed = fed,
            Err(_) => break End::Over,
        }
    };
    // Leaves the hubs before the last words, which may take a while.
    drop(talk);
    drop(place);
    _ = timeout(CLOSING, say_goodbye(sink, stream, end)).await;
}

/// Why a frame could not be read, as a close code.
fn unreadable(error: axum::Error) -> End {
    let error = error.into_inner();
    match error.downcast_ref::<WsError>() {
        Some(WsError::Capacity(_)) => End::Close(Close::TooBig, format!("frame too big: {error}")),
        Some(WsError::Utf8(_)) => End::Close(Close::NotUtf8, "text frames must be UTF-8".to_owned()),
        Some(WsError::Protocol(_)) => End::Close(Close::Protocol, format!("{error}")),
        _ => End::Over,
    }
}

/// Sends the close frame, or lets tungstenite send its answer to one, and waits for the peer's side.
async fn say_goodbye(mut sink: Sink, mut stream: SplitStream<WebSocket>, end: End) {
    if let End::Close(code, text) = end {
        let reason = close_reason(text).into();
        let frame = CloseFrame { code: code as u16, reason };
        if sink.send(Message::Close(Some(frame))).await.is_err() {
            return;
        }
    }
    _ = sink.flush().await;
    while let Some(Ok(_)) = stream.next().await {}
}

/// A close reason has at most 123 bytes (RFC 6455 section 5.5).
fn close_reason(mut text: String) -> String {
    const MOST: usize = 123;
    text.truncate((0..=MOST.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
    text
}
