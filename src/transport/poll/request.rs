//! What a poll asks for.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use axum::http::request::Parts;

use crate::edge::{ApiRequest, Caller, Gateway, Query, Refusal, SessionPolicy, TopicRequest};
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

/// What a poll asks for. `None` for HEAD, which reads nothing, acknowledges nothing and does not wait (RFC 9110 section
/// 9.2.1).
pub(super) async fn prepare(gateway: Arc<Gateway>, head: Parts) -> Result<Option<Box<PollRequest>>, Refusal> {
    if head.method == Method::HEAD {
        let query = gateway.check_head(&head).await?;
        query.resume("after")?;
        wait(&query)?;
        return Ok(None);
    }
    let ApiRequest { query, caller } = gateway.authenticate(&head, SessionPolicy::Create).await?;
    let resume = query.resume("after")?;
    check_cursor(&gateway, &head, &resume)?;
    let topics = query.topics(&caller.grant, gateway.config.max_topics)?;
    Ok(Some(Box::new(PollRequest {
        caller,
        names_session: query.get("session").is_some(),
        resume,
        acknowledges: true,
        topics,
        errors: Vec::new(),
        wait: wait(&query)?,
    })))
}
