//! The unmodified x0 client with `--auth token`: the id of a session that a backend registered is its credential.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::common::*;
use crate::guarded::*;

/// One poll of an x0 page; the whole answer.
async fn poll(http: &mut Http, session: &str) -> Reply {
    let reply = http.post(&x0_target(), x0_poll(session)).await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, "*"));
    reply
}

fn form(from: &str, to: &str, form: &Value) -> Value {
    json!({
        "RequestData": {
            "FormlistSelectDstUser": { "UserID": "user", "DstUserSession": to },
            "FormlistExchangeData": form,
        },
        "ServiceData": {},
        "SessionData": { "ID": "SYS_SESSION", "Value": from },
    })
}

const A: &str = "0c5f2f0c-session-of-A-that-nobody-else-may-see";
const B: &str = "77ab01d4-session-of-B-that-nobody-else-may-see";

#[tokio::test]
async fn pages_poll_send_to_users_and_answer_to_handles_and_see_no_ids_of_each_other() {
    let server = Guarded::start().await;
    // A has no user, so it is addressed by its handle. B belongs to a user.
    let handle = server.register(A, json!({ "ttl": 600 })).await["handle"].as_str().unwrap().to_owned();
    server.register(B, json!({ "user": "bob" })).await;
    let (mut a, mut b) = (server.http().await, server.http().await);
    let mut seen_by_b = String::new();
    let mut seen_by_a = String::new();
    // The form, the raw SET and the net event to a user.
    let net_event = format!(
        "{HANDLER}?a__=17&SYS_SESSION={A}&Type=SET&DestinationSession=bob&Payload=SYS__NET_EVENT-refresh"
    );
    let sends = [
        a.post(&x0_target(), form(A, "bob", &json!({ "Form2": "hello" }))).await,
        a.post(&x0_target(), x0_set(A, "bob", &json!({ "n": 2, "session_src": A }))).await,
        a.get(&net_event).await,
    ];
    for reply in sends {
        assert_eq!(reply.json(), json!({ "messages": null, "status": "ok" }));
    }
    let mut socket = server.welcomed(&token("bob", B)).await;
    for expected in [
        json!({ "msg-type": "net-message", "method-id": "set-data", "dst-object": "FormlistExchangeData",
                "payload": { "Form2": "hello" }, "session_src": handle }),
        json!({ "n": 2, "session_src": handle }),
        json!({ "msg-type": "net-message", "fire-events": ["refresh"], "session_src": handle }),
    ] {
        let reply = poll(&mut b, B).await;
        seen_by_b.push_str(&format!("{:?}{}", reply.headers, reply.body));
        assert_eq!(reply.json()["messages"], json!([expected]));
        // The same over WebSocket.
        let frame = socket.recv_text().await;
        seen_by_b.push_str(&frame);
        let frame: Value = serde_json::from_str(&frame).unwrap();
        assert_eq!((&frame["from"], &frame["payload"]), (&json!(handle), &expected));
    }
    // B replies to the handle.
    let reply = b.post(&x0_target(), x0_set(B, &handle, &json!({ "answer": 1 }))).await;
    assert_eq!(reply.json()["status"], "ok");
    let reply = poll(&mut a, A).await;
    seen_by_a.push_str(&reply.body);
    assert_eq!(reply.json()["messages"], json!([{ "answer": 1, "session_src": "bob" }]));
    // The same over WebSocket.
    let sent = socket.send_to(&handle, json!("native")).await;
    let reply = poll(&mut a, A).await;
    seen_by_a.push_str(&reply.body);
    assert_eq!(reply.json()["messages"], json!([{ "payload": "native", "session_src": "bob" }]));
    assert_eq!(reply.json()["seq"], sent);
    // A refusal does not reveal another session either.
    for to in [A, "nobody"] {
        let reply = b.post(&x0_target(), x0_set(B, to, &json!({}))).await;
        seen_by_b.push_str(&reply.body);
        socket.send(json!({ "type": "send", "to": { "session": to }, "payload": 1 })).await;
        seen_by_b.push_str(&socket.recv_text().await);
    }
    assert!(!seen_by_b.contains(A) && !seen_by_b.contains(&A[..8]), "{seen_by_b}");
    assert!(!seen_by_a.contains(B) && !seen_by_a.contains(&B[..8]), "{seen_by_a}");
    let log = server.stop().await;
    assert!(!log.contains(A) && !log.contains(B), "{log}");
}

#[tokio::test]
async fn a_poll_waits_for_the_registration_of_its_session() {
    let server = Guarded::with(&["--poll-timeout", "400ms"]).await;
    let mut http = server.http().await;
    for _ in 0..2 {
        let begun = Instant::now();
        assert_eq!(poll(&mut http, A).await.json(), json!({ "messages": null }));
        assert!(begun.elapsed() >= Duration::from_millis(390), "{:?}", begun.elapsed());
    }
    // A send is answered at once, and the page shows the error.
    let reply = http.post(&x0_target(), x0_set(A, "bob", &json!({}))).await.json();
    assert_eq!((&reply["error"], &reply["exception_id"]), (&json!(true), &json!("unauthorized")));
    let server = Guarded::with(&["--poll-timeout", "60s"]).await;
    let mut http = server.http().await;
    let waiting = tokio::spawn(async move { poll(&mut http, A).await.json() });
    server.register("somebody-else", json!({})).await;
    server.register(A, json!({ "user": "ann" })).await;
    server.call("POST", "/v1/messages", KEY, json!({ "to": { "user": "ann" }, "payload": { "n": 1 } })).await;
    let got = soon(waiting).await.unwrap();
    assert_eq!(got["messages"], json!([{ "n": 1, "session_src": "the shop" }]));
}

/// A poll ends when its registration expires.
#[tokio::test]
async fn a_poll_ends_with_the_registration() {
    let server = Guarded::with(&["--poll-timeout", "60s"]).await;
    server.register(A, json!({ "user": "ann", "ttl": 3 })).await;
    // A token keeps the session registered, but the id stays a credential for the time of the registration only.
    let mut socket = server.welcomed(&token("ann", A)).await;
    let mut http = server.http().await;
    assert_eq!(poll(&mut http, A).await.json(), json!({ "messages": null }));
    let reply = http.post(&x0_target(), x0_set(A, "ann", &json!({}))).await.json();
    assert_eq!(reply["exception_id"], "unauthorized");
    let sent =
        server.call("POST", "/v1/messages", KEY, json!({ "to": { "user": "ann" }, "payload": 1 })).await;
    assert_eq!(sent.json(), json!({ "sessions": 1 }));
    assert_eq!(socket.payload().await, 1);
}

/// The unmodified client is slowed down by late answers. However much it sends and polls, it is never refused.
#[tokio::test]
async fn pages_are_slowed_down_and_never_refused() {
    let limits = [
        "--send-rate",
        "5",
        "--send-burst",
        "2",
        "--connections-per-session",
        "2",
        "--poll-timeout",
        "500ms",
    ];
    let server = Guarded::with(&limits).await;
    server.register(A, json!({ "user": "ann" })).await;
    server.register(B, json!({ "user": "bob" })).await;
    let mut http = server.http().await;
    let begun = Instant::now();
    for n in 0..6 {
        let reply = http.post(&x0_target(), x0_set(A, "bob", &json!({ "n": n }))).await;
        assert_eq!(reply.json()["status"], "ok", "{n}: {}", reply.body);
    }
    assert!(begun.elapsed() >= Duration::from_millis(600), "{:?}", begun.elapsed());
    let polls: Vec<_> = (0..5)
        .map(|_| {
            let address = server.address;
            tokio::spawn(async move {
                let begun = Instant::now();
                (poll(&mut Http::connect(address).await, A).await.json(), begun.elapsed())
            })
        })
        .collect();
    for poll in polls {
        let (answer, time) = soon(poll).await.unwrap();
        assert_eq!(answer, json!({ "messages": null }));
        assert!(time >= Duration::from_millis(490), "{time:?}");
    }
    // DEL of an unregistered session has no effect.
    let reply = http.post(&x0_target(), json!({ "type": "DEL", "session_src": "unknown" })).await;
    assert_eq!(reply.status, 200);
}
