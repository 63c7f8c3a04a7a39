//! Answers of the requests that skip the routes, and the lines of their headers.

use std::sync::Arc;

use axum::http::HeaderMap;
use axum::response::Response;

use crate::message::SharedText;

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
