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
    /// A message whose receiver may answer it once.
    Request {
        /// Whether a backend sent it with its API key.
        backend: bool,
    },
    /// The answer to a request.
    Reply {
        /// Whether a backend sent it with its API key.
        backend: bool,
    },
}

impl Kind {
    /// Whether a backend sent it with its API key.
    #[must_use]
    pub fn is_from_backend(self) -> bool {
        match self {
            Self::Message | Self::Receipt => false,
            Self::FromBackend => true,
            Self::Request { backend } | Self::Reply { backend } => backend,
        }
    }

    /// Whether it is a message by itself. Receipts and replies are about a message that their reader has sent.
    #[must_use]
    pub fn is_message(self) -> bool {
        match self {
            Self::Message | Self::FromBackend | Self::Request { .. } => true,
            Self::Receipt | Self::Reply { .. } => false,
        }
    }
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
    /// In a request: the `reply_to` that allows one answer. In a reply: the id that its reader gave the request.
    pub reference: Option<Box<str>>,
    /// When it was accepted, in Unix milliseconds.
    pub ts: u64,
}

impl Message {
    /// The receipt for the message its sender named `id`.
    #[must_use]
    pub fn receipt(id: &MessageId, state: Outcome, ts: u64) -> Self {
        let fields = ReceiptFields { id, state };
        let payload = serde_json::value::to_raw_value(&fields).expect("strings always encode");
        Self { kind: Kind::Receipt, from: None, payload, reference: None, ts }
    }
}

/// What a receipt says: its payload in the store, and fields of its frame.
#[derive(Serialize, ToSchema)]
pub(crate) struct ReceiptFields<'a> {
    /// In a receipt or a reply: the id that its reader gave the message.
    id: &'a MessageId,
    /// In a receipt: what became of the message.
    state: Outcome,
}
