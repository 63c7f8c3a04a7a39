//! One session over all transports at once: the same messages, in the same order. Also over two nodes.

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::common::*;

const MESSAGES: u64 = 200;

/// A reader on another node than who acknowledges is not waited for. It gets everything while no more than so many messages
/// are on their way to it: they are in its hub.
const AHEAD: usize = 8;

async fn over_websocket(mut ws: Ws, ahead: &Semaphore) -> Vec<Value> {
    let mut got = Vec::new();
    while got.len() < MESSAGES as usize {
        got.push(ws.payload().await);
        ahead.add_permits(1);
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

async fn over_sse(mut events: Events, ahead: &Semaphore) -> Vec<Value> {
    let mut got = Vec::new();
    while got.len() < MESSAGES as usize {
        let event = events.next().await;
        if event.name == "message" {
            got.push(event.data["payload"].clone());
            ahead.add_permits(1);
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

/// Sends volatile messages until both readers got one: then both are live.
async fn all_live(server: &TestServer, ws: &mut Ws, events: &mut Events) {
    let body = json!({ "to": { "session": "B" }, "payload": "live", "volatile": true });
    assert_eq!(server.post("/v1/messages?session=A", &body).await.status, 200);
    assert_eq!(ws.message().await["seq"], Value::Null);
    while events.next().await.name != "message" {}
}

/// One session over all transports at once. Two of its readers are at another node, if there are two, and every other message
/// is sent there.
pub async fn all_transports_at_once(here: &TestServer, there: &TestServer) {
    let mut websocket = there.session("B").await;
    let mut sse = Events::open(there, "?session=B", None).await;
    all_live(there, &mut websocket, &mut sse).await;
    let (poll, legacy) = (here.http().await, here.http().await);
    let mut acks = here.session("B").await;
    let ahead = [Semaphore::new(AHEAD), Semaphore::new(AHEAD)];
    let nodes = [here, there];
    // The ways of sending, in turn.
    let senders = async {
        let mut ws = [here.session("A").await, there.session("A").await];
        let mut http = [here.http().await, there.http().await];
        let mut page = [here.http().await, there.http().await];
        for n in 0..MESSAGES {
            for ahead in &ahead {
                soon(ahead.acquire()).await.unwrap().forget();
            }
            let (payload, node) = (json!({ "n": n }), n as usize % nodes.len());
            match n % 3 {
                0 => _ = ws[node].send_to("B", payload).await,
                1 => {
                    let body = json!({ "to": { "session": "B" }, "payload": payload });
                    assert_eq!(http[node].post("/v1/messages?session=A", body).await.status, 200);
                }
                _ => {
                    let reply = page[node].post(&x0_target(), x0_set("A", "B", &payload)).await;
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
            over_websocket(websocket, &ahead[0]),
            over_poll(poll),
            over_sse(sse, &ahead[1]),
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

#[tokio::test]
async fn one_session_over_all_transports_at_once() {
    let server = TestServer::start().await;
    all_transports_at_once(&server, &server).await;
}

/// Waits until a server knows that a session has acknowledged so far.
async fn floor_becomes(server: &TestServer, session: &str, floor: u64) {
    soon(async {
        loop {
            let mut ws = server.ws(&format!("?session={session}")).await;
            if ws.recv().await["seq"] == floor {
                return;
            }
        }
    })
    .await;
}

/// WebSocket, long-poll, WebSocket again, each with the cursor of the one before and at the other node, if there are two, and
/// at last an x0 page: no message is lost, and no acknowledged message is repeated.
pub async fn switch_transports(here: &TestServer, there: &TestServer) {
    let (mut got, mut after) = (Vec::new(), 0);
    for round in 0..5 {
        let (first, second) = if round % 2 == 0 { (here, there) } else { (there, here) };
        for n in 0..4 {
            first.send("A", "B", json!({ "n": round * 4 + n })).await;
        }
        let mut ws = second.ws(&format!("?session=B&after={after}")).await;
        assert_eq!(ws.recv().await["type"], "welcome");
        for _ in 0..2 {
            let message = ws.message().await;
            got.push(message["payload"].clone());
            after = message["seq"].as_u64().unwrap();
        }
        // Only the cursor of the next transport acknowledges the second message.
        drop(ws);
        let reply = first.get(&format!("/v1/messages?session=B&after={after}&wait=0")).await;
        got.push(reply.payloads()[0].clone());
        after = reply.json()["messages"][0]["seq"].as_u64().unwrap();
    }
    // The last poll delivered message 19 too, but nobody acknowledged it.
    let reply = here.post("/v1/ack", json!({ "session": "B", "seq": after })).await;
    assert_eq!(reply.json()["seq"], after);
    floor_becomes(there, "B", after).await;
    let mut page = there.http().await;
    for _ in 15..20 {
        got.extend(page.x0("B").await);
    }
    assert_eq!(got, (0..20).map(|n| json!({ "n": n })).collect::<Vec<_>>());
}

#[tokio::test]
async fn switching_transports_loses_and_repeats_nothing() {
    let server = TestServer::start().await;
    switch_transports(&server, &server).await;
}
