//! The calls of the native protocol that skip the routes, with the checks that the routes make for them.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Request as HttpRequest, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::future::BoxFuture;
use tower::{Layer, Service, ServiceExt};
use tower_http::cors::Cors;

use crate::api;
use crate::edge::{Gateway, Refusal, RequestHead, json_line, origin_refused};
use crate::message::SharedText;
use crate::server::answer::{Answer, Begun, Progress, header_lines};
use crate::server::router::{HostCheck, cors};
use crate::transport::poll::Polls;

/// These calls. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Native(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    gateway: Arc<Gateway>,
    polls: Polls,
    hosts: Option<HostCheck>,
    cors: Cors<Answered>,
    /// The headers of an answer with status 200 to a request without an origin.
    lines: Arc<[u8]>,
}

impl Native {
    /// The calls of a broker that checks hosts like this.
    pub(super) fn new(gateway: &Arc<Gateway>, polls: Polls, hosts: Option<HostCheck>) -> Self {
        let cors = cors(&gateway.access).layer(Answered);
        let answer = json_line(StatusCode::OK, Body::empty());
        let answer = with_cors(cors.clone(), None, answer);
        let lines = header_lines(answer.headers());
        Self(Arc::new(Inner { gateway: Arc::clone(gateway), polls, hosts, cors, lines }))
    }

    /// Answers a poll that was parsed. Its head may go while it waits.
    pub(super) fn poll(&self, request: &Request) -> BoxFuture<'static, Response> {
        let head = RequestHead::from(request);
        if let Some(refusal) = self.refusal(head) {
            return Box::pin(ready(refusal));
        }
        let (inner, origin) = (Arc::clone(&self.0), origin(head));
        let answering = self.0.polls.answer(head);
        Box::pin(answering.map(move |answer| inner.with_cors(origin, response(answer))))
    }

    /// Answers a poll.
    pub(super) fn poll_raw(&self, head: RequestHead<'_>) -> Begun {
        let progress = match self.refused(head) {
            Some(refused) => refused,
            None => self.finish(head, self.0.polls.answer(head)),
        };
        // It sees what the requests in front of it did.
        Begun { progress, joins: false }
    }

    /// Answers polls in a body. `None` if the request has to be parsed.
    pub(super) fn posted_poll_raw(&self, head: RequestHead<'_>, body: &[u8]) -> Option<Begun> {
        let progress = match self.refused(head) {
            Some(refused) => refused,
            None => self.finish(head, self.0.polls.answer_small(head, body)?),
        };
        Some(Begun { progress, joins: false })
    }

    /// Sends one message. `None` if the request has to be parsed.
    pub(super) fn send_raw(&self, head: RequestHead<'_>, body: &[u8]) -> Option<Begun> {
        if let Some(progress) = self.refused(head) {
            return Some(Begun { progress, joins: true });
        }
        let accepting = api::send_small(&self.0.gateway, head, body)?;
        let (inner, origin) = (Arc::clone(&self.0), origin(head));
        let progress = Box::pin(async move {
            let mut accepted = match accepting.await {
                Ok(accepted) => accepted,
                Err(refusal) => return inner.answer(origin, Err(refusal)).into(),
            };
            match (&mut accepted).now_or_never() {
                Some(stored) => inner.answer(origin, stored).into(),
                None => {
                    Progress::Accepted(Box::pin(accepted.map(move |stored| inner.answer(origin, stored))))
                }
            }
        });
        Some(Begun { progress, joins: true })
    }

    /// Acknowledges. `None` if the request has to be parsed.
    pub(super) fn ack_raw(&self, head: RequestHead<'_>, body: &[u8]) -> Option<Begun> {
        let progress = match self.refused(head) {
            Some(refused) => refused,
            None => self.finish(head, api::ack_small(&self.0.gateway, head, body)?),
        };
        Some(Begun { progress, joins: true })
    }

    /// The answer to a request that names a host that is not served, or comes from a page that may not use this server.
    fn refused(&self, head: RequestHead<'_>) -> Option<BoxFuture<'static, Progress>> {
        let refusal = self.refusal(head)?;
        Some(Box::pin(ready(refusal.into())))
    }

    fn refusal(&self, head: RequestHead<'_>) -> Option<Response> {
        let Inner { gateway, hosts, .. } = &*self.0;
        if let Some(response) = hosts.as_ref().and_then(|hosts| hosts.refusal(head.check)) {
            return Some(response);
        }
        if head.check.origin_allowed(&gateway.access()) {
            return None;
        }
        Some(self.0.with_cors(origin(head), origin_refused(head.check.headers).into_response()))
    }

    /// The answer to a call.
    fn finish(
        &self,
        head: RequestHead<'_>,
        answering: impl Future<Output = Result<SharedText, Refusal>> + Send + 'static,
    ) -> BoxFuture<'static, Progress> {
        let (inner, origin) = (Arc::clone(&self.0), origin(head));
        Box::pin(answering.map(move |answer| inner.answer(origin, answer).into()))
    }
}

impl Inner {
    fn answer(&self, origin: Option<HeaderValue>, answer: Result<SharedText, Refusal>) -> Answer {
        match (origin, answer) {
            (None, Ok(text)) => Answer::Text(Arc::clone(&self.lines), text),
            (origin, answer) => Answer::Response(self.with_cors(origin, response(answer))),
        }
    }

    fn with_cors(&self, origin: Option<HeaderValue>, answer: Response) -> Response {
        with_cors(self.cors.clone(), origin, answer)
    }
}

/// The origin that a request names. A copy: a value that hyper has parsed shares the memory of its head.
fn origin(head: RequestHead<'_>) -> Option<HeaderValue> {
    HeaderValue::from_bytes(head.check.headers.get("origin")?).ok()
}

/// The answer to a call, without CORS headers.
fn response(answer: Result<SharedText, Refusal>) -> Response {
    match answer {
        Ok(text) => json_line(StatusCode::OK, text.into()),
        Err(refusal) => refusal.into_response(),
    }
}

/// Tells the browser whether a page of this origin may read the answer.
fn with_cors(cors: Cors<Answered>, origin: Option<HeaderValue>, answer: Response) -> Response {
    let mut request = HttpRequest::new(answer);
    request.headers_mut().extend(origin.map(|origin| (header::ORIGIN, origin)));
    let answer = cors.oneshot(request).now_or_never().expect("the answer is there");
    answer.unwrap_or_else(|never| match never {})
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
