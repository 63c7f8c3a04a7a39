//! What a poll asks for.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::request::Parts;

use crate::edge::{
    Caller, Gateway, NamedSession, Query, Refusal, RequestHead, SessionPolicy, Shown, TopicRequest,
    client_address,
};
use crate::message::SessionId;
use crate::protocol::Resume;
use crate::transport::poll::answer::TopicError;
use crate::transport::reading::check_cursor;

/// How long a poll waits by default.
pub(super) const DEFAULT_WAIT: Duration = Duration::from_secs(10);

/// Longest wait of a poll. Proxies abort longer ones.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(60);

/// What one poll asks for.
pub(super) struct PollRequest {
    pub(super) caller: Caller,
    /// Whether the client knows its session.
    pub(super) names_session: bool,
    pub(super) resume: Resume,
    /// Whether its cursor acknowledges.
    pub(super) acknowledges: bool,
    pub(super) topics: Vec<TopicRequest>,
    /// Topics that are refused.
    pub(super) errors: Vec<TopicError>,
    pub(super) wait: Duration,
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

/// What the head of a poll says. It is read before anything is waited for, so that nothing holds the memory of the head.
#[derive(Debug)]
pub(super) struct PollHead {
    query: Query,
    /// The session that the query names.
    session: Option<SessionId>,
    bearer: Option<String>,
    /// The address of the client.
    address: Option<IpAddr>,
    /// Whether no page of another site can have caused it.
    may_acknowledge: bool,
}

impl PollHead {
    /// Reads the head of a GET.
    ///
    /// # Errors
    /// `bad_request` if the query is not UTF-8 or parameter `session` is no name; `unauthorized` if the header `Authorization`
    /// holds no bearer.
    pub(super) fn of(gateway: &Gateway, head: RequestHead<'_>) -> Result<Self, Refusal> {
        let (access, check) = (&gateway.access(), head.check);
        let query = Query::of(head.query)?;
        let session = query.session()?;
        Ok(Self {
            query,
            session,
            bearer: gateway.bearer(check.headers)?.map(str::to_owned),
            address: client_address(access, check.peer, check.headers),
            may_acknowledge: check.get_may_acknowledge(access),
        })
    }
}

/// What a poll asks for.
pub(super) async fn prepare(
    gateway: Arc<Gateway>,
    head: Result<PollHead, Refusal>,
) -> Result<Box<PollRequest>, Refusal> {
    let PollHead { query, session, bearer, address, may_acknowledge } = head?;
    let names_session = session.is_some();
    let shown = Shown { bearer: bearer.as_deref(), session: session.map(NamedSession::InAddress), address };
    let grant = gateway.identify(shown, SessionPolicy::Create).await?;
    let resume = query.resume("after")?;
    check_cursor(&resume, || may_acknowledge)?;
    let topics = query.topics(&grant, gateway.config.max_topics)?;
    Ok(Box::new(PollRequest {
        caller: Caller { grant, address },
        names_session,
        resume,
        acknowledges: true,
        topics,
        errors: Vec::new(),
        wait: wait(&query)?,
    }))
}

/// Checks a HEAD. It reads nothing, acknowledges nothing and does not wait (RFC 9110 section 9.2.1).
pub(super) async fn check_head(gateway: &Gateway, head: &Parts) -> Result<(), Refusal> {
    let query = gateway.check_head(head).await?;
    query.resume("after")?;
    wait(&query)?;
    Ok(())
}
