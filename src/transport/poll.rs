//! `GET /v1/messages`: the native long-poll. The cursor of the next call acknowledges.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use tokio::time::{Instant, sleep_until};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::broker::BrokerError;
use crate::edge::{ApiRequest, Gateway, Query, Refusal, Refused, SessionPolicy, encode, json};
use crate::hub::Transport;
use crate::message::{Epoch, Gap, Handle, Item, Publication, Seq, SessionId, TopicName};
use crate::protocol::{Code, Resume};
use crate::transport::lease::{Claim, ClaimError, Leases, MAX_READERS};
use crate::transport::topics::TopicReaders;

/// How long a poll waits that does not say.
const WAIT: Duration = Duration::from_secs(10);

/// How long a poll may wait at most: longer ones are cut by proxies.
const MOST_WAIT: Duration = Duration::from_secs(60);

/// Messages in one answer.
const MOST_MESSAGES: usize = 100;

/// An answer is complete once it has this many bytes.
const ENOUGH_BYTES: usize = 1 << 20;

/// What is remembered of a reader between its polls.
#[derive(Debug, Default)]
pub(crate) struct PollReader {
    /// Whether its last poll brought a cursor.
    has_cursor: bool,
    topics: TopicReaders,
    /// How far each topic was handed out.
    cursors: BTreeMap<TopicName, Seq>,
}

/// The readers of this transport.
pub(crate) type PollReaders = Arc<Leases<PollReader>>;

#[derive(Clone)]
pub(crate) struct Polls {
    gateway: Arc<Gateway>,
    readers: PollReaders,
}

/// The routes of this transport.
pub(crate) fn routes(gateway: Arc<Gateway>, readers: PollReaders) -> OpenApiRouter {
    OpenApiRouter::default().routes(routes!(poll)).with_state(Polls { gateway, readers })
}

/// The answer to a poll.
#[derive(Serialize, ToSchema)]
struct PollAnswer<'a> {
    /// With a token: the session, if the call did not name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a SessionId>,
    /// The public name of that session.
    #[serde(skip_serializing_if = "Option::is_none")]
    handle: Option<Handle>,
    epoch: &'a Epoch,
    /// The frames that subscribers get over WebSocket.
    #[schema(value_type = Vec<Publication>)]
    messages: Vec<&'a RawValue>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gaps: Vec<TopicGap>,
    /// The `after` of the next call.
    seq: Seq,
    /// The `after.<topic>` of the next call.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    topics: &'a BTreeMap<TopicName, Seq>,
}

#[derive(Serialize, ToSchema)]
struct TopicGap {
    /// Absent for a gap in the mailbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<TopicName>,
    #[serde(flatten)]
    gap: Gap,
}

fn wait(query: &Query) -> Result<Duration, Refusal> {
    let Some(text) = query.get("wait") else { return Ok(WAIT) };
    let wait = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    wait.filter(|wait| *wait <= MOST_WAIT).ok_or_else(|| {
        let text = format!("parameter `wait` must be a number of seconds from 0 to {}", MOST_WAIT.as_secs());
        Refusal::new(Code::BadRequest, text)
    })
}

/// Read a mailbox and topics: wait until there is something
#[utoipa::path(
    get, path = "/v1/messages", tag = "messages",
    params(
        ("session" = Option<SessionId>, Query, description = "Whose mailbox; may be left out with a token that names its session"),
        ("after" = Option<Seq>, Query, description = "The `seq` of the last answer, which is acknowledged with it"),
        ("epoch" = Option<String>, Query, description = "What `after` belongs to"),
        ("wait" = Option<f64>, Query, description = "How many seconds to wait, 10 if not said", minimum = 0, maximum = 60),
        ("topic" = Option<Vec<TopicName>>, Query, description = "Topics to read as well; `after.<topic>` says from where"),
    ),
    responses(
        (status = 200, description = "Messages, or none when the time is over", body = PollAnswer<'_>),
        Refusal,
        Refused<429>,
    )
)]
pub(crate) async fn poll(
    State(Polls { gateway, readers }): State<Polls>,
    head: Parts,
) -> Result<Response, Refusal> {
    let ApiRequest { query, caller } = gateway.authenticate(&head, SessionPolicy::Create).await?;
    let session = caller.session()?.clone();
    let resume = query.resume("after")?;
    let topics = query.topics(&caller.grant, gateway.config.max_topics)?;
    let _place = gateway.connection_permit(caller.address)?;
    let mut deadline = Instant::now() + wait(&query)?;
    let client = caller.grant.client();
    if let Some(client) = client {
        let left = client.good_until().saturating_sub(gateway.broker.now());
        deadline = deadline.min(Instant::now() + Duration::from_millis(left));
    }
    let cursor = resume.after;
    // A cursor from another incarnation of the store acknowledges nothing; its reader is told.
    let ours = match cursor {
        Some(cursor) => gateway.broker.is_ours(&session, cursor, resume.epoch.as_ref()).await,
        None => true,
    };
    if let Some(cursor) = cursor
        && ours
        && cursor > Seq::START
    {
        gateway.broker.ack(&session, cursor, resume.epoch.as_ref()).await?;
    }
    let claim = readers.claim(
        &session,
        |_, idle| {
            let (sent, delivered) = (idle.subscriber().sent_through(), idle.subscriber().delivered());
            let same = match cursor {
                Some(cursor) => idle.state.has_cursor && sent <= cursor && cursor <= delivered,
                None => !idle.state.has_cursor,
            };
            (ours && same).then(|| (Some(delivered) == cursor, idle.since()))
        },
        || async {
            let (subscriber, _) = gateway.broker.mailbox(&session, &resume, Transport::Poll).await?;
            Ok((subscriber, PollReader::default()))
        },
    );
    let mut claim = claim.await.map_err(no_reader)?;
    let (subscriber, reader) = claim.parts();
    reader.has_cursor = cursor.is_some();
    if ours {
        let from = match cursor.filter(|cursor| *cursor > Seq::START) {
            Some(cursor) => cursor,
            None => gateway.broker.floor(&session).await,
        };
        subscriber.mark_sent(from);
        subscriber.seek(from);
    }
    reader.read_topics(&gateway, &topics).await;
    // Who did not say which session is told.
    let who =
        client.filter(|_| query.get("session").is_none()).map(|client| (&client.session, client.handle));
    let answer = collect(&gateway, &mut claim, deadline, who).await;
    if claim.subscriber().has_ended() {
        return Err(BrokerError::Ended.into());
    }
    // What it was handed now, it may ask for after: it has a cursor from here on.
    claim.parts().1.has_cursor = true;
    claim.answered();
    Ok(json(StatusCode::OK, answer))
}

/// The refusal of a poll that gets no reader.
fn no_reader(error: ClaimError<BrokerError>) -> Refusal {
    match error {
        ClaimError::NoNewReader(error) => error.into(),
        ClaimError::TooManyPolls => {
            let text =
                format!("{MAX_READERS} polls of this session wait already, the most allowed; end some first");
            Refusal::new(Code::Overloaded, text)
        }
    }
}

impl PollReader {
    /// Goes on with the topics asked for, where the reader says it is.
    async fn read_topics(&mut self, gateway: &Gateway, asked: &[(TopicName, Resume)]) {
        self.topics.retain(|topic| asked.iter().any(|(name, _)| name == topic));
        for (topic, resume) in asked {
            let same = resume.after.is_none_or(|after| self.cursors.get(topic) == Some(&after));
            if self.topics.contains(topic) && same {
                continue;
            }
            let (subscriber, opening) = gateway.broker.topic(topic, resume, Transport::Poll).await;
            self.topics.insert(topic.clone(), subscriber);
            self.cursors.insert(topic.clone(), resume.after.unwrap_or(opening.seq));
        }
        self.cursors.retain(|topic, _| self.topics.contains(topic));
    }
}

/// Waits for the first item, takes what is ready with it, and encodes the answer.
async fn collect(
    gateway: &Gateway,
    claim: &mut Claim<PollReader>,
    deadline: Instant,
    who: Option<(&SessionId, Handle)>,
) -> String {
    let (subscriber, reader) = claim.parts();
    // Also a poll that waits for nothing gets what is stored.
    subscriber.ready().await;
    let first = tokio::select! {
        biased;
        item = subscriber.next() => item.map(|item| (None, item)),
        (topic, item) = reader.topics.next() => Some((Some(topic), item)),
        () = sleep_until(deadline) => None,
        () = gateway.shutdown.cancelled() => None,
    };
    let mut messages = Vec::new();
    let mut gaps = Vec::new();
    let mut size = 0;
    let mut next = first;
    while let Some((topic, item)) = next.take() {
        match item {
            Item::Message(message) => {
                if let (Some(topic), Some(seq)) = (&topic, message.seq()) {
                    reader.cursors.insert(topic.clone(), seq);
                }
                size += message.frame().len();
                messages.push(message);
            }
            Item::Gap(gap) => {
                if let Some(topic) = &topic {
                    reader.cursors.insert(topic.clone(), gap.to);
                }
                gaps.push(TopicGap { topic, gap });
            }
        }
        if messages.len() + gaps.len() >= MOST_MESSAGES || size >= ENOUGH_BYTES {
            break;
        }
        next = subscriber.try_next().map(|item| (None, item));
        next = next.or_else(|| reader.topics.try_next().map(|(topic, item)| (Some(topic), item)));
    }
    let raw = |text| serde_json::from_str(text).expect("a frame is JSON");
    encode(&PollAnswer {
        session: who.map(|(session, _)| session),
        handle: who.map(|(_, handle)| handle),
        epoch: subscriber.epoch(),
        messages: messages.iter().map(|message| raw(message.frame().as_str())).collect(),
        gaps,
        seq: subscriber.delivered(),
        topics: &reader.cursors,
    })
}
