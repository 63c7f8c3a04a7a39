//! What stores messages: the seam between one machine and many.
//!
//! # The contract
//! Every engine, at every durability level, keeps these promises; `engine/contract.rs` tests them.
//!
//! 1. [`Engine::append`] takes its place in the order of its address when it is called, not when it is
//!    awaited. It resolves once the message is stored at the engine's level. Dropping the [`Commit`] does not
//!    undo it.
//! 2. Seqs of one address strictly increase in commit order, may skip, and are never reused. Those of a later
//!    epoch are above those of all earlier ones.
//! 3. The engine publishes what it commits to the hubs, after the commit, each with the seq that its address had
//!    before ([`Seq::START`] if it held nothing). A publication may come late, twice, out of order or not at
//!    all; of one that does not come, the hub is told its seq ([`crate::hub::Hubs::wake`]).
//! 4. A mailbox loses messages only by [`Engine::trim`] and by their time to live. A full mailbox refuses.
//!    A topic's history drops its oldest messages when it is full, and messages older than its age limit.
//! 5. The same sender, id, address and payload within the dedup window answer the first append's seq and store
//!    nothing. With another payload they are refused. Senders without a name are told apart by their payloads.
//!    The last 1,000 ids of each author are known for the whole window, whatever others send.
//! 6. [`Engine::read`] answers in seq order, at most the asked number of items, and reports every hole above
//!    the cursor exactly once, in order. A read shorter than its limit has reached the end, as far as the
//!    answering machine knows: it finds what this node stored, and may not find yet what a hub heard of.
//! 7. An address without messages costs nothing lasting.
//! 8. A registration is there until it ends, is ended or is changed, over restarts too. Its commit decides
//!    whether the session is registered. Ending a session ends its registration and deletes its mailbox, both
//!    or neither, and ends its readers on every node. Look-ups answer from this node's copy of the directory,
//!    which may be behind until [`Engine::confirm`].
//!    What is stored for a registered session, and the receipts for what it sends, are for its user. When its
//!    registration has expired and another user gets the session, they are deleted, and the readers end. What came
//!    while it was not registered is for whoever comes.
//! 9. When stored messages were lost, the epoch changes, also while the engine runs: first [`Engine::epoch`],
//!    from then on reads find the new store; then the hubs are told ([`crate::hub::Hubs::change_epoch`]); then
//!    messages of the new epoch are published.
//! 10. An engine of several machines learns from [`crate::hub::Interest`] which addresses are read here, before
//!     their first read. When it has subscribed to an address, it tells the hub the newest seq of that: what came
//!     before the subscription may be missing in a read.
//! 11. An engine that cannot go on says so, once and for good ([`Engine::fatal`]). What waits for it is refused, and so is
//!     all that comes afterwards. Nothing that was confirmed is lost by that.
//! 12. An append that names its payer counts against the shares of that author ([`Share`]), from the append until the
//!     message leaves, over restarts too ([`Settings::shares`]). Other appends have a tenth of everything for themselves.
//!     An author without stored messages costs nothing.
//! 13. Who reads a topic is known on every node ([`Engine::members`]). Once a second each node says where its own members
//!     changed ([`Engine::announce_members`]); the other nodes then hear of it ([`crate::hub::Members::changed_elsewhere`]),
//!     perhaps late or twice, or without a change. So they do of the members of a node that is gone.

use std::sync::Arc;
use std::time::Duration;

use crate::hub::{Connections, MemberPage};
use crate::message::{Address, Epoch, Handle, Publication, SenderName, Seq, SessionId, TopicName, UserId};

mod append;
mod arrivals;
mod commit;
mod contents;
mod crypt;
pub mod embedded;
mod error;
mod fatal;
mod handles;
mod listing;
#[cfg(feature = "nats")]
pub mod nats;
mod registration;
mod registrations;
mod settings;
mod shares;
mod state;
mod usage;

#[cfg(test)]
mod contract;

pub use append::Append;
use arrivals::Arrivals;
pub use commit::Commit;
pub use contents::{Contents, Oldest};
#[cfg(test)]
pub(crate) use contract::{Cluster, Node};
pub use crypt::DecryptError;
pub use embedded::Embedded;
pub use error::{EngineError, RegisterError};
pub use fatal::Fatal;
pub use listing::Scope;
pub use registration::{Lookup, Register, Registrar, Registration, RegistrationSource};
pub(crate) use settings::IdLimits;
pub use settings::{Bounds, QueueBounds, Settings};
pub use shares::{OverShare, Share};
pub use state::{Batch, Expired, Health, Position, Stored};
pub use usage::Usage;
pub(crate) use usage::size_text;

/// What stores messages.
#[derive(Debug, Clone)]
pub enum Engine {
    /// This process.
    Embedded(Embedded),
    /// A node of several machines.
    #[cfg(feature = "nats")]
    Nats(nats::Nats),
    /// A node of several machines, for tests of the seam.
    #[cfg(test)]
    Replicated(Node),
}

impl From<Embedded> for Engine {
    fn from(engine: Embedded) -> Self {
        Self::Embedded(engine)
    }
}

#[cfg(feature = "nats")]
impl From<nats::Nats> for Engine {
    fn from(engine: nats::Nats) -> Self {
        Self::Nats(engine)
    }
}

/// Calls the same method of whichever engine it is.
macro_rules! each {
    ($engine:expr, $it:ident => $call:expr) => {
        match $engine {
            Engine::Embedded($it) => $call,
            #[cfg(feature = "nats")]
            Engine::Nats($it) => $call,
            #[cfg(test)]
            Engine::Replicated($it) => $call,
        }
    };
}

/// The same for a method that waits. What asks other machines is boxed: a reader that waits on one machine makes no room for it.
macro_rules! await_each {
    ($engine:expr, $it:ident => $call:expr) => {
        match $engine {
            Engine::Embedded($it) => $call.await,
            #[cfg(feature = "nats")]
            Engine::Nats($it) => Box::pin($call).await,
            #[cfg(test)]
            Engine::Replicated($it) => Box::pin($call).await,
        }
    };
}

use {await_each, each};

impl Engine {
    /// Stores a message; see the contract.
    pub fn append(&self, append: Append) -> Commit {
        each!(self, engine => engine.append(append))
    }

    /// Stores a message in its mailbox, and then in each of these, as appends one after the other would. All commits are in
    /// this order. Cheaper than as many appends.
    pub fn append_each(&self, append: Append, others: Vec<Address>) -> Vec<Commit> {
        each!(self, engine => engine.append_each(append, others))
    }

    /// Hands a message to the current readers of the address, and stores nothing. `false` if there is no room for it in the
    /// memory budget.
    pub fn publish_volatile(&self, address: &Address, publication: &Arc<Publication>) -> bool {
        each!(self, engine => engine.publish_volatile(address, publication))
    }

    /// Reads what is stored after `after`, at most `limit` items. A failure is retried a few times. Messages that are read count
    /// in the memory budget until the last reader has let them go; the read waits for room for the first one.
    ///
    /// # Errors
    /// [`EngineError::Unreadable`]: it cannot be read now. Nothing is known to be lost.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn read(&self, address: &Address, after: Seq, limit: usize) -> Result<Batch, EngineError> {
        await_each!(self, engine => engine.read(address, after, limit))
    }

    /// What [`Self::read`] finds, if it has to wait for nothing: neither for the disk or another machine, nor for room in the
    /// memory budget.
    #[must_use]
    pub fn read_at_hand(&self, address: &Address, after: Seq, limit: usize) -> Option<Batch> {
        each!(self, engine => engine.read_at_hand(address, after, limit))
    }

    /// Deletes everything up to and including `through`. Cheap, not waited for, idempotent. The reads of this node
    /// see it at once.
    pub fn trim(&self, address: &Address, through: Seq) {
        each!(self, engine => engine.trim(address, through));
    }

    /// Up to where a mailbox is deleted although a slower reader has not sent it, when all up to `acknowledged` is
    /// acknowledged. [`Seq::START`] if it holds back no more than it may: 1,000 messages and 8 MiB, and half of the
    /// mailbox.
    #[must_use]
    pub fn held_too_long(&self, address: &Address, acknowledged: Seq) -> Seq {
        each!(self, engine => engine.held_too_long(address, acknowledged))
    }

    /// Registers a session, or changes its registration. The commit decides whether it is registered.
    pub fn register(&self, register: &Register) -> Commit<RegisterError> {
        each!(self, engine => engine.register(register))
    }

    /// Ends a session: its registration, its readers on every node, and everything in its mailbox. Tokens cannot
    /// register it again before `revoked_for` is over.
    pub fn end(&self, session: &SessionId, revoked_for: Duration) -> Commit {
        each!(self, engine => engine.end(session, revoked_for))
    }

    /// Who reads an address now, on all nodes.
    pub async fn presence(&self, address: &Address) -> Connections {
        await_each!(self, engine => engine.presence(address))
    }

    /// How many members a topic has on all nodes, and the first `limit` of them after a name. A name that reads it on several
    /// nodes is one member.
    pub async fn members(&self, topic: &TopicName, after: Option<&SenderName>, limit: usize) -> MemberPage {
        await_each!(self, engine => engine.members(topic, after, limit))
    }

    /// Says to the other nodes that the members of these topics changed here. Cheap, not waited for.
    pub fn announce_members(&self, topics: &[TopicName]) {
        each!(self, engine => engine.announce_members(topics));
    }

    /// Brings what this node knows of the directory up to what all nodes together knew when this was called. Ask it
    /// before a look-up that found nothing becomes a refusal.
    pub async fn confirm(&self, lookup: Lookup<'_>) {
        await_each!(self, engine => engine.confirm(lookup));
    }

    /// Tells when the registration of a session changes.
    pub(crate) fn arrivals(&self) -> &Arrivals {
        each!(self, engine => engine.arrivals())
    }

    /// Whether a session was ended and no token may register it again yet, as this node knows.
    #[must_use]
    pub fn is_revoked(&self, session: &SessionId) -> bool {
        each!(self, engine => engine.is_revoked(session))
    }

    /// A session's registration, if it has one that has not ended, as this node knows.
    #[must_use]
    pub fn registration(&self, session: &SessionId) -> Option<Registration> {
        each!(self, engine => engine.registration(session))
    }

    /// The registered session with this handle, as this node knows.
    #[must_use]
    pub fn session_of(&self, handle: Handle) -> Option<SessionId> {
        each!(self, engine => engine.session_of(handle))
    }

    /// The registered sessions of a user, as this node knows.
    #[must_use]
    pub fn sessions_of(&self, user: &UserId) -> Vec<SessionId> {
        each!(self, engine => engine.sessions_of(user))
    }

    /// The public name of a session.
    #[must_use]
    pub fn handle(&self, session: &SessionId) -> Handle {
        each!(self, engine => engine.handle(session))
    }

    /// The message authentication code of a user and some random bits, keyed with the store's secret.
    #[must_use]
    pub fn mac(&self, user: &UserId, bits: [u8; 16]) -> [u8; 16] {
        each!(self, engine => engine.mac(user, bits))
    }

    /// Encrypts something that comes back within `lifetime`, over restarts and at any node too. Nobody else can read or make
    /// such a text; the same content gives another text each time.
    #[must_use]
    pub fn encrypt(&self, content: &[u8], lifetime: Duration) -> String {
        each!(self, engine => engine.encrypt(content, lifetime))
    }

    /// The content of a text that was encrypted.
    ///
    /// # Errors
    /// [`DecryptError::Foreign`], [`DecryptError::Expired`].
    pub fn decrypt(&self, text: &str) -> Result<Vec<u8>, DecryptError> {
        each!(self, engine => engine.decrypt(text))
    }

    /// How many messages wait in a mailbox.
    pub async fn waiting(&self, mailbox: &Address) -> usize {
        await_each!(self, engine => engine.waiting(mailbox))
    }

    /// Where an address stands.
    pub async fn position(&self, address: &Address) -> Position {
        await_each!(self, engine => engine.position(address))
    }

    /// The newest seq of an address: no valid cursor is above it. What this node knows is enough if it reaches
    /// `at_least`; otherwise whoever knows most is asked.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`]: nobody can tell now whether there is more.
    pub async fn newest(&self, address: &Address, at_least: Seq) -> Result<Seq, EngineError> {
        await_each!(self, engine => engine.newest(address, at_least))
    }

    /// Where the seqs of this epoch begin at this address: a cursor below is of an earlier one.
    #[must_use]
    pub fn origin(&self, address: &Address) -> Seq {
        each!(self, engine => engine.origin(address))
    }

    /// The incarnation of the store. It may change while the engine runs: see promise 9 of the contract.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        each!(self, engine => engine.epoch())
    }

    /// What "stored" means, as `welcome` names it.
    #[must_use]
    pub fn durability(&self) -> &'static str {
        each!(self, engine => engine.durability())
    }

    /// The name of this node, as clients are told it; `None` with one machine.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Embedded(_) => None,
            #[cfg(feature = "nats")]
            Self::Nats(engine) => Some(engine.node()),
            #[cfg(test)]
            Self::Replicated(_) => None,
        }
    }

    /// Tells when it cannot go on.
    #[must_use]
    pub fn fatal(&self) -> &Fatal {
        each!(self, engine => engine.fatal())
    }

    /// How it fares.
    #[must_use]
    pub fn health(&self) -> Health {
        each!(self, engine => engine.health())
    }

    /// What it holds. Looks at every address: not for each message.
    #[must_use]
    pub fn contents(&self) -> Contents {
        match self {
            Self::Embedded(engine) => engine.contents(),
            #[cfg(feature = "nats")]
            Self::Nats(engine) => engine.contents(),
            #[cfg(test)]
            Self::Replicated(_) => Contents::default(),
        }
    }

    /// Stores what is accepted and closes; may wait for the disk. Appends are refused afterwards.
    pub fn close(&self) {
        each!(self, engine => engine.close());
    }

    /// Drops some of what has outlived its time.
    #[must_use]
    pub fn expire(&self) -> Expired {
        each!(self, engine => engine.expire())
    }
}
