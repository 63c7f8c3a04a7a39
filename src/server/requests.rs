//! What is logged of requests: each of them at level DEBUG, in a span of its own, and refusals.
//!
//! Addresses of requests are not logged: they may name sessions.

use std::net::IpAddr;

use axum::response::Response;
use futures::FutureExt;
use futures::future::BoxFuture;
use tracing::{Instrument, Level, Span};

use crate::config::Access;
use crate::edge::{Headers, Peer, RefusalNote, client_behind_proxy, log_refusal};
use crate::link::Link;
use crate::server::answer::{Answer, Progress};

/// What the log says of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Logged {
    /// The name of the door that it came through.
    door: &'static str,
    /// The client: the peer of the connection, or what a trusted proxy says.
    client: Option<IpAddr>,
}

impl Logged {
    /// A request with these headers on this connection.
    pub(super) fn new(door: &'static str, access: &Access, link: &Link, headers: Headers<'_>) -> Self {
        let peer = link.peer();
        Self { door, client: client_behind_proxy(access, Peer(peer), headers).or(peer) }
    }

    /// The span of the request, with the trace that its `traceparent` names. `None` if nobody wants to see it: then nothing is
    /// parsed.
    pub(super) fn span(self, headers: Headers<'_>) -> Option<Span> {
        if !tracing::enabled!(Level::DEBUG) {
            return None;
        }
        let Self { door, client } = self;
        let client = client.map(tracing::field::display);
        let (trace_id, parent_id) = headers.text("traceparent").and_then(trace_parent).unzip();
        Some(tracing::debug_span!("request", door, client, trace_id, parent_id))
    }

    /// Logs the refusal in an answer, if it is one.
    pub(super) fn answered(self, response: &Response) {
        if let Some(RefusalNote { code, client }) = response.extensions().get() {
            log_refusal(self.door, *code, client.or(self.client));
        }
    }
}

/// The ids of a trace and of the span of the caller (W3C Trace Context section 3.2.2).
fn trace_parent(value: &str) -> Option<(&str, &str)> {
    let mut fields = value.split('-');
    let (version, trace, parent, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let is_hex = |field: &str, len: usize| {
        field.len() == len && field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |id: &str, len: usize| is_hex(id, len) && id.bytes().any(|byte| byte != b'0');
    let ends = version != "00" || fields.next().is_none();
    let is_valid = is_hex(version, 2) && version != "ff" && is_hex(flags, 2) && ends;
    (is_valid && is_id(trace, 32) && is_id(parent, 16)).then_some((trace, parent))
}

/// Logs a request when it is answered, within its span.
pub(super) fn traced(
    span: Option<Span>,
    answering: BoxFuture<'static, Progress>,
) -> BoxFuture<'static, Progress> {
    let Some(span) = span else { return answering };
    let logged = answering.inspect(|progress| match progress {
        Progress::Answered(Answer::Response(response)) => log_answer(response.status().as_u16()),
        Progress::Answered(Answer::Text(..)) => log_answer(200),
        Progress::Accepted(_) => tracing::debug!("accepted; the answer comes when it is stored"),
    });
    logged.instrument(span).boxed()
}

/// The same of a request whose answer comes from the routes.
pub(super) fn traced_response(
    span: Option<Span>,
    answering: BoxFuture<'static, Response>,
) -> BoxFuture<'static, Response> {
    let Some(span) = span else { return answering };
    answering.inspect(|response| log_answer(response.status().as_u16())).instrument(span).boxed()
}

fn log_answer(status: u16) {
    tracing::debug!(status, "answered");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_taken_as_the_standard_says() {
        let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        for (value, is_valid) in [
            (format!("00-{trace}-{parent}-01"), true),
            (format!("cc-{trace}-{parent}-01-more"), true),
            (format!("00-{trace}-{parent}-01-more"), false),
            (format!("ff-{trace}-{parent}-01"), false),
            (format!("00-{}-{parent}-01", "0".repeat(32)), false),
            (format!("00-{trace}-{}-01", "0".repeat(16)), false),
            (format!("00-{}-{parent}-01", trace.to_uppercase()), false),
            (format!("00-{trace}-{parent}"), false),
            (String::new(), false),
        ] {
            assert_eq!(trace_parent(&value), is_valid.then_some((trace, parent)), "{value}");
        }
    }
}
