//! JSON answers.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// A JSON answer that must not be cached.
pub(crate) fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (status, headers, body.into()).into_response()
}

/// Encodes a value as JSON. Our answers consist of names, numbers and raw JSON, which always encode.
pub(crate) fn encode(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("names, numbers and raw JSON always encode")
}
