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
    /// How the members of a topic have changed. Its payload says how many they are, and who came and left. It is never stored.
    Presence,
}

impl Kind {
    /// Whether a backend sent it with its API key.
    #[must_use]
    pub fn is_from_backend(self) -> bool {
        match self {
            Self::Message | Self::Receipt | Self::Presence => false,
            Self::FromBackend => true,
            Self::Request { backend } | Self::Reply { backend } => backend,
        }
    }

    /// Whether it is a message by itself. Receipts and replies are about a message that their reader has sent.
    #[must_use]
    pub fn is_message(self) -> bool {
        match self {
            Self::Message | Self::FromBackend | Self::Request { .. } => true,
            Self::Receipt | Self::Reply { .. } | Self::Presence => false,
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

    /// What the members of a topic are told.
    #[must_use]
    pub(crate) fn presence(fields: &PresenceFields<'_>, ts: u64) -> Self {
        let payload = serde_json::value::to_raw_value(fields).expect("strings and numbers always encode");
        Self { kind: Kind::Presence, from: None, payload, reference: None, ts }
    }
}

/// How the members of a topic have changed: fields of a frame.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PresenceFields<'a> {
    /// In presence: how many members the topic has.
    pub(crate) count: usize,
    /// In presence: who is a member now and was none before. Absent, as `left`, above 1,000 members, and if changes were
    /// missed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) joined: Option<&'a [SenderName]>,
    /// In presence: who is no member any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) left: Option<&'a [SenderName]>,
}

/// What a receipt says: its payload in the store, and fields of its frame.
#[derive(Serialize, ToSchema)]
pub(crate) struct ReceiptFields<'a> {
    /// In a receipt or a reply: the id that its reader gave the message.
    id: &'a MessageId,
    /// In a receipt: what became of the message.
    state: Outcome,
}
