//! Clients that notice what they may not notice: each checks that every message comes once and in order, and that no request fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_tungstenite::tungstenite::Message;

use crate::common::*;

/// What all clients share.
#[derive(Clone)]
pub struct Load {
    pub address: SocketAddr,
    begun: Instant,
    /// Senders stop when it is set.
    done: Arc<AtomicBool>,
    /// Longest time from a send to its delivery, and to its answer, in milliseconds.
    slowest: Arc<[AtomicU64; 2]>,
}

/// How a session is read.
#[derive(Debug, Clone, Copy)]
pub enum Reader {
    X0,
    Socket,
    Events,
}

impl Load {
    pub fn new(address: SocketAddr) -> Self {
        let (done, slowest) = (Arc::default(), Arc::default());
        Self { address, begun: Instant::now(), done, slowest }
    }

    /// Tells the senders to stop.
    pub fn end(&self) {
        self.done.store(true, Ordering::SeqCst);
    }

    /// Longest time from a send to its delivery, and to its answer.
    pub fn slowest(&self) -> [Duration; 2] {
        [0, 1].map(|what| Duration::from_millis(self.slowest[what].load(Ordering::SeqCst)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap()
    }

    fn note(&self, what: usize, since: u64) {
        self.slowest[what].fetch_max(self.now() - since, Ordering::SeqCst);
    }

    /// Sends to these sessions in turn, so many a second, on one connection as long as that lasts. Returns how many messages each
    /// session has got.
    pub async fn send(self, sessions: Vec<String>, rate: u32) -> Vec<u64> {
        let mut sent = vec![0_u64; sessions.len()];
        let mut http = Http::connect(self.address).await;
        let mut ticks = interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for turn in 0.. {
            if self.done.load(Ordering::SeqCst) {
                break;
            }
            ticks.tick().await;
            let (place, at) = (turn % sessions.len(), self.now());
            sent[place] += 1;
            let payload = json!({ "n": sent[place], "at": at });
            let body = json!({ "to": { "session": sessions[place] }, "payload": payload });
            let reply = http.post("/v1/messages?session=sender", body).await;
            assert_eq!(reply.status, 200, "a send has failed: {}", reply.body);
            self.note(1, at);
            if reply.header("connection") == "close" {
                http = Http::connect(self.address).await;
            }
        }
        sent
    }

    /// Reads a session until it has got as many messages as `expected` says in the end.
    pub async fn read(self, reader: Reader, session: String, expected: watch::Receiver<Option<u64>>) {
        let mut check = Check { load: self, session, expected, got: 0 };
        match reader {
            Reader::X0 => check.as_x0_page().await,
            Reader::Socket => check.by_socket().await,
            Reader::Events => check.by_events().await,
        }
    }
}

struct Check {
    load: Load,
    session: String,
    expected: watch::Receiver<Option<u64>>,
    got: u64,
}

impl Check {
    fn note(&mut self, payload: &Value) {
        let (n, session) = (payload["n"].as_u64().unwrap(), &self.session);
        assert_eq!(n, self.got + 1, "{session} gets {n} after {}", self.got);
        self.load.note(0, payload["at"].as_u64().unwrap());
        self.got = n;
    }

    fn is_complete(&self) -> bool {
        self.expected.borrow().is_some_and(|expected| self.got >= expected)
    }

    /// Waits until it is known how many messages there are, and all are there.
    async fn completed(mut expected: watch::Receiver<Option<u64>>, got: u64) {
        let complete = |expected: &Option<u64>| expected.is_some_and(|expected| got >= expected);
        if expected.wait_for(complete).await.is_err() {
            std::future::pending().await
        }
    }

    /// Today's page polls again as soon as it has an answer, and never again after a request that fails.
    async fn as_x0_page(&mut self) {
        let mut http = Http::connect(self.load.address).await;
        while !self.is_complete() {
            let target = x0_target();
            let reply = tokio::select! {
                reply = http.try_request("POST", &target, &[], x0_poll(&self.session).to_string()) => reply,
                () = Self::completed(self.expected.clone(), self.got) => return,
            };
            let reply = reply.unwrap_or_else(|error| panic!("the page of {} is deaf: {error}", self.session));
            for message in x0_messages(&reply) {
                self.note(&message);
            }
            if reply.header("connection") == "close" {
                http = Http::connect(self.load.address).await;
            }
        }
    }

    async fn by_socket(&mut self) {
        let (mut after, mut epoch) = (None, None);
        loop {
            let mut ws = Ws::connect(self.load.address, "").await;
            let mut hello = json!({ "type": "hello", "session": self.session });
            if let (Some(after), Some(epoch)) = (&after, &epoch) {
                hello["after"] = json!(after);
                hello["epoch"] = json!(epoch);
            }
            ws.send(hello).await;
            loop {
                let frame = tokio::select! {
                    frame = ws.socket.next() => frame,
                    () = Self::completed(self.expected.clone(), self.got) => return,
                };
                let text = match frame {
                    Some(Ok(Message::Text(text))) => text,
                    Some(Ok(Message::Close(Some(frame)))) => {
                        assert_eq!(u16::from(frame.code), 1001);
                        // Answers the close frame.
                        while let Some(Ok(_)) = ws.socket.next().await {}
                        break;
                    }
                    Some(Ok(_)) => continue,
                    end => panic!("the socket of {} ends with {end:?}", self.session),
                };
                let frame: Value = serde_json::from_str(text.as_str()).unwrap();
                match frame["type"].as_str().unwrap() {
                    "welcome" => {
                        if let Some(epoch) = &epoch {
                            assert_eq!(frame["epoch"], *epoch, "it is the same store");
                        }
                        epoch = Some(frame["epoch"].clone());
                    }
                    "message" => {
                        self.note(&frame["payload"]);
                        let ack = json!({ "type": "ack", "seq": frame["seq"] });
                        // The socket may be closing.
                        _ = ws.socket.send(Message::text(ack.to_string())).await;
                        after = Some(frame["seq"].clone());
                    }
                    other => panic!("a frame {other}: {frame}"),
                }
            }
        }
    }

    async fn by_events(&mut self) {
        let mut last = None;
        loop {
            let query = format!("?session={}", self.session);
            let mut events = Events::try_open(self.load.address, &query, last).await.unwrap();
            loop {
                let event = tokio::select! {
                    event = events.try_next() => event,
                    () = Self::completed(self.expected.clone(), self.got) => return,
                };
                let Some(event) = event else { break };
                if event.name == "message" {
                    self.note(&event.data["payload"]);
                    last = event.id;
                }
            }
        }
    }
}
