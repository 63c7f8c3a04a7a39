//! `GET /v1/events`: Server-Sent Events. The id is the seq; `Last-Event-ID` resumes and acknowledges.
//!
//! Messages come as unnamed events, so that `onmessage` sees messages only; `welcome`, `receipt` and `gap` are named.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{Version, header};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::edge::{ApiRequest, Caller, Gateway, Refusal, Refused, SessionPolicy};
use crate::hub::Transport;
use crate::limits::ConnectionPermit;
use crate::link::WRITE_TIMEOUT;
use crate::message::{Item, Kind, Seq, SessionId, TopicName};
use crate::protocol::ServerFrame;
use crate::subscriber::Subscriber;
use crate::transport::topics::TopicReaders;

/// One chunk is complete once it has this many bytes.
const CHUNK: usize = 16 * 1024;

/// The routes of this transport.
pub(crate) fn routes(gateway: Arc<Gateway>) -> OpenApiRouter {
    OpenApiRouter::default().routes(routes!(events)).with_state(gateway)
}

struct Events {
    gateway: Arc<Gateway>,
    mailbox: Subscriber,
    topics: TopicReaders,
    /// Events to be written first.
    first: VecDeque<String>,
    /// Who reads.
    caller: Caller,
    /// When its registration was last seen to last as long as its token.
    prolonged: Instant,
    /// Counts among the connections of its address.
    _place: ConnectionPermit,
}

/// Read a mailbox and topics as Server-Sent Events
#[utoipa::path(
    get, path = "/v1/events", tag = "messages",
    params(
        ("session" = Option<SessionId>, Query, description = "Whose mailbox; may be left out with a token"),
        ("after" = Option<Seq>, Query, description = "From where to go on; it is acknowledged with it"),
        ("epoch" = Option<String>, Query, description = "What `after` belongs to"),
        ("topic" = Option<Vec<TopicName>>, Query, description = "Topics to read as well; `after.<topic>` says from where"),
        ("Last-Event-ID" = Option<String>, Header, description = "What a browser sends when it reconnects; counts as `after`"),
    ),
    responses(
        (status = 200, description = "Messages as unnamed events with their seq as id; `welcome`, `subscribed`, `receipt` and `gap` as named ones", content_type = "text/event-stream", body = String),
        Refusal,
        Refused<429>,
    )
)]
pub(crate) async fn events(State(gateway): State<Arc<Gateway>>, head: Parts) -> Result<Response, Refusal> {
    let ApiRequest { query, caller } = gateway.authenticate(&head, SessionPolicy::Create).await?;
    let session = caller.session()?.clone();
    let mut resume = query.resume("after")?;
    let topics = query.topics(&caller.grant, gateway.config.max_topics)?;
    let place = gateway.connection_permit(caller.address)?;
    // A browser that reconnects sends the last id it saw, and the address it was given first.
    let last = head.headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok()).map(Seq);
    resume.after = last.or(resume.after);
    if let Some(after) = resume.after
        && gateway.broker.is_ours(&session, after, resume.epoch.as_ref()).await
    {
        gateway.broker.ack(&session, after, resume.epoch.as_ref()).await?;
    }
    let (mailbox, opening) = gateway.broker.mailbox(&session, &resume, Transport::Sse).await?;
    let welcome = gateway.welcome(&caller, opening.seq);
    let mut first = VecDeque::from([event(Some("welcome"), None, &welcome)]);
    let mut read = TopicReaders::default();
    for (topic, resume) in topics {
        let (subscriber, opening) = gateway.broker.topic(&topic, &resume, Transport::Sse).await;
        // A browser that reconnects asks for its first address again: what came meanwhile is not told.
        let recovered = opening.recovered && (last.is_none() || resume.after.is_some());
        let seq = opening.seq;
        let frame = ServerFrame::Subscribed { topic: &topic, seq, recovered };
        first.push_back(event(Some("subscribed"), None, &frame.encode()));
        read.insert(topic, subscriber);
    }
    let events =
        Events { gateway, mailbox, topics: read, first, caller, prolonged: Instant::now(), _place: place };
    let chunks = stream::unfold(events, next_chunk);
    let body = match head.version {
        Version::HTTP_2 => Body::from_stream(watched(chunks)),
        _ => Body::from_stream(chunks),
    };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // nginx would collect events otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, body).into_response())
}

/// The same chunks from a task of its own: over HTTP/2 a stream can stand still while its connection moves, and
/// nobody asks it for more. One that takes nothing for [`WRITE_TIMEOUT`] ends.
fn watched(
    chunks: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut chunks = std::pin::pin!(chunks);
        loop {
            let chunk = tokio::select! {
                chunk = chunks.next() => chunk,
                // Whoever reads may leave while there is nothing to send.
                () = sender.closed() => None,
            };
            let Some(chunk) = chunk else { break };
            if sender.send_timeout(chunk, WRITE_TIMEOUT).await.is_err() {
                break;
            }
        }
    });
    stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)))
}

/// The next events that are ready, or a comment when nothing was for one heartbeat.
async fn next_chunk(mut events: Events) -> Option<(Result<Bytes, Infallible>, Events)> {
    // Asking for more means that the connection took what there was before.
    events.mailbox.mark_sent(events.mailbox.delivered());
    let mut chunk: String = events.first.drain(..).collect();
    if chunk.is_empty() {
        let mut heartbeat = events.gateway.config.heartbeat;
        if let Some(client) = events.caller.grant.client() {
            let left = Duration::from_millis(client.good_until().saturating_sub(events.gateway.broker.now()));
            if left.is_zero() {
                return None;
            }
            // Now and then, however busy it is.
            if events.prolonged.elapsed() >= heartbeat {
                events.prolonged = Instant::now();
                events.gateway.prolong(client);
            }
            heartbeat = heartbeat.min(left);
        }
        let next = tokio::select! {
            item = events.mailbox.next() => Some((None, item?)),
            (topic, item) = events.topics.next() => Some((Some(topic), item)),
            () = tokio::time::sleep(heartbeat) => None,
            () = events.gateway.shutdown.cancelled() => return None,
        };
        match next {
            Some((topic, item)) => chunk = event_of(topic.as_ref(), &item),
            None => chunk.push_str(": still here\n\n"),
        }
    }
    while chunk.len() < CHUNK {
        let next = events.mailbox.try_next().map(|item| (None, item));
        let next = next.or_else(|| events.topics.try_next().map(|(topic, item)| (Some(topic), item)));
        let Some((topic, item)) = next else { break };
        chunk.push_str(&event_of(topic.as_ref(), &item));
    }
    Some((Ok(Bytes::from(chunk)), events))
}

fn event_of(topic: Option<&TopicName>, item: &Item) -> String {
    match item {
        // Only the mailbox's seq is an id: it is what the browser sends back, and what it acknowledges.
        Item::Message(message) => {
            let name = (message.kind() == Kind::Receipt).then_some("receipt");
            event(name, message.seq().filter(|_| topic.is_none()), message.frame())
        }
        Item::Gap(gap) => {
            let id = topic.is_none().then_some(gap.to);
            event(Some("gap"), id, &ServerFrame::Gap { topic, gap: *gap }.encode())
        }
    }
}

/// One event. A payload may hold line breaks between its tokens: each line is a `data` field, and the
/// browser puts them together again (HTML standard, section 9.2.6).
fn event(name: Option<&str>, id: Option<Seq>, data: &str) -> String {
    let mut event = String::with_capacity(data.len() + 48);
    if let Some(name) = name {
        _ = writeln!(event, "event: {name}");
    }
    if let Some(id) = id {
        _ = writeln!(event, "id: {id}");
    }
    for line in data.split(['\n', '\r']) {
        _ = writeln!(event, "data: {line}");
    }
    event.push('\n');
    event
}
