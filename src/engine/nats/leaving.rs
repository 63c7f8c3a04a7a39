//! Leaves a server of NATS that is cut off from the others.
//!
//! Such a server keeps its connections, and stores nothing until the cut is over. The client library stays with it. Other servers of
//! --nats-url may be on the side of the majority.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::engine::nats::node::{Core, CutOff};
use crate::sync::lock;

/// For so long a server may know no leader of JetStream: an election takes less.
const LEADERLESS: Duration = Duration::from_secs(4);

/// So often another server is tried at once, if the library has come back to the server that was left.
const AT_ONCE: u32 = 3;

/// With each attempt the time until the next one doubles, up to so often.
const MOST: u32 = 4;

impl Core {
    /// Whether JetStream has a leader, as far as the server of this node knows. During the election of one stream it has one.
    pub(super) async fn has_leader(&self) -> bool {
        self.link.api("INFO", &Value::Null).await.is_ok()
    }

    /// Tries another server if this one has known no leader for too long, or a stream has not answered for longer than an election
    /// takes.
    pub(super) async fn leave_if_cut_off(&self, is_failing: bool, has_leader: bool) {
        let is_cut_off = !has_leader || (is_failing && self.refusing().is_some());
        if !is_cut_off {
            *lock(&self.cut_off) = None;
            return;
        }
        let client = self.link.client();
        let server = client.server_info().server_id;
        let begins = || CutOff { since: Instant::now(), left: None, attempts: 0 };
        let known = lock(&self.cut_off).get_or_insert_with(begins).clone();
        // The library may have come back to the server that was left.
        let is_back = known.left.as_ref() == Some(&server) && known.attempts <= AT_ONCE;
        if known.since.elapsed() < LEADERLESS * (1 << known.attempts) && !is_back {
            return;
        }
        let servers = client.server_pool().await.unwrap_or_default();
        if servers.iter().filter(|server| !server.is_discovered).count() < 2 {
            return;
        }
        tracing::warn!("this server of NATS does not reach the others; trying another one");
        let attempts = MOST.min(known.attempts + 1);
        *lock(&self.cut_off) = Some(CutOff { since: Instant::now(), left: Some(server), attempts });
        if let Err(error) = client.force_reconnect().await {
            tracing::debug!(%error, "the connection to NATS is closed");
        }
    }
}
