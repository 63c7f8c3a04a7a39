//! For operators and programs that watch: health, and the descriptions of the two protocols.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use axum::routing::get;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::Config;
use crate::edge::{Gateway, encode, json};
use crate::message::Epoch;
use crate::protocol::SERVER;

mod openapi;

pub(crate) use openapi::described_router;

/// The health route, with its description.
pub(crate) fn routes(gateway: Arc<Gateway>) -> OpenApiRouter {
    OpenApiRouter::default().routes(routes!(health)).with_state(gateway)
}

/// The routes of the descriptions. `api` describes all HTTP calls.
pub(crate) fn descriptions(api: OpenApi, config: &Config) -> Router {
    Router::new()
        .route("/openapi.json", description(openapi::complete(api, config)))
        .route("/asyncapi.json", description(asyncapi(config)))
}

/// Answers a description. Any page may read it, since the tools that show descriptions are pages.
fn description(text: String) -> axum::routing::MethodRouter {
    let text = Bytes::from(text);
    get(async move || ([(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")], json(StatusCode::OK, text)))
}

/// The description of the WebSocket protocol of a server with these settings, as JSON.
fn asyncapi(config: &Config) -> String {
    include_str!("ops/asyncapi.json")
        .replace("\"{version}\"", &format!("\"{}\"", env!("CARGO_PKG_VERSION")))
        .replace("\"{max_ttl}\"", &config.max_ttl.as_secs_f64().to_string())
}

/// The state of the server.
#[derive(Serialize, ToSchema)]
struct HealthAnswer<'a> {
    /// `ok`, `degraded` (messages cannot be stored now) or `stopping`.
    status: &'static str,
    /// Name and version.
    server: &'static str,
    /// What "sent" means: `fsync`, `os` or `memory`.
    durability: &'static str,
    epoch: &'a Epoch,
    /// Why messages cannot be stored now.
    #[serde(skip_serializing_if = "Option::is_none")]
    failing: Option<&'a str>,
}

/// The state of the server
#[utoipa::path(
    get, path = "/healthz", tag = "operations",
    responses(
        (status = 200, description = "It serves; `degraded` while messages cannot be stored", body = HealthAnswer<'_>),
        (status = 503, description = "It is stopping", body = HealthAnswer<'_>),
    )
)]
async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    let failing = gateway.broker.health().failing;
    let (status, word) = match gateway.shutdown.is_cancelled() {
        false if failing.is_some() => (StatusCode::OK, "degraded"),
        false => (StatusCode::OK, "ok"),
        true => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    };
    let (durability, epoch) = (gateway.broker.durability(), gateway.broker.epoch());
    let (epoch, failing) = (&epoch, failing.as_deref());
    json(status, encode(&HealthAnswer { status: word, server: SERVER, durability, epoch, failing }))
}
