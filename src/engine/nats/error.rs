//! Why a node does not start, and why a request of a running one fails.

use std::sync::Arc;

/// The number of NATS' error for a subject without a message.
pub(super) const NO_MESSAGE: u64 = 10_037;

/// Why the engine on NATS does not start.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// No server answers.
    #[error(
        "cannot connect to NATS at {url}: {reason}; check --nats-url, --nats-creds and --nats-token-file"
    )]
    Connect {
        /// The addresses.
        url: String,
        /// Why.
        reason: String,
    },
    /// The file with the credentials cannot be read.
    #[error("cannot read the credentials of NATS in {path}: {reason}; check --nats-creds")]
    Credentials {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The server lacks what the engine needs, and does not say so when it is asked for it.
    #[error("the NATS server {name} has version {version}; this engine needs 2.11 or later: upgrade it")]
    TooOld {
        /// The server.
        name: String,
        /// Its version.
        version: String,
    },
    /// The server stores nothing.
    #[error(
        "NATS has no JetStream for this account ({reason}); enable `jetstream` in the configuration of the servers"
    )]
    NoJetStream {
        /// What the server says.
        reason: Arc<str>,
    },
    /// The largest message of the broker does not fit into one of NATS.
    #[error(
        "`max_payload` of the NATS servers is {is} bytes; a message of --max-payload needs {needed}: raise `max_payload` there, or lower --max-payload"
    )]
    Payload {
        /// What the servers accept, in bytes.
        is: usize,
        /// What is needed, in bytes.
        needed: usize,
    },
    /// A stream has another setting than the flags ask for. It is never changed silently.
    #[error(
        "stream {stream} has `{setting}` {is}, and the settings of this node ask for {wanted}; change the flags, or the stream with `nats stream edit`"
    )]
    Setting {
        /// The stream.
        stream: String,
        /// The setting, as NATS names it.
        setting: String,
        /// What it is.
        is: String,
        /// What it should be.
        wanted: String,
    },
    /// A stream is missing that was there.
    #[error(
        "stream {stream} is missing, though this cluster was set up before; restore it, check account and --nats-prefix, or start with --nats-create to begin with an empty one"
    )]
    Missing {
        /// The stream.
        stream: String,
    },
    /// A store is being moved into the streams.
    #[error(
        "a store is being moved into the streams of --nats-prefix {prefix}; wait for `x0-msg-server migrate`, or run it again if it was interrupted"
    )]
    Moving {
        /// What the names of the streams begin with.
        prefix: String,
    },
    /// The record of the cluster is of another version of this program.
    #[error("the setup in stream {stream} cannot be read: {reason}")]
    Setup {
        /// The stream.
        stream: String,
        /// Why.
        reason: String,
    },
    /// A request failed.
    #[error("NATS: {what}: {reason}")]
    Request {
        /// What was asked for.
        what: String,
        /// Why it failed.
        reason: Arc<str>,
    },
}

/// Why a request has no good answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AskError {
    /// There was no answer: whether it was carried out is not known.
    Unknown(Arc<str>),
    /// The server refused it.
    Refused {
        /// NATS' number for the reason.
        code: u64,
        /// The reason.
        text: Arc<str>,
    },
}

impl AskError {
    /// Why, for people.
    pub(super) fn reason(&self) -> Arc<str> {
        match self {
            Self::Unknown(reason) | Self::Refused { text: reason, .. } => Arc::clone(reason),
        }
    }

    /// Whether the server refused it with this number.
    pub(super) fn is(&self, number: u64) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == number)
    }
}
