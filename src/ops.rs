//! For operators and programs that watch: health, metrics, the dashboard's figures and actions, and the descriptions of the two protocols.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::Config;
use crate::edge::{Gateway, encode, json};
use crate::log;
use crate::message::Epoch;
use crate::protocol::SERVER;

mod actions;
mod audit;
mod metrics;
mod openapi;
mod stats;
mod status;

pub(crate) use openapi::described_router;

use stats::LastStats;
use status::status_word;

const HEALTH: &str = "/healthz";
const READINESS: &str = "/readyz";

/// Whether this is the path of a check by a program that watches. It may name any host.
pub(crate) fn is_check(path: &str) -> bool {
    matches!(path, HEALTH | READINESS)
}

/// The routes of health, readiness and metrics, with their descriptions.
pub(crate) fn routes(gateway: Arc<Gateway>) -> OpenApiRouter {
    OpenApiRouter::default()
        .routes(routes!(health))
        .routes(routes!(readiness))
        .routes(routes!(metrics::metrics))
        .with_state(gateway)
}

/// The routes of what operators do below `/v1`, with their descriptions.
pub(crate) fn v1_routes(gateway: Arc<Gateway>) -> OpenApiRouter {
    OpenApiRouter::default()
        .routes(routes!(actions::end_session))
        .routes(routes!(actions::send_test_message))
        .routes(routes!(stats::stats))
        .layer(Extension(Arc::<LastStats>::default()))
        .with_state(gateway)
}

/// The routes of the port of operators, who need no key there.
pub(crate) fn port_routes(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route(HEALTH, get(health))
        .route(READINESS, get(readiness))
        .route("/metrics", get(metrics::for_everyone))
        .with_state(gateway)
}

/// The routes of the descriptions. `api` describes all HTTP calls.
pub(crate) fn descriptions(api: OpenApi, config: &Config) -> Router {
    Router::new()
        .route("/openapi.json", description(openapi::complete(api, config)))
        .route("/asyncapi.json", description(asyncapi(config)))
}

/// Answers a description. Any page may read it, since the tools that show descriptions are pages.
fn description(text: String) -> axum::routing::MethodRouter {
    get(async move || ([(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")], json(StatusCode::OK, text)))
}

/// The description of the WebSocket protocol of a server with these settings, as JSON.
fn asyncapi(config: &Config) -> String {
    include_str!("ops/asyncapi.json")
        .trim_end()
        .replace("\"{version}\"", &format!("\"{}\"", env!("CARGO_PKG_VERSION")))
        .replace("\"{max_ttl}\"", &config.max_ttl.as_secs_f64().to_string())
}

/// The state of the server.
#[derive(Serialize, ToSchema)]
struct HealthAnswer<'a> {
    /// `ok`; `starting` while the store is being opened; `degraded` if something does not work now; `draining` during a stop.
    status: &'static str,
    /// Name and version.
    server: &'static str,
    /// What "sent" means: `fsync`, `os` or `memory`.
    durability: &'static str,
    /// Absent while the store is being opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<&'a Epoch>,
    /// What does not work now, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    failing: Vec<Arc<str>>,
    /// Lines of the log that could not be written, since the start.
    #[serde(skip_serializing_if = "is_zero")]
    lost_log_lines: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Whether the process is well
#[utoipa::path(
    get, path = "/healthz", tag = "operations",
    responses((status = 200, description = "It is; `status` says what it does", body = HealthAnswer<'_>))
)]
async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    answer(&gateway, StatusCode::OK)
}

/// Whether new work should be sent here
#[utoipa::path(
    get, path = "/readyz", tag = "operations",
    responses(
        (status = 200, description = "It serves", body = HealthAnswer<'_>),
        (
            status = 503, description = "It is starting or stopping, or what stores messages cannot be reached",
            body = HealthAnswer<'_>
        ),
    )
)]
async fn readiness(State(gateway): State<Arc<Gateway>>) -> Response {
    // A store that is full needs acknowledgements, and its readers go on.
    let ready = !gateway.shutdown.is_cancelled() && !gateway.broker.health().is_unreachable;
    answer(&gateway, if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE })
}

fn answer(gateway: &Gateway, status: StatusCode) -> Response {
    let failing = gateway.broker.health().failing;
    let word = status_word(gateway, &failing);
    let epoch = Some(&gateway.broker.epoch());
    let lost_log_lines = log::lost_lines();
    let durability = gateway.broker.durability();
    json(
        status,
        encode(&HealthAnswer { status: word, server: SERVER, durability, epoch, failing, lost_log_lines }),
    )
}

/// The answer to a check before the store is open; see [`is_check`].
pub(crate) fn starting(config: &Config, path: &str, is_stopping: bool) -> Response {
    let answer = HealthAnswer {
        status: if is_stopping { "draining" } else { "starting" },
        server: SERVER,
        durability: config.durability.name(),
        epoch: None,
        failing: Vec::new(),
        lost_log_lines: log::lost_lines(),
    };
    let status = if path == READINESS { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    json(status, encode(&answer))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::Request;
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;
    use crate::clock::Clock;
    use crate::config::Level;
    use crate::server::Server;

    #[test]
    fn asyncapi_has_the_version_and_the_limit_in_force() {
        let config = Config { max_ttl: Duration::from_secs(90), ..Config::default() };
        let document: Value = serde_json::from_str(&asyncapi(&config)).unwrap();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let ttl = &document["components"]["messages"]["send"]["payload"]["properties"]["ttl"];
        assert_eq!(ttl["maximum"].as_f64(), Some(90.0));
    }

    #[tokio::test]
    async fn health_and_readiness_say_when_the_server_is_stopping() {
        let config = Config { durability: Level::Memory, ..Config::default() };
        let server = Server::new(config, Clock::Wall).unwrap();
        let ask = async |path: &str| {
            let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
            let response = server.router().oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
            (status, serde_json::from_slice::<Value>(&body).unwrap()["status"].clone())
        };
        for path in ["/healthz", "/readyz"] {
            assert_eq!(ask(path).await, (200, json!("ok")));
        }
        server.shutdown().cancel();
        assert_eq!(ask("/healthz").await, (200, json!("draining")));
        assert_eq!(ask("/readyz").await, (503, json!("draining")));
    }
}
