//! A message on its way into the store.

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::message::{MessageId, SenderName};

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What a client sent.
    Message,
    /// What a backend sent with its API key.
    FromBackend,
    /// What became of a message whose sender asked for it. Its payload is an [`Outcome`] with an id.
    Receipt,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Its receiver acknowledged it.
    Acknowledged,
    /// Its time to live ended before that.
    Expired,
}

/// A message on its way into the store.
#[derive(Debug, Clone)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// Who sent it, as receivers see it; `None` for a sender without a name.
    pub from: Option<SenderName>,
    /// The sender's JSON, kept byte for byte.
    pub payload: Box<RawValue>,
    /// When it was accepted, in Unix milliseconds.
    pub ts: u64,
}

impl Message {
    /// The receipt for the message its sender named `id`.
    #[must_use]
    pub fn receipt(id: &MessageId, state: Outcome, ts: u64) -> Self {
        let fields = ReceiptFields { id, state };
        let payload = serde_json::value::to_raw_value(&fields).expect("strings always encode");
        Self { kind: Kind::Receipt, from: None, payload, ts }
    }
}

/// What a receipt says: its payload in the store, and fields of its frame.
#[derive(Serialize, ToSchema)]
pub(crate) struct ReceiptFields<'a> {
    /// In a receipt: the sender's id of the message.
    id: &'a MessageId,
    /// In a receipt: what became of the message.
    state: Outcome,
}
