//! Today's x0 client, unmodified: its polls and sends, on the same mailboxes as all other transports.
//!
//! The x0 client polls again at once after any 200, and stops for good after anything else. So a poll that it could have
//! sent is always answered with 200, and never at once if there is no message. A send that fails is answered with 200
//! and an `error` key: only then the page shows the failure.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use axum::routing::any;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use crate::config::Auth;
use crate::directory::IdScope;
use crate::edge::{BodyLimit, Gateway, RequestHead};
use crate::message::{Handle, SessionId};

mod answer;
mod cors;
mod evidence;
mod payload;
mod poll;
mod reader;
mod receipts;
mod request;
mod send;
pub(crate) mod shape;
mod source;
mod starting;

pub(crate) use payload::with_sender;
pub(crate) use receipts::LegacyReceipts;
pub(crate) use request::{PATHS, is_path, path_of};
pub(crate) use shape::LegacyPath;
pub(crate) use starting::{HeldSince, answer_without_store, needs_store};

pub(crate) use answer::{LegacyAnswer, LegacyProgress};
use answer::{NOTHING, answer, answer_to, refuse};
use cors::{LegacyCors, demote_foreign};
use request::{Read, read};
use shape::{LegacyError, LegacyRequest};
use source::RequestSource;

/// This transport. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Legacy {
    gateway: Arc<Gateway>,
    receipts: Arc<LegacyReceipts>,
}

impl Legacy {
    /// This transport. A server has one.
    pub(crate) fn new(gateway: Arc<Gateway>, receipts: Arc<LegacyReceipts>) -> Self {
        Self { gateway, receipts }
    }

    /// The routes of this transport.
    pub(crate) fn routes(self) -> Router {
        let mut router = Router::new();
        for (address, path) in PATHS {
            router = router.route(address, any(move |state, request| handle(state, path, request)));
        }
        router.with_state(self)
    }

    /// Answers a request to one of [`PATHS`] without a look at the routes.
    ///
    /// Boxed: the connection makes room for the largest of its answers before its first request.
    pub(crate) fn answer(&self, path: LegacyPath, request: Request) -> BoxFuture<'static, Response> {
        Box::pin(handle(State(self.clone()), path, request))
    }

    /// Answers a POST to one of [`PATHS`] whose body has come and is small, if all pages may read its answer. `None` says nothing:
    /// such a request has to be read. Also whether it is a send, which may begin before the requests in front of it have their answers.
    pub(crate) fn answer_small(
        &self,
        path: LegacyPath,
        head: RequestHead<'_>,
        body: &[u8],
    ) -> Option<(impl Future<Output = LegacyProgress> + Send + use<>, bool)> {
        let Self { gateway, .. } = self;
        let access = &gateway.access();
        let LegacyCors::Any = LegacyCors::of(access, &Method::POST, head.check) else { return None };
        let body = gateway.small_body(body, BodyLimit::Message)?;
        let (request, source) = (shape::body(path, body), RequestSource::of(access, head));
        let (legacy, deadline) = (self.clone(), Instant::now() + gateway.config.poll_timeout);
        let is_send = matches!(request, Ok(LegacyRequest::Send { .. }));
        let answering = async move {
            match request {
                Ok(LegacyRequest::Send { from, to, payload }) => {
                    Box::pin(legacy.begin(from, to, &payload, &source)).await
                }
                other => LegacyProgress::Answered(legacy.act(other, &source, deadline).await.open()),
            }
        };
        Some((answering, is_send))
    }

    /// The headers of an answer with status 200 that all pages may read.
    pub(crate) fn open_headers() -> HeaderMap {
        let response = LegacyCors::Any.apply(answer(StatusCode::OK, Body::empty()));
        response.into_parts().0.headers
    }
}

/// Reads a request, then acts on it.
///
/// Both steps are boxed one after the other, and this is no async function: so a waiting poll does not hold the memory
/// in which its request was read.
fn handle(
    State(legacy): State<Legacy>,
    path: LegacyPath,
    request: Request,
) -> impl Future<Output = Response> {
    let gateway = &legacy.gateway;
    let access = &gateway.access();
    let cors = LegacyCors::of(access, request.method(), (&request).into());
    let held_since = HeldSince::of(&request);
    let source = RequestSource::of(access, (&request).into());
    let bounds = gateway.body_bounds(BodyLimit::Message, source.holder(gateway));
    let reading = Box::pin(read(path, request, bounds));
    async move {
        let response = match reading.await {
            Err(response) => response,
            Ok(Read { request, permit: _permit }) => {
                let request =
                    if cors.is_foreign() { demote_foreign(request, source.address) } else { request };
                let deadline = held_since.unwrap_or_else(Instant::now) + legacy.gateway.config.poll_timeout;
                Box::pin(legacy.act(request, &source, deadline)).await.into_response()
            }
        };
        cors.apply(response)
    }
}

impl Legacy {
    /// Acts on a request; a poll waits until the deadline at most. All else is boxed: a poll makes no room for it.
    async fn act(
        &self,
        request: Result<LegacyRequest, LegacyError>,
        source: &RequestSource,
        deadline: Instant,
    ) -> LegacyAnswer {
        match request {
            Ok(LegacyRequest::Poll { session: Some(session), ack }) => {
                LegacyAnswer::Text(self.poll(&session, source, ack, deadline).await)
            }
            Ok(LegacyRequest::Poll { session: None, .. }) => {
                Box::pin(self.hold(deadline)).await;
                LegacyAnswer::text(NOTHING)
            }
            Ok(LegacyRequest::Send { from, to, payload }) => {
                let sent = async { Ok(self.send(from, to, &payload, source).await?.await.map(|_| ())?) };
                answer_to(Box::pin(sent).await)
            }
            Ok(LegacyRequest::Del { session }) => {
                Box::pin(self.delete(session)).await;
                LegacyAnswer::text(NOTHING)
            }
            Err(error) => refuse(error).into(),
        }
    }

    /// Acknowledges what pages have received, when the server stops and all polls have their answers.
    pub(crate) async fn settle(&self) {
        self.receipts.settle_all(&self.gateway.broker).await;
    }

    /// Acknowledges everything that this session was answered with.
    async fn delete(&self, session: Option<SessionId>) {
        if let Some(session) = session
            && self.may_read(&session).await
        {
            self.receipts.acknowledge_all(&self.gateway.broker, &session).await;
        }
    }

    /// Whether the id of this session is enough to read its mailbox: in `token` mode a backend must have registered it.
    async fn may_read(&self, session: &SessionId) -> bool {
        self.gateway.identity.auth() == Auth::Open && !Handle::has_shape(session.as_str())
            || self.gateway.broker.directory().holder(session, IdScope::X0).await.is_some()
    }

    /// Waits until this time, or until the server stops.
    async fn hold(&self, until: Instant) {
        tokio::select! {
            () = sleep_until(until) => {}
            () = self.gateway.shutdown.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests;
