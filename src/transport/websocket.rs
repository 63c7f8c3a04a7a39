//! `GET /ws`: the native protocol over WebSocket, one task per socket.
//!
//! The task never waits for its peer to read: while a write is under way it goes on listening, and what it
//! has to answer waits in a bounded queue. When that is full it stops listening instead. A wake-up writes
//! everything that is ready and flushes once.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures::SinkExt;
use futures::stream::{SplitStream, StreamExt};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Error as WsError;

use crate::broker::{BrokerError, Sending};
use crate::config::Auth;
use crate::edge::{
    Caller, Gateway, OriginCheck, Query, Refusal, SessionPolicy, bearer, client_address, json,
    origin_refused, peer_of,
};
use crate::limits::ConnectionPermit;
use crate::link::WRITE_TIMEOUT;
use crate::message::{Item, MessageId, TopicName};
use crate::protocol::{Close, Code, ENVELOPE, Resume, SUBPROTOCOL, SendResult};
use crate::subscriber::Subscriber;

mod conversation;

use conversation::{Conversation, End, Sink, frame_of};

/// tungstenite fills this with zeros at every poll of the input: its default of 128 KiB costs three times the
/// CPU and is held by every connection.
const READ_BUFFER: usize = 4 * 1024;

/// tungstenite starts writing by itself beyond this; more than a batch, so that feeding one does not wait. (After
/// a pong that the peer did not take it may: then the socket waits for its peer, and is dropped as any that
/// takes nothing.)
const WRITE_BUFFER: usize = 32 * 1024;

/// How long the peer has for its side of the closing handshake.
const CLOSING: Duration = Duration::from_secs(2);

/// The routes of this transport.
pub fn routes(gateway: Arc<Gateway>) -> Router {
    Router::new().route("/ws", any(upgrade)).with_state(gateway)
}

/// Who connects, where the request itself tells.
struct Handshake {
    /// The client's address.
    address: Option<IpAddr>,
    /// Who asks, and from where to go on.
    caller: Option<(Caller, Resume)>,
    /// Counts among the connections of its address.
    place: ConnectionPermit,
}

async fn read_handshake(gateway: &Gateway, head: &Parts) -> Result<Handshake, Refusal> {
    let headers = &head.headers;
    if !OriginCheck::from(head).origin_allowed(&gateway.config.access) {
        return Err(origin_refused(headers));
    }
    let address = client_address(&gateway.config.access, peer_of(&head.extensions), headers);
    let place = gateway.connection_permit(address)?;
    let query = Query::of(&head.uri);
    if query.get("token").is_some() {
        let text = "a token does not belong into the address, where logs show it; put it into `hello`";
        return Err(Refusal::new(Code::BadRequest, text));
    }
    let (session, bearer) = (query.session()?, bearer(headers)?);
    // A browser cannot send the header: there the first frame says who it is.
    let says = bearer.is_some() || session.is_some() && gateway.identity.auth() == Auth::Open;
    let mut caller = None;
    if says {
        let grant = gateway.identify(bearer, session, SessionPolicy::Create).await?;
        caller = Some((Caller { grant, address }, query.resume("after")?));
    }
    Ok(Handshake { address, caller, place })
}

async fn upgrade(State(gateway): State<Arc<Gateway>>, mut head: Parts) -> Response {
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
    let handshake = read_handshake(&gateway, &head).await;
    let largest = gateway.config.max_payload + ENVELOPE;
    // Taken before the upgrade, so that a shutdown in between waits for this socket too.
    let running = gateway.tasks.token();
    upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(WRITE_BUFFER + 2 * largest)
        .max_message_size(largest)
        .max_frame_size(largest)
        .on_upgrade(move |socket| async move {
            run(gateway, socket, handshake).await;
            drop(running);
        })
}

/// What woke the task up.
enum Event {
    Frame(Option<Result<Message, axum::Error>>),
    Flushed(Result<(), axum::Error>),
    Item(Option<Item>),
    Topic(TopicName, Item),
    Stored(Option<MessageId>, Result<SendResult, BrokerError>),
    Tick,
    Shutdown,
}

async fn next_of(mailbox: &mut Option<Subscriber>) -> Option<Item> {
    match mailbox {
        Some(mailbox) => mailbox.next().await,
        None => std::future::pending().await,
    }
}

async fn next_stored(
    sends: &mut VecDeque<(Option<MessageId>, Sending)>,
) -> (Option<MessageId>, Result<SendResult, BrokerError>) {
    let Some((_, sending)) = sends.front_mut() else { return std::future::pending().await };
    let stored = sending.await;
    let id = sends.pop_front().and_then(|(id, _)| id);
    (id, stored)
}

async fn run(gateway: Arc<Gateway>, socket: WebSocket, handshake: Result<Handshake, Refusal>) {
    let (mut sink, mut stream) = socket.split();
    let (heartbeat, hello) = (gateway.config.heartbeat, gateway.config.hello_timeout);
    let shutdown = gateway.shutdown.clone();
    let address = handshake.as_ref().ok().and_then(|handshake| handshake.address);
    let mut conversation = Conversation::new(gateway, address);
    let start = Instant::now();
    let (mut last_frame, mut next_ping) = (start, start + heartbeat);
    // Since when a write is under way.
    let mut unflushed_since: Option<Instant> = None;
    let mut place = None;
    match handshake {
        Ok(handshake) => {
            place = Some(handshake.place);
            if let Some((caller, resume)) = handshake.caller {
                conversation.begin(caller, &resume);
            }
        }
        Err(refusal) => conversation.reject(refusal),
    }
    // Who this is may be known by now, and its token have a time of its own.
    let tick = sleep_until(if conversation.caller.is_some() { start } else { next_ping.min(start + hello) });
    let mut tick = pin!(tick);
    let end = loop {
        if unflushed_since.is_none() && !conversation.answers.is_empty() {
            match timeout(WRITE_TIMEOUT, conversation.feed(&mut sink, None)).await {
                Ok(Ok(fed)) => unflushed_since = fed.then(Instant::now),
                _ => break End::Disconnected,
            }
        }
        if let Some(end) = conversation.end.take() {
            break end;
        }
        let event = tokio::select! {
            flushed = sink.flush(), if unflushed_since.is_some() => Event::Flushed(flushed),
            frame = stream.next(), if conversation.has_room() => Event::Frame(frame),
            item = next_of(&mut conversation.mailbox), if unflushed_since.is_none() => Event::Item(item),
            (topic, item) = conversation.topics.next(), if unflushed_since.is_none() && !conversation.topics.is_empty() => {
                Event::Topic(topic, item)
            }
            (id, stored) = next_stored(&mut conversation.sends) => Event::Stored(id, stored),
            () = &mut tick => Event::Tick,
            () = shutdown.cancelled() => Event::Shutdown,
        };
        // Also while a write is under way: nothing that is said after the end counts.
        if conversation.has_ended() {
            break session_ended();
        }
        let first = match event {
            Event::Flushed(Ok(())) => {
                unflushed_since = None;
                conversation.flushed();
                continue;
            }
            Event::Item(Some(item)) => frame_of(None, &item),
            Event::Topic(topic, item) => frame_of(Some(&topic), &item),
            Event::Stored(id, stored) => {
                conversation.sent(id.as_ref(), stored);
                continue;
            }
            Event::Frame(Some(Ok(message))) => {
                last_frame = Instant::now();
                match message {
                    Message::Text(text) => {
                        let before = conversation.expires();
                        conversation.on_frame(&text).await;
                        // A token has its own time.
                        if conversation.expires() != before {
                            tick.as_mut().reset(Instant::now());
                        }
                    }
                    Message::Binary(_) => {
                        let text = "binary frames are not part of this protocol; send JSON in text frames";
                        conversation.refuse(None, &Refusal::new(Code::BadRequest, text));
                    }
                    // tungstenite answers pings and closes by itself, with the next read or write.
                    Message::Ping(_) | Message::Pong(_) => {}
                    Message::Close(_) => break End::Disconnected,
                }
                continue;
            }
            Event::Frame(Some(Err(error))) => break unreadable(error),
            Event::Item(None) => break session_ended(),
            Event::Frame(None) | Event::Flushed(Err(_)) => break End::Disconnected,
            Event::Shutdown => break End::Close(Close::GoingAway, "the server is going away".to_owned()),
            Event::Tick => {
                let now = Instant::now();
                conversation.recheck_credentials();
                if unflushed_since.is_some_and(|since| now >= since + WRITE_TIMEOUT) {
                    break End::Disconnected;
                }
                if conversation.caller.is_none() && now >= start + hello {
                    let text = format!("no hello within {} s", hello.as_secs_f32());
                    break End::Close(Close::NoHello, text);
                }
                if now >= last_frame + heartbeat * 2 {
                    let text = format!("nothing last_frame for {} s", (heartbeat * 2).as_secs_f32());
                    break End::Close(Close::Silent, text);
                }
                if now >= next_ping {
                    next_ping = now + heartbeat;
                    // While a write is under way the peer is busy, and a full socket ends by itself.
                    if unflushed_since.is_none() {
                        if sink.feed(Message::Ping(Bytes::new())).await.is_err() {
                            break End::Disconnected;
                        }
                        unflushed_since = Some(now);
                    }
                }
                let hello_due = if conversation.caller.is_none() { start + hello } else { next_ping };
                let mut due = next_ping.min(hello_due);
                if let Some(expires) = conversation.expires() {
                    // A clock that is set does no harm: it is looked at with every ping.
                    let left = expires.saturating_sub(conversation.gateway.broker.now());
                    due = due.min(now + Duration::from_millis(left));
                }
                tick.as_mut().reset(due);
                continue;
            }
        };
        match timeout(WRITE_TIMEOUT, conversation.feed(&mut sink, Some(first))).await {
            Ok(Ok(fed)) => unflushed_since = fed.then(Instant::now),
            _ => break End::Disconnected,
        }
    };
    // Leaves the hubs before the last words, which may take a while.
    drop(conversation);
    drop(place);
    _ = timeout(CLOSING, close(sink, stream, end)).await;
}

fn session_ended() -> End {
    End::Close(Close::SessionEnded, "the session was ended".to_owned())
}

/// Why a frame could not be read, as a close code.
fn unreadable(error: axum::Error) -> End {
    let error = error.into_inner();
    match error.downcast_ref::<WsError>() {
        Some(WsError::Capacity(_)) => End::Close(Close::TooBig, format!("frame too big: {error}")),
        Some(WsError::Utf8(_)) => End::Close(Close::NotUtf8, "text frames must be UTF-8".to_owned()),
        Some(WsError::Protocol(_)) => End::Close(Close::Protocol, format!("{error}")),
        _ => End::Disconnected,
    }
}

/// Sends the close frame, or lets tungstenite send its answer to one, and waits for the peer's side.
async fn close(mut sink: Sink, mut stream: SplitStream<WebSocket>, end: End) {
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
