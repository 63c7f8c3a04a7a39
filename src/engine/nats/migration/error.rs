//! Why a store is not moved into NATS.

use crate::engine::embedded::OpenError;
use crate::engine::nats::error::NatsError;

/// Why a store is not moved into NATS. The store stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// NATS cannot be used.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// What is stored does not fit into streams with these settings.
    #[error("{what} {needed}, and {flag} is {is}; raise {flag}, here and for the nodes")]
    Limit {
        /// What there is too much of.
        what: String,
        /// How much of it there is.
        needed: String,
        /// What limits it.
        flag: &'static str,
        /// To how much.
        is: String,
    },
    /// There is something in the streams.
    #[error(
        "stream {stream} holds {messages} messages already; choose another --nats-prefix, or delete the streams of this one"
    )]
    Occupied {
        /// The stream.
        stream: String,
        /// How many messages it holds.
        messages: u64,
    },
    /// Nodes run on the streams.
    #[error("{nodes} nodes run on the streams of --nats-prefix {prefix}; stop them first")]
    InUse {
        /// How many nodes answer.
        nodes: usize,
        /// What the names of the streams begin with.
        prefix: String,
    },
    /// Another store, or another state of this one, or another version began to move it.
    #[error(
        "an interrupted move left a part of {before} in the streams of --nats-prefix {prefix}, and this is {now}; delete these streams and begin again"
    )]
    AnotherMove {
        /// What was moved.
        before: String,
        /// What is to be moved now.
        now: String,
        /// What the names of the streams begin with.
        prefix: String,
    },
    /// NATS refuses a message.
    #[error("stream {stream} refuses a message: {reason}")]
    Refused {
        /// The stream.
        stream: String,
        /// NATS' reason.
        reason: String,
    },
    /// NATS stores nothing more.
    #[error(
        "stream {stream} takes nothing for {seconds} s ({reason}); run this again to go on where it stopped"
    )]
    Stalled {
        /// The stream.
        stream: String,
        /// For how long nothing was stored.
        seconds: u64,
        /// The last reason.
        reason: String,
    },
    /// NATS holds something else than what was moved.
    #[error("stream {stream} holds {found} {what} instead of {expected}; delete the streams and begin again")]
    Differs {
        /// The stream.
        stream: String,
        /// What was counted.
        what: &'static str,
        /// How many there are.
        found: u64,
        /// How many there should be.
        expected: u64,
    },
}
