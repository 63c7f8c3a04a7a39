//! What an engine answers: batches, positions, its health.

use std::sync::Arc;

use crate::budget::Permit;
use crate::message::{Item, Seq};

/// What was removed because it had expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired {
    /// Messages, since the last call.
    pub messages: usize,
    /// Whether there may be more of them, or of registrations.
    pub more: bool,
}

/// What a read found.
#[derive(Debug, Default)]
pub struct Batch {
    /// Messages and holes, in order.
    pub items: Vec<Item>,
    /// How far the read got: everything up to here is in `items`, or gone.
    pub cursor: Seq,
    /// Whether the limit ended the read: there may be more.
    pub more: bool,
    /// The share of the small messages together in the memory budget. A large one has its own.
    pub(crate) room: Option<Permit>,
}

/// The position of a mailbox or history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Up to here everything was acknowledged or dropped: the ack floor.
    pub floor: Seq,
    /// The highest seq that is gone without having been acknowledged.
    pub expired: Seq,
    /// The newest seq ever stored here, as far as is known.
    pub newest: Seq,
}

/// What is stored at an address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Messages.
    pub messages: usize,
    /// Their bytes, each message counted with its envelope; `None` if the engine does not count them.
    pub bytes: Option<usize>,
}

/// Whether an engine works.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// What does not work now, and why; empty if all does.
    pub failing: Vec<Arc<str>>,
    /// Whether what stores messages cannot be reached, so that work is better sent elsewhere.
    pub is_unreachable: bool,
}
