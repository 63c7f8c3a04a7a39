//! What an engine holds.

use crate::message::{Address, Seq};

/// What an engine holds, as far as this node knows without asking anybody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Mailboxes with messages.
    pub mailboxes: usize,
    /// Topics with messages in their history.
    pub topics: usize,
    /// Messages in mailboxes that nobody has acknowledged.
    pub unread: usize,
    /// Messages in the histories of topics.
    pub history: usize,
    /// Bytes of all messages, with their envelopes.
    pub bytes: usize,
    /// The most bytes of all messages together.
    pub most_bytes: usize,
    /// The oldest message of all mailboxes.
    pub oldest: Option<(Address, Seq)>,
    /// Messages that wait to be written to the disk.
    pub queued: usize,
    /// The bytes of these, with their envelopes.
    pub queued_bytes: usize,
}
