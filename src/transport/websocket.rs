//! `GET /ws`: the native protocol over WebSocket, one task per socket.
//!
//! The task never waits for its peer to read: while a write is under way it goes on listening, and what it
//! has to answer waits in a bounded queue. When that is full it stops listening instead. A wake-up writes
//! everything that is ready and flushes once.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures::stream::{SplitSink, SplitStream, StreamExt};
use futures::{FutureExt, SinkExt};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Error as WsError;

use crate::broker::{BrokerError, Sending};
use crate::edge::{Edge, Query, Refusal, json, too_many_topics};
use crate::engine::{Commit, EngineError};
use crate::identity::Grant;
use crate::message::{Item, MessageId, Seq, SessionId, TopicName};
use crate::protocol::{ClientFrame, Close, Code, ENVELOPE, Resume, SERVER, SUBPROTOCOL, Send, ServerFrame};
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

/// Who connects, where the query tells.
type Asked = Result<Option<(SessionId, Resume)>, Refusal>;

fn asked(uri: &Uri) -> Asked {
    let query = Query::of(uri);
    if query.get("token").is_some() {
        let text = "a token does not belong into the address, where logs show it; put it into `hello`";
        return Err(Refusal::new(Code::BadRequest, text));
    }
    let Some(session) = query.session()? else { return Ok(None) };
    Ok(Some((session, query.resume("after")?)))
}

async fn upgrade(
    State(edge): State<Edge>,
    uri: Uri,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => {
            let text = format!("this address speaks WebSocket (RFC 6455): {}", rejection.body_text());
            let refusal = Refusal::new(Code::BadRequest, text);
            let response = json(StatusCode::UPGRADE_REQUIRED, refusal.body());
            return ([(header::UPGRADE, "websocket")], response).into_response();
        }
    };
    let asked = asked(&uri);
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
            converse(edge, socket, asked).await;
            drop(running);
        })
}

type Stored = Result<Seq, EngineError>;

/// What woke the task up.
enum Event {
    Frame(Option<Result<Message, axum::Error>>),
    Flushed(Result<(), axum::Error>),
    Item(Option<Item>),
    Topic(TopicName, Item),
    Stored(Option<MessageId>, Stored),
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
    session: Option<SessionId>,
    mailbox: Option<Subscriber>,
    topics: Topics,
    /// Frames to be written before anything else; beyond [`WAITING`] the socket is not listened to.
    answers: VecDeque<Utf8Bytes>,
    /// Sends in the order they came, waiting to be stored; beyond [`WAITING`] the socket is not listened to.
    sends: VecDeque<(Option<MessageId>, Commit)>,
}

impl Conversation {
    fn new(edge: Edge) -> Self {
        Self {
            edge,
            session: None,
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

    fn identify(&mut self, session: SessionId, resume: &Resume) {
        let (mailbox, opening) = self.edge.broker.mailbox(&session, resume);
        let broker = self.edge.broker.clone();
        self.answer(&ServerFrame::Welcome {
            session: &session,
            epoch: broker.epoch(),
            seq: opening.seq,
            durability: broker.durability(),
            heartbeat: self.edge.config.heartbeat.as_secs(),
            max_payload: self.edge.config.max_payload,
            server: SERVER,
        });
        self.mailbox = Some(mailbox);
        self.session = Some(session);
    }

    /// Acts on one text frame. What is wrong with it is answered; it never ends the conversation.
    fn hear(&mut self, text: &str) {
        let frame = match ClientFrame::decode(text) {
            Ok(frame) => frame,
            Err(bad) => return self.refuse(bad.id.as_ref(), &bad.reason.into()),
        };
        let Some(session) = self.session.clone() else {
            return match frame {
                ClientFrame::Hello { session, resume } => self.identify(session, &resume),
                ClientFrame::Ping => self.answer(&ServerFrame::Pong),
                ClientFrame::Send(Send { id, .. }) => self.refuse(id.as_ref(), &hello_first()),
                _ => self.refuse(None, &hello_first()),
            };
        };
        match frame {
            ClientFrame::Hello { .. } => {
                let text = format!("this socket already speaks for session `{session}`; open another one");
                self.refuse(None, &Refusal::new(Code::BadRequest, text));
            }
            ClientFrame::Send(send) => self.send(session, send),
            ClientFrame::Ack(seq) => {
                if let Err(error) = self.edge.broker.ack(&session, seq, None) {
                    self.refuse(None, &error.into());
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

    fn send(&mut self, session: SessionId, send: Send) {
        let id = send.id.clone();
        match self.edge.broker.send(&Grant::session(session), send) {
            Err(error) => self.refuse(id.as_ref(), &error.into()),
            Ok(Sending::Volatile) => self.sent(id.as_ref(), Ok(None)),
            Ok(Sending::Stored(mut commit)) => {
                // What is stored at once is answered at once, unless older sends still wait.
                let now = if self.sends.is_empty() { (&mut commit).now_or_never() } else { None };
                match now {
                    Some(stored) => self.sent(id.as_ref(), stored.map(Some).map_err(BrokerError::from)),
                    None => self.sends.push_back((id, commit)),
                }
            }
        }
    }

    fn sent(&mut self, id: Option<&MessageId>, stored: Result<Option<Seq>, BrokerError>) {
        match stored {
            Ok(seq) => self.answer(&ServerFrame::Sent { id, seq }),
            Err(error) => self.refuse(id, &error.into()),
        }
    }

    fn subscribe(&mut self, topic: &TopicName, resume: &Resume) {
        let most = self.edge.config.max_topics;
        if self.topics.len() >= most && !self.topics.contains(topic) {
            return self.refuse(None, &too_many_topics(most));
        }
        let (subscriber, opening) = self.edge.broker.topic(topic, resume);
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
    Refusal::new(Code::Unauthorized, r#"say who you are first: {"type":"hello","session":"…"}"#)
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

async fn next_stored(sends: &mut VecDeque<(Option<MessageId>, Commit)>) -> (Option<MessageId>, Stored) {
    let Some((_, commit)) = sends.front_mut() else { return std::future::pending().await };
    let stored = commit.await;
    let id = sends.pop_front().and_then(|(id, _)| id);
    (id, stored)
}

async fn converse(edge: Edge, socket: WebSocket, asked: Asked) {
    let (mut sink, mut stream) = socket.split();
    let (heartbeat, hello) = (edge.config.heartbeat, edge.config.hello_timeout);
    let shutdown = edge.shutdown.clone();
    let mut talk = Conversation::new(edge);
    let start = Instant::now();
    let (mut heard, mut next_ping) = (start, start + heartbeat);
    let mut unflushed = false;
    let mut end = None;
    match asked {
        Ok(Some((session, resume))) => talk.identify(session, &resume),
        Ok(None) => {}
        Err(refusal) => {
            talk.refuse(None, &refusal);
            end = Some(End::Close(Close::NotThisProtocol, refusal.message));
        }
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
        if let Some(end) = end.take() {
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
                talk.sent(id.as_ref(), stored.map(Some).map_err(BrokerError::from));
                continue;
            }
            Event::Frame(Some(Ok(message))) => {
                heard = Instant::now();
                match message {
                    Message::Text(text) => talk.hear(&text),
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
            Event::Frame(None) | Event::Flushed(Err(_)) | Event::Item(None) => break End::Over,
            Event::Shutdown => break End::Close(Close::GoingAway, "the server is going away".to_owned()),
            Event::Tick => {
                let now = Instant::now();
                if talk.session.is_none() && now >= start + hello {
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
                let hello_due = if talk.session.is_none() { start + hello } else { next_ping };
                tick.as_mut().reset(next_ping.min(hello_due));
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
