//! `GET /v1/events`: Server-Sent Events. The id of an event is its seq; `Last-Event-ID` resumes and acknowledges.
//!
//! Messages are unnamed events, so that `onmessage` gets nothing else. `welcome`, `subscribed`, `receipt`,
//! `presence`, `gap` and `failure` are named events.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::WaitForCancellationFutureOwned;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::budget::Holder;
use crate::edge::{ApiRequest, Caller, Gateway, OriginCheck, Refusal, SessionPolicy, TopicRequest};
use crate::engine::EngineError;
use crate::hub::{Outlet, Transport};
use crate::limits::ConnectionPermit;
use crate::link::{Lendable, LentOutput, Link, WRITE_TIMEOUT};
use crate::message::{Item, Publication, Seq, SessionId, SharedText, TopicName};
use crate::metrics;
use crate::protocol::ServerFrame;
use crate::subscriber::Subscriber;
use crate::transport::reading::{
    ReadFailures, acknowledge_cursor, check_cursor, cursor_is_ours, next_item, proof_left,
};
use crate::transport::sse::chunk::ENCODING;
use crate::transport::sse::event::{event_name, line_breaks, push_event, push_fields, push_message};
use crate::transport::topics::TopicReaders;

mod chunk;
mod event;

/// Bytes after which a chunk takes no more events.
const CHUNK: usize = 16 * 1024;

/// The address of this transport.
pub(crate) const PATH: &str = "/v1/events";

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
    let link = head.extensions.get::<Lendable>().and_then(|_| head.extensions.get::<Arc<Link>>());
    let lent = link.filter(|_| !topics.is_empty()).and_then(|link| LentOutput::new(link, &ENCODING));
    let address = caller.mailbox_besides(!topics.is_empty())?;
    let permit = gateway.connection_permit(caller.address)?;
    let last_event_id = last_event_id(&head.headers);
    let mut resume = query.resume("after")?;
    resume.after = last_event_id.or(resume.after);
    check_cursor(&resume, || OriginCheck::from(&head).get_may_acknowledge(&gateway.access()))?;
    let (mut mailbox, mut floor) = (None, Seq::START);
    if let Some(address) = &address {
        if cursor_is_ours(&gateway, address, &resume).await == Ok(true) {
            acknowledge_cursor(&gateway, address, &resume).await?;
        }
        let (subscriber, opening) = gateway.broker.mailbox(address, &resume, Transport::Sse).await?;
        (mailbox, floor) = (Some(subscriber), opening.seq);
    }
    let mut stream = EventStream::new(gateway, (caller, permit), (mailbox, floor));
    stream.lent = lent;
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
    /// The output of the connection, which is lent to what is published to the topics.
    lent: Option<Arc<LentOutput>>,
    /// Events to be written first.
    pending: SharedText,
    /// Fires when the server stops. It waits once for all events.
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Never later than what is waited for ends. It is set anew only when it has fired: most waits end before.
    timer: Pin<Box<Sleep>>,
    read_failures: ReadFailures,
    /// When the registration of the caller's session was last prolonged.
    last_prolonged: Instant,
    /// Counts the connection for its address.
    _permit: ConnectionPermit,
}

impl EventStream {
    /// Begins with a `welcome`. The mailbox is acknowledged up to `floor`.
    fn new(
        gateway: Arc<Gateway>,
        (caller, permit): (Caller, ConnectionPermit),
        (mailbox, floor): (Option<Subscriber>, Seq),
    ) -> Self {
        let mut pending = SharedText::default();
        push_event(pending.tail(), Some("welcome"), None, &gateway.welcome(&caller, floor));
        Self {
            caller,
            mailbox,
            topics: TopicReaders::default(),
            lent: None,
            pending,
            shutdown: Box::pin(gateway.shutdown.clone().cancelled_owned()),
            timer: Box::pin(sleep(gateway.config.heartbeat)),
            read_failures: ReadFailures::default(),
            last_prolonged: Instant::now(),
            _permit: permit,
            gateway,
        }
    }

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
        push_event(self.pending.tail(), Some("subscribed"), None, &frame.encode());
    }

    fn into_response(self) -> Response {
        let lent = self.lent.clone();
        // Boxed, as it moves with each chunk.
        let chunks = stream::unfold(Box::new(self), async |mut stream| {
            let chunk = stream.next_chunk().await?;
            Some((stream::iter(chunk.into_pieces()), stream))
        });
        let mut response = event_stream(Body::from_stream(chunks.flatten().map(Ok::<_, Infallible>)));
        // For who writes the answer.
        if let Some(lent) = lent {
            response.extensions_mut().insert(lent);
        }
        response
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
        let mut chunk = std::mem::take(&mut self.pending);
        if chunk.is_empty() {
            self.wait(&mut chunk).await?;
        }
        while chunk.len() < CHUNK {
            let Some((topic, item)) = self.topics.try_next_after(self.mailbox.as_mut(), |_| true) else {
                break;
            };
            self.push_item(&mut chunk, topic.as_ref(), item).await?;
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
        let now = Instant::now();
        if now.duration_since(self.last_prolonged) >= heartbeat {
            self.prolong(now);
        }
        let deadline = now + heartbeat.min(left);
        if self.timer.deadline() > deadline {
            self.timer.as_mut().reset(deadline);
        }
        loop {
            self.allow_lending();
            let (topic, item) = tokio::select! {
                item = next_item(self.mailbox.as_mut()) => (None, item?),
                (topic, item) = self.topics.next() => (Some(topic), item),
                () = self.timer.as_mut() => {
                    let is_over = self.timer.deadline() >= deadline;
                    self.timer.as_mut().reset(if is_over { deadline + heartbeat } else { deadline });
                    if !is_over {
                        continue;
                    }
                    chunk.push_str(STILL_HERE);
                    return Some(());
                }
                () = self.shutdown.as_mut() => return None,
            };
            if let Some(lent) = &self.lent {
                lent.allow(false);
            }
            return self.push_item(chunk, topic.as_ref(), item).await;
        }
    }

    /// Lets the output be lent, if nothing is to be written before what comes next.
    fn allow_lending(&mut self) {
        let Some(lent) = &self.lent else { return };
        let outlet = || Arc::clone(lent) as Arc<dyn Outlet>;
        // After the end of its session the caller reads no topic either.
        let is_open = self.mailbox.as_ref().is_none_or(|mailbox| mailbox.close_at_end(outlet));
        lent.allow(is_open && self.topics.lend(lent));
    }

    /// Adds the event of an item; `None` at the end of the stream. A failure that was told a moment ago is a comment, since a chunk is not empty.
    async fn push_item(
        &mut self,
        chunk: &mut SharedText,
        topic: Option<&TopicName>,
        item: Result<Item, EngineError>,
    ) -> Option<()> {
        match item {
            // Not named `error`: a browser would take it for the end of the connection.
            Err(error) => match self.read_failures.note(error) {
                Some(refusal) => push_event(chunk.tail(), Some("failure"), None, &refusal.frame(None)),
                None => chunk.push_str(STILL_HERE),
            },
            Ok(Item::Message(message)) => {
                metrics::count_delivered(Transport::Sse, 1);
                // Only a seq of the mailbox is an id: the browser sends it back, and it acknowledges.
                let id = message.seq().filter(|_| topic.is_none());
                if message.is_large() {
                    return self.push_large(chunk, id, message).await;
                }
                push_message(chunk.tail(), id, &message);
            }
            Ok(Item::Gap(gap)) => {
                let frame = ServerFrame::gap(topic, gap, || self.gateway.broker.epoch()).encode();
                push_event(chunk.tail(), Some("gap"), Some(gap.to).filter(|_| topic.is_none()), &frame);
            }
        }
        Some(())
    }

    /// Adds a large message. It is shared with the chunk if it is one line. Otherwise each line gets a prefix, and the event waits
    /// for room in the memory budget. `None` if there is none: it holds room itself, so the stream ends, and the reader comes
    /// back.
    async fn push_large(
        &mut self,
        chunk: &mut SharedText,
        id: Option<Seq>,
        message: Arc<Publication>,
    ) -> Option<()> {
        let (frame, name) = (message.frame().as_str(), event_name(message.kind()));
        let breaks = line_breaks(frame);
        if breaks == 0 {
            push_fields(chunk.tail(), name, id);
            chunk.push_str("data: ");
            chunk.push_frame(&message);
            chunk.push_str("\n\n");
            return Some(());
        }
        let room = self.gateway.budget.acquire(Holder::Proved, event::size(name, id, frame, breaks));
        let permit = timeout(WRITE_TIMEOUT, room).await.ok()?;
        let mut event = String::new();
        push_event(&mut event, name, id, frame);
        chunk.push_counted(event, permit);
        Some(())
    }

    fn prolong(&mut self, now: Instant) {
        self.last_prolonged = now;
        if let Some(client) = self.caller.grant.client() {
            self.gateway.prolong(client);
        }
    }
}

#[cfg(test)]
mod tests;
