//! Lists for operators. A page holds names in their order, and takes locks for a moment each.

use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::{Engine, Stored, await_each, each};
use crate::message::{Address, Handle, NameRange, SessionId, TopicName, UserId};

/// Of what machines a figure or a list tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// This node alone.
    Node,
    /// All nodes, as far as this one has heard.
    Cluster,
}

impl Engine {
    /// Of what machines the directory tells: [`Self::users`], [`Self::sessions_by_handle`].
    #[must_use]
    pub fn directory_scope(&self) -> Scope {
        match self {
            Self::Embedded(_) => Scope::Node,
            #[cfg(feature = "nats")]
            Self::Nats(_) => Scope::Cluster,
            #[cfg(test)]
            Self::Replicated(_) => Scope::Cluster,
        }
    }

    /// The first `limit` users in this range that have sessions in the directory. Those of some may have expired.
    #[must_use]
    pub fn users(&self, range: NameRange<'_>, limit: usize) -> Vec<UserId> {
        each!(self, engine => engine.users(range, limit))
    }

    /// The first `limit` registered sessions after a handle, in the order of their handles.
    #[must_use]
    pub fn sessions_by_handle(&self, after: Option<Handle>, limit: usize) -> Vec<(Handle, SessionId)> {
        each!(self, engine => engine.sessions_by_handle(after, limit))
    }

    /// The first `limit` sessions in this range that are registered, or that have messages which this node stores. It looks at all
    /// of them, and yields in between.
    pub async fn sessions(&self, range: NameRange<'_>, limit: usize) -> Vec<SessionId> {
        await_each!(self, engine => engine.sessions(range, limit))
    }

    /// The first `limit` topics in this range whose histories this node stores.
    #[must_use]
    pub fn topics(&self, range: NameRange<'_>, limit: usize) -> Vec<TopicName> {
        each!(self, engine => engine.topics(range, limit))
    }

    /// What is stored at an address.
    pub async fn stored(&self, address: &Address) -> Stored {
        await_each!(self, engine => engine.stored(address))
    }
}
