//! What is sent: names, positions, and one committed message with its bytes.
//!
//! Nothing here knows about engines, hubs or transports. A [`Publication`] is encoded once; every transport
//! shares its bytes by reference count.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

mod name;
pub(crate) mod publication;

pub use name::{Handle, MAX_NAME, MessageId, NameError, SenderName, SessionId, TopicName, UserId};

pub(crate) use publication::Draft;
pub use publication::Publication;

/// Who a sender is to the server. Tells senders apart, and is never shown to receivers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Author {
    /// The holder of a session, whose mailbox gets receipts.
    Session(SessionId),
    /// A backend, by the name of its API key.
    Backend(Arc<str>),
    /// Somebody in `open` mode who did not say.
    Anonymous,
}

impl Author {
    /// The session of this author.
    #[must_use]
    pub fn session(&self) -> Option<&SessionId> {
        match self {
            Self::Session(session) => Some(session),
            Self::Backend(_) | Self::Anonymous => None,
        }
    }
}

/// Where committed messages live: the mailbox of a session, or the history of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// The mailbox of one session: kept until acknowledged.
    Session(SessionId),
    /// The history of one topic: a bounded tail.
    Topic(TopicName),
}

impl Address {
    /// The session whose mailbox this is.
    #[must_use]
    pub fn session(&self) -> Option<&SessionId> {
        match self {
            Self::Session(session) => Some(session),
            Self::Topic(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(name) => write!(f, "session {name}"),
            Self::Topic(name) => write!(f, "topic {name}"),
        }
    }
}

/// A position in a mailbox or history: strictly increasing, may skip, opaque to clients.
///
/// A seq means something only within its [`Epoch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(
    description = "A position in a mailbox or history. It grows, may skip numbers, and belongs to an epoch",
    minimum = 0,
    maximum = 9_007_199_254_740_991_u64
)]
pub struct Seq(pub u64);

impl Seq {
    /// Before every message.
    pub const START: Self = Self(0);
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifies the incarnation of the store: it changes when stored messages were lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// The epoch with this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// The epoch as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum Kind {
    /// What a sender sent.
    Message,
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
struct ReceiptFields<'a> {
    /// In a receipt: the sender's id of the message.
    id: &'a MessageId,
    /// In a receipt: what became of the message.
    state: Outcome,
}

/// Why a reader is told that messages between two positions are not coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GapReason {
    /// They were acknowledged, by this reader or another one of its session.
    Acknowledged,
    /// Their time to live ended, or a topic's history no longer reaches back.
    Expired,
    /// The cursor belongs to another incarnation of the store.
    Epoch,
    /// The store is damaged there.
    Lost,
}

/// Messages after `from`, up to and including `to`, are not coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Gap {
    /// The reader's cursor.
    pub from: Seq,
    /// Where reading goes on (exclusive).
    pub to: Seq,
    /// Why.
    pub reason: GapReason,
}

/// What a reader gets next.
#[derive(Debug, Clone)]
pub enum Item {
    /// A message.
    Message(Arc<Publication>),
    /// A hole that is not going to be filled.
    Gap(Gap),
}

impl Item {
    /// The position from which reading goes on after this item; `None` for a volatile message.
    #[must_use]
    pub fn seq(&self) -> Option<Seq> {
        match self {
            Self::Message(message) => message.seq(),
            Self::Gap(gap) => Some(gap.to),
        }
    }
}
