//! Replays a recording and compares the answers.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::common::*;

/// What is expected instead of the recorded answer.
#[derive(Clone)]
pub enum Departure {
    /// An empty answer to a poll, after its timeout.
    Nothing,
    /// An answer to a poll with these messages.
    Messages(Value),
    /// A send that succeeded.
    Sent,
    /// A send that failed; the page shows the error.
    Failed,
    /// A request that no x0 client sends.
    Status(u16),
}

use Departure::{Failed, Messages, Nothing, Sent, Status};

pub fn recording(name: &str) -> Value {
    let path = format!("{}/tests/fixtures/legacy/scenarios/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

fn check(name: &str, at: usize, exchange: &Value, reply: &Reply, departure: Option<&Departure>) {
    let place = format!("{name}, exchange {at}: {}", reply.body);
    let recorded = &exchange["response"];
    let to_handler = exchange["request"]["target"].as_str().unwrap().starts_with(HANDLER);
    if to_handler {
        assert_eq!(reply.header("access-control-allow-origin"), "*", "{place}");
        assert_eq!(reply.header("access-control-allow-headers"), "*", "{place}");
        assert_eq!(reply.header("content-type"), "application/json; charset=UTF-8", "{place}");
    }
    let body = || reply.json();
    match departure {
        Some(Status(status)) => return assert_eq!(reply.status, *status, "{place}"),
        _ if exchange["request"]["method"] == "OPTIONS" => {
            // The old server answered 200 to a preflight. Browsers accept 204 too (M), and it needs no body.
            assert_eq!((reply.status, reply.body.as_str()), (204, ""), "{place}");
            return;
        }
        _ => assert_eq!(reply.status, recorded["status"].as_u64().unwrap() as u16, "{place}"),
    }
    match departure {
        Some(Nothing) => assert_eq!(body(), json!({ "messages": null }), "{place}"),
        Some(Messages(messages)) => assert_eq!(&body()["messages"], messages, "{place}"),
        Some(Sent) => assert_eq!(body(), json!({ "messages": null, "status": "ok" }), "{place}"),
        Some(Failed) => assert_failed(&body()),
        Some(Status(_)) => unreachable!("handled above"),
        None => {
            let text = recorded["body"].as_str().unwrap();
            if text.is_empty() || !to_handler {
                assert_eq!(reply.body.is_empty(), text.is_empty(), "{place}");
                return;
            }
            let Ok(expected) = serde_json::from_str::<Value>(text) else {
                // serde_json refuses lone surrogates, so the bytes are compared.
                let value = |text: &str| text.split("\"t\":").nth(1).unwrap().trim_start().to_owned();
                let expected = value(text).split('"').nth(1).unwrap().to_owned();
                assert_eq!(value(&reply.body).split('"').nth(1).unwrap(), expected, "{place}");
                return;
            };
            let mut found = body();
            if expected.get("error").is_some() {
                return assert_failed(&found);
            }
            // This server adds one key: the last seq of the answer, for clients that acknowledge.
            if found["messages"].is_array() {
                assert!(found.as_object_mut().unwrap().remove("seq").unwrap().is_u64());
            }
            assert_eq!(found, expected, "{place}");
        }
    }
}

fn assert_failed(body: &Value) {
    assert_eq!(body["error"], true, "{body}");
    assert!(body["exception_id"].is_string() && body["exception"].as_str().unwrap().len() > 10, "{body}");
}

/// A request without an answer so far.
type Pending = JoinHandle<Option<Reply>>;

/// How clients reach what a recording is replayed on.
pub trait Door {
    /// Headers of the recording that are not sent.
    const UNSENT: &[&str] = &["host", "content-length"];

    /// A connection of a client, which reads or sends for this session first.
    async fn connect(&self, session: Option<&str>) -> Http;

    /// Waits until it has noticed that connections are closed, so that so many requests are left without an answer.
    async fn noticed(&self, left: usize);
}

impl Door for TestServer {
    async fn connect(&self, _: Option<&str>) -> Http {
        self.http().await
    }

    /// The system closes a connection at once.
    async fn noticed(&self, _: usize) {}
}

/// The session that a request is of.
fn session(exchange: &Value) -> Option<String> {
    let body: Value = serde_json::from_str(exchange["request"]["body"].as_str()?).ok()?;
    body["session_src"].as_str().or(body["SessionData"]["Value"].as_str()).map(str::to_owned)
}

/// Replays a recording.
pub async fn replay<D: Door>(door: &D, name: &str, departures: Vec<(usize, Departure)>) {
    let departures: HashMap<usize, Departure> = departures.into_iter().collect();
    let recording = recording(name);
    let exchanges = recording["exchanges"].as_array().unwrap();
    // The events in order: a request starts, is answered, or is closed by the client.
    let mut line = Vec::new();
    for (at, exchange) in exchanges.iter().enumerate() {
        let start = exchange["offset_ms"].as_i64().unwrap();
        line.push((start, 1, at));
        let end = exchange["elapsed_ms"].as_i64().or(exchange["client_closed_after_ms"].as_i64());
        line.push((start + end.unwrap(), if exchange["response"].is_null() { 2 } else { 0 }, at));
    }
    // Events of one millisecond: answers, then starts, then closes.
    line.sort();
    let mut connections: HashMap<i64, Arc<Mutex<Http>>> = HashMap::new();
    let mut pending: HashMap<usize, Pending> = HashMap::new();
    for (_, what, at) in line {
        let exchange = &exchanges[at];
        let connection = exchange["connection"].as_i64().unwrap();
        match what {
            0 => {
                let reply = soon(pending.remove(&at).unwrap()).await.unwrap().expect("an answer");
                check(name, at, exchange, &reply, departures.get(&at));
            }
            1 => {
                if let Entry::Vacant(place) = connections.entry(connection) {
                    // A preflight has no body: the next request on its connection has.
                    let same = |one: &&Value| one["connection"] == exchange["connection"];
                    let session = exchanges.iter().filter(same).find_map(session);
                    place.insert(Arc::new(Mutex::new(door.connect(session.as_deref()).await)));
                }
                let http = Arc::clone(&connections[&connection]);
                pending.insert(at, start(http, exchange.clone(), D::UNSENT).await);
            }
            _ => {
                // The page was closed. This server may have answered already.
                let task = pending.remove(&at).unwrap();
                if task.is_finished() || departures.contains_key(&at) {
                    let reply = soon(task).await.unwrap().expect("an answer");
                    if let Some(departure) = departures.get(&at) {
                        let mut exchange = exchange.clone();
                        exchange["response"] = json!({ "status": 200, "body": "" });
                        check(name, at, &exchange, &reply, Some(departure));
                    }
                } else {
                    task.abort();
                    assert!(task.await.is_err());
                }
                connections.remove(&connection);
                door.noticed(pending.len()).await;
            }
        }
    }
}

/// Sends a request. Returns when it is written.
async fn start(http: Arc<Mutex<Http>>, exchange: Value, unsent: &'static [&str]) -> Pending {
    let mut http = http.lock_owned().await;
    let (begun, begins) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        let request = &exchange["request"];
        let body = match request["body"].as_str() {
            Some(body) => body.as_bytes().to_vec(),
            None => decode_base64(request["body_base64"].as_str().unwrap()),
        };
        let headers: Vec<(&str, &str)> = request["headers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|header| (header[0].as_str().unwrap(), header[1].as_str().unwrap()))
            .filter(|(name, _)| !unsent.contains(&name.to_lowercase().as_str()))
            .collect();
        let (method, target) = (request["method"].as_str().unwrap(), request["target"].as_str().unwrap());
        let answer = http.try_request(method, target, &headers, body);
        tokio::pin!(answer);
        // The first poll passes the request to the connection.
        let early = futures::poll!(&mut answer);
        _ = begun.send(());
        match early {
            std::task::Poll::Ready(reply) => reply.ok(),
            std::task::Poll::Pending => answer.await.ok(),
        }
    });
    soon(begins).await.unwrap();
    task
}

fn decode_base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let value = |byte| DIGITS.iter().position(|digit| *digit == byte).map(|at| at as u32);
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for digit in text.bytes().filter_map(value) {
        bits = bits << 6 | digit;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

/// The indices of all requests of a recording except OPTIONS.
pub fn calls(name: &str) -> Vec<usize> {
    let recording = recording(name);
    let exchanges = recording["exchanges"].as_array().unwrap();
    (0..exchanges.len()).filter(|at| exchanges[*at]["request"]["method"] != "OPTIONS").collect()
}
