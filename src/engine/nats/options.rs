//! What a node is told about NATS at its start.

use std::path::PathBuf;
use std::time::Duration;

/// What a node is told about NATS at its start.
#[derive(Clone)]
pub struct NatsOptions {
    /// Addresses of servers, with commas between.
    pub url: String,
    /// A file with credentials.
    pub credentials: Option<PathBuf>,
    /// A token.
    pub token: Option<String>,
    /// The name of this node, as clients are told it; a random one if there is none.
    pub node: Option<String>,
    /// What the names of streams and subjects begin with.
    pub prefix: String,
    /// On how many servers each stream is stored.
    pub replicas: usize,
    /// Whether streams that are missing are made anew.
    pub create: bool,
    /// How many streams of mailboxes a new cluster gets, and as many of topics.
    pub shards: usize,
    /// The largest payload of a message, in bytes.
    pub max_payload: usize,
    /// The longest time that a message is kept.
    pub max_ttl: Duration,
}

impl std::fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the token, nor an address, which may hold a password.
        f.debug_struct("NatsOptions").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
