//! `/v1/topics/{name}/messages`: the stored messages of a topic, a page at a time.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::api::page::limit;
use crate::api::path::{PathId, name};
use crate::broker::BrokerError;
use crate::edge::{ApiRequest, Gateway, Refusal, SessionPolicy, encode, json_line, with_frames};
use crate::message::{Address, Epoch, Gap, GapReason, Item, Publication, Seq, TopicName};

/// Bytes after which a page takes no more messages.
const ENOUGH_BYTES: usize = 1 << 20;

/// A page of the history of a topic.
#[derive(Serialize, ToSchema)]
struct TopicHistory<'a> {
    topic: &'a TopicName,
    epoch: &'a Epoch,
    /// The frames that subscribers get over WebSocket, oldest first.
    #[schema(value_type = Vec<Publication>)]
    messages: Vec<&'a RawValue>,
    /// What is not coming after the `after` of the call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    gaps: Vec<Gap>,
    /// The `after` of the next page.
    seq: Seq,
    /// Whether there is a next page.
    more: bool,
}

/// Read the history of a topic
///
/// It changes nothing: no position moves, and nobody is seen to read the topic.
#[utoipa::path(
    get, path = "/v1/topics/{name}/messages", tag = "topics",
    params(
        ("name" = TopicName, Path, description = "The topic"),
        ("after" = Option<Seq>, Query, description = "The `seq` of the page before. Without it the page begins with the oldest message"),
        ("epoch" = Option<Epoch>, Query, description = "The `epoch` of the page before"),
        ("limit" = Option<usize>, Query, description = "Most messages of the page; 100 by default", minimum = 1, maximum = 1000),
    ),
    responses(
        (status = 200, description = "Stored messages, oldest first, about 1 MiB at most. A topic that was never used has none", body = TopicHistory<'_>),
        Refusal,
    )
)]
pub(super) async fn read(
    State(gateway): State<Arc<Gateway>>,
    PathId(id): PathId,
    head: Parts,
) -> Result<Response, Refusal> {
    let ApiRequest { query, caller } = gateway.authenticate(&head, SessionPolicy::Unneeded).await?;
    let topic = name(&id, TopicName::new)?;
    let (resume, limit) = (query.resume("after")?, limit(&query)?);
    caller.grant.may_read(&topic).map_err(BrokerError::from)?;
    // The epoch first: if it changes meanwhile, the next page begins again.
    let epoch = gateway.broker.epoch();
    let asked = resume.after.unwrap_or_default();
    let is_ours = gateway.broker.is_ours(&Address::Topic(topic.clone()), asked, resume.epoch.as_ref()).await;
    let is_ours = is_ours.map_err(BrokerError::from)?;
    let (mut gaps, after) = match is_ours {
        true => (Vec::new(), asked),
        false => (vec![Gap { from: asked, to: Seq::START, reason: GapReason::Epoch }], Seq::START),
    };
    let batch = gateway.broker.history(&topic, after, limit).await.map_err(BrokerError::from)?;
    let (mut messages, mut seq, mut more, mut bytes) = (Vec::new(), batch.cursor, batch.more, 0);
    let mut at = after;
    for item in batch.items {
        if bytes >= ENOUGH_BYTES {
            (seq, more) = (at, true);
            break;
        }
        at = item.seq().unwrap_or(at);
        match item {
            Item::Message(message) => {
                bytes += message.frame().len();
                messages.push(message);
            }
            Item::Gap(gap) => gaps.push(gap),
        }
    }
    let answer = TopicHistory { topic: &topic, epoch: &epoch, messages: Vec::new(), gaps, seq, more };
    let mut text = with_frames(&encode(&answer), &messages, None);
    text.push_str("\n");
    Ok(json_line(StatusCode::OK, text.into()))
}
