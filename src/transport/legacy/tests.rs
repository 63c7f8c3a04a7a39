use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::request::Builder;
use futures::FutureExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::answer::SENT;
use super::*;
use crate::protocol::To;
use crate::transport::testing::{gateway, send, session};

/// The routes of this transport on a store in memory.
struct LegacySite {
    gateway: Arc<Gateway>,
    receipts: Arc<LegacyReceipts>,
}

impl LegacySite {
    fn with(flags: &[&str]) -> Self {
        Self { gateway: gateway(flags), receipts: Arc::default() }
    }

    async fn request(&self, request: Builder, body: &Value) -> (StatusCode, String) {
        let routes = Legacy::new(Arc::clone(&self.gateway), Arc::clone(&self.receipts)).routes();
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let response = routes.oneshot(request.body(body).unwrap()).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 24).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn post(&self, body: &Value) -> (StatusCode, String) {
        self.request(Request::post("/python/MsgHandler.py"), body).await
    }

    /// The answer to a poll.
    async fn poll(&self, name: &str) -> Value {
        let (status, body) = self.post(&json!({ "type": "GET", "session_src": name })).await;
        assert_eq!(status, StatusCode::OK);
        serde_json::from_str(&body).unwrap()
    }

    async fn send_to_a(&self, payload: &Value) {
        send(&self.gateway, To::Session(session("A")), payload, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_poll_without_messages_is_held_and_answered_empty() {
    let site = LegacySite::with(&[]);
    for body in [json!({ "type": "GET", "session_src": "A" }), json!({ "type": "GET", "session_src": null })]
    {
        let begun = Instant::now();
        assert_eq!(site.post(&body).await, (StatusCode::OK, NOTHING.to_owned()));
        assert_eq!(begun.elapsed().as_secs(), 10, "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_ends_the_wait() {
    let site = LegacySite::with(&[]);
    let mut waiting = Box::pin(site.poll("A"));
    assert!((&mut waiting).now_or_never().is_none());
    site.send_to_a(&json!({ "a": 1 })).await;
    assert_eq!(waiting.await["messages"], json!([{ "a": 1, "session_src": "sender" }]));
}

#[tokio::test(start_paused = true)]
async fn an_answer_has_one_message_unless_many_are_waiting() {
    let few = LegacySite::with(&[]);
    for n in 0..8 {
        few.send_to_a(&json!({ "n": n })).await;
    }
    assert_eq!(few.poll("A").await["messages"].as_array().unwrap().len(), 1);
    let many = LegacySite::with(&[]);
    for n in 0..9 {
        many.send_to_a(&json!({ "n": n })).await;
    }
    assert_eq!(many.poll("A").await["messages"].as_array().unwrap().len(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_send_is_answered_when_it_is_stored() {
    let site = LegacySite::with(&[]);
    let body = json!({ "type": "SET", "session_src": "B", "session_dst": "A", "payload": { "a": 1 } });
    assert_eq!(site.post(&body).await, (StatusCode::OK, SENT.to_owned()));
    assert_eq!(site.poll("A").await["messages"], json!([{ "a": 1, "session_src": "B" }]));
}

#[tokio::test(start_paused = true)]
async fn a_repeated_send_is_stored_once() {
    let site = LegacySite::with(&[]);
    let body = json!({ "type": "SET", "session_src": "B", "session_dst": "A", "payload": {} });
    for (id, waiting) in [("1", 1), ("1", 1), ("2", 2)] {
        let request = Request::post(format!("/set?a__={id}"));
        assert_eq!(site.request(request, &body).await, (StatusCode::OK, SENT.to_owned()));
        assert_eq!(site.gateway.broker.session(&session("A")).await.waiting, waiting);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_send_is_shown_by_the_page() {
    let site = LegacySite::with(&["--max-payload", "1024"]);
    let large = "x".repeat(20_000);
    for (payload, code) in [
        (json!(7), "bad_request"),
        (json!({ "x": &large[..2000] }), "too_large"),
        (json!({ "x": large }), "too_large"),
    ] {
        let body = json!({ "type": "SET", "session_src": "B", "session_dst": "A", "payload": payload });
        let (status, answer) = site.post(&body).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, &answer["error"]), (StatusCode::OK, &json!(true)));
        assert_eq!((&answer["messages"], &answer["exception_id"]), (&json!(null), &json!(code)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_sender_above_its_rate_is_held_and_then_fails() {
    let site = LegacySite::with(&["--send-rate", "1", "--send-burst", "1", "--poll-timeout", "500ms"]);
    let body = json!({ "type": "SET", "session_src": "B", "session_dst": "A", "payload": {} });
    assert_eq!(site.post(&body).await.1, SENT);
    assert!(site.post(&body).await.1.contains("rate_limited"));
}

#[tokio::test(start_paused = true)]
async fn what_no_x0_client_sends_is_refused_at_once() {
    let site = LegacySite::with(&[]);
    assert_eq!(site.post(&json!([])).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(site.post(&json!({ "type": "PUT" })).await.0, StatusCode::BAD_REQUEST);
    let put = site.request(Request::put("/set"), &json!(null)).await;
    assert_eq!(put.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test(start_paused = true)]
async fn requests_that_ask_for_nothing_are_answered() {
    let site = LegacySite::with(&[]);
    for (request, status) in [
        (Request::get("/get?a__=1"), StatusCode::OK),
        (Request::head("/get"), StatusCode::OK),
        (Request::options("/set"), StatusCode::NO_CONTENT),
    ] {
        assert_eq!(site.request(request, &json!(null)).await, (status, String::new()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_acknowledges_what_was_answered() {
    let site = LegacySite::with(&[]);
    site.send_to_a(&json!({ "n": 1 })).await;
    site.poll("A").await;
    assert_eq!(site.gateway.broker.session(&session("A")).await.waiting, 1);
    let delete = json!({ "type": "DEL", "session_src": "A" });
    assert_eq!(site.post(&delete).await, (StatusCode::OK, NOTHING.to_owned()));
    assert_eq!(site.gateway.broker.session(&session("A")).await.waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_page_of_a_foreign_origin_is_held_and_cannot_send() {
    let site = LegacySite::with(&["--legacy-allow-origin", "http://x0.test"]);
    site.send_to_a(&json!({ "n": 1 })).await;
    let foreign = || Request::post("/python/MsgHandler.py").header("origin", "http://other.test");
    let begun = Instant::now();
    let polled = site.request(foreign(), &json!({ "type": "GET", "session_src": "A" })).await;
    assert_eq!((polled.1.as_str(), begun.elapsed().as_secs()), (NOTHING, 10));
    let body = json!({ "type": "SET", "session_src": "B", "session_dst": "A", "payload": {} });
    assert!(site.request(foreign(), &body).await.1.contains("not allowed"));
    assert_eq!(site.gateway.broker.session(&session("A")).await.waiting, 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_answers_its_polls() {
    let site = LegacySite::with(&[]);
    let mut waiting = Box::pin(site.poll("A"));
    assert!((&mut waiting).now_or_never().is_none());
    let stopped = Instant::now();
    site.gateway.shutdown.cancel();
    assert_eq!(waiting.await["messages"], json!(null));
    assert!(stopped.elapsed() < Duration::from_secs(1));
}
