//! Where messages go, and who sends them.

use std::fmt;
use std::sync::Arc;

use crate::message::{BackendName, SessionId, TopicName};
use crate::table::spread;

/// Who sends, for the server alone: receivers never see it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Author {
    /// The holder of a session, whose mailbox gets receipts.
    Session(SessionId),
    /// A backend, by the name of its API key.
    Backend(Arc<str>),
    /// An anonymous sender in `open` mode.
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

    /// The mailbox of this author, for receipts. Whether a backend has one, its API key says.
    #[must_use]
    pub fn mailbox(&self) -> Option<Address> {
        match self {
            Self::Session(session) => Some(Address::Session(session.clone())),
            Self::Backend(name) => BackendName::new(name).ok().map(Address::Backend),
            Self::Anonymous => None,
        }
    }
}

/// Where committed messages live: the mailbox of a session or of a backend, or the history of a topic.
///
/// The order of the variants is part of the stored ids of messages: a new one comes last.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// The mailbox of one session: kept until acknowledged.
    Session(SessionId),
    /// The history of one topic: a bounded tail.
    Topic(TopicName),
    /// The mailbox of one backend: kept until acknowledged.
    Backend(BackendName),
}

impl Address {
    /// The session whose mailbox this is.
    #[must_use]
    pub fn session(&self) -> Option<&SessionId> {
        match self {
            Self::Session(session) => Some(session),
            Self::Topic(_) | Self::Backend(_) => None,
        }
    }

    /// The backend whose mailbox this is.
    #[must_use]
    pub fn backend(&self) -> Option<&BackendName> {
        match self {
            Self::Backend(backend) => Some(backend),
            Self::Session(_) | Self::Topic(_) => None,
        }
    }

    /// A number below `shards`, of which names take all alike. Who does not know the key of this process cannot choose it.
    #[must_use]
    pub(crate) fn shard(&self, shards: usize) -> usize {
        let name = match self {
            Self::Session(name) => name.as_str(),
            Self::Topic(name) => name.as_str(),
            Self::Backend(name) => name.as_str(),
        };
        usize::try_from(((spread(name) >> 32) * shards as u64) >> 32).expect("below the number of shards")
    }

    /// Whether it is a mailbox, and not the history of a topic.
    #[must_use]
    pub fn is_mailbox(&self) -> bool {
        !matches!(self, Self::Topic(_))
    }
}

impl From<&SessionId> for Address {
    fn from(session: &SessionId) -> Self {
        Self::Session(session.clone())
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Self {
        address.clone()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(name) => write!(f, "session {name}"),
            Self::Topic(name) => write!(f, "topic {name}"),
            Self::Backend(name) => write!(f, "backend {name}"),
        }
    }
}
