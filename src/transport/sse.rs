//! `GET /v1/events`: Server-Sent Events. The id of an event is its seq; `Last-Event-ID` resumes and acknowledges.
//!
//! Messages are unnamed events, so that `onmessage` gets nothing else. `welcome`, `subscribed`, `receipt`,
//! `presence`, `gap` and `failure` are named events.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};
use tokio::time::{Instant, sleep, timeout};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::budget::Holder;
use crate::edge::{ApiRequest, Caller, Gateway, Refusal, SessionPolicy, TopicRequest};
use crate::engine::EngineError;
use crate::hub::Transport;
use crate::limits::ConnectionPermit;
use crate::link::WRITE_TIMEOUT;
use crate::message::{Epoch, Item, Kind, Publication, Seq, SessionId, SharedText, TopicName};
use crate::protocol::ServerFrame;
use crate::subscriber::Subscriber;
use crate::transport::reading::{ReadFailures, acknowledge_cursor, check_cursor, next_item, proof_left};
use crate::transport::topics::TopicReaders;

/// Bytes after which a chunk takes no more events.
const CHUNK: usize = 16 * 1024;

/// Bytes of an event for each line of its data: the name of the field, and the end of the line.
const LINE: usize = "data: \n".len();

/// A comment.
const STILL_HERE: &str = ": still here\n\n";

/// The routes of this transport.
pub(crate) fn routes(gateway: Arc<Gateway>) -> OpenApiRouter {
    OpenApiRouter::default().routes(routes!(events)).with_state(gateway)
}

/// Read a mailbox and topics as Server-Sent Events
#[utoipa::path(
    get, path = "/v1/events", tag = "messages",
    params(
        ("session" = Option<SessionId>, Query, description = "The session of the mailbox; optional with a token, absent with an API key, which may have a mailbox itself. Without a mailbox, topics are read"),
        ("after" = Option<Seq>, Query, description = "The last seq that the client has; this acknowledges it"),
        ("epoch" = Option<String>, Query, description = "The epoch of `after`"),
        ("topic" = Option<Vec<TopicName>>, Query, description = "Topics to read as well, each after the seq in `after.<topic>`"),
        ("presence" = Option<Vec<TopicName>>, Query, description = "Topics to read as well, and to tell the members of: in `subscribed`, and in events `presence`"),
        ("Last-Event-ID" = Option<String>, Header, description = "Sent by a reconnecting browser; replaces `after`"),
    ),
    responses(
        (status = 200, description = "Messages are unnamed events with their seq as id. `welcome`, `subscribed`, `receipt`, `presence`, `gap` and `failure` are named events", content_type = "text/event-stream", body = String),
        Refusal,
    )
)]
pub(crate) async fn events(State(gateway): State<Arc<Gateway>>, head: Parts) -> Result<Response, Refusal> {
    if head.method == Method::HEAD {
        gateway.check_head(&head).await?.resume("after")?;
        return Ok(event_stream(Body::empty()));
    }
    let ApiRequest { query, caller } = gateway.authenticate(&head, SessionPolicy::Create).await?;
    let topics = query.topics(&caller.grant, gateway.config.max_topics)?;
    let address = caller.mailbox_besides(!topics.is_empty())?;
    let permit = gateway.connection_permit(caller.address)?;
    let last_event_id = last_event_id(&head.headers);
    let mut resume = query.resume("after")?;
    resume.after = last_event_id.or(resume.after);
    check_cursor(&gateway, &head, &resume)?;
    let (mut mailbox, mut floor) = (None, Seq::START);
    if let Some(address) = &address {
        acknowledge_cursor(&gateway, address, &resume, true).await?;
        let (subscriber, opening) = gateway.broker.mailbox(address, &resume, Transport::Sse).await?;
        (mailbox, floor) = (Some(subscriber), opening.seq);
    }
    let pending = event(Some("welcome"), None, &gateway.welcome(&caller, floor));
    let mut stream = EventStream {
        gateway,
        caller,
        mailbox,
        topics: TopicReaders::default(),
        pending,
        read_failures: ReadFailures::default(),
        last_prolonged: Instant::now(),
        _permit: permit,
    };
    for request in topics {
        stream.subscribe(request, last_event_id.is_some()).await;
    }
    Ok(stream.into_response())
}

/// The last id that a reconnecting browser has seen. It requests its first address again: this replaces `after`.
fn last_event_id(headers: &HeaderMap) -> Option<Seq> {
    headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok()).map(Seq)
}

/// The answer with this stream of events.
fn event_stream(body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // Without it nginx buffers events.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, body).into_response()
}

/// The state of one answer.
struct EventStream {
    gateway: Arc<Gateway>,
    caller: Caller,
    /// A caller without a session reads topics alone.
    mailbox: Option<Subscriber>,
    topics: TopicReaders,
    /// Events to be written first.
    pending: String,
    read_failures: ReadFailures,
    /// When the registration of the caller's session was last prolonged.
    last_prolonged: Instant,
    /// Counts the connection for its address.
    _permit: ConnectionPermit,
}

impl EventStream {
    async fn subscribe(&mut self, request: TopicRequest, reconnected: bool) {
        let TopicRequest { topic, resume, presence } = request;
        let broker = &self.gateway.broker;
        let member = self.caller.grant.member().map(|name| broker.join(&topic, name));
        let (subscriber, opening) = broker.topic(&topic, &resume, Transport::Sse).await;
        // A reconnecting browser has no cursor in a topic. What it missed is not known.
        let recovered = opening.recovered && (!reconnected || resume.after.is_some());
        self.topics.insert(topic.clone(), subscriber, member);
        let presence = self.topics.set_watched(broker, &topic, presence).await;
        let frame = ServerFrame::Subscribed { topic: &topic, seq: opening.seq, recovered, presence };
        self.pending.push_str(&event(Some("subscribed"), None, &frame.encode()));
    }

    fn into_response(self) -> Response {
        let chunks = stream::unfold(self, async |mut stream| {
            let chunk = stream.next_chunk().await?;
            Some((stream::iter(chunk.into_pieces()), stream))
        });
        event_stream(Body::from_stream(chunks.flatten().map(Ok::<_, Infallible>)))
    }

    /// The next events that are ready, or a comment after a heartbeat without any. `None` at the end of the stream.
    async fn next_chunk(&mut self) -> Option<SharedText> {
        // The connection asks for a chunk when it has taken the one before.
        if let Some(mailbox) = &mut self.mailbox {
            mailbox.mark_sent(mailbox.delivered());
            // Its caller reads no topic any more either.
            if mailbox.ended().is_some() {
                return None;
            }
        }
        let mut chunk = SharedText::default();
        chunk.push_str(&std::mem::take(&mut self.pending));
        if chunk.is_empty() {
            self.wait(&mut chunk).await?;
        }
        while chunk.len() < CHUNK {
            let Some((topic, item)) = self.topics.try_next_after(self.mailbox.as_mut(), |_| true) else {
                break;
            };
            self.push_event(&mut chunk, topic.as_ref(), item).await?;
        }
        Some(chunk)
    }

    /// Waits for an item, at most for a heartbeat. `None` at the end of the stream.
    async fn wait(&mut self, chunk: &mut SharedText) -> Option<()> {
        let heartbeat = self.gateway.config.heartbeat;
        let left = proof_left(&self.gateway, &self.caller).await;
        if left.is_zero() {
            return None;
        }
        if self.last_prolonged.elapsed() >= heartbeat {
            self.prolong();
        }
        let (topic, item) = tokio::select! {
            item = next_item(self.mailbox.as_mut()) => (None, item?),
            (topic, item) = self.topics.next() => (Some(topic), item),
            () = sleep(heartbeat.min(left)) => {
                chunk.push_str(STILL_HERE);
                return Some(());
            }
            () = self.gateway.shutdown.cancelled() => return None,
        };
        self.push_event(chunk, topic.as_ref(), item).await
    }

    /// Adds the event of an item; `None` at the end of the stream. A failure that was told a moment ago is a comment, since a chunk is not empty.
    async fn push_event(
        &mut self,
        chunk: &mut SharedText,
        topic: Option<&TopicName>,
        item: Result<Item, EngineError>,
    ) -> Option<()> {
        match item {
            // Not named `error`: a browser would take it for the end of the connection.
            Err(error) => match self.read_failures.note(error) {
                Some(refusal) => chunk.push_str(&event(Some("failure"), None, &refusal.frame(None))),
                None => chunk.push_str(STILL_HERE),
            },
            Ok(Item::Message(message)) if message.is_large() => {
                return self.push_large(chunk, topic, message).await;
            }
            Ok(item) => chunk.push_str(&event_of(topic, &item, || self.gateway.broker.epoch())),
        }
        Some(())
    }

    /// Adds a large message. It is shared with the chunk if it is one line. Otherwise each line gets a prefix, and the event waits
    /// for room in the memory budget. `None` if there is none: it holds room itself, so the stream ends, and the reader comes
    /// back.
    async fn push_large(
        &mut self,
        chunk: &mut SharedText,
        topic: Option<&TopicName>,
        message: Arc<Publication>,
    ) -> Option<()> {
        let frame = message.frame().as_str();
        let lines = frame.split(['\n', '\r']).count();
        if lines == 1 {
            chunk.push_str(&fields(event_name(message.kind()), message.seq().filter(|_| topic.is_none())));
            chunk.push_str("data: ");
            chunk.push_frame(&message);
            chunk.push_str("\n\n");
            return Some(());
        }
        let room = self.gateway.budget.acquire(Holder::Proved, frame.len() + lines * LINE);
        let permit = timeout(WRITE_TIMEOUT, room).await.ok()?;
        let event = event_of(topic, &Item::Message(message), || self.gateway.broker.epoch());
        chunk.push_counted(event, permit);
        Some(())
    }

    fn prolong(&mut self) {
        self.last_prolonged = Instant::now();
        if let Some(client) = self.caller.grant.client() {
            self.gateway.prolong(client);
        }
    }
}

/// The name of the event of a message. Messages that were sent have none, so that `onmessage` gets them.
fn event_name(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Message | Kind::FromBackend | Kind::Request { .. } => None,
        Kind::Receipt => Some("receipt"),
        Kind::Reply { .. } => Some("reply"),
        Kind::Presence => Some("presence"),
    }
}

fn event_of(topic: Option<&TopicName>, item: &Item, epoch: impl FnOnce() -> Epoch) -> String {
    // Only a seq of the mailbox is an id: the browser sends it back, and it acknowledges.
    let id = item.seq().filter(|_| topic.is_none());
    match item {
        Item::Message(message) => event(event_name(message.kind()), id, message.frame()),
        Item::Gap(gap) => event(Some("gap"), id, &ServerFrame::gap(topic, *gap, epoch).encode()),
    }
}

/// The fields of an event before its data.
fn fields(name: Option<&str>, id: Option<Seq>) -> String {
    let mut fields = String::new();
    if let Some(name) = name {
        _ = writeln!(fields, "event: {name}");
    }
    if let Some(id) = id {
        _ = writeln!(fields, "id: {id}");
    }
    fields
}

/// One event. A payload may have line breaks between its tokens: each line becomes a `data` field, and the browser joins
/// them again (HTML standard, section 9.2.6).
fn event(name: Option<&str>, id: Option<Seq>, data: &str) -> String {
    let mut event = fields(name, id);
    event.reserve_exact(data.len() + 48);
    for line in data.split(['\n', '\r']) {
        _ = writeln!(event, "data: {line}");
    }
    event.push('\n');
    event
}

#[cfg(test)]
mod tests;
