//! Readers on all transports, which connect again after a crash.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

use crate::common::*;

/// The name of a message: its sender, and its number at this sender.
pub type Name = (usize, u64);

/// The current addresses of the servers.
pub type Where = watch::Receiver<Vec<SocketAddr>>;

/// Any of the servers, as soon as there is one.
pub async fn address(place: &mut Where) -> SocketAddr {
    let places = soon(place.wait_for(|places| !places.is_empty())).await.unwrap();
    *fastrand::choice(&*places).unwrap()
}

/// Whether to connect to any server again.
fn moves_on(roams: bool) -> bool {
    roams && fastrand::u8(..64) == 0
}

/// What one reader received.
#[derive(Default)]
pub struct Got {
    pub seqs: HashMap<Name, u64>,
    names: BTreeMap<u64, Name>,
    /// The numbers of each sender's messages, in the order of their first arrival.
    pub firsts: HashMap<usize, Vec<u64>>,
    /// When each message came first.
    pub arrivals: HashMap<Name, Instant>,
    repeats: usize,
}

pub fn name(payload: &Value) -> Name {
    (payload["s"].as_u64().unwrap() as usize, payload["n"].as_u64().unwrap())
}

impl Got {
    /// Checks that each message has one seq, and each seq one message.
    fn message(&mut self, seq: u64, payload: &Value) {
        let name = name(payload);
        let known = *self.names.entry(seq).or_insert(name);
        assert_eq!(known, name, "seq {seq} is two messages");
        match self.seqs.insert(name, seq) {
            Some(before) => {
                assert_eq!(before, seq, "message {name:?} has two seqs");
                self.repeats += 1;
            }
            None => self.first(name),
        }
    }

    /// The x0 client receives no seq for a single message.
    fn unnumbered(&mut self, payload: &Value) {
        let name = name(payload);
        match self.seqs.insert(name, 0) {
            Some(_) => self.repeats += 1,
            None => self.first(name),
        }
    }

    fn first(&mut self, (sender, number): Name) {
        self.firsts.entry(sender).or_default().push(number);
        self.arrivals.insert((sender, number), Instant::now());
    }

    fn has(&self, expected: &[Name]) -> bool {
        expected.iter().all(|name| self.seqs.contains_key(name))
    }
}

/// What a reader received so far.
#[derive(Default)]
pub struct Shared {
    pub got: Mutex<Got>,
    /// Notified at each change.
    changed: Notify,
}

impl Shared {
    fn message(&self, seq: u64, payload: &Value) {
        self.got.lock().unwrap().message(seq, payload);
        self.changed.notify_one();
    }

    fn unnumbered(&self, payload: &Value) {
        self.got.lock().unwrap().unnumbered(payload);
        self.changed.notify_one();
    }

    /// Waits until it has these messages. Panics if the reader ends before.
    pub async fn complete(&self, names: &[Name], reader: &mut JoinHandle<()>) {
        while !self.got.lock().unwrap().has(names) {
            tokio::select! {
                () = self.changed.notified() => {}
                ended = &mut *reader => panic!("the reader ended: {ended:?}"),
            }
        }
    }
}

pub async fn by_websocket(mut place: Where, got: Arc<Shared>, roams: bool) {
    let mut cursor = 0;
    loop {
        let query = if cursor > 0 { format!("&after={cursor}") } else { String::new() };
        let url = format!("ws://{}/ws?session=by-websocket{query}", address(&mut place).await);
        let Ok((mut socket, _)) = connect_async(url).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let mut last = 0;
        while let Some(Ok(frame)) = socket.next().await {
            let Message::Text(text) = frame else { continue };
            let frame: Value = serde_json::from_str(&text).unwrap();
            assert!(frame["type"] != "gap" || frame["reason"] == "acknowledged", "{frame}");
            if frame["type"] != "message" {
                continue;
            }
            let seq = frame["seq"].as_u64().unwrap();
            assert!(seq > last, "one socket sees increasing seqs");
            last = seq;
            got.message(seq, &frame["payload"]);
            cursor = seq;
            if fastrand::u8(..8) == 0 {
                _ = socket.send(Message::text(json!({ "type": "ack", "seq": seq }).to_string())).await;
            }
            if moves_on(roams) {
                break;
            }
        }
    }
}

/// Connects once there is a server.
async fn connect(place: &mut Where) -> Http {
    loop {
        match tokio::net::TcpStream::connect(address(place).await).await {
            Ok(stream) => return Http::on(stream, "localhost").await,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

pub async fn by_poll(mut place: Where, got: Arc<Shared>, roams: bool) {
    let mut cursor = None;
    loop {
        let mut http = connect(&mut place).await;
        loop {
            let after = cursor.map_or(String::new(), |cursor: u64| format!("&after={cursor}"));
            let target = format!("/v1/messages?session=by-poll&wait=5{after}");
            let Ok(reply) = http.try_request("GET", &target, &[], "").await else { break };
            if roams && reply.status == 503 {
                break;
            }
            assert_eq!(reply.status, 200, "{}", reply.body);
            let answer = reply.json();
            for message in answer["messages"].as_array().unwrap() {
                got.message(message["seq"].as_u64().unwrap(), &message["payload"]);
            }
            cursor = answer["seq"].as_u64().filter(|seq| *seq > 0);
            if moves_on(roams) {
                break;
            }
        }
    }
}

pub async fn by_sse(mut place: Where, got: Arc<Shared>, roams: bool) {
    let mut last = None;
    loop {
        let place = address(&mut place).await;
        let Ok(mut events) = Events::try_open(place, "?session=by-sse", last).await else {
            tokio::task::yield_now().await;
            continue;
        };
        while let Some(event) = events.try_next().await {
            if let Some(seq) = event.id
                && event.name == "message"
            {
                got.message(seq, &event.data["payload"]);
                last = Some(seq);
                if moves_on(roams) {
                    break;
                }
            }
        }
    }
}

/// A page goes to the first server, as long as it is there: it belongs to one.
pub async fn by_x0(mut place: Where, got: Arc<Shared>) {
    loop {
        let first = soon(place.wait_for(|places| !places.is_empty())).await.unwrap()[0];
        let Ok(stream) = tokio::net::TcpStream::connect(first).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let mut http = Http::on(stream, "localhost").await;
        loop {
            let body = x0_poll("by-x0").to_string();
            let Ok(reply) = http.try_request("POST", &x0_target(), &[], body).await else { break };
            for message in x0_messages(&reply) {
                got.unnumbered(&message);
            }
        }
    }
}
