//! What an engine holds.

use crate::message::{Address, Seq};

/// The oldest message of all mailboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Oldest {
    /// Only other machines know.
    Unknown,
    /// There is no message.
    #[default]
    None,
    /// It is this one.
    Is(Address, Seq),
}

/// What an engine holds, as far as this node knows without asking anybody. On several machines that is what all nodes have stored,
/// as it was told at the last check of the streams: some seconds ago. What is acknowledged counts there until it is deleted.
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
    pub oldest: Oldest,
    /// Messages of this node that wait to be stored.
    pub queued: usize,
    /// The bytes of these, with their envelopes.
    pub queued_bytes: usize,
}
