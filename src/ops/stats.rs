//! `/v1/ops/stats`: what the dashboard shows. Its figures are those of `/metrics`, under their names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::edge::{Gateway, Operator, Refusal, encode, json};
use crate::log::{RecentEvent, recent};
use crate::ops::metrics;
use crate::ops::status::status_word;
use crate::protocol::{Code, SERVER};

/// For how long the figures are shown to whoever asks: many viewers cost little more than one.
const SHOWN_FOR: Duration = Duration::from_secs(1);

/// What the node that answers does now.
#[derive(Serialize, ToSchema)]
struct Stats<'a> {
    /// Unix milliseconds.
    ts: u64,
    server: &'static str,
    /// The node that answers. Absent without a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    /// As `/healthz` says.
    status: &'static str,
    /// What does not work now, and why.
    #[schema(value_type = Vec<String>)]
    failing: Vec<Arc<str>>,
    /// What "sent" means: `fsync`, `os` or `memory`; in a cluster `replicated` or `unreplicated`.
    durability: &'static str,
    /// `open` or `token`.
    auth: &'static str,
    /// The samples of `/metrics`, by name and labels. They are of this node.
    figures: BTreeMap<&'a str, f64>,
    limits: Vec<Bound>,
    /// The last refusals and warnings, newest first, at most 50.
    events: Vec<RecentEvent>,
}

/// A limit as it is set now.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
struct Bound {
    /// As the label `limit` of the metrics names it.
    name: &'static str,
    /// The setting that changes it.
    setting: &'static str,
    unit: Unit,
    /// Absent if there is none, or if the figures tell it.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Unit {
    Bytes,
    Count,
}

/// The figures that were made last.
#[derive(Debug, Default)]
pub(super) struct LastStats(Mutex<Option<(Instant, String)>>);

/// What the broker does now, for the dashboard
#[utoipa::path(
    get, path = "/v1/ops/stats", tag = "operations",
    responses(
        (status = 200, description = "Figures of the node that answers, at most 1 s old", body = Stats<'_>),
        Refusal,
    )
)]
pub(super) async fn stats(
    _: Operator,
    State(gateway): State<Arc<Gateway>>,
    Extension(last): Extension<Arc<LastStats>>,
) -> Result<Response, Refusal> {
    let mut last = last.0.lock().await;
    if let Some((made, text)) = &*last
        && made.elapsed() < SHOWN_FOR
    {
        return Ok(json(StatusCode::OK, text.clone()));
    }
    // On a thread that may wait: the system is asked about the process, and the figures of the store are behind locks.
    let text = tokio::task::spawn_blocking(move || now(&gateway)).await;
    let text = text.map_err(|_| Refusal::new(Code::Unavailable, "the figures cannot be collected now"))?;
    *last = Some((Instant::now(), text.clone()));
    Ok(json(StatusCode::OK, text))
}

fn now(gateway: &Arc<Gateway>) -> String {
    let (broker, text) = (&gateway.broker, metrics::as_text(Arc::clone(gateway)));
    let failing = broker.health().failing;
    encode(&Stats {
        ts: broker.now(),
        server: SERVER,
        node: broker.node(),
        status: status_word(gateway, &failing),
        failing,
        durability: broker.durability(),
        auth: gateway.identity.auth().name(),
        figures: samples(&text),
        limits: bounds(gateway),
        events: recent(),
    })
}

/// The samples of a text in Prometheus' format, by name and labels. JSON has no number for those that are not finite.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.filter_map(|line| line.rsplit_once(' '));
    let numbers = samples.filter_map(|(name, value)| Some((name, value.parse().ok()?)));
    numbers.filter(|(_, value): &(_, f64)| value.is_finite()).collect()
}

/// The limits as they are set now, also by a reload. How much is used, and how often each has refused, the figures tell.
fn bounds(gateway: &Gateway) -> Vec<Bound> {
    let (config, access) = (&*gateway.config, &gateway.config.access);
    let bytes = |limit: usize| (Unit::Bytes, Some(limit as u64));
    let count = |limit: usize| (Unit::Count, Some(limit as u64));
    let most = |limit: usize| (Unit::Count, (limit != usize::MAX).then_some(limit as u64));
    let (rate, bytes_rate) = gateway.rates.in_a_second();
    let all = [
        ("store", "--store-limit", (Unit::Bytes, config.store_limit.map(|limit| limit as u64))),
        ("append_queue", "--append-queue", count(config.append_queue)),
        ("memory_budget", "--memory-budget", (Unit::Bytes, config.memory_budget.map(|limit| limit as u64))),
        ("mailbox", "--mailbox-bytes and --mailbox-messages", bytes(config.mailbox_bytes)),
        ("topic", "--topic-bytes", bytes(config.topic_bytes)),
        ("max_payload", "--max-payload", bytes(config.max_payload)),
        ("send_rate", "--send-rate, in a second", (Unit::Count, rate)),
        ("send_bytes_rate", "--send-bytes-rate, in a second", (Unit::Bytes, bytes_rate)),
        ("connections_per_address", "--connections-per-address", most(gateway.connection_limiter.limit())),
        ("connections_per_session", "--connections-per-session", most(access.max_connections_per_session())),
        ("sessions_per_user", "--sessions-per-user", count(access.sessions_per_user)),
        ("max_topics", "--max-topics", count(config.max_topics)),
    ];
    all.map(|(name, setting, (unit, limit))| Bound { name, setting, unit, limit }).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let text = "# HELP a What it is\n# TYPE a counter\na_total{x=\"y z\",q=\"\"} 3\nb 0.5\nc NaN\nd +Inf\nnothing\n";
        let expected = BTreeMap::from([("a_total{x=\"y z\",q=\"\"}", 3.0), ("b", 0.5)]);
        assert_eq!(samples(text), expected);
    }
}
