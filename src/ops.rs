//! For operators and machines that watch: health.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use serde::Serialize;

use crate::edge::{Edge, encode, json};
use crate::message::Epoch;
use crate::protocol::SERVER;

/// The routes.
pub fn routes(edge: Edge) -> Router {
    Router::new().route("/healthz", get(health)).with_state(edge)
}

#[derive(Serialize)]
struct Health<'a> {
    status: &'static str,
    server: &'static str,
    durability: &'static str,
    epoch: &'a Epoch,
    /// Why messages cannot be stored at present.
    #[serde(skip_serializing_if = "Option::is_none")]
    failing: Option<&'a str>,
}

async fn health(State(edge): State<Edge>) -> Response {
    let failing = edge.broker.health().failing;
    let (status, word) = match edge.shutdown.is_cancelled() {
        false if failing.is_some() => (StatusCode::OK, "degraded"),
        false => (StatusCode::OK, "ok"),
        true => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    };
    let (durability, epoch) = (edge.broker.durability(), edge.broker.epoch());
    let failing = failing.as_deref();
    json(status, encode(&Health { status: word, server: SERVER, durability, epoch, failing }))
}
