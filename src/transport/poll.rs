//! `GET /v1/messages`: the native long-poll. The cursor of the next call acknowledges.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep_until};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::broker::BrokerError;
use crate::edge::{ApiRequest, Gateway, Query, Refusal, Refused, SessionPolicy, encode, json, json_line};
use crate::engine::EngineError;
use crate::grant::Client;
use crate::hub::{EndReason, Transport};
use crate::message::{Epoch, Gap, Handle, Item, Publication, Seq, SessionId, TopicName, hold};
use crate::protocol::{Code, Resume};
use crate::subscriber::Subscriber;
use crate::transport::lease::{Claim, ClaimError, IdleReader, Leases, MAX_READERS};
use crate::transport::reading::{acknowledge_cursor, check_cursor, next_item, proof_left};
use crate::transport::topics::TopicReaders;

/// How long a poll waits by default.
const DEFAULT_WAIT: Duration = Duration::from_secs(10);

/// Longest wait of a poll. Proxies abort longer ones.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// How long a poll waits for the disk, whatever its `wait`.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Most messages of one answer.
const MAX_MESSAGES: usize = 100;

/// Bytes after which an answer takes no more messages.
const ENOUGH_BYTES: usize = 1 << 20;

/// The state of a reader between its polls.
#[derive(Debug, Default)]
pub(crate) struct PollReader {
    /// Whether its last poll had a cursor.
    has_cursor: bool,
    topics: TopicReaders,
    /// The last delivered seq of each topic.
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
    /// The `after` of the next call; 0 without a mailbox.
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

/// Parameter `wait`: how long the poll waits.
fn wait(query: &Query) -> Result<Duration, Refusal> {
    let Some(text) = query.get("wait") else { return Ok(DEFAULT_WAIT) };
    let wait = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    wait.filter(|wait| *wait <= MAX_WAIT).ok_or_else(|| {
        let limit = MAX_WAIT.as_secs();
        Refusal::bad_param("wait", format_args!("must be a number of seconds from 0 to {limit}"))
    })
}

/// Read a mailbox and topics, with a long-poll
#[utoipa::path(
    get, path = "/v1/messages", tag = "messages",
    params(
        ("session" = Option<SessionId>, Query, description = "The session of the mailbox; optional with a token. Without a mailbox, topics are read"),
        ("after" = Option<Seq>, Query, description = "The `seq` of the last answer; this acknowledges it"),
        ("epoch" = Option<String>, Query, description = "The epoch of `after`"),
        ("wait" = Option<f64>, Query, description = "How long to wait, in seconds; 10 by default", minimum = 0, maximum = 60),
        ("topic" = Option<Vec<TopicName>>, Query, description = "Topics to read as well, each after the seq in `after.<topic>`"),
    ),
    responses(
        (status = 200, description = "Messages; none if none came in time", body = PollAnswer<'_>),
        Refusal,
        Refused<429>,
    )
)]
pub(crate) async fn poll(
    State(Polls { gateway, readers }): State<Polls>,
    head: Parts,
) -> Result<Response, Refusal> {
    if head.method == Method::HEAD {
        return answer_head(&gateway, &head).await;
    }
    // Boxed, as the claim below: a waiting poll does not hold the memory of what came before.
    let authenticating = Box::pin(gateway.authenticate(&head, SessionPolicy::Create));
    let ApiRequest { query, caller } = authenticating.await?;
    let resume = query.resume("after")?;
    check_cursor(&gateway, &head, &resume)?;
    let topics = query.topics(&caller.grant, gateway.config.max_topics)?;
    let session = caller.mailbox(!topics.is_empty())?;
    let _permit = gateway.connection_permit(caller.address)?;
    let deadline = Instant::now() + wait(&query)?.min(proof_left(&gateway, &caller));
    let Some(session) = session else {
        return Box::pin(poll_topics(&gateway, &topics, deadline)).await;
    };
    let mut claim = Box::pin(claim_reader(&gateway, &readers, session, &resume)).await?;
    let (subscriber, reader) = claim.parts();
    let items = collect(&gateway, Some(subscriber), reader, (&topics, deadline)).await?;
    let items = match claim.subscriber().ended() {
        None => items,
        Some(EndReason::SessionEnded) => return Err(BrokerError::Ended.into()),
        // Whether the caller may go on, the next poll is told.
        Some(EndReason::OwnerChanged) => PollItems::default(),
    };
    // A client that does not name its session learns it from the answer.
    let client = caller.grant.client().filter(|_| query.get("session").is_none());
    let (subscriber, reader) = claim.parts();
    // The next poll has a cursor: that of this answer.
    reader.has_cursor = true;
    let answer = items.encode(client, (subscriber.epoch(), subscriber.delivered()), &reader.cursors);
    claim.answered();
    Ok(json_line(StatusCode::OK, answer))
}

/// The answer to a poll without a mailbox. No reader is kept for the next one: it says where to go on in each topic.
async fn poll_topics(
    gateway: &Gateway,
    topics: &[(TopicName, Resume)],
    deadline: Instant,
) -> Result<Response, Refusal> {
    let epoch = gateway.broker.epoch();
    let mut reader = PollReader::default();
    let items = collect(gateway, None, &mut reader, (topics, deadline)).await?;
    Ok(json_line(StatusCode::OK, items.encode(None, (&epoch, Seq::START), &reader.cursors)))
}

/// The answer to HEAD: it reads nothing, acknowledges nothing and does not wait (RFC 9110 section 9.2.1).
async fn answer_head(gateway: &Gateway, head: &Parts) -> Result<Response, Refusal> {
    let query = gateway.check_head(head).await?;
    query.resume("after")?;
    wait(&query)?;
    Ok(json(StatusCode::OK, String::new()))
}

/// Claims the reader that this poll continues, or a new one, and moves it to the cursor of the poll.
async fn claim_reader(
    gateway: &Gateway,
    readers: &PollReaders,
    session: &SessionId,
    resume: &Resume,
) -> Result<Claim<PollReader>, Refusal> {
    let cursor = resume.after;
    // A cursor of another epoch acknowledges nothing. Its reader is told a gap.
    let valid = acknowledge_cursor(gateway, session, resume).await?;
    let new = || async {
        let (subscriber, _) = gateway.broker.mailbox(session, resume, Transport::Poll).await?;
        Ok((subscriber, PollReader::default()))
    };
    let score = |_, idle: &IdleReader<PollReader>| if valid { match_score(idle, cursor) } else { None };
    let mut claim = readers.claim(session, score, new).await.map_err(no_reader)?;
    let (subscriber, reader) = claim.parts();
    reader.has_cursor = cursor.is_some();
    if valid {
        let from = match cursor.filter(|cursor| *cursor > Seq::START) {
            Some(cursor) => cursor,
            None => gateway.broker.floor(session).await,
        };
        subscriber.mark_sent(from);
        subscriber.seek(from);
    }
    Ok(claim)
}

/// How well an idle reader matches a poll with this cursor: best if its last answer ended there. `None` if the poll does
/// not continue this reader.
fn match_score(idle: &IdleReader<PollReader>, cursor: Option<Seq>) -> Option<(bool, Instant)> {
    let (sent, delivered) = (idle.subscriber().sent_through(), idle.subscriber().delivered());
    let continues = match cursor {
        Some(cursor) => idle.state.has_cursor && sent <= cursor && cursor <= delivered,
        None => !idle.state.has_cursor,
    };
    continues.then(|| (Some(delivered) == cursor, idle.since()))
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
    /// Reads the topics of a poll, each from its cursor. Keeps the subscriptions that are there already.
    async fn read_topics(
        &mut self,
        gateway: &Gateway,
        topics: &[(TopicName, Resume)],
    ) -> Result<(), EngineError> {
        self.topics.retain(|topic| topics.iter().any(|(name, _)| name == topic));
        for (topic, resume) in topics {
            let same = resume.after.is_none_or(|after| self.cursors.get(topic) == Some(&after));
            if self.topics.contains(topic) && same {
                continue;
            }
            let (mut subscriber, opening) = gateway.broker.topic(topic, resume, Transport::Poll).await;
            // A poll that does not wait gets what is stored.
            subscriber.ready().await?;
            self.topics.insert(topic.clone(), subscriber);
            self.cursors.insert(topic.clone(), resume.after.unwrap_or(opening.seq));
        }
        self.cursors.retain(|topic, _| self.topics.contains(topic));
        Ok(())
    }
}

/// Reads what is stored, which a poll gets that does not wait too. `false` if it is not read: the server stops, or what is
/// stored waits for room in memory. The next poll may find some.
async fn read_stored(
    gateway: &Gateway,
    mailbox: Option<&mut Subscriber>,
    reader: &mut PollReader,
    (topics, deadline): (&[(TopicName, Resume)], Instant),
) -> Result<bool, Refusal> {
    let reading = async {
        reader.read_topics(gateway, topics).await?;
        match mailbox {
            Some(mailbox) => mailbox.ready().await,
            None => Ok(()),
        }
    };
    tokio::select! {
        biased;
        read = reading => read.map(|()| true).map_err(|error| BrokerError::from(error).into()),
        () = gateway.shutdown.cancelled() => Ok(false),
        () = sleep_until(deadline.max(Instant::now() + READ_TIMEOUT)) => match gateway.budget_is_spent() {
            true => Ok(false),
            false => {
                let reason = "the disk does not answer in time".into();
                Err(BrokerError::from(EngineError::Unreadable { reason }).into())
            }
        },
    }
}

/// Waits for the first item, and takes what is ready with it.
///
/// # Errors
/// What is stored cannot be read.
async fn collect(
    gateway: &Gateway,
    mut mailbox: Option<&mut Subscriber>,
    reader: &mut PollReader,
    (wanted, deadline): (&[(TopicName, Resume)], Instant),
) -> Result<PollItems, Refusal> {
    let mut items = PollItems::default();
    if !read_stored(gateway, mailbox.as_deref_mut(), reader, (wanted, deadline)).await? {
        return Ok(items);
    }
    let PollReader { topics, cursors, .. } = reader;
    let mut next = tokio::select! {
        biased;
        item = next_item(mailbox.as_deref_mut()) => item.map(|item| (None, item)),
        (topic, item) = topics.next() => Some((Some(topic), item)),
        () = sleep_until(deadline) => None,
        () = gateway.shutdown.cancelled() => None,
    };
    if next.is_none()
        && let Some(failure) = mailbox.as_ref().and_then(|mailbox| mailbox.failure())
    {
        return Err(BrokerError::from(failure.clone()).into());
    }
    while let Some((topic, item)) = next {
        if let (Some(topic), Some(seq)) = (&topic, item.seq()) {
            cursors.insert(topic.clone(), seq);
        }
        items.push(topic, item);
        next = if items.is_full() { None } else { topics.try_next_after(mailbox.as_deref_mut()) };
    }
    Ok(items)
}

/// What one answer carries.
#[derive(Default)]
struct PollItems {
    messages: Vec<Arc<Publication>>,
    gaps: Vec<TopicGap>,
    /// Bytes of the messages.
    size: usize,
}

impl PollItems {
    fn push(&mut self, topic: Option<TopicName>, item: Item) {
        match item {
            Item::Message(message) => {
                self.size += message.frame().len();
                self.messages.push(message);
            }
            Item::Gap(gap) => self.gaps.push(TopicGap { topic, gap }),
        }
    }

    fn is_full(&self) -> bool {
        self.messages.len() + self.gaps.len() >= MAX_MESSAGES || self.size >= ENOUGH_BYTES
    }

    /// The answer. It names the session if `client` is given.
    fn encode(
        self,
        client: Option<&Client>,
        (epoch, seq): (&Epoch, Seq),
        topics: &BTreeMap<TopicName, Seq>,
    ) -> Bytes {
        let raw = |text| serde_json::from_str(text).expect("a frame is JSON");
        let mut answer = encode(&PollAnswer {
            session: client.map(|client| &client.session),
            handle: client.map(|client| client.handle),
            epoch,
            messages: self.messages.iter().map(|message| raw(message.frame().as_str())).collect(),
            gaps: self.gaps,
            seq,
            topics,
        });
        answer.push('\n');
        hold(answer, self.messages)
    }
}

#[cfg(test)]
mod tests;
