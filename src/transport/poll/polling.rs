//! `GET /v1/messages`, and what every poll does: it claims its reader, waits, and takes what is there.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use futures::future::Either;
use futures::{FutureExt, TryFutureExt};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::broker::BrokerError;
use crate::edge::{Caller, Gateway, Refusal, RequestHead, TopicRequest, json, json_line};
use crate::engine::EngineError;
use crate::hub::{EndReason, Transport};
use crate::message::{Address, Seq, SessionId, SharedText, TopicName};
use crate::metrics::{self, WaitingPoll};
use crate::protocol::{Code, Presence, Resume};
use crate::subscriber::Subscriber;
use crate::timer::LazyTimer;
use crate::transport::lease::{Claim, IdleReader, Leases, no_reader};
use crate::transport::poll::answer::{PollAnswer, PollItems, Told, TopicError};
use crate::transport::poll::request::{PollHead, PollRequest, check_head, prepare};
use crate::transport::reading::{acknowledge_cursor, check_key, cursor_is_ours, next_item, proof_left};
use crate::transport::topics::TopicReaders;

/// How long a poll waits for the disk, whatever its `wait`.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The state of a reader between its polls.
#[derive(Debug, Default)]
pub(crate) struct PollReader {
    /// Whether its last poll had a cursor.
    has_cursor: bool,
    topics: TopicReaders,
    /// The last delivered seq of each topic.
    cursors: BTreeMap<TopicName, Seq>,
    /// A hash of the refused topics that its last answer named.
    refused: Option<u64>,
    /// Wakes its poll at its deadline.
    timer: LazyTimer,
}

/// The readers of this transport.
pub(crate) type PollReaders = Arc<Leases<PollReader, Address>>;

type PollClaim = Claim<PollReader, Address>;

/// The address of a poll that is all in its address.
pub(crate) const PATH: &str = "/v1/messages";

/// This transport. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Polls {
    pub(super) gateway: Arc<Gateway>,
    pub(super) readers: PollReaders,
}

impl Polls {
    /// The polls of this gateway, which these readers continue.
    pub(crate) fn new(gateway: Arc<Gateway>, readers: PollReaders) -> Self {
        Self { gateway, readers }
    }

    /// Answers a GET of [`PATH`], with JSON and a newline behind it.
    pub(crate) fn answer(
        &self,
        head: RequestHead<'_>,
    ) -> impl Future<Output = Result<SharedText, Refusal>> + Send + use<> {
        let Self { gateway, readers } = self.clone();
        // Boxed, and no async function: a waiting poll does not hold the memory of what came before.
        let preparing = Box::pin(prepare(Arc::clone(&gateway), PollHead::of(&gateway, head)));
        async move {
            let request = preparing.await?;
            let _permit = gateway.connection_permit(request.caller.address)?;
            let mut answer = answer(&gateway, &readers, &request, &gateway.shutdown).await?;
            answer.push_str("\n");
            Ok(answer)
        }
    }
}

/// Read a mailbox and topics, with a long-poll
#[utoipa::path(
    get, path = "/v1/messages", tag = "messages",
    params(
        ("session" = Option<SessionId>, Query, description = "The session of the mailbox; optional with a token, absent with an API key, which may have a mailbox itself. Without a mailbox, topics are read"),
        ("after" = Option<Seq>, Query, description = "The `seq` of the last answer; this acknowledges it"),
        ("epoch" = Option<String>, Query, description = "The epoch of `after`"),
        ("wait" = Option<f64>, Query, description = "How long to wait, in seconds; 10 by default", minimum = 0, maximum = 60),
        ("topic" = Option<Vec<TopicName>>, Query, description = "Topics to read as well, each after the seq in `after.<topic>`"),
        ("presence" = Option<Vec<TopicName>>, Query, description = "Topics to read as well, and to tell the members of: at once in `presence`, then in frames `presence` among the messages"),
    ),
    responses(
        (status = 200, description = "Messages; none if none came in time", body = PollAnswer<'_>),
        Refusal,
    )
)]
pub(crate) fn poll(
    State(polls): State<Polls>,
    head: Parts,
) -> impl Future<Output = Result<Response, Refusal>> + Send {
    if head.method == Method::HEAD {
        let checking = async move { check_head(&polls.gateway, &head).await };
        return Either::Left(checking.map_ok(|()| json(StatusCode::OK, String::new())));
    }
    let answering = polls.answer((&head).into());
    Either::Right(answering.map_ok(|answer| json_line(StatusCode::OK, answer.into())))
}

/// The answer to a poll as JSON. It comes early when `stop` fires.
pub(super) async fn answer(
    gateway: &Gateway,
    readers: &PollReaders,
    request: &PollRequest,
    stop: &CancellationToken,
) -> Result<SharedText, Refusal> {
    let PollRequest { caller, topics, errors, .. } = request;
    let refused = (!errors.is_empty()).then(|| hash_of(errors));
    let (left, begun) = (proof_left(gateway, caller).await, Instant::now());
    let until = |told_before| {
        // A refused topic is told at once, but only once: the client may go on to name it.
        let wait = if refused.is_none() || told_before { request.wait } else { Duration::ZERO };
        Until { deadline: begun + wait.min(left), stop }
    };
    let told = Told { errors, dedup_window: gateway.config.dedup_window().as_secs(), client: None };
    let Some(mailbox) = caller.mailbox_besides(!topics.is_empty() || !errors.is_empty())? else {
        if let Some(request) = topics.iter().find(|request| request.presence) {
            return Err(no_presence(&request.topic));
        }
        return Box::pin(poll_topics(gateway, request, until(false), told)).await;
    };
    let mut claim = Box::pin(claim_reader(gateway, readers, &mailbox, request)).await?;
    let (subscriber, reader) = claim.parts();
    let until = until(reader.refused == refused);
    let items = collect(gateway, Some(subscriber), reader, (request, until)).await?;
    check_key(gateway, caller)?;
    let items = match claim.subscriber().ended() {
        None => items,
        Some(EndReason::SessionEnded) => return Err(BrokerError::Ended.into()),
        // Whether the caller may go on, the next poll is told.
        Some(EndReason::OwnerChanged) => PollItems::default(),
    };
    // A client that does not name its session learns it from the answer.
    let told = Told { client: caller.grant.client().filter(|_| !request.names_session), ..told };
    let (subscriber, reader) = claim.parts();
    // The next poll has a cursor: that of this answer.
    reader.has_cursor = true;
    reader.refused = refused;
    let answer = items.encode(told, (subscriber.epoch(), subscriber.delivered()), &reader.cursors);
    claim.answered();
    Ok(answer)
}

/// A hash of the refused topics.
fn hash_of(errors: &[TopicError]) -> u64 {
    let mut hasher = DefaultHasher::new();
    errors.iter().for_each(|error| error.topic.hash(&mut hasher));
    hasher.finish()
}

/// The answer to a poll without a mailbox. No reader is kept for the next one: it says where to go on in each topic.
async fn poll_topics(
    gateway: &Gateway,
    request: &PollRequest,
    until: Until<'_>,
    told: Told<'_>,
) -> Result<SharedText, Refusal> {
    let epoch = gateway.broker.epoch();
    let mut reader = PollReader::default();
    let items = collect(gateway, None, &mut reader, (request, until)).await?;
    Ok(items.encode(told, (&epoch, Seq::START), &reader.cursors))
}

/// The refusal of a poll that asks for presence and keeps no reader: what changes between its polls would be lost.
fn no_presence(topic: &TopicName) -> Refusal {
    let text = format!(
        "`presence` of topic `{topic}`: polls tell it to readers of a mailbox only; read GET /v1/topics/{topic}/presence, or use \
         WebSocket or events"
    );
    Refusal::new(Code::Unauthorized, text)
}

/// When a poll is answered at the latest.
#[derive(Clone, Copy)]
struct Until<'a> {
    deadline: Instant,
    /// Fires when the server stops, or when another poll of the same call has something.
    stop: &'a CancellationToken,
}

/// Claims the reader that this poll continues, or a new one, and moves it to the cursor of the poll.
async fn claim_reader(
    gateway: &Gateway,
    readers: &PollReaders,
    mailbox: &Address,
    PollRequest { resume, acknowledges, .. }: &PollRequest,
) -> Result<PollClaim, Refusal> {
    let cursor = resume.after;
    // A cursor of another epoch acknowledges nothing. Its reader is told a gap.
    let ours = cursor_is_ours(gateway, mailbox, resume).await;
    let valid = *ours.as_ref().unwrap_or(&true);
    let new = || async {
        let (subscriber, _) = gateway.broker.mailbox(mailbox, resume, Transport::Poll).await?;
        Ok((subscriber, PollReader::default()))
    };
    let score = |_, idle: &IdleReader<PollReader>| if valid { match_score(idle, cursor) } else { None };
    let mut claimed = readers.claim(mailbox, None, score, new).await;
    if let (Ok(claim), Some(cursor), true) = (&mut claimed, cursor, valid)
        && !claim.is_new()
    {
        // Before the acknowledgement: what the reader of this poll does not need any more does not hold that back.
        claim.subscriber().mark_sent(cursor);
    }
    if *acknowledges && ours == Ok(true) {
        acknowledge_cursor(gateway, mailbox, resume).await?;
    }
    let mut claim = claimed.map_err(no_reader)?;
    let is_new = claim.is_new();
    let (subscriber, reader) = claim.parts();
    reader.has_cursor = cursor.is_some();
    // A new reader is where it begins. What another one acknowledges from then on is kept for it, so the ack floor is not
    // asked for again.
    if !is_new {
        let from = cursor.unwrap_or_else(|| subscriber.sent_through());
        if from < subscriber.delivered() {
            metrics::redelivered(Transport::Poll).count();
        }
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
        Some(cursor) => idle.state().has_cursor && sent <= cursor && cursor <= delivered,
        None => !idle.state().has_cursor,
    };
    continues.then(|| (Some(delivered) == cursor, idle.since()))
}

impl PollReader {
    /// Reads the topics of a poll, each from its cursor. Keeps the subscriptions that are there already. Notes the topics
    /// whose members are watched from now on.
    async fn read_topics(
        &mut self,
        gateway: &Gateway,
        PollRequest { caller, topics, .. }: &PollRequest,
        watched: &mut BTreeMap<TopicName, Presence>,
    ) -> Result<(), EngineError> {
        self.topics.retain(|topic| topics.iter().any(|request| request.topic == *topic));
        for TopicRequest { topic, resume, presence } in topics {
            self.read_topic(gateway, caller, topic, resume).await?;
            if self.topics.watches(topic) != *presence {
                let members = self.topics.set_watched(&gateway.broker, topic, *presence).await;
                watched.extend(members.map(|members| (topic.clone(), members)));
            }
        }
        self.cursors.retain(|topic, _| self.topics.contains(topic));
        Ok(())
    }

    async fn read_topic(
        &mut self,
        gateway: &Gateway,
        caller: &Caller,
        topic: &TopicName,
        resume: &Resume,
    ) -> Result<(), EngineError> {
        let same = resume.after.is_none_or(|after| self.cursors.get(topic) == Some(&after));
        if self.topics.contains(topic) && same {
            return Ok(());
        }
        // A topic that could not be read goes on where it was.
        let after = resume.after.or(self.cursors.get(topic).copied());
        let resume = Resume { after, epoch: resume.epoch.clone() };
        let member = caller.grant.member().map(|name| gateway.broker.join(topic, name));
        let (mut subscriber, opening) = gateway.broker.topic(topic, &resume, Transport::Poll).await;
        // A poll that does not wait gets what is stored.
        subscriber.ready().await?;
        self.topics.insert(topic.clone(), subscriber, member);
        self.cursors.insert(topic.clone(), after.unwrap_or(opening.seq));
        Ok(())
    }
}

/// Reads what is stored, which a poll gets that does not wait too. `false` if it is not read: the server stops, or what is
/// stored waits for room in memory. The next poll may find some.
async fn read_stored(
    gateway: &Gateway,
    mailbox: Option<&mut Subscriber>,
    reader: &mut PollReader,
    (request, watched): (&PollRequest, &mut BTreeMap<TopicName, Presence>),
    deadline: Instant,
) -> Result<bool, Refusal> {
    let reading = async {
        reader.read_topics(gateway, request, watched).await?;
        match mailbox {
            Some(mailbox) => mailbox.ready().await,
            None => Ok(()),
        }
    };
    let mut reading = pin!(reading);
    // Most is at hand, and then no timer is set.
    if let Some(read) = reading.as_mut().now_or_never() {
        return read.map(|()| true).map_err(|error| BrokerError::from(error).into());
    }
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
    (request, Until { mut deadline, stop }): (&PollRequest, Until<'_>),
) -> Result<PollItems, Refusal> {
    let mut items = PollItems::default();
    let reads_topics = !request.topics.is_empty() || !reader.topics.is_empty();
    if reads_topics || !mailbox.as_ref().is_some_and(|mailbox| mailbox.is_live()) {
        let watched = (request, &mut items.presence);
        // Boxed, as what comes before: this ends before the poll waits.
        if !Box::pin(read_stored(gateway, mailbox.as_deref_mut(), reader, watched, deadline)).await? {
            return Ok(items);
        }
    }
    if !items.presence.is_empty() {
        // The client reads the list of members now.
        deadline = Instant::now();
    }
    let PollReader { topics, cursors, timer, .. } = reader;
    let waiting = WaitingPoll::<false>::begin();
    let mut next = tokio::select! {
        biased;
        item = next_item(mailbox.as_deref_mut()) => item.map(|item| (None, item)),
        (topic, item) = topics.next() => Some((Some(topic), item)),
        () = poll_fn(|cx| timer.poll(deadline, cx)) => None,
        () = stop.cancelled() => None,
    };
    drop(waiting);
    while let Some((topic, item)) = next {
        let item = match item {
            Ok(item) => item,
            Err(error) => {
                // The next poll reads it anew, and is told if that fails.
                if let Some(topic) = &topic {
                    topics.remove(topic);
                }
                if items.is_empty() {
                    return Err(BrokerError::from(error).into());
                }
                break;
            }
        };
        if let (Some(topic), Some(seq)) = (&topic, item.seq()) {
            cursors.insert(topic.clone(), seq);
        }
        items.push(topic, item);
        next = if items.is_full() { None } else { topics.try_next_after(mailbox.as_deref_mut(), |_| true) };
    }
    Ok(items)
}
