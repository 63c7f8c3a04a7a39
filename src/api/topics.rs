//! `/v1/topics`: which topics there are, how they stand, who reads them, and what they hold.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::page::{PageHead, PageParams, PrefixParam, limit, range};
use crate::api::path::{PathId, name};
use crate::broker::{BrokerError, ListedTopic};
use crate::edge::{
    ApiRequest, Gateway, NamedSession, Operator, Proved, Query, Refusal, SessionPolicy, encode, json,
};
use crate::engine::Position;
use crate::hub::Connections;
use crate::message::{Epoch, SenderName, Seq, TopicName};

/// A page of the topics that are read or have a history.
#[derive(Serialize, ToSchema)]
struct TopicPage<'a> {
    #[serde(flatten)]
    head: PageHead<'a>,
    /// In the order of their names.
    topics: Vec<TopicItem<'a>>,
}

#[derive(Serialize, ToSchema)]
struct TopicItem<'a> {
    topic: &'a TopicName,
    /// Readers on the node that answers.
    connections: Connections,
    /// Stored messages. Absent in a cluster, where they would have to be counted elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<usize>,
    /// Bytes of the stored messages, each counted with its envelope. Absent where `stored` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
}

impl<'a> From<&'a ListedTopic> for TopicItem<'a> {
    fn from(listed: &'a ListedTopic) -> Self {
        Self {
            topic: &listed.topic,
            connections: listed.connections,
            stored: listed.stored.map(|stored| stored.messages),
            bytes: listed.stored.and_then(|stored| stored.bytes),
        }
    }
}

/// How a topic stands.
#[derive(Serialize, ToSchema)]
struct TopicInfo<'a> {
    topic: &'a TopicName,
    /// Readers on all nodes.
    connections: Connections,
    /// Messages in the history.
    stored: usize,
    /// Their bytes, each message counted with its envelope. Absent in a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    epoch: &'a Epoch,
    /// The newest seq.
    seq: Seq,
    /// The history reaches back to here: an `after` below it misses messages.
    floor: Seq,
}

/// List the topics that are read or have a history
#[utoipa::path(
    get, path = "/v1/topics", tag = "operations", params(PrefixParam, PageParams),
    responses((status = 200, description = "A page of topics, in the order of their names", body = TopicPage<'_>), Refusal)
)]
pub(super) async fn list(
    _: Operator,
    State(gateway): State<Arc<Gateway>>,
    head: Parts,
) -> Result<Response, Refusal> {
    let query = Query::parse(&head.uri)?;
    let page = gateway.broker.list_topics(range(&query)?, limit(&query)?).await;
    let topics = page.items.iter().map(TopicItem::from).collect();
    Ok(json(StatusCode::OK, encode(&TopicPage { head: PageHead::new(&gateway, &page), topics })))
}

/// Look a topic up
///
/// For operators, and for callers that may see who reads the topic.
#[utoipa::path(
    get, path = "/v1/topics/{name}", tag = "topics",
    params(("name" = TopicName, Path, description = "The topic")),
    responses(
        (status = 200, description = "Its readers and its history. A topic that was never used has none", body = TopicInfo<'_>),
        Refusal,
    )
)]
pub(super) async fn look_up(
    State(gateway): State<Arc<Gateway>>,
    PathId(id): PathId,
    head: Parts,
) -> Result<Response, Refusal> {
    let topic = name(&id, TopicName::new)?;
    let proved = gateway.prove(&head).await?;
    if gateway.operator_of_proved(&head, &proved).is_err() {
        may_see(&gateway, (&head, proved), &topic).await?;
    }
    let state = gateway.broker.topic_state(&topic).await;
    let Position { floor, expired, newest } = state.position;
    let info = TopicInfo {
        topic: &topic,
        connections: state.connections,
        stored: state.stored.messages,
        bytes: state.stored.bytes,
        epoch: &gateway.broker.epoch(),
        seq: newest,
        floor: floor.max(expired),
    };
    Ok(json(StatusCode::OK, encode(&info)))
}

/// Whether the caller may see who reads a topic.
///
/// # Errors
/// The caller is not known, or may not.
async fn may_see(
    gateway: &Gateway,
    (head, proved): (&Parts, Proved),
    topic: &TopicName,
) -> Result<(), Refusal> {
    let named = Query::parse(&head.uri)?.session()?.map(NamedSession::InAddress);
    let grant = gateway.grant_of_proved((head, proved), named, SessionPolicy::Unneeded).await?;
    Ok(grant.may_see_members(topic).map_err(BrokerError::from)?)
}

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
