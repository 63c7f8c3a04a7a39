//! JSON answers.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::message::{Publication, SharedText};

/// The field of messages of an answer without any.
const NO_MESSAGES: &str = r#""messages":[]"#;

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

/// An answer with an empty field `messages`, into which these frames are put as they are. Room is made for them if their `size` in
/// bytes is named.
pub(crate) fn with_frames(answer: &str, messages: &[Arc<Publication>], size: Option<usize>) -> SharedText {
    // No other text holds these characters: its quotes are escaped.
    let (head, tail) = answer.split_once(NO_MESSAGES).expect("the field is there");
    let mut text = SharedText::default();
    if let Some(size) = size {
        // With the commas, and what comes behind the answer.
        text.reserve(answer.len() + size + messages.len() + 1);
    }
    text.push_str(head);
    text.push_str(&NO_MESSAGES[..NO_MESSAGES.len() - 1]);
    for (n, message) in messages.iter().enumerate() {
        text.push_str(if n > 0 { "," } else { "" });
        text.push_frame(message);
    }
    text.push_str("]");
    text.push_str(tail);
    text
}
