//! JSON answers.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// A JSON answer that must not be cached; empty for HEAD. It ends in a newline, so that a terminal shows its prompt below it.
pub(crate) fn json(status: StatusCode, body: impl Into<String>) -> Response {
    let mut body = body.into();
    if !body.is_empty() {
        body.push('\n');
    }
    json_line(status, body.into())
}

/// The same, of a body that ends in its newline already.
pub(crate) fn json_line(status: StatusCode, body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (status, headers, body).into_response()
}

/// Encodes a value as JSON. Our answers consist of names, numbers and raw JSON, which always encode.
pub(crate) fn encode(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("names, numbers and raw JSON always encode")
}
