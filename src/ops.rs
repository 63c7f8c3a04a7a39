//! For operators and machines that watch: health, and the descriptions of what this server speaks.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use axum::routing::get;
use serde::Serialize;

use crate::config::Config;
use crate::edge::{Gateway, encode, json};
use crate::message::Epoch;
use crate::protocol::SERVER;

pub(crate) mod openapi;

/// The routes.
pub fn routes(gateway: Arc<Gateway>) -> Router {
    let described = |text: String| {
        let text = Bytes::from(text);
        // Any page may read it: tools that show descriptions are pages.
        get(async move || ([(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")], json(StatusCode::OK, text)))
    };
    Router::new()
        .route("/healthz", get(health))
        .route("/openapi.json", described(openapi::document(&gateway.config)))
        .route("/asyncapi.json", described(asyncapi(&gateway.config)))
        .with_state(gateway)
}

/// The description of the WebSocket protocol of a server with these settings, as JSON.
fn asyncapi(config: &Config) -> String {
    include_str!("ops/asyncapi.json")
        .replace("\"{version}\"", &format!("\"{}\"", env!("CARGO_PKG_VERSION")))
        .replace("\"{max_ttl}\"", &config.max_ttl.as_secs_f64().to_string())
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

/// How the server fares
#[utoipa::path(
    get, path = "/healthz", tag = "operations",
    responses(
        (status = 200, description = "It serves; `degraded` while messages cannot be stored", body = openapi::Health),
        (status = 503, description = "It is stopping", body = openapi::Health),
    )
)]
pub(crate) async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    let failing = gateway.broker.health().failing;
    let (status, word) = match gateway.shutdown.is_cancelled() {
        false if failing.is_some() => (StatusCode::OK, "degraded"),
        false => (StatusCode::OK, "ok"),
        true => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    };
    let (durability, epoch) = (gateway.broker.durability(), gateway.broker.epoch());
    let (epoch, failing) = (&epoch, failing.as_deref());
    json(status, encode(&Health { status: word, server: SERVER, durability, epoch, failing }))
}
