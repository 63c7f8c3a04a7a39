//! A publisher without the engine: what a client of NATS costs that does nothing else.

use std::time::{Duration, Instant};

use async_nats::Client;
use bytes::Bytes;
use futures::StreamExt;

/// Stores messages of this size in a stream of its own, with so many in flight, and counts the answers.
pub(crate) struct Bare {
    client: Client,
    inbox: String,
}

impl Bare {
    pub(crate) async fn new(url: &str, replicas: usize) -> Self {
        let client = async_nats::connect(url.split(',').collect::<Vec<_>>()).await.expect("a server");
        let config = format!(
            r#"{{"name":"bare","subjects":["bare.*"],"storage":"file","discard":"new","num_replicas":{replicas}}}"#
        );
        loop {
            // The servers elect a leader first.
            let answer = client.request("$JS.API.STREAM.CREATE.bare", config.clone().into()).await;
            if answer.is_ok_and(|answer| !answer.payload.windows(8).any(|part| part == b"\"error\":")) {
                break;
            }
        }
        let inbox = client.new_inbox();
        Self { client, inbox }
    }

    /// Returns how many were stored.
    pub(crate) async fn run(
        &self,
        time: Duration,
        (subjects, in_flight, size): (usize, usize, usize),
    ) -> u64 {
        let mut answers = self.client.subscribe(format!("{}.*", self.inbox)).await.expect("a connection");
        let payload = Bytes::from(vec![b'x'; size]);
        let (begun, mut sent, mut stored) = (Instant::now(), 0, 0);
        loop {
            while sent < stored + in_flight as u64 {
                let (subject, reply) =
                    (format!("bare.{}", sent % subjects as u64), format!("{}.{sent}", self.inbox));
                self.client.publish_with_reply(subject, reply, payload.clone()).await.expect("a connection");
                sent += 1;
            }
            answers.next().await.expect("a connection");
            stored += 1;
            if begun.elapsed() > time {
                return stored;
            }
        }
    }
}
