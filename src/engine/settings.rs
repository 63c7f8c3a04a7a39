//! What an engine is told at its start.

use std::time::Duration;

use crate::clock::Clock;
use crate::engine::Usage;

/// Bounds of one mailbox or history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Messages.
    pub messages: usize,
    /// Bytes, each message counted with its envelope.
    pub bytes: usize,
    /// How long a message is kept that names no time to live of its own.
    pub age: Duration,
}

/// Bounds of what is appended and not committed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueBounds {
    /// Messages.
    pub messages: usize,
    /// Bytes.
    pub bytes: usize,
}

/// What a slower reader of a mailbox may hold back of what others acknowledged: messages, and bytes.
const HELD: (usize, usize) = (1_000, 8 << 20);

/// How many ids of each author are remembered for the whole window.
const AUTHOR_IDS: usize = 1_000;

/// How many times the usual number of ids are remembered at most, if all of them are the last ones of their authors.
const HARD_LIMIT: usize = 4;

/// How many ids of senders are remembered at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdLimits {
    /// Of all authors. Beyond that the oldest go that are not the last ones of their author.
    pub(crate) all: usize,
    /// Each author's last ids, which stay for the whole window.
    pub(crate) of_author: usize,
    /// Beyond this the oldest go, whosever they are.
    pub(crate) hard: usize,
}

/// Everything an engine is told at its start.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Bounds of each mailbox.
    pub mailbox: Bounds,
    /// Bounds of each topic's history.
    pub history: Bounds,
    /// Bytes of all stored messages together.
    pub total_bytes: usize,
    /// How long a sender's id is remembered.
    pub dedup_window: Duration,
    /// How many ids are remembered. Beyond that the oldest are forgotten that are not among the last 1,000 of their author;
    /// beyond four times as many, the oldest of all. Each author has at most half of it for itself.
    pub dedup_ids: usize,
    /// How many registered sessions one user may have.
    pub sessions_per_user: usize,
    /// Whether stored messages count against the shares of their authors.
    pub shares: bool,
    /// Bounds of what waits to be committed.
    pub queue: QueueBounds,
    /// The time of day.
    pub clock: Clock,
}

impl Settings {
    /// How many ids are remembered at most.
    pub(super) fn id_limits(&self) -> IdLimits {
        let all = self.dedup_ids;
        IdLimits { all, of_author: AUTHOR_IDS.min(all / 2), hard: HARD_LIMIT * all }
    }

    /// How much a slower reader of a mailbox may hold back of what others acknowledged: messages, and bytes. At most half
    /// of a mailbox, so that a slow reader never fills it.
    pub(super) fn held(&self) -> (usize, usize) {
        (HELD.0.min(self.mailbox.messages / 2), HELD.1.min(self.mailbox.bytes / 2))
    }

    /// What a mailbox holds from which on it is counted for each author: at the half, shares of it begin to count.
    pub(super) fn tallied(&self) -> Usage {
        let Bounds { messages, bytes, .. } = self.mailbox;
        match self.shares {
            true => Usage { messages, bytes }.half().half(),
            false => Usage { messages: usize::MAX, bytes: usize::MAX },
        }
    }
}
