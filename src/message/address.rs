//! Where messages go, and who sends them.

use std::fmt;
use std::sync::Arc;

use crate::message::{SessionId, TopicName};

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
