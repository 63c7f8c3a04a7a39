//! The one door: send, subscribe, acknowledge. Knows no transport, no request and no socket.

use std::borrow::Cow;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::clock::Clock;
use crate::directory::Directory;
use crate::engine::{
    Append, Commit, Engine, EngineError, Health, OpenError, Register, RegisterError, Registrar, Registration,
    Settings, Storage,
};
use crate::grant::{Denied, Grant};
use crate::hub::{Connections, Hubs, Transport};
use crate::message::{
    Address, Epoch, Gap, GapReason, Handle, Kind, Message, Seq, SessionId, TopicName, UserId,
};
use crate::protocol::{Resume, Send, To};
use crate::subscriber::Subscriber;

mod sending;

pub use sending::Sending;

/// Limits of what is accepted.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest payload, in bytes.
    pub payload: usize,
    /// Longest time to live a sender, or a backend for a session, may ask for.
    pub ttl: Duration,
    /// Most readers of one session at the same time.
    pub readers: usize,
    /// For how long a session that was ended is barred to tokens; zero where sessions are not proved.
    pub bar: Duration,
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
    #[error("field `ttl` is longer than {limit} seconds, the most allowed here (see --max-ttl)")]
    TtlTooLong {
        /// The limit, in seconds.
        limit: u64,
    },
    /// A receipt was asked for where there can be none.
    #[error("field `receipt` {0}")]
    NoReceipt(&'static str),
    /// A receipt was asked for by somebody without a mailbox.
    #[error("field `receipt` needs a session, whose mailbox the receipt is put into; say which one sends")]
    ReceiptForNobody,
    /// Nobody registered a session of this user.
    #[error("user `{0}` has no registered session")]
    NoSuchUser(UserId),
    /// No session is known to this sender under that name.
    #[error(
        "no session is known here under this name; sessions of others are reached by their handle, or by their user"
    )]
    NoSuchSession,
    /// It is not allowed.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The session was not registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The session was ended.
    #[error("this session was ended; begin another one")]
    Ended,
    /// The session has too many readers.
    #[error(
        "this session has {limit} connections already, the most allowed (see --connections-per-session); close some first"
    )]
    TooManyReaders {
        /// The limit.
        limit: usize,
    },
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

/// What a session begins with that was made here.
const MADE: &str = "s-";

/// What is known of a session.
#[derive(Debug)]
pub struct SessionState {
    /// Its registration, if it has one.
    pub registration: Option<Registration>,
    /// Its public name.
    pub handle: Handle,
    /// Who reads it now.
    pub connections: Connections,
    /// Messages that wait for it.
    pub waiting: usize,
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
        match self.limits.bar.is_zero() {
            true => Cow::Borrowed(session.as_str()),
            false => Cow::Owned(self.engine.handle(session).to_string()),
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
    pub fn send(&self, grant: &Grant, send: Send) -> Result<Sending, BrokerError> {
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
                    self.engine.pass(&address, &message);
                    Sending::Volatile(None)
                }
                Receivers::Each(sessions) => {
                    let count = sessions.len();
                    for session in sessions {
                        self.engine.pass(&Address::Session(session), &message);
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

    /// Registers a session on a backend's word. The commit resolves when that is stored; `None` if nothing changes.
    ///
    /// # Errors
    /// Why it is not registered.
    pub fn register(
        &self,
        session: &SessionId,
        user: Option<UserId>,
        ttl: Duration,
    ) -> Result<Option<Commit>, BrokerError> {
        if ttl > self.limits.ttl {
            return Err(BrokerError::TtlTooLong { limit: self.limits.ttl.as_secs() });
        }
        let session = session.clone();
        Ok(self.directory.register(&Register { session, user, ttl, by: Registrar::Backend })?)
    }

    /// Notes that a token carries this session, for as long as it is good.
    ///
    /// # Errors
    /// The session belongs to somebody else, or was ended.
    pub fn carry(&self, session: &SessionId, user: &UserId, ttl: Duration) -> Result<(), BrokerError> {
        let (register, by) = (session.clone(), Registrar::Token);
        // Not waited for: after a crash the token is shown again.
        _ = self.directory.register(&Register { session: register, user: Some(user.clone()), ttl, by })?;
        Ok(())
    }

    /// The public name of a session.
    #[must_use]
    pub fn handle(&self, session: &SessionId) -> Handle {
        self.engine.handle(session)
    }

    /// A new session for a user. Nobody can guess it, and only its user can have it: see [`Self::is_made_for`].
    #[must_use]
    pub fn make_session(&self, user: &UserId) -> SessionId {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).expect("the operating system gives random numbers");
        let sealed = [bits, self.engine.seal(user, bits)].concat();
        SessionId::new(&format!("{MADE}{}", URL_SAFE_NO_PAD.encode(sealed)))
            .expect("45 characters are a name")
    }

    /// Whether a session was made for this user here, whenever that was.
    #[must_use]
    pub fn is_made_for(&self, session: &SessionId, user: &UserId) -> bool {
        let sealed = session.as_str().strip_prefix(MADE).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let Some((bits, seal)) = sealed.as_deref().and_then(|sealed| sealed.split_first_chunk::<16>()) else {
            return false;
        };
        verify_slices_are_equal(&self.engine.seal(user, *bits), seal).is_ok()
    }

    /// Ends a session: its readers are told, its mailbox is deleted. The commit resolves when that is stored.
    pub fn end(&self, session: &SessionId) -> Commit {
        let commit = self.directory.end(session, self.limits.bar);
        // A store that is being closed ends nothing: its readers come back.
        if !commit.is_refused() {
            self.hubs.end(&Address::Session(session.clone()));
        }
        commit
    }

    /// What is known of a session.
    #[must_use]
    pub fn session(&self, session: &SessionId) -> SessionState {
        SessionState {
            registration: self.engine.registration(session),
            handle: self.engine.handle(session),
            connections: self.hubs.presence(&Address::Session(session.clone())),
            waiting: self.engine.waiting(session),
        }
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
    ///
    /// # Errors
    /// The session has too many readers, or was ended.
    pub fn mailbox(
        &self,
        session: &SessionId,
        resume: &Resume,
        transport: Transport,
    ) -> Result<(Subscriber, Opening), BrokerError> {
        let floor = self.floor(session);
        let address = Address::Session(session.clone());
        // Nothing is below a mailbox's start: 0 is where everyone begins.
        let after = resume.after.filter(|after| *after > Seq::START);
        let limit = self.limits.readers;
        let reader = (transport, limit);
        let (subscriber, recovered) = self
            .subscriber(&address, after, resume.epoch.as_ref(), floor, reader)
            .ok_or(BrokerError::TooManyReaders { limit })?;
        // It may have been ended while it was joined: who ended it did not see this reader.
        if self.engine.is_ended(session) {
            return Err(BrokerError::Ended);
        }
        Ok((subscriber, Opening { seq: floor, recovered }))
    }

    /// Reads a topic: from now on, or after the cursor the reader brings.
    #[must_use]
    pub fn topic(&self, topic: &TopicName, resume: &Resume, transport: Transport) -> (Subscriber, Opening) {
        let address = Address::Topic(topic.clone());
        let position = self.engine.position(&address);
        let (subscriber, known) = self
            .subscriber(
                &address,
                resume.after,
                resume.epoch.as_ref(),
                position.newest,
                (transport, usize::MAX),
            )
            .expect("a topic has any number of readers");
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
        reader: (Transport, usize),
    ) -> Option<(Subscriber, bool)> {
        let new = |cursor| Subscriber::new(&self.engine, &self.hubs, address, cursor, reader);
        Some(match after {
            None => (new(otherwise)?, true),
            Some(after) if self.is_ours(after, epoch) => (new(after)?, true),
            Some(after) => {
                // A foreign cursor says nothing: begin where the store begins, and say so.
                let to = self.engine.position(address).floor;
                let mut subscriber = new(to)?;
                subscriber.tell(Gap { from: after, to, reason: GapReason::Epoch });
                (subscriber, false)
            }
        })
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
fn may_have_receipt(grant: &Grant, send: &Send) -> Result<(), BrokerError> {
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
