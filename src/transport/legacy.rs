//! Today's x0 client, unmodified: its polls and sends, on the same mailboxes as all other transports.
//!
//! The x0 client polls again at once after any 200, and stops for good after anything else. So a poll that it could have
//! sent is always answered with 200, and never at once if there is no message. A send that fails is answered with 200
//! and an `error` key: only then the page shows the failure.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use crate::budget::Permit;
use crate::config::Auth;
use crate::edge::{Gateway, Query, Refusal, encode};
use crate::message::{Handle, SessionId};
use crate::protocol::{Code, ENVELOPE};

mod cors;
mod evidence;
mod payload;
mod poll;
mod reader;
mod receipts;
mod send;
pub(crate) mod shape;
mod source;

pub(crate) use payload::with_sender;
pub(crate) use receipts::LegacyReceipts;

use cors::{LegacyCors, demote_foreign};
use shape::{LegacyError, LegacyPath, LegacyRequest};
use source::RequestSource;

/// The answer without messages.
const NOTHING: &str = r#"{"messages":null}"#;

/// The answer to a send that is stored.
const SENT: &str = r#"{"messages":null,"status":"ok"}"#;

/// The addresses of this transport.
const PATHS: [(&str, LegacyPath); 3] =
    [("/python/MsgHandler.py", LegacyPath::Handler), ("/get", LegacyPath::Get), ("/set", LegacyPath::Set)];

#[derive(Clone)]
struct Legacy {
    gateway: Arc<Gateway>,
    receipts: Arc<LegacyReceipts>,
}

/// The routes of this transport.
pub(crate) fn routes(gateway: Arc<Gateway>, receipts: Arc<LegacyReceipts>) -> Router {
    let mut router = Router::new();
    for (address, path) in PATHS {
        router = router.route(address, any(move |state, request| handle(state, path, request)));
    }
    router.with_state(Legacy { gateway, receipts })
}

/// Whether this path of an address belongs to this transport.
pub(crate) fn is_path(path: &str) -> bool {
    PATHS.iter().any(|(address, _)| *address == path)
}

/// An answer without CORS headers; [`LegacyCors::apply`] sets them.
fn answer(status: StatusCode, body: impl Into<Body>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (status, headers, body.into()).into_response()
}

/// Whether a body is refused since it is large: too large, or too large without a proof, or for now.
fn is_about_size(code: Code) -> bool {
    matches!(code, Code::TooLarge | Code::Unauthorized | Code::Overloaded)
}

/// The body of a failure that the x0 page shows.
#[derive(Serialize)]
struct FailureBody<'a> {
    messages: (),
    error: bool,
    exception_id: Code,
    exception: &'a str,
}

/// A failure that the x0 page shows.
fn failure(refusal: &Refusal) -> Response {
    let Refusal { code, message, .. } = refusal;
    let body = FailureBody { messages: (), error: true, exception_id: *code, exception: message };
    answer(StatusCode::OK, encode(&body))
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
    let cors = LegacyCors::of(&legacy.gateway.config.access, request.method(), request.headers());
    let reading = Box::pin(read(Arc::clone(&legacy.gateway), path, request));
    async move {
        let response = match reading.await {
            Err(response) => response,
            Ok(Read { request, source, permit: _permit }) => {
                let request = if cors.is_foreign() { demote_foreign(request) } else { request };
                Box::pin(legacy.act(request, &source)).await
            }
        };
        cors.apply(response)
    }
}

/// A request that was read.
struct Read {
    request: Result<LegacyRequest, LegacyError>,
    source: RequestSource,
    /// The share of its body in the memory budget. A send may have to wait with its payload.
    permit: Option<Permit>,
}

/// Parses a request, or answers it if it needs no action.
async fn read(gateway: Arc<Gateway>, path: LegacyPath, request: Request) -> Result<Read, Response> {
    let source = RequestSource::of(&gateway.config.access, &request);
    let (request, permit) = match *request.method() {
        Method::POST => {
            let limit = gateway.config.max_payload + ENVELOPE;
            match gateway.body_text(request.into_body(), limit, source.holder(&gateway)).await {
                Ok(body) => (shape::body(path, &body), Some(body.into_permit())),
                // Only a send can be so large.
                Err(refusal) if is_about_size(refusal.code) => return Err(failure(&refusal)),
                Err(refusal) => (Err(LegacyError::NotX0(refusal.message)), None),
            }
        }
        Method::GET => match Query::parse(request.uri()).map(|query| shape::query(&query)) {
            Ok(Some(request)) => (request, None),
            Ok(None) => return Err(answer(StatusCode::OK, Body::empty())),
            Err(refusal) => (Err(LegacyError::NotX0(refusal.message)), None),
        },
        Method::HEAD => return Err(answer(StatusCode::OK, Body::empty())),
        Method::OPTIONS => return Err(answer(StatusCode::NO_CONTENT, Body::empty())),
        _ => {
            let text = "poll and send with POST; net events come with GET";
            let body = Refusal::new(Code::BadRequest, text).body();
            return Err(answer(StatusCode::METHOD_NOT_ALLOWED, body));
        }
    };
    Ok(Read { request, source, permit })
}

impl Legacy {
    async fn act(&self, request: Result<LegacyRequest, LegacyError>, source: &RequestSource) -> Response {
        match request {
            Ok(LegacyRequest::Poll { session: Some(session), ack }) => {
                answer(StatusCode::OK, self.poll(&session, source, ack).await)
            }
            Ok(LegacyRequest::Poll { session: None, .. }) => {
                self.hold(Instant::now() + self.gateway.config.poll_timeout).await;
                answer(StatusCode::OK, NOTHING)
            }
            Ok(LegacyRequest::Send { from, to, payload }) => {
                match self.send(from, to, &payload, source).await {
                    Ok(()) => answer(StatusCode::OK, SENT),
                    Err(refusal) => failure(&refusal),
                }
            }
            Ok(LegacyRequest::Del { session }) => {
                self.delete(session).await;
                answer(StatusCode::OK, NOTHING)
            }
            Err(LegacyError::Send(text)) => failure(&Refusal::new(Code::BadRequest, text)),
            Err(LegacyError::NotX0(text)) => {
                answer(StatusCode::BAD_REQUEST, Refusal::new(Code::BadRequest, text).body())
            }
        }
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
            || self.gateway.broker.directory().holder(session).await.is_some()
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
