//! The one door: send, subscribe, acknowledge. Knows no transport, no request and no socket.

use std::time::Duration;

use crate::clock::Clock;
use crate::engine::{Append, Commit, Engine, EngineError, Health, OpenError, Settings, Storage};
use crate::hub::Hubs;
use crate::identity::Grant;
use crate::message::{Address, Epoch, Gap, GapReason, Kind, Message, MessageId, Seq, SessionId, TopicName};
use crate::protocol::{Resume, Send, To};
use crate::subscriber::Subscriber;

/// Limits of what is accepted.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest payload, in bytes.
    pub payload: usize,
    /// Longest time to live a sender may ask for.
    pub ttl: Duration,
}

/// Why a call was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The payload exceeds the limit.
    #[error("field `payload` is {size} bytes long; at most {limit} are allowed")]
    PayloadTooLarge {
        /// Its size, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The time to live exceeds the limit.
    #[error("field `ttl` is longer than {limit} seconds, the most this server keeps a message")]
    TtlTooLong {
        /// The limit, in seconds.
        limit: u64,
    },
    /// A receipt was asked for where there can be none.
    #[error("field `receipt` {0}")]
    NoReceipt(&'static str),
    /// Nobody registered a session of this user.
    #[error("user `{0}` has no registered session")]
    NoSuchUser(crate::message::UserId),
    /// An acknowledgement of something never handed out.
    #[error("field `seq` is {seq}, but nothing above {newest} was ever stored")]
    AckBeyond {
        /// What was acknowledged.
        seq: Seq,
        /// The newest seq there is.
        newest: Seq,
    },
    /// An acknowledgement from another incarnation of the store.
    #[error("field `epoch` is not the epoch of this store ({0}); read again from the start", epoch.as_str())]
    WrongEpoch {
        /// The store's epoch.
        epoch: Epoch,
    },
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What a sender is told.
#[derive(Debug)]
pub enum Sending {
    /// Wait for this.
    Stored(Commit),
    /// Handed to whoever was there.
    Volatile,
}

impl Sending {
    /// Waits until the message is stored; `None` for a volatile one.
    ///
    /// # Errors
    /// Why it was not stored.
    pub async fn done(self) -> Result<Option<Seq>, BrokerError> {
        match self {
            Self::Stored(commit) => Ok(Some(commit.await?)),
            Self::Volatile => Ok(None),
        }
    }
}

/// How a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// The ack floor of a mailbox; the newest seq of a topic.
    pub seq: Seq,
    /// Whether everything after the asked position is still there.
    pub recovered: bool,
}

/// The broker; cheap to clone.
#[derive(Debug, Clone)]
pub struct Broker {
    engine: Engine,
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
        Self { engine, hubs, limits, clock }
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
    pub fn send(&self, grant: &Grant, send: Send) -> Result<Sending, BrokerError> {
        let size = send.payload.get().len();
        if size > self.limits.payload {
            return Err(BrokerError::PayloadTooLarge { size, limit: self.limits.payload });
        }
        if send.ttl.is_some_and(|ttl| ttl > self.limits.ttl) {
            return Err(BrokerError::TtlTooLong { limit: self.limits.ttl.as_secs() });
        }
        let address = match send.to {
            To::Session(session) => Address::Session(session),
            To::Topic(topic) => Address::Topic(topic),
            To::User(user) => return Err(BrokerError::NoSuchUser(user)),
        };
        if send.receipt {
            may_have_receipt(grant, &send.id, &address, send.volatile)?;
        }
        let (from, ts) = (grant.sender().cloned(), self.clock.now());
        let message = Message { kind: Kind::Message, from, payload: send.payload, ts };
        if send.volatile {
            self.engine.pass(&address, &message);
            return Ok(Sending::Volatile);
        }
        let (id, ttl, receipt) = (send.id, send.ttl, send.receipt);
        Ok(Sending::Stored(self.engine.append(Append { address, message, id, ttl, receipt })))
    }

    /// The ack floor of a mailbox: acknowledged, though a slower reader may still be waited for.
    #[must_use]
    pub fn floor(&self, session: &SessionId) -> Seq {
        let address = Address::Session(session.clone());
        // The hub first: what it forgets when its last reader leaves, the engine knows by then.
        let acknowledged = self.hubs.acknowledged(&address);
        self.engine.position(&address).floor.max(acknowledged)
    }

    /// Reads a mailbox: from the ack floor, or after the cursor the reader brings.
    #[must_use]
    pub fn mailbox(&self, session: &SessionId, resume: &Resume) -> (Subscriber, Opening) {
        let floor = self.floor(session);
        let address = Address::Session(session.clone());
        // Nothing is below a mailbox's start: 0 is where everyone begins.
        let after = resume.after.filter(|after| *after > Seq::START);
        let (subscriber, recovered) = self.subscriber(&address, after, resume.epoch.as_ref(), floor);
        (subscriber, Opening { seq: floor, recovered })
    }

    /// Reads a topic: from now on, or after the cursor the reader brings.
    #[must_use]
    pub fn topic(&self, topic: &TopicName, resume: &Resume) -> (Subscriber, Opening) {
        let address = Address::Topic(topic.clone());
        let position = self.engine.position(&address);
        let (subscriber, known) =
            self.subscriber(&address, resume.after, resume.epoch.as_ref(), position.newest);
        let reaches = resume.after.is_none_or(|after| after >= position.floor.max(position.expired));
        (subscriber, Opening { seq: position.newest, recovered: known && reaches })
    }

    /// A reader after the given cursor, or after `otherwise` where there is none or it means nothing here.
    fn subscriber(
        &self,
        address: &Address,
        after: Option<Seq>,
        epoch: Option<&Epoch>,
        otherwise: Seq,
    ) -> (Subscriber, bool) {
        let new = |cursor| Subscriber::new(&self.engine, &self.hubs, address, cursor);
        match after {
            None => (new(otherwise), true),
            Some(after) if self.is_ours(after, epoch) => (new(after), true),
            Some(after) => {
                // A foreign cursor says nothing: begin where the store begins, and say so.
                let to = self.engine.position(address).floor;
                let mut subscriber = new(to);
                subscriber.tell(Gap { from: after, to, reason: GapReason::Epoch });
                (subscriber, false)
            }
        }
    }

    /// Whether a cursor belongs to this incarnation of the store.
    #[must_use]
    pub fn is_ours(&self, cursor: Seq, epoch: Option<&Epoch>) -> bool {
        let known = cursor == Seq::START || cursor >= self.engine.origin() && cursor <= self.engine.newest();
        known && epoch.is_none_or(|epoch| epoch == self.engine.epoch())
    }

    /// Everything up to `seq` is received. Answers the new ack floor.
    ///
    /// It is deleted as soon as no attached reader of the session on this node is still behind it.
    ///
    /// # Errors
    /// The seq was never given, or belongs to another incarnation of the store.
    pub fn ack(&self, session: &SessionId, seq: Seq, epoch: Option<&Epoch>) -> Result<Seq, BrokerError> {
        if epoch.is_some_and(|epoch| epoch != self.engine.epoch()) {
            return Err(BrokerError::WrongEpoch { epoch: self.engine.epoch().clone() });
        }
        let newest = self.engine.newest();
        if seq > newest {
            return Err(BrokerError::AckBeyond { seq, newest });
        }
        let address = Address::Session(session.clone());
        if let Some(through) = self.hubs.acknowledge(&address, seq) {
            self.engine.trim(&address, through);
        }
        Ok(self.floor(session))
    }

    /// Drops what has outlived its time, giving way to others between slices. Run it every second.
    pub async fn expire(&self) {
        let mut messages = 0;
        loop {
            match self.engine.expire() {
                0 => break,
                dropped => messages += dropped,
            }
            tokio::task::yield_now().await;
        }
        if messages > 0 {
            tracing::info!(messages, "expired unread");
        }
    }
}

/// Whether there can be a receipt: somebody gets it, knows what it is about, and something is acknowledged.
fn may_have_receipt(
    grant: &Grant,
    id: &Option<MessageId>,
    address: &Address,
    volatile: bool,
) -> Result<(), BrokerError> {
    let why = match address {
        Address::Topic(_) => "is for messages to a session; nobody acknowledges a topic",
        _ if volatile => "and `volatile` exclude each other: what is not stored is not acknowledged",
        _ if id.is_none() => "needs an `id`, which the receipt is going to name",
        _ if grant.sender().is_none() => "needs a session, whose mailbox the receipt is put into",
        _ => return Ok(()),
    };
    Err(BrokerError::NoReceipt(why))
}
