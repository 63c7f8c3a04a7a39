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
}

async fn health(State(edge): State<Edge>) -> Response {
    let (status, word) = match edge.shutdown.is_cancelled() {
        false => (StatusCode::OK, "ok"),
        true => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    };
    let (durability, epoch) = (edge.broker.durability(), edge.broker.epoch());
    json(status, encode(&Health { status: word, server: SERVER, durability, epoch }))
}
