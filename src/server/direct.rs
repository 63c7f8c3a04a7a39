//! Requests that skip the routes, since there are so many of them: polls, handshakes of WebSockets, and everything of the x0
//! client.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::Request;
use axum::http::{HeaderValue, Method, Request as HttpRequest, header};
use axum::response::{IntoResponse, Response};
use futures::future::{BoxFuture, Either};
use tower::{Layer, Service, ServiceExt};
use tower_http::cors::Cors;

use crate::edge::{Gateway, OriginCheck, origin_refused};
use crate::server::router::{HostCheck, cors};
use crate::transport::legacy::{self, Legacy, LegacyPath};
use crate::transport::poll::{self, Polls};
use crate::transport::websocket;

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// To the transport of the x0 client. The checks of the other routes are not for it.
    X0(LegacyPath),
    /// To the native long-poll.
    Poll,
    /// To a WebSocket.
    Socket,
    /// To the routes.
    Routes,
}

/// Other addresses of clients that poll. They go to the routes.
const OF_POLLING_CLIENTS: [&str; 3] = ["/v1/messages/poll", "/v1/messages", "/v1/ack"];

/// The methods and addresses that clients use which poll.
pub(super) fn doors() -> impl Iterator<Item = (Method, &'static str, Door)> {
    let x0 = legacy::PATHS.into_iter().map(|(path, x0)| (Method::POST, path, Door::X0(x0)));
    let others = OF_POLLING_CLIENTS.into_iter().map(|path| (Method::POST, path, Door::Routes));
    let sockets = [(Method::GET, websocket::PATH, Door::Socket)];
    x0.chain([(Method::GET, poll::PATH, Door::Poll)]).chain(others).chain(sockets)
}

impl Door {
    /// Where a request with this method and path goes.
    pub(super) fn of(method: &Method, path: &str) -> Self {
        match legacy::path_of(path) {
            Some(x0) => Self::X0(x0),
            None if *method == Method::GET && path == poll::PATH => Self::Poll,
            None => Self::Routes,
        }
    }
}

/// What answers these requests. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Direct {
    pub(super) x0: Legacy,
    pub(super) polls: NativePolls,
}

/// The native long-poll, with the checks that the routes make for it.
#[derive(Debug, Clone)]
pub(super) struct NativePolls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    gateway: Arc<Gateway>,
    polls: Polls,
    hosts: Option<HostCheck>,
    cors: Cors<Answered>,
}

impl NativePolls {
    /// The polls of a broker that checks hosts like this.
    pub(super) fn new(gateway: &Arc<Gateway>, polls: Polls, hosts: Option<HostCheck>) -> Self {
        let cors = cors(&gateway.config.access).layer(Answered);
        Self(Arc::new(Inner { gateway: Arc::clone(gateway), polls, hosts, cors }))
    }

    /// Answers a poll. Its head is not held while it waits.
    pub(super) fn answer(&self, request: Request) -> BoxFuture<'static, Response> {
        let Inner { gateway, polls, hosts, .. } = &*self.0;
        if let Some(response) = hosts.as_ref().and_then(|hosts| hosts.refusal(&request)) {
            return Box::pin(ready(response));
        }
        let headers = request.headers();
        // A copy: a value shares the memory of its head.
        let origin =
            headers.get(header::ORIGIN).and_then(|origin| HeaderValue::from_bytes(origin.as_bytes()).ok());
        let answering = match OriginCheck::from(&request).origin_allowed(&gateway.config.access) {
            true => Either::Left(polls.answer(request.into_parts().0)),
            false => Either::Right(ready(origin_refused(headers).into_response())),
        };
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.with_cors(origin, answering.await).await })
    }
}

impl Inner {
    /// Tells the browser whether a page of this origin may read the answer.
    async fn with_cors(&self, origin: Option<HeaderValue>, answer: Response) -> Response {
        let mut request = HttpRequest::new(answer);
        request.headers_mut().extend(origin.map(|origin| (header::ORIGIN, origin)));
        self.cors.clone().oneshot(request).await.unwrap_or_else(|never| match never {})
    }
}

/// Answers with what it is given: the answer is there already.
#[derive(Debug, Clone, Copy)]
struct Answered;

impl Service<HttpRequest<Response>> for Answered {
    type Response = Response;
    type Error = Infallible;
    type Future = Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Response>) -> Self::Future {
        ready(Ok(request.into_body()))
    }
}
