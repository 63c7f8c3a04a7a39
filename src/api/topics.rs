//! `/v1/topics`: who reads a topic.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::path::{PathId, name};
use crate::broker::BrokerError;
use crate::edge::{ApiRequest, Gateway, Query, Refusal, SessionPolicy, encode, json};
use crate::message::{SenderName, TopicName};

/// Most members of one page, and how many it has by default.
const MAX_MEMBERS: usize = 1000;
const DEFAULT_MEMBERS: usize = 100;

/// A page of the members of a topic.
#[derive(Serialize, ToSchema)]
struct TopicMembers<'a> {
    topic: &'a TopicName,
    /// How many members the topic has.
    count: usize,
    /// Names in their order: users, handles, or sessions in `open` mode.
    members: &'a [SenderName],
    /// The `after` of the next page. Absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a SenderName>,
}

/// Parameter `limit`: the most members of the page.
fn limit(query: &Query) -> Result<usize, Refusal> {
    let Some(text) = query.get("limit") else { return Ok(DEFAULT_MEMBERS) };
    let limit = text.parse().ok().filter(|limit| (1..=MAX_MEMBERS).contains(limit));
    let invalid =
        || Refusal::bad_param("limit", format_args!("must be a whole number from 1 to {MAX_MEMBERS}"));
    limit.ok_or_else(invalid)
}

/// List who reads a topic
#[utoipa::path(
    get, path = "/v1/topics/{name}/presence", tag = "topics",
    params(
        ("name" = TopicName, Path, description = "The topic"),
        ("after" = Option<SenderName>, Query, description = "The `next` of the page before"),
        ("limit" = Option<usize>, Query, description = "Most members of the page; 100 by default", minimum = 1, maximum = 1000),
    ),
    responses(
        (status = 200, description = "The members in the order of their names. A topic that nobody reads has none", body = TopicMembers<'_>),
        Refusal,
    )
)]
pub(super) async fn presence(
    State(gateway): State<Arc<Gateway>>,
    PathId(id): PathId,
    head: Parts,
) -> Result<Response, Refusal> {
    let ApiRequest { query, caller } = gateway.authenticate(&head, SessionPolicy::Unneeded).await?;
    let topic = name(&id, TopicName::new)?;
    let after = query.get("after").map(SenderName::new).transpose();
    let after = after.map_err(|reason| Refusal::bad_param("after", reason))?;
    let limit = limit(&query)?;
    caller.grant.may_see_members(&topic).map_err(BrokerError::from)?;
    // One more shows whether there is another page.
    let mut page = gateway.broker.members(&topic, after.as_ref(), limit + 1).await;
    let has_next = page.members.len() > limit;
    page.members.truncate(limit);
    let next = page.members.last().filter(|_| has_next);
    let body = TopicMembers { topic: &topic, count: page.count, members: &page.members, next };
    Ok(json(StatusCode::OK, encode(&body)))
}
