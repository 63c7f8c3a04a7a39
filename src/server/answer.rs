//! Answers of the requests that skip the routes, and the lines of their headers.

use std::sync::Arc;

use axum::http::HeaderMap;
use axum::response::Response;
use futures::future::BoxFuture;

use crate::message::SharedText;

/// A request that skips the routes.
pub(super) struct Begun {
    pub(super) progress: BoxFuture<'static, Progress>,
    /// Whether it may begin before the requests in front of it have their answers.
    pub(super) joins: bool,
}

/// How far a request is.
pub(super) enum Progress {
    Answered(Answer),
    /// It has its place in the order of the store, so the next one may begin. The answer comes when it is stored.
    Accepted(BoxFuture<'static, Answer>),
}

impl<A: Into<Answer>> From<A> for Progress {
    fn from(answer: A) -> Self {
        Self::Answered(answer.into())
    }
}

/// What answers a request that skips the routes.
#[derive(Debug)]
pub(super) enum Answer {
    /// Status 200 with these lines of headers, which are encoded once for all such answers.
    Text(Arc<[u8]>, SharedText),
    /// Any other answer.
    Response(Response),
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self::Response(response)
    }
}

/// Headers as lines, for [`Answer::Text`].
pub(super) fn header_lines(headers: &HeaderMap) -> Arc<[u8]> {
    let mut lines = Vec::new();
    encode_headers(&mut lines, headers);
    lines.into()
}

/// Writes headers as lines.
pub(super) fn encode_headers(lines: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
}
