//! Why an engine refuses.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::{Bounds, OverShare, QueueBounds};

/// Why a message was not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The mailbox has no room.
    #[error("the mailbox is full ({}); try again when its reader has acknowledged some", held(*messages, *bytes, bounds))]
    MailboxFull {
        /// Messages waiting.
        messages: usize,
        /// Bytes waiting, if they are limited.
        bytes: usize,
        /// The limits; [`usize::MAX`] is none.
        bounds: Bounds,
    },
    /// All stored messages together have reached the limit.
    #[error("the store is full ({limit} bytes of messages, see --store-limit); try again later")]
    StoreFull {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The sender asks for a receipt that its own mailbox would have no room for.
    #[error(
        "your own mailbox has no room for the receipt ({messages} messages waiting or announced; at most {limit}); read and acknowledge some first"
    )]
    NoRoomForReceipt {
        /// Messages waiting, and receipts that are to come.
        messages: usize,
        /// The limit.
        limit: usize,
    },
    /// The author has taken its share.
    #[error(transparent)]
    QuotaExceeded(#[from] OverShare),
    /// The author has messages in the histories of too many topics.
    #[error(
        "you have messages in the histories of {limit} topics already, the most allowed; publish to topics that you use, or wait until messages leave the histories (see --topic-age), or send volatile ones"
    )]
    TooManyTopics {
        /// The limit.
        limit: usize,
    },
    /// Messages come faster than they can be stored.
    #[error("too many messages wait to be stored ({messages} messages, {bytes} bytes; at most {} messages, see --append-queue, and {} bytes); try again in a moment, with the same id", bounds.messages, bounds.bytes)]
    Overloaded {
        /// Messages waiting.
        messages: usize,
        /// Bytes waiting.
        bytes: usize,
        /// The limits.
        bounds: QueueBounds,
    },
    /// The sender used the id for another message.
    #[error(
        "this `id` was used for a message with another payload in the last {} seconds; a new message needs a new id, and a retry the same payload", window.as_secs()
    )]
    IdReused {
        /// How long ids are remembered.
        window: Duration,
    },
    /// The session is not registered for the user that the message is for, or was ended since. It was a moment ago.
    #[error(
        "the session is not registered for this user any more; look its sessions up, or send to the user"
    )]
    AnotherUser,
    /// One message is larger than a topic's whole history.
    #[error(
        "the message takes {size} bytes, and the history of a topic keeps at most {limit} (see --topic-bytes); send a smaller one, or a volatile one"
    )]
    HistoryTooSmall {
        /// Its size with its envelope, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// What is stored cannot be read now.
    #[error("stored messages cannot be read now: {reason}; try again later")]
    Unreadable {
        /// Why.
        reason: Arc<str>,
    },
    /// The store does not work now.
    #[error("messages cannot be stored now: {reason}; try again later, with the same id")]
    Unavailable {
        /// Why.
        reason: Arc<str>,
    },
}

/// What a full mailbox holds, and the most that it may.
fn held(messages: usize, bytes: usize, bounds: &Bounds) -> String {
    match bounds.bytes {
        usize::MAX => format!("{messages} messages waiting; at most {} messages", bounds.messages),
        most => format!(
            "{messages} messages, {bytes} bytes waiting; at most {} messages and {most} bytes",
            bounds.messages
        ),
    }
}

/// Why a session was not registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// It belongs to another user.
    #[error("this session is registered for another user; end it first (DELETE /v1/sessions/…)")]
    Taken,
    /// It was ended.
    #[error("this session was ended; begin another one")]
    Ended,
    /// Its user has as many sessions as allowed.
    #[error(
        "this user has {limit} registered sessions already, the most allowed (see --sessions-per-user); end some first"
    )]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The engine could not store it.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
