//! What stores messages: the seam between one machine and many.
//!
//! # The contract
//! Every engine, at every durability level, keeps these promises; `engine/contract.rs` tests them.
//!
//! 1. [`Engine::append`] takes its place in the order of its address when it is called, not when it is
//!    awaited. It resolves once the message is stored at the engine's level. Dropping the [`Commit`] does not
//!    undo it.
//! 2. Seqs of one address strictly increase in commit order, may skip, and are never reused in an epoch.
//! 3. The engine publishes what it commits to the hubs, in commit order, after the commit: whoever reads the
//!    engine after hearing of a publication finds it there (a stale engine excepted: see `Subscriber`).
//! 4. A mailbox loses messages only by [`Engine::trim`] and by their time to live. A full mailbox refuses.
//!    A topic's history drops its oldest messages when it is full, and messages older than its age limit.
//! 5. The same sender, id and address within the dedup window answer the first append's seq and store
//!    nothing.
//! 6. [`Engine::read`] answers in seq order, at most the asked number of items, and reports every hole above
//!    the cursor exactly once, in order. A read shorter than its limit has reached the end.
//! 7. An address without messages costs nothing lasting.
//! 8. A registration is there until it ends, is ended or is changed, over restarts too. Ending a session ends
//!    its registration and deletes its mailbox, both or neither.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::hub::Hubs;
use crate::message::{Address, Author, Epoch, Handle, Item, Message, MessageId, Seq, SessionId, UserId};

mod commit;
pub mod embedded;
mod error;
mod settings;

#[cfg(test)]
mod contract;

pub use commit::Commit;
pub use embedded::{Durability, Embedded, OpenError, Report, Storage, Writer, report};
pub use error::{EngineError, RegisterError};
pub use settings::{Bounds, QueueBounds, Settings};

/// A message to store.
#[derive(Debug)]
pub struct Append {
    /// Where.
    pub address: Address,
    /// What.
    pub message: Message,
    /// Who sends it: retries are told by author and id.
    pub author: Author,
    /// The sender's id for it.
    pub id: Option<MessageId>,
    /// How long it is kept; the bounds' age when absent.
    pub ttl: Option<Duration>,
    /// Whether its author (who must have a session, and an id for it) gets a receipt when it leaves.
    pub receipt: bool,
}

/// A session to register.
#[derive(Debug, Clone)]
pub struct Register {
    /// Which.
    pub session: SessionId,
    /// Who it belongs to. `None` leaves it with whom it belonged to before.
    pub user: Option<UserId>,
    /// How long the registration lasts.
    pub ttl: Duration,
    /// On whose word.
    pub by: Registrar,
}

/// On whose word a session is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registrar {
    /// A backend's: it may shorten a registration, and revive a session that was ended.
    Backend,
    /// A token's: it may prolong a registration.
    Token,
}

/// A registered session, or one that was ended and stays revoked for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Who it belongs to, if to anybody.
    pub user: Option<UserId>,
    /// When it expires, in Unix milliseconds.
    pub expires_at: u64,
    /// On whose word it is registered, or that it was ended.
    pub source: RegistrationSource,
}

/// On whose word a session is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistrationSource {
    /// A backend registered it: its id is a proof.
    Backend {
        /// Until when, in Unix milliseconds; tokens may keep it registered for longer.
        until: u64,
    },
    /// A token named it.
    Token,
    /// It was ended: until it expires no token registers it again.
    Revoked,
}

/// What was dropped because its time was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired {
    /// Messages, since this was asked last.
    pub messages: usize,
    /// Whether there may be more of them, or of registrations.
    pub more: bool,
}

/// What a read found.
#[derive(Debug, Default)]
pub struct Batch {
    /// Messages and holes, in order.
    pub items: Vec<Item>,
    /// How far the read got: everything up to here is in `items`, or gone.
    pub cursor: Seq,
    /// Whether the limit ended the read: there may be more.
    pub more: bool,
}

/// Where a mailbox or history stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Up to here everything was acknowledged or dropped: the ack floor.
    pub floor: Seq,
    /// The highest seq that is gone without having been acknowledged.
    pub expired: Seq,
    /// The newest seq ever stored here, as far as is known.
    pub newest: Seq,
}

/// How an engine fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Why messages cannot be stored at present.
    pub failing: Option<Arc<str>>,
}

/// What stores messages.
#[derive(Debug, Clone)]
pub enum Engine {
    /// This process.
    Embedded(Embedded),
    /// Answers a few reads as if the newest messages were not there yet, as a lagging replica does.
    #[cfg(test)]
    #[allow(private_interfaces)]
    Stale(contract::Stale),
}

impl Engine {
    /// The embedded engine. Opening a store that is there reads all of it.
    ///
    /// # Errors
    /// [`OpenError`] says why the store cannot be used. There is none in memory.
    pub fn embedded(settings: Settings, hubs: Hubs, storage: &Storage) -> Result<Self, OpenError> {
        Ok(Self::Embedded(match storage {
            Storage::Memory => Embedded::in_memory(settings, hubs),
            Storage::Directory(dir, durability) => Embedded::open(settings, hubs, dir, *durability)?,
        }))
    }

    /// The embedded engine in a directory, whose writer takes its turns when the caller says so.
    ///
    /// # Errors
    /// As [`Self::embedded`].
    pub fn stepped(
        settings: Settings,
        hubs: Hubs,
        dir: &Path,
        durability: Durability,
    ) -> Result<(Self, Writer), OpenError> {
        let (engine, writer) = Embedded::open_stepped(settings, hubs, dir, durability)?;
        Ok((Self::Embedded(engine), writer))
    }

    fn store(&self) -> &Embedded {
        match self {
            Self::Embedded(engine) => engine,
            #[cfg(test)]
            Self::Stale(engine) => &engine.inner,
        }
    }

    /// Stores a message; see the contract.
    pub fn append(&self, append: Append) -> Commit {
        self.store().append(append)
    }

    /// Hands a message to whoever reads the address now, and stores nothing.
    pub fn publish_volatile(&self, address: &Address, message: &Message) {
        self.store().publish_volatile(address, message);
    }

    /// Reads what is stored after `after`, at most `limit` items.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn read(&self, address: &Address, after: Seq, limit: usize) -> Batch {
        #[cfg(test)]
        if let Self::Stale(engine) = self
            && engine.is_stale()
        {
            return Batch::default();
        }
        self.store().read(address, after, limit).await
    }

    /// Deletes everything up to and including `through`. Cheap, not waited for, idempotent.
    pub fn trim(&self, address: &Address, through: Seq) {
        self.store().trim(address, through);
    }

    /// Registers a session, or changes its registration. The answer resolves when that is stored; `None` if nothing
    /// changes.
    ///
    /// # Errors
    /// [`RegisterError`] says why it was not registered.
    pub fn register(&self, register: &Register) -> Result<Option<Commit>, RegisterError> {
        self.store().register(register)
    }

    /// Ends a session: its registration, and everything in its mailbox. Tokens cannot register it again before
    /// `revoked_for` is over. Resolves when that is stored.
    pub fn end(&self, session: &SessionId, revoked_for: Duration) -> Commit {
        self.store().end(session, revoked_for)
    }

    /// Whether a session was ended, and is barred.
    #[must_use]
    pub fn is_ended(&self, session: &SessionId) -> bool {
        self.store().is_ended(session)
    }

    /// The public name of a session.
    #[must_use]
    pub fn handle(&self, session: &SessionId) -> Handle {
        self.store().handle(session)
    }

    /// What only this store can have said of a user and some random bits: proof of what it made for that user.
    #[must_use]
    pub fn mac(&self, user: &UserId, bits: [u8; 16]) -> [u8; 16] {
        self.store().mac(user, bits)
    }

    /// The registered session with this handle.
    #[must_use]
    pub fn session_of(&self, handle: Handle) -> Option<SessionId> {
        self.store().session_of(handle)
    }

    /// How many messages wait in a mailbox.
    #[must_use]
    pub fn waiting(&self, session: &SessionId) -> usize {
        self.store().waiting(session)
    }

    /// A session's registration, if it has one that has not ended.
    #[must_use]
    pub fn registration(&self, session: &SessionId) -> Option<Registration> {
        self.store().registration(session)
    }

    /// The registered sessions of a user.
    #[must_use]
    pub fn sessions_of(&self, user: &UserId) -> Vec<SessionId> {
        self.store().sessions_of(user)
    }

    /// Where an address stands.
    #[must_use]
    pub fn position(&self, address: &Address) -> Position {
        self.store().position(address)
    }

    /// The newest seq of the whole store: no valid cursor is above it.
    #[must_use]
    pub fn newest(&self) -> Seq {
        self.store().newest()
    }

    /// Where the seqs of this epoch begin: a cursor below is of an earlier one.
    #[must_use]
    pub fn origin(&self) -> Seq {
        self.store().origin()
    }

    /// The incarnation of the store.
    #[must_use]
    pub fn epoch(&self) -> &Epoch {
        self.store().epoch()
    }

    /// What "stored" means: `fsync`, `os` or `memory`.
    #[must_use]
    pub fn durability(&self) -> &'static str {
        self.store().durability()
    }

    /// How it fares.
    #[must_use]
    pub fn health(&self) -> Health {
        self.store().health()
    }

    /// Writes what is left and closes the store; may wait for the disk. Appends are refused afterwards.
    pub fn close(&self) {
        self.store().close();
    }

    /// Stops writing at once, as a killed process does. For tests of recovery.
    pub fn abandon(&self) {
        self.store().abandon();
    }

    /// Drops some of what has outlived its time.
    #[must_use]
    pub fn expire(&self) -> Expired {
        self.store().expire()
    }
}
