//! The routes of a server, which are there once its store is open, and what is answered before.
//!
//! A poll of the x0 client is held until then, at most for its time. Other requests wait for a moment and are then refused.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::SetOnce;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::budget::Budget;
use crate::config::Config;
use crate::edge::{Refusal, RequestHead};
use crate::ops;
use crate::protocol::Code;
use crate::server::answer::Begun;
use crate::server::direct::{Direct, Door};
use crate::server::http1::Sockets;
use crate::transport::legacy::{self, HeldSince};

/// How long a request waits for the store, unless it comes from the x0 client. Most stores are opened sooner.
const PATIENCE: Duration = Duration::from_secs(2);

/// The same while another process hands over: its clients were served a moment ago, and nobody shall see that they are not now.
const PATIENCE_OF_HANDOVER: Duration = Duration::from_secs(20);

/// How long a check of readiness waits then.
const PATIENCE_OF_CHECK: Duration = Duration::from_secs(2);

/// The routes of a server. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Routes(Arc<Inner>);

/// What answers requests once the store is open.
#[derive(Debug)]
pub(super) struct OpenRoutes {
    /// Takes every request.
    pub(super) router: Router,
    /// Takes some requests first: each poll would be matched with all routes otherwise.
    pub(super) direct: Option<Direct>,
    /// Takes handshakes of WebSockets that the loop of HTTP/1.1 has read.
    pub(super) sockets: Option<Sockets>,
}

impl OpenRoutes {
    /// Routes that take everything.
    #[cfg(test)]
    pub(super) fn all(router: Router) -> Self {
        Self { router, direct: None, sockets: None }
    }
}

#[derive(Debug)]
struct Inner {
    /// Set when the store is open.
    open: SetOnce<OpenRoutes>,
    /// Whether another process hands over to this one.
    takes_over: AtomicBool,
    config: Arc<Config>,
    budget: Budget,
    shutdown: CancellationToken,
}

impl Routes {
    /// The routes of a server whose store is not open yet.
    pub(super) fn new(config: Arc<Config>, budget: Budget, shutdown: CancellationToken) -> Self {
        let takes_over = AtomicBool::new(false);
        Self(Arc::new(Inner { open: SetOnce::new(), takes_over, config, budget, shutdown }))
    }

    /// Another process hands over to this one: requests wait longer than after a start.
    pub(super) fn take_over(&self) {
        self.0.takes_over.store(true, Ordering::Relaxed);
    }

    /// Opens the routes. Requests that wait go on.
    pub(super) fn open(&self, open: OpenRoutes) {
        // They are opened once.
        _ = self.0.open.set(open);
    }

    /// What serves WebSockets without the router, once the routes are open.
    pub(super) fn sockets(&self) -> Option<&Sockets> {
        self.0.open.get()?.sockets.as_ref()
    }

    /// Answers a request that comes through this door.
    ///
    /// Boxed: a connection makes room for the largest of its answers before its first request.
    pub(super) fn answer(&self, door: Door, request: Request) -> BoxFuture<'static, Response> {
        let Some(OpenRoutes { router, direct, .. }) = self.0.open.get() else {
            return self.clone().answer_early(request).boxed();
        };
        match (direct, door) {
            (Some(direct), Door::X0(path)) => direct.x0(path, request),
            (Some(direct), Door::Poll) => direct.poll(&request),
            _ => router.clone().oneshot(request).map(never_fails).boxed(),
        }
    }

    /// Answers a request of which all has come, if it skips the routes. `None` says nothing: such a request has to be parsed.
    pub(super) fn answer_raw(&self, door: Door, head: RequestHead<'_>, body: &[u8]) -> Option<Begun> {
        self.0.open.get()?.direct.as_ref()?.answer_raw(door, head, body)
    }

    /// Answers a request that has come before the routes were open.
    async fn answer_early(self, mut request: Request) -> Response {
        let Inner { config, budget, shutdown, .. } = &*self.0;
        let takes_over = self.0.takes_over.load(Ordering::Relaxed);
        let path = request.uri().path();
        if ops::is_check(path) {
            let patience = if takes_over { PATIENCE_OF_CHECK } else { Duration::ZERO };
            return match self.opened_within(patience).await {
                Some(router) => never_fails(router.clone().oneshot(request).await),
                None => ops::starting(config, request.uri().path(), shutdown.is_cancelled()),
            };
        }
        let is_x0 = legacy::is_path(path);
        let patience = match is_x0 {
            true if legacy::needs_store(request.method()) => config.poll_timeout,
            true => Duration::ZERO,
            false if takes_over => PATIENCE_OF_HANDOVER,
            false => PATIENCE,
        };
        let since = Instant::now();
        match self.opened_within(patience).await {
            Some(router) => {
                request.extensions_mut().insert(HeldSince(since));
                router.clone().oneshot(request).await.into_response()
            }
            None if is_x0 => legacy::answer_without_store((config, budget), request, &self.refusal()).await,
            None => self.refusal().into_response(),
        }
    }

    /// The routes, if they open in this time and before the server stops.
    async fn opened_within(&self, patience: Duration) -> Option<&Router> {
        tokio::select! {
            biased;
            open = self.0.open.wait() => Some(&open.router),
            () = self.0.shutdown.cancelled() => None,
            () = sleep(patience) => None,
        }
    }

    fn refusal(&self) -> Refusal {
        let text = match self.0.shutdown.is_cancelled() {
            true => "the server is stopping",
            false => "the broker is starting: its store is being opened; try again in a moment",
        };
        Refusal::new(Code::Unavailable, text)
    }
}

/// The response of routes, which do not fail.
fn never_fails(response: Result<Response, Infallible>) -> Response {
    response.unwrap_or_else(|never| match never {})
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Method;
    use axum::routing::any;
    use serde_json::Value;

    use super::*;

    const X0: &str = "/python/MsgHandler.py";
    const POLL: &str = r#"{"type":"GET","session_src":"A"}"#;

    fn routes() -> (Routes, Duration) {
        let config = Config::default();
        let poll_timeout = config.poll_timeout;
        (Routes::new(config.into(), Budget::new(Budget::MOST), CancellationToken::new()), poll_timeout)
    }

    /// Status and body of an answer, and how long it took.
    async fn answer(
        routes: &Routes,
        method: Method,
        path: &str,
        body: &'static str,
    ) -> (u16, Value, Duration) {
        let request = Request::builder().method(method).uri(path).body(Body::from(body)).unwrap();
        let begun = Instant::now();
        let response = routes.clone().answer_early(request).await;
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 16).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default(), begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn polls_of_the_x0_client_are_held_for_their_time() {
        let (routes, poll_timeout) = routes();
        let (status, body, after) = answer(&routes, Method::POST, X0, POLL).await;
        assert_eq!((status, &body["messages"], after), (200, &Value::Null, poll_timeout));
        assert_eq!(body.get("error"), None);
        let (status, _, after) = answer(&routes, Method::OPTIONS, X0, "").await;
        assert_eq!((status, after), (204, Duration::ZERO), "a preflight is not held");
    }

    #[tokio::test(start_paused = true)]
    async fn other_requests_wait_for_a_moment_and_checks_do_not() {
        let (routes, _) = routes();
        for path in ["/v1/messages", "/ws", "/"] {
            let (status, body, after) = answer(&routes, Method::GET, path, "").await;
            assert_eq!((status, &body["error"]["code"]), (503, &Value::from("unavailable")), "{path}");
            assert_eq!(after, PATIENCE, "{path}");
        }
        for (path, expected) in [("/healthz", 200), ("/readyz", 503)] {
            let (status, body, after) = answer(&routes, Method::GET, path, "").await;
            assert_eq!(
                (status, &body["status"], after),
                (expected, &Value::from("starting"), Duration::ZERO)
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_goes_on_when_the_routes_open() {
        let (routes, _) = routes();
        let waited = async |request: Request| {
            let HeldSince(since) = request.extensions().get().unwrap();
            format!("{:?}", since.elapsed().as_secs_f32())
        };
        let opening = async {
            sleep(PATIENCE / 2).await;
            routes.open(OpenRoutes::all(Router::new().fallback(any(waited))));
        };
        let (_, native, x0) = tokio::join!(
            opening,
            answer(&routes, Method::GET, "/v1/messages", ""),
            answer(&routes, Method::POST, X0, POLL)
        );
        for (status, since, after) in [native, x0] {
            assert_eq!((status, since, after), (200, Value::from(1.0), PATIENCE / 2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_answers_what_waits() {
        let (routes, _) = routes();
        routes.0.shutdown.cancel();
        let (status, _, after) = answer(&routes, Method::POST, X0, POLL).await;
        assert_eq!((status, after), (200, Duration::ZERO));
        assert_eq!(answer(&routes, Method::GET, "/v1/messages", "").await.0, 503);
        let (status, body, _) = answer(&routes, Method::GET, "/healthz", "").await;
        assert_eq!((status, &body["status"]), (200, &Value::from("draining")));
    }
}
