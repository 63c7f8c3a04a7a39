//! Answers to the x0 client.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::broker::Sending;
use crate::edge::{Refusal, encode};
use crate::message::SharedText;
use crate::metrics::{self, SentBy};
use crate::protocol::Code;
use crate::transport::legacy::cors::LegacyCors;
use crate::transport::legacy::shape::LegacyError;

/// The answer without messages.
pub(super) const NOTHING: &str = r#"{"messages":null}"#;

/// The answer to a send that is stored.
pub(super) const SENT: &str = r#"{"messages":null,"status":"ok"}"#;

/// What a request of the x0 client is answered with, besides CORS headers.
#[derive(Debug)]
pub(crate) enum LegacyAnswer {
    /// Status 200 with this body.
    Text(SharedText),
    Response(Response),
}

/// How far a request is.
#[derive(Debug)]
pub(crate) enum LegacyProgress {
    Answered(LegacyAnswer),
    /// A send has its place in the order, so the next request may begin.
    Accepted(Accepted),
}

impl LegacyAnswer {
    /// The same answer, which all pages may read.
    pub(super) fn open(self) -> Self {
        match self {
            Self::Response(response) => LegacyCors::Any.apply(response).into(),
            text @ Self::Text(_) => text,
        }
    }

    /// Status 200 with this body.
    pub(super) fn text(body: &'static str) -> Self {
        Self::Text(body.to_owned().into())
    }

    /// As a response, without CORS headers.
    pub(super) fn into_response(self) -> Response {
        match self {
            Self::Text(text) => answer(StatusCode::OK, text),
            Self::Response(response) => response,
        }
    }
}

impl From<Response> for LegacyAnswer {
    fn from(response: Response) -> Self {
        Self::Response(response)
    }
}

/// An answer without CORS headers; [`LegacyCors::apply`] sets them.
pub(super) fn answer(status: StatusCode, body: impl Into<Body>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (status, headers, body.into()).into_response()
}

/// A message that has its place in the order. Resolves to the answer when it is stored, with the headers that let all pages read it.
#[derive(Debug)]
pub(crate) struct Accepted(Sending);

impl Accepted {
    pub(super) fn new(sending: Sending) -> Self {
        Self(sending)
    }
}

impl Future for Accepted {
    type Output = LegacyAnswer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<LegacyAnswer> {
        let sent = ready!(Pin::new(&mut self.0).poll(cx)).map(|_| ());
        Poll::Ready(answer_to(sent.map_err(Refusal::from)).open())
    }
}

/// The answer to a send that is stored, or was refused.
pub(super) fn answer_to(sent: Result<(), Refusal>) -> LegacyAnswer {
    metrics::count_answer(SentBy::Legacy, sent.as_ref().err().map(|refusal| refusal.code));
    match sent {
        Ok(()) => LegacyAnswer::text(SENT),
        Err(refusal) => failure(&refusal).into(),
    }
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
pub(super) fn failure(refusal: &Refusal) -> Response {
    let Refusal { code, message, .. } = refusal;
    let body = FailureBody { messages: (), error: true, exception_id: *code, exception: message };
    noted(answer(StatusCode::OK, encode(&body)), refusal)
}

/// Counts a refusal, and leaves it in its answer for the log.
fn noted(mut response: Response, refusal: &Refusal) -> Response {
    metrics::refused(SentBy::Legacy, refusal.code).count();
    response.extensions_mut().insert(refusal.for_log());
    response
}

/// A failure of a request that no x0 client makes.
pub(super) fn not_x0(status: StatusCode, text: impl Into<String>) -> Response {
    let refusal = Refusal::new(Code::BadRequest, text);
    noted(answer(status, refusal.body()), &refusal)
}

/// The answer to a request that cannot be read as one of the x0 client.
pub(super) fn refuse(error: LegacyError) -> Response {
    match error {
        LegacyError::Send(text) => failure(&Refusal::new(Code::BadRequest, text)),
        LegacyError::NotX0(text) => not_x0(StatusCode::BAD_REQUEST, text),
    }
}
