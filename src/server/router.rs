//! The routes of all rooms, with the checks of origins.

use std::future::ready;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Router, middleware};
use futures::future::Either;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa::openapi::OpenApi;

use crate::config::{Access, Pages};
use crate::edge::{Gateway, OriginCheck, Refusal, ServedHosts, origin_refused};
use crate::protocol::Code;
use crate::reloadable::Reloadable;
use crate::transport::legacy::{self, Legacy};
use crate::transport::poll::{self, Polls};
use crate::transport::{sse, websocket};
use crate::{api, assets, ops};

/// How long a browser may remember the answer to a preflight.
const PREFLIGHT: Duration = Duration::from_secs(3600);

/// All routes of a server.
pub(super) fn router(gateway: &Arc<Gateway>, polls: &Polls, x0: &Legacy) -> Router {
    let (health, health_api) = ops::routes(Arc::clone(gateway)).split_for_parts();
    let (v1, mut api) = v1(gateway, polls);
    api.merge(health_api);
    let pages = gateway.config.pages;
    let router = Router::new()
        .merge(v1)
        .merge(health)
        .merge(ops::descriptions(api, &gateway.config))
        .merge(websocket::routes(Arc::clone(gateway)))
        .merge(x0.clone().routes())
        .merge(assets::routes(pages))
        .method_not_allowed_fallback(wrong_method);
    match pages {
        Pages::On => router.fallback(not_found),
        Pages::Off => router.fallback(nothing),
    }
}

/// Adds the check of hosts to the routes of a broker.
pub(super) fn with_host_check(router: Router, check: HostCheck) -> Router {
    router.layer(middleware::from_fn_with_state(check, check_host))
}

/// Which hosts are served.
#[derive(Debug, Clone)]
pub(super) struct HostCheck {
    gateway: Arc<Gateway>,
    hosts: ServedHosts,
}

impl HostCheck {
    /// The check of a broker that listens on this address, if it needs one.
    pub(super) fn new(gateway: &Arc<Gateway>, listen: IpAddr) -> Option<Self> {
        let hosts = ServedHosts::new(&gateway.access(), listen)?;
        Some(Self { gateway: Arc::clone(gateway), hosts })
    }

    /// The check of the port of operators, if that is at a loopback address.
    pub(super) fn for_operators(gateway: &Arc<Gateway>, listen: IpAddr) -> Option<Self> {
        let hosts = ServedHosts::on_loopback(&gateway.access(), listen)?;
        Some(Self { gateway: Arc::clone(gateway), hosts })
    }

    /// Whether the hosts that a request names are served.
    pub(super) fn serves(&self, request: OriginCheck<'_>) -> bool {
        self.hosts.check(&self.gateway.access(), request).is_ok()
    }

    /// The answer to a request that names a host that is not served.
    pub(super) fn refusal(&self, request: OriginCheck<'_>) -> Option<Response> {
        let checked = self.hosts.check(&self.gateway.access(), request);
        checked.err().map(|refusal| refusal.with_status(StatusCode::MISDIRECTED_REQUEST))
    }
}

/// Refuses requests that name a host that is not served.
///
/// The addresses of today's x0 client are exempt: it stops for good at any status but 200. Not an async function: its
/// future would hold the request of a waiting poll.
fn check_host(
    State(hosts): State<HostCheck>,
    request: Request,
    next: Next,
) -> impl Future<Output = Response> {
    let path = request.uri().path();
    let is_exempt = ops::is_check(path) || legacy::is_path(path);
    match if is_exempt { None } else { hosts.refusal((&request).into()) } {
        None => Either::Right(next.run(request)),
        Some(response) => Either::Left(ready(response)),
    }
}

/// The routes of `/v1`, and their description. The check of origins is inside of the layer that answers preflights.
fn v1(gateway: &Arc<Gateway>, polls: &Polls) -> (Router, OpenApi) {
    let (v1, api) = ops::described_router()
        .merge(poll::routes(polls.clone()))
        .merge(sse::routes(Arc::clone(gateway)))
        .merge(api::routes(Arc::clone(gateway)))
        .merge(ops::v1_routes(Arc::clone(gateway)))
        .split_for_parts();
    let v1 = v1
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(gateway), check_origin));
    (v1.layer(cors(&gateway.access)), api)
}

/// Refuses requests of pages whose origin is not allowed, also those whose answer the page does not read.
async fn check_origin(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let check = OriginCheck::from(&request);
    if check.origin_allowed(&gateway.access()) {
        return next.run(request).await;
    }
    origin_refused(check.headers).into_response()
}

/// Answers an address without anything: a page for a browser that shows it, JSON for programs.
pub(super) async fn not_found(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    let shows_pages = matches!(method, Method::GET | Method::HEAD)
        && !uri.path().starts_with("/v1/")
        && accepted.flat_map(|accept| accept.split([',', ';'])).any(|kind| kind.trim() == "text/html");
    let mut response = match shows_pages {
        true => assets::not_found(),
        false => nothing().await.into_response(),
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

/// Answers such an address where no pages are served.
async fn nothing() -> Refusal {
    Refusal::new(Code::NotFound, "there is nothing at this address")
}

async fn wrong_method() -> Response {
    let refusal = Refusal::new(Code::BadRequest, "this address does not take this method");
    refusal.with_status(StatusCode::METHOD_NOT_ALLOWED)
}

/// Tells browsers which pages of other origins may call `/v1`.
pub(super) fn cors(access: &Reloadable<Access>) -> CorsLayer {
    let in_force = access.clone();
    // A reload changes neither from nor to `*`.
    let origins = match access.get().allowed_origins().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::predicate(move |origin: &HeaderValue, _: &Parts| {
            in_force.get().allowed_origins().any(|known| known.as_bytes() == origin.as_bytes())
        }),
    };
    let headers = ["authorization", "content-type", "last-event-id", "traceparent", "tracestate", "baggage"];
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers(headers.map(HeaderName::from_static))
        .max_age(PREFLIGHT)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tower::ServiceExt;

    use super::*;
    use crate::clock::Clock;
    use crate::config::{Config, Level};
    use crate::server::Server;

    /// The answer of a server that allows pages of this origin.
    async fn answer(allowed: Option<&str>, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut config = Config { durability: Level::Memory, ..Config::default() };
        config.access.allow_origin.extend(allowed.map(str::to_owned));
        let mut request = axum::http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let server = Server::new(config, Clock::Wall).unwrap();
        server.router().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn other_addresses_and_methods_are_refused_as_json() {
        for (method, path, status) in [
            (Method::GET, "/nothing/here", StatusCode::NOT_FOUND),
            (Method::DELETE, "/v1/messages", StatusCode::METHOD_NOT_ALLOWED),
            (Method::POST, "/healthz", StatusCode::METHOD_NOT_ALLOWED),
        ] {
            let response = answer(None, method, path, &[]).await;
            assert_eq!(response.status(), status, "{path}");
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json", "{path}");
            assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff", "{path}");
            let allowed = response.headers().get(header::ALLOW).map(HeaderValue::as_bytes);
            let expected = (status == StatusCode::METHOD_NOT_ALLOWED).then_some(match path {
                "/healthz" => &b"GET,HEAD"[..],
                _ => b"GET,HEAD,POST",
            });
            let sorted = |list: &[u8]| {
                let mut methods: Vec<Vec<u8>> =
                    list.split(|byte| *byte == b',').map(<[u8]>::to_vec).collect();
                methods.sort();
                methods
            };
            assert_eq!(allowed.map(sorted), expected.map(sorted), "{path}");
        }
    }

    #[tokio::test]
    async fn pages_of_other_origins_may_use_v1_only_if_they_are_allowed() {
        let headers = [("origin", "https://app.example"), ("host", "msg.example")];
        let refused = answer(None, Method::GET, "/v1/messages?session=A&wait=0", &headers).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        let allowed =
            answer(Some("https://app.example"), Method::GET, "/v1/messages?session=A&wait=0", &headers).await;
        assert_eq!(allowed.status(), StatusCode::OK);
        assert_eq!(allowed.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://app.example");
    }

    #[tokio::test]
    async fn a_preflight_is_answered_before_the_check_of_the_origin() {
        let headers = [
            ("origin", "https://evil.example"),
            ("host", "msg.example"),
            ("access-control-request-method", "PUT"),
        ];
        let response = answer(Some("https://app.example"), Method::OPTIONS, "/v1/sessions/A", &headers).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_ne!(
            response.headers().get(header::ACCESS_CONTROL_ALLOW_ORIGIN).map(HeaderValue::as_bytes),
            Some(&b"https://evil.example"[..])
        );
    }
}
