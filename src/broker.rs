//! The one door: send, subscribe, acknowledge. Knows no transport, no request and no socket.

use std::borrow::Cow;
use std::time::Duration;

use crate::clock::Clock;
use crate::directory::Directory;
use crate::engine::{Append, Engine, Health, OpenError, Settings, Storage};
use crate::grant::Grant;
use crate::hub::Hubs;
use crate::message::{Address, Epoch, Kind, Message, SessionId, UserId};
use crate::protocol::{SendRequest, To};

mod error;
mod reading;
mod sending;
mod sessions;

pub use error::BrokerError;
pub use reading::Opening;
pub use sending::Sending;
pub use sessions::SessionState;

/// Limits of what is accepted.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest payload, in bytes.
    pub payload: usize,
    /// Longest time to live a sender, or a backend for a session, may ask for.
    pub ttl: Duration,
    /// Most readers of one session at the same time.
    pub readers: usize,
    /// For how long no token registers a session again that was ended; zero where sessions are not proved.
    pub revoked_for: Duration,
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
}

impl Broker {
    /// A broker on the embedded engine, with hubs of this many slots.
    ///
    /// # Errors
    /// [`OpenError`] says why the store cannot be used. There is none in memory.
    pub fn new(
        settings: Settings,
        limits: Limits,
        hub_slots: usize,
        storage: &Storage,
    ) -> Result<Self, OpenError> {
        let hubs = Hubs::new(hub_slots);
        let engine = Engine::embedded(settings, hubs.clone(), storage)?;
        Ok(Self::on(engine, hubs, limits, settings.clock))
    }

    /// A broker on this engine, which publishes to these hubs.
    #[must_use]
    pub fn on(engine: Engine, hubs: Hubs, limits: Limits, clock: Clock) -> Self {
        Self { directory: Directory::new(engine.clone(), clock), engine, hubs, limits, clock }
    }

    /// Who is registered.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Now, in Unix milliseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// A session as logs may name it: by its handle, where its id is a secret.
    #[must_use]
    pub fn public_name<'a>(&self, session: &'a SessionId) -> Cow<'a, str> {
        match self.limits.secret_ids {
            true => Cow::Owned(self.engine.handle(session).to_string()),
            false => Cow::Borrowed(session.as_str()),
        }
    }

    /// The store's incarnation.
    #[must_use]
    pub fn epoch(&self) -> &Epoch {
        self.engine.epoch()
    }

    /// What "sent" means: `fsync`, `os` or `memory`.
    #[must_use]
    pub fn durability(&self) -> &'static str {
        self.engine.durability()
    }

    /// How the engine fares.
    #[must_use]
    pub fn health(&self) -> Health {
        self.engine.health()
    }

    /// Writes what is left and closes the store; may wait for the disk.
    pub fn close(&self) {
        self.engine.close();
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How many addresses are being read.
    #[must_use]
    pub fn hubs(&self) -> usize {
        self.hubs.len()
    }

    /// Takes a message. Its place in the order is taken now; the answer says when it is stored.
    ///
    /// # Errors
    /// What is wrong with the message, or who does not exist.
    pub fn send(&self, grant: &Grant, send: SendRequest) -> Result<Sending, BrokerError> {
        let size = send.payload.get().len();
        if size > self.limits.payload {
            return Err(BrokerError::PayloadTooLarge { size, limit: self.limits.payload });
        }
        if send.ttl.is_some_and(|ttl| ttl > self.limits.ttl) {
            return Err(BrokerError::TtlTooLong { limit: self.limits.ttl.as_secs() });
        }
        grant.may_send(&send.to)?;
        if send.receipt {
            may_have_receipt(grant, &send)?;
        }
        let receivers = self.receivers(grant, send.to)?;
        let (from, ts) = (grant.from(), self.clock.now());
        let message = Message { kind: Kind::Message, from, payload: send.payload, ts };
        if send.volatile {
            return Ok(match receivers {
                Receivers::One(address) => {
                    self.engine.publish_volatile(&address, &message);
                    Sending::Volatile(None)
                }
                Receivers::Each(sessions) => {
                    let count = sessions.len();
                    for session in sessions {
                        self.engine.publish_volatile(&Address::Session(session), &message);
                    }
                    Sending::Volatile(Some(count))
                }
            });
        }
        let (author, id, ttl, receipt) = (grant.author(), send.id, send.ttl, send.receipt);
        Ok(match receivers {
            Receivers::One(address) => {
                Sending::One(self.engine.append(Append { address, message, author, id, ttl, receipt }))
            }
            Receivers::Each(sessions) => Sending::each(sessions.into_iter().map(|session| {
                let (message, author, id) = (message.clone(), author.clone(), id.clone());
                let address = Address::Session(session);
                self.engine.append(Append { address, message, author, id, ttl, receipt: false })
            })),
        })
    }

    fn receivers(&self, grant: &Grant, to: To) -> Result<Receivers, BrokerError> {
        let directory = &self.directory;
        let each = |user: UserId| match directory.sessions_of(&user) {
            none if none.is_empty() => Err(BrokerError::NoSuchUser(user)),
            sessions => Ok(Receivers::Each(sessions)),
        };
        let one = |session| Receivers::One(Address::Session(session));
        match to {
            To::Session(name) => directory.find(grant, &name).map(one).ok_or(BrokerError::NoSuchSession),
            To::Topic(topic) => Ok(Receivers::One(Address::Topic(topic))),
            To::User(user) => each(user),
            To::Peer(name) => match directory.find(grant, &name) {
                Some(session) => Ok(one(session)),
                None => each((&name).into()).map_err(|_| BrokerError::NoSuchSession),
            },
        }
    }

    /// Drops what has outlived its time, giving way to others between slices. Run it every second.
    pub async fn expire(&self) {
        let mut messages = 0;
        loop {
            let expired = self.engine.expire();
            messages += expired.messages;
            if !expired.more {
                break;
            }
            tokio::task::yield_now().await;
        }
        if messages > 0 {
            tracing::info!(messages, "expired unread");
        }
    }
}

/// Who gets a message.
enum Receivers {
    One(Address),
    /// The sessions of a user.
    Each(Vec<SessionId>),
}

/// Whether there can be a receipt: somebody gets it, knows what it is about, and something is acknowledged.
fn may_have_receipt(grant: &Grant, send: &SendRequest) -> Result<(), BrokerError> {
    let why = match send.to {
        To::Topic(_) => "is for messages to a session; nobody acknowledges a topic",
        To::User(_) => "is for messages to one session; a user may have several",
        _ if send.volatile => "and `volatile` exclude each other: what is not stored is not acknowledged",
        _ if send.id.is_none() => "needs an `id`, which the receipt is going to name",
        _ if grant.session().is_none() => return Err(BrokerError::ReceiptForNobody),
        _ => return Ok(()),
    };
    Err(BrokerError::NoReceipt(why))
}
