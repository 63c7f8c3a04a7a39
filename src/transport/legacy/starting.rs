//! Requests of the x0 client that come before the store is open.

use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use tokio::time::Instant;

use crate::budget::Budget;
use crate::config::Config;
use crate::edge::{BodyBounds, OriginCheck, Refusal, client_address};
use crate::transport::legacy::answer::{NOTHING, answer, failure, refuse};
use crate::transport::legacy::cors::{LegacyCors, demote_foreign};
use crate::transport::legacy::request::{path_of, read};
use crate::transport::legacy::shape::{LegacyPath, LegacyRequest};

/// Since when a request has waited for the store. The time of its poll began then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeldSince(pub(crate) Instant);

impl HeldSince {
    /// `None` for a request that has not waited.
    pub(super) fn of(request: &Request) -> Option<Instant> {
        request.extensions().get().map(|Self(since)| *since)
    }
}

/// Whether a request with this method waits for the store. A preflight does not.
pub(crate) fn needs_store(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::POST)
}

/// Answers a request without a store: after the time of a poll in which the store was not opened. A poll gets no message,
/// and a send fails with this refusal.
pub(crate) async fn answer_without_store(
    (config, budget): (&Config, &Budget),
    request: Request,
    refusal: &Refusal,
) -> Response {
    let cors = LegacyCors::of(&config.access, request.method(), (&request).into());
    let path = path_of(request.uri().path()).unwrap_or(LegacyPath::Handler);
    let bounds = BodyBounds::of_unproved(config, budget);
    let is_post = *request.method() == Method::POST;
    let check = OriginCheck::from(&request);
    let client = client_address(&config.access, check.peer, check.headers);
    let request = read(path, request, bounds).await.map(|read| match cors.is_foreign() {
        true => demote_foreign(read.request, client),
        false => read.request,
    });
    let response = match request {
        // Only a send can be so large.
        Err(_) if is_post => failure(refusal),
        Err(response) => response,
        Ok(Ok(LegacyRequest::Poll { .. } | LegacyRequest::Del { .. })) => answer(StatusCode::OK, NOTHING),
        Ok(Ok(LegacyRequest::Send { .. })) => failure(refusal),
        Ok(Err(error)) => refuse(error),
    };
    cors.apply(response)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use serde_json::Value;

    use super::*;
    use crate::protocol::Code;
    use crate::transport::testing::gateway;

    /// Status and body of the answer to a request, and the origin that may read it.
    async fn answered(method: Method, uri: &str, body: &str) -> (u16, String, String) {
        let gateway = gateway(&[]);
        let request = Request::builder().method(method).uri(uri).body(Body::from(body.to_owned())).unwrap();
        let refusal = Refusal::new(Code::Unavailable, "the broker is starting");
        let response = answer_without_store((&gateway.config, &gateway.budget), request, &refusal).await;
        let origin = response.headers()["access-control-allow-origin"].to_str().unwrap().to_owned();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 16).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap(), origin)
    }

    #[tokio::test]
    async fn a_poll_gets_no_message_and_a_send_fails() {
        let poll =
            answered(Method::POST, "/python/MsgHandler.py", r#"{"type":"GET","session_src":"A"}"#).await;
        assert_eq!(poll, (200, NOTHING.to_owned(), "*".to_owned()));
        let preflight = answered(Method::OPTIONS, "/python/MsgHandler.py", "").await;
        assert_eq!(preflight, (204, String::new(), "*".to_owned()));
        let sends = [
            (Method::POST, "/set", r#"{"type":"SET","session_dst":"B","payload":{}}"#.to_owned()),
            (Method::POST, "/python/MsgHandler.py", format!("{{\"x\":\"{}\"}}", "x".repeat(100_000))),
            (
                Method::GET,
                "/python/MsgHandler.py?Type=SET&DestinationSession=B&Payload=SYS__NET_EVENT-X",
                String::new(),
            ),
        ];
        for (method, uri, body) in sends {
            let (status, answer, _) = answered(method, uri, &body).await;
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!((status, &answer["error"]), (200, &Value::Bool(true)), "{answer}");
        }
        assert_eq!(answered(Method::POST, "/python/MsgHandler.py", "no JSON").await.0, 400);
    }
}
