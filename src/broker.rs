//! Send, subscribe, acknowledge: what every transport calls. Knows no transport, no request and no socket.

use std::borrow::Cow;
use std::time::Duration;

use crate::budget::Budget;
use crate::clock::Clock;
use crate::directory::Directory;
#[cfg(feature = "nats")]
use crate::engine::nats::NatsConnection;
use crate::engine::{Contents, Engine, Fatal, Health};
use crate::hub::{Connections, Hubs};
use crate::message::{Address, Epoch, Item, Seq, SessionId};
use crate::metrics;

mod error;
mod listing;
mod presence;
mod reading;
mod receivers;
mod requests;
mod sending;
mod sessions;
mod watches;

pub use error::BrokerError;
pub(crate) use listing::{ListedSession, ListedTopic, ListedUser, Page};
pub use reading::Opening;
pub use sending::Sending;
pub use sessions::SessionState;
pub(crate) use watches::PresenceReader;

use watches::Watches;

/// Limits of what is accepted.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest payload, in bytes.
    pub payload: usize,
    /// Longest time to live of a message, and of a registration.
    pub ttl: Duration,
    /// Most readers of one session at the same time.
    pub readers: usize,
    /// For how long no token registers a session again that was ended; zero where sessions are not proved.
    pub revoked_for: Duration,
    /// How long a request can be answered: as long as the engine recognises a second answer.
    pub reply_window: Duration,
    /// Whether session ids are secrets, which logs name by their handles.
    pub secret_ids: bool,
}

/// The broker; cheap to clone.
#[derive(Debug, Clone)]
pub struct Broker {
    engine: Engine,
    directory: Directory,
    hubs: Hubs,
    limits: Limits,
    clock: Clock,
    watches: Watches,
}

impl Broker {
    /// A broker on this engine, which publishes to these hubs.
    #[must_use]
    pub fn new(engine: Engine, hubs: Hubs, limits: Limits, clock: Clock) -> Self {
        let (directory, watches) = (Directory::new(engine.clone(), clock), Watches::default());
        Self { engine, directory, hubs, limits, clock, watches }
    }

    /// The registered sessions.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Now, in Unix milliseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// The name of a session in logs: its handle where its id is a secret.
    #[must_use]
    pub(crate) fn public_name<'a>(&self, session: &'a SessionId) -> Cow<'a, str> {
        match self.limits.secret_ids {
            true => Cow::Owned(self.engine.handle(session).to_string()),
            false => Cow::Borrowed(session.as_str()),
        }
    }

    /// The store's incarnation.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.engine.epoch()
    }

    /// What "sent" means: `fsync`, `os` or `memory`; on several machines `replicated` or `unreplicated`.
    #[must_use]
    pub fn durability(&self) -> &'static str {
        self.engine.durability()
    }

    /// The name of this node; `None` with one machine.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.engine.node()
    }

    /// Tells when the engine cannot go on.
    #[must_use]
    pub fn fatal(&self) -> &Fatal {
        self.engine.fatal()
    }

    /// How the engine fares.
    #[must_use]
    pub fn health(&self) -> Health {
        self.engine.health()
    }

    /// Stores what is accepted and closes the engine; may wait for the disk.
    pub fn close(&self) {
        self.engine.close();
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What the engine holds; see [`Engine::contents`].
    #[must_use]
    pub(crate) fn contents(&self) -> Contents {
        self.engine.contents()
    }

    /// When a stored message was accepted, in Unix milliseconds; `None` if it is gone, or cannot be read now.
    pub(crate) async fn accepted_at(&self, address: &Address, seq: Seq) -> Option<u64> {
        let batch = self.engine.read(address, Seq(seq.0 - 1), 1).await.ok()?;
        batch.items.iter().find_map(|item| match item {
            Item::Message(message) => message.accepted_at(),
            Item::Gap(_) => None,
        })
    }

    /// The connection to NATS; `None` with one machine.
    #[cfg(feature = "nats")]
    #[must_use]
    pub(crate) fn nats(&self) -> Option<NatsConnection> {
        match &self.engine {
            Engine::Nats(engine) => Some(engine.connection()),
            _ => None,
        }
    }

    /// How many readers the mailboxes have on this node, and how many the topics.
    #[must_use]
    pub(crate) fn readers(&self) -> (Connections, Connections) {
        self.hubs.readers()
    }

    /// How much memory all clients together may take.
    #[must_use]
    pub(crate) fn budget(&self) -> &Budget {
        self.hubs.budget()
    }

    /// How many addresses are read on this node.
    #[must_use]
    pub fn hubs(&self) -> usize {
        self.hubs.len()
    }

    /// Drops what has outlived its time, and yields between slices. Run it every second.
    pub(crate) async fn expire(&self) {
        let mut messages = 0;
        loop {
            let expired = self.engine.expire();
            messages += expired.messages;
            if !expired.more {
                break;
            }
            tokio::task::yield_now().await;
        }
        metrics::EXPIRED.add(messages as u64);
        if messages > 0 {
            tracing::info!(messages, "expired unread");
        }
    }
}

#[cfg(test)]
mod tests;
