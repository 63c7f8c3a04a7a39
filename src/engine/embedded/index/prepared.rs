//! An append with everything that can be computed before the lock is taken.

use std::time::Duration;

use crate::engine::Append;
use crate::engine::embedded::dedup::SendId;
use crate::message::{Address, Draft, MessageId, SenderName, Seq, UserId};

/// An append with everything that can be computed before the lock is taken: its frame and its id.
#[derive(Debug, Clone)]
pub(crate) struct PreparedAppend {
    pub(super) address: Address,
    pub(super) draft: Draft,
    pub(super) send_id: Option<SendId>,
    /// How long it is kept; the bounds' age when absent.
    pub(super) ttl: Option<Duration>,
    /// In Unix milliseconds.
    pub(super) ts: u64,
    /// The mailbox that gets a receipt, and the sender's id for the message.
    pub(super) receipt: Option<(Address, MessageId)>,
    /// The author whose shares it counts against.
    pub(super) payer: Option<SenderName>,
    /// The user that it is for.
    pub(super) user: Option<UserId>,
    /// The registration that it is for, by its `since`.
    pub(super) since: Option<Seq>,
}

impl PreparedAppend {
    /// Encodes a message whose seq is likely to be `expected`.
    pub(crate) fn new(append: Append, send_id: Option<SendId>, expected: Seq) -> Self {
        let Append { address, message, author, id, ttl, receipt, payer, user, since } = append;
        let draft = Draft::encode(&address, &message, expected);
        let receipt = if receipt { author.mailbox().zip(id) } else { None };
        Self { address, draft, send_id, ttl, ts: message.ts, receipt, payer, user, since }
    }

    /// The same message for another mailbox: the frame does not name it.
    pub(crate) fn to(&self, mailbox: Address, send_id: Option<SendId>) -> Self {
        debug_assert!(self.address.is_mailbox() && mailbox.is_mailbox(), "the frames of topics differ");
        Self { address: mailbox, send_id, ..self.clone() }
    }
}
