//! One session over all transports at once: the same messages, in the same order.

use serde_json::{Value, json};

use crate::common::*;

const MESSAGES: u64 = 200;

async fn over_websocket(mut ws: Ws) -> Vec<Value> {
    let mut got = Vec::new();
    while got.len() < MESSAGES as usize {
        got.push(ws.payload().await);
    }
    got
}

async fn over_poll(mut http: Http) -> Vec<Value> {
    let (mut got, mut after) = (Vec::new(), 0);
    while got.len() < MESSAGES as usize {
        let reply = http.get(&format!("/v1/messages?session=B&after={after}&wait=10")).await;
        assert_eq!(reply.json().get("gaps"), None, "{}", reply.body);
        after = reply.json()["seq"].as_u64().unwrap();
        got.extend(reply.payloads());
    }
    got
}

async fn over_sse(mut events: Events) -> Vec<Value> {
    let mut got = Vec::new();
    while got.len() < MESSAGES as usize {
        let event = events.next().await;
        if event.name == "message" {
            got.push(event.data["payload"].clone());
        }
    }
    got
}

async fn over_legacy(mut http: Http) -> Vec<Value> {
    let mut got = Vec::new();
    while got.len() < MESSAGES as usize {
        got.extend(http.x0("B").await);
    }
    got
}

#[tokio::test]
async fn one_session_over_all_transports_at_once() {
    let server = TestServer::start().await;
    let websocket = server.session("B").await;
    let sse = Events::open(&server, "?session=B", None).await;
    let (poll, legacy) = (server.http().await, server.http().await);
    let mut acks = server.session("B").await;
    // The ways of sending, in turn.
    let senders = async {
        let mut ws = server.session("A").await;
        let (mut http, mut page) = (server.http().await, server.http().await);
        for n in 0..MESSAGES {
            let payload = json!({ "n": n });
            match n % 3 {
                0 => _ = ws.send_to("B", payload).await,
                1 => {
                    let body = json!({ "to": { "session": "B" }, "payload": payload });
                    assert_eq!(http.post("/v1/messages?session=A", body).await.status, 200);
                }
                _ => {
                    let reply = page.post(&x0_target(), x0_set("A", "B", &payload)).await;
                    assert_eq!(reply.json()["status"], "ok");
                }
            }
        }
    };
    // A fifth reader acknowledges at once. The slower readers must not lose messages by that.
    let acknowledge = async {
        for _ in 0..MESSAGES {
            let seq = acks.message().await["seq"].as_u64().unwrap();
            acks.ack(seq).await;
        }
    };
    let all = async {
        tokio::join!(
            over_websocket(websocket),
            over_poll(poll),
            over_sse(sse),
            over_legacy(legacy),
            senders,
            acknowledge
        )
    };
    let (websocket, poll, sse, legacy, ..) = soon(all).await;
    let mut expected: Vec<Value> = (0..MESSAGES).map(|n| json!({ "n": n })).collect();
    // A message of the x0 client has its sender in the payload, on every transport.
    assert_eq!(legacy, expected);
    for (n, payload) in expected.iter_mut().enumerate() {
        if n % 3 == 2 {
            payload["session_src"] = json!("A");
        }
    }
    assert_eq!(websocket, expected);
    assert_eq!(poll, expected);
    assert_eq!(sse, expected);
}

/// WebSocket, long-poll, WebSocket again, each with the cursor of the one before, and at last an x0 page: no message is
/// lost, and no acknowledged message is repeated.
#[tokio::test]
async fn switching_transports_loses_and_repeats_nothing() {
    let server = TestServer::start().await;
    let (mut got, mut after) = (Vec::new(), 0);
    for round in 0..5 {
        for n in 0..4 {
            server.send("A", "B", json!({ "n": round * 4 + n })).await;
        }
        let mut ws = server.ws(&format!("?session=B&after={after}")).await;
        assert_eq!(ws.recv().await["type"], "welcome");
        for _ in 0..2 {
            let message = ws.message().await;
            got.push(message["payload"].clone());
            after = message["seq"].as_u64().unwrap();
        }
        // Only the cursor of the next transport acknowledges the second message.
        drop(ws);
        let reply = server.get(&format!("/v1/messages?session=B&after={after}&wait=0")).await;
        got.push(reply.payloads()[0].clone());
        after = reply.json()["messages"][0]["seq"].as_u64().unwrap();
    }
    // The last poll delivered message 19 too, but nobody acknowledged it.
    let reply = server.post("/v1/ack", json!({ "session": "B", "seq": after })).await;
    assert_eq!(reply.json()["seq"], after);
    let mut page = server.http().await;
    for _ in 15..20 {
        got.extend(page.x0("B").await);
    }
    assert_eq!(got, (0..20).map(|n| json!({ "n": n })).collect::<Vec<_>>());
}
