//! The engine of one machine: an index in memory, and below it, unless the level is `memory`, a store on disk.
//!
//! The index is in shards, each of which has some of the addresses and a lock. An append is encoded first. Under the lock
//! of its address it gets its seq and goes into a bounded queue. One writer takes everything that is queued and commits it
//! as one transaction. Then the messages are visible. A task publishes them to the hubs in commit order, and tells their
//! senders. At level `memory` a message is committed under the lock of its address, and published after it.
//!
//! Deletions are held back for a moment, and written together. A crash before that makes an acknowledged message come again; it
//! does not lose an unacknowledged one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::budget::Holder;
use crate::engine::{
    Arrivals, Batch, Commit, Contents, EngineError, Expired, Fatal, Health, Lookup, Position, Register,
    RegisterError, Registrar, Settings,
};
use crate::hub::{EndReason, Hubs};
use crate::message::{Address, Epoch, Publication, Seq, SessionId};

mod appends;
mod at_hand;
mod backup;
mod crash;
pub(super) mod dedup;
mod disk;
#[cfg(feature = "nats")]
pub(super) mod export;
mod file_id;
mod files;
#[cfg(test)]
mod fixture;
mod index;
mod listing;
mod load;
mod lookups;
mod outbox;
mod place;
mod presence;
mod private;
mod publish_queue;
mod publisher;
mod publishing;
mod reader;
mod recovery;
mod report;
mod rows;
mod running;
mod salvage;
mod secrets;
mod shared;
mod stall;
mod storage;
mod store_clock;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod threads;
mod wal;
mod writer;
mod writer_thread;

pub use backup::{back_up, restore};
pub use report::{Report, report};
pub use storage::{Durability, OpenError, Storage};
pub use writer::Writer;

use index::{BROKEN, EMPTY_LOGS, Index, Stop};
use reader::{ReadPool, TransientRead};
use rows::store::{first_seq, random_epoch, random_secret};
use shared::{DiskAccess, Shared};
use store_clock::StoreClock;
use writer_thread::WriterThread;

/// How often a read of the disk that failed is repeated, and after which pause.
const READ_AGAIN: u32 = 2;
const READ_PAUSE: Duration = Duration::from_millis(200);

/// How many empty logs of a shard one slice of expiry looks at.
const FORGET_SLICE: usize = 64;

/// How many empty logs one acknowledgement looks at.
const FORGET_ON_TRIM: usize = 4;

/// Stores messages in this process; cheap to clone.
#[derive(Debug, Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
    /// Ends the writer with the last handle.
    writer: Arc<WriterThread>,
}

impl Embedded {
    /// An empty store in memory with a new epoch.
    #[must_use]
    pub fn in_memory(settings: Settings, hubs: Hubs) -> Self {
        let newest = first_seq(settings.clock);
        let secret = random_secret();
        let clock = StoreClock::begin(settings.clock, None);
        let index = Index::in_memory(settings, clock.clone(), &secret, newest);
        let store = (random_epoch(), newest, &secret);
        Self::of(Shared::new(hubs, clock, store, index, None))
    }

    fn of(shared: Shared) -> Self {
        let shared = Arc::new(shared);
        let writer = WriterThread::new(&shared).into();
        Self { shared, writer }
    }

    /// Starts an engine on this storage. Opening a store reads all of it.
    ///
    /// # Errors
    /// [`OpenError`] says why the store cannot be used. There is none in memory.
    pub fn start(settings: Settings, hubs: Hubs, storage: &Storage) -> Result<Self, OpenError> {
        match storage {
            Storage::Memory => Ok(Self::in_memory(settings, hubs)),
            Storage::Directory(dir, durability) => Self::open(settings, hubs, dir, *durability),
        }
    }

    /// Opens the store in this directory, or makes one, and starts its writer.
    ///
    /// # Errors
    /// [`OpenError`] says why the store cannot be used.
    pub fn open(
        settings: Settings,
        hubs: Hubs,
        dir: &Path,
        durability: Durability,
    ) -> Result<Self, OpenError> {
        let (engine, writer) = Self::opened(settings, hubs, dir, durability, false)?;
        let thread = std::thread::Builder::new().name("writer".to_owned()).spawn(move || writer.run());
        let thread = thread.map_err(|error| OpenError::Io {
            what: "start the writer of",
            path: dir.to_owned(),
            error,
        })?;
        engine.writer.set(thread);
        publishing::start(&engine.shared);
        Ok(engine)
    }

    /// Opens the store. The caller decides when its writer works.
    ///
    /// # Errors
    /// [`OpenError`] says why the store cannot be used.
    pub fn open_stepped(
        settings: Settings,
        hubs: Hubs,
        dir: &Path,
        durability: Durability,
    ) -> Result<(Self, Writer), OpenError> {
        Self::opened(settings, hubs, dir, durability, true)
    }

    fn opened(
        settings: Settings,
        hubs: Hubs,
        dir: &Path,
        durability: Durability,
        stepped: bool,
    ) -> Result<(Self, Writer), OpenError> {
        let opened = recovery::open(dir, durability, settings)?;
        let readers = ReadPool::of(opened.disk.path(), stepped);
        if !stepped && let Err(error) = readers.open_ahead() {
            tracing::warn!(%error, "connections that read the store are opened later");
        }
        let access = DiskAccess { readers, durability, lock: opened.lock };
        let identity = opened.identity;
        let store = (identity.epoch, identity.origin, &identity.secret);
        let engine = Self::of(Shared::new(hubs, opened.clock, store, opened.index, Some(access)));
        let shared = Arc::clone(&engine.shared);
        let writer = Writer::new(shared, opened.disk, opened.files, settings.dedup_window);
        Ok((engine, writer))
    }

    /// Writes what is left, closes the store, and waits for that. Later appends are refused.
    pub fn close(&self) {
        self.writer.stop(Stop::InOrder);
        // Connections may hold this engine for longer, and another process waits for the store.
        if let Some(access) = &self.shared.disk
            && let Err(error) = access.lock.unlock()
        {
            tracing::warn!(%error, "the store stays locked until this process ends");
        }
    }

    /// Stops writing at once, as a killed process does. For tests of recovery.
    pub fn abandon(&self) {
        self.writer.stop(Stop::AtOnce);
    }

    /// See [`crate::engine::Engine::register`].
    pub fn register(&self, register: &Register) -> Commit<RegisterError> {
        let shared = &*self.shared;
        let register = &Register { by: shared.clock.registrar(register.by), ..register.clone() };
        if let Err(refused) = self.check_open() {
            return Commit::done(Err(refused.into()));
        }
        // A token comes again, so its registration need not be stored to count.
        if shared.disk.is_some() && !matches!(register.by, Registrar::Token { .. }) {
            let (waiter, commit) = oneshot::channel();
            return match shared.index.stage_registration(register, &shared.hubs, waiter) {
                Err(refused) => Commit::done(Err(refused)),
                Ok(()) => Commit::undecided(commit),
            };
        }
        let filled = match shared.index.register(register, &shared.hubs) {
            Err(refused) => return Commit::done(Err(refused)),
            Ok((false, _)) => return Commit::done(Ok(shared.index.committed())),
            Ok((true, filled)) => filled,
        };
        let commit = self.after_commit();
        shared.publish(filled);
        shared.arrivals.wake(&register.session);
        commit
    }

    /// Whether the store is open.
    fn check_open(&self) -> Result<(), EngineError> {
        match self.shared.intake() {
            Some(intake) => intake.check_open(),
            None => Err(EngineError::Unavailable { reason: BROKEN.into() }),
        }
    }

    /// See [`crate::engine::Engine::end`].
    pub fn end(&self, session: &SessionId, revoked_for: Duration) -> Commit {
        let shared = &*self.shared;
        // A store that is being closed ends nothing: its readers come back.
        if let Err(refused) = self.check_open() {
            return Commit::done(Err(refused));
        }
        if shared.disk.is_some() {
            let (waiter, commit) = oneshot::channel();
            return match shared.index.stage_end(session, revoked_for, waiter) {
                Err(refused) => Commit::done(Err(refused)),
                Ok(()) => Commit::accepted(commit),
            };
        }
        let filled = shared.index.end(session, revoked_for);
        let commit = Commit::done(Ok(shared.index.committed()));
        shared.publish(filled);
        shared.hubs.end(&Address::Session(session.clone()), EndReason::SessionEnded);
        commit
    }

    /// Resolves when what was changed just now is stored.
    fn after_commit<E: From<EngineError>>(&self) -> Commit<E> {
        if self.shared.disk.is_none() {
            return Commit::done(Ok(self.shared.index.committed()));
        }
        let (waiter, commit) = oneshot::channel();
        match self.shared.index.wait_for_writes(waiter) {
            Ok(()) => Commit::accepted(commit),
            Err(refused) => Commit::done(Err(refused.into())),
        }
    }

    /// See [`crate::engine::Engine::confirm`]: what is known here is all there is.
    pub async fn confirm(&self, _: Lookup<'_>) {}

    pub(crate) fn arrivals(&self) -> &Arrivals {
        &self.shared.arrivals
    }

    /// See [`crate::engine::Engine::waiting`].
    pub async fn waiting(&self, mailbox: &Address) -> usize {
        self.shared.index.waiting(mailbox)
    }

    /// See [`crate::engine::Engine::publish_volatile`].
    #[must_use]
    pub fn publish_volatile(&self, address: &Address, publication: &Arc<Publication>) -> bool {
        self.shared.hubs.publish_volatile(address, publication)
    }

    /// See [`crate::engine::Engine::read`].
    ///
    /// # Errors
    /// [`EngineError::Unreadable`].
    pub async fn read(&self, address: &Address, after: Seq, limit: usize) -> Result<Batch, EngineError> {
        let (mut failures, mut granted) = (0, None);
        let budget = self.shared.hubs.budget();
        loop {
            let plan = self.shared.index.read(address, after, limit);
            let mut plan = plan.ok_or_else(|| EngineError::Unreadable { reason: BROKEN.into() })?;
            if let Err(missing) = plan.reserve(budget, granted.take()) {
                // Nothing is held while it waits.
                drop(plan);
                granted = Some(budget.acquire(Holder::Proved, missing).await);
                continue;
            }
            let on_disk = plan.on_disk();
            let fetched = match &self.shared.disk {
                Some(access) if !on_disk.is_empty() => access.readers.fetch(on_disk).await,
                _ => Ok(Vec::new()),
            };
            let holds = |seq| self.shared.index.holds(address, seq);
            match fetched {
                Ok(fetched) => {
                    if let Some(batch) = plan.into_batch(after, fetched, holds) {
                        return Ok(batch);
                    }
                }
                Err(TransientRead(reason)) if failures == READ_AGAIN => {
                    return Err(EngineError::Unreadable { reason });
                }
                Err(TransientRead(_)) => {
                    drop(plan);
                    failures += 1;
                    tokio::time::sleep(READ_PAUSE).await;
                }
            }
        }
    }

    /// See [`crate::engine::Engine::trim`].
    pub fn trim(&self, address: &Address, through: Seq) {
        let forget = (&self.shared.hubs, EMPTY_LOGS, FORGET_ON_TRIM);
        let filled = self.shared.index.trim(address, through, forget);
        self.shared.publish(filled);
    }

    /// See [`crate::engine::Engine::held_too_long`].
    #[must_use]
    pub fn held_too_long(&self, address: &Address, acknowledged: Seq) -> Seq {
        self.shared.index.held_too_long(address, acknowledged)
    }

    /// See [`crate::engine::Engine::position`].
    pub async fn position(&self, address: &Address) -> Position {
        self.shared.index.position(address)
    }

    /// See [`crate::engine::Engine::newest`].
    ///
    /// # Errors
    /// None.
    pub async fn newest(&self, _: &Address, _: Seq) -> Result<Seq, EngineError> {
        Ok(self.shared.index.committed())
    }

    /// See [`crate::engine::Engine::origin`].
    #[must_use]
    pub fn origin(&self, _: &Address) -> Seq {
        self.shared.origin
    }

    /// See [`crate::engine::Engine::epoch`].
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch.clone()
    }

    /// See [`crate::engine::Engine::durability`].
    #[must_use]
    pub fn durability(&self) -> &'static str {
        self.shared.disk.as_ref().map_or("memory", |access| access.durability.name())
    }

    /// See [`crate::engine::Engine::fatal`].
    #[must_use]
    pub fn fatal(&self) -> &Fatal {
        &self.shared.fatal
    }

    /// See [`crate::engine::Engine::health`].
    #[must_use]
    pub fn health(&self) -> Health {
        let storing: Vec<Arc<str>> = match self.shared.intake() {
            Some(intake) => {
                intake.failing.clone().into_iter().chain(self.shared.index.failing(&intake)).collect()
            }
            None => vec![BROKEN.into()],
        };
        let stalled = self.shared.commits.stalled(Instant::now()).map(|taken| {
            format!("the disk of --data-dir does not answer: a commit has taken {} s so far", taken.as_secs())
                .into()
        });
        let reading = self.shared.disk.as_ref().and_then(|access| access.readers.failing());
        Health { failing: storing.into_iter().chain(stalled).chain(reading).collect(), is_unreachable: false }
    }

    /// See [`crate::engine::Engine::contents`].
    #[must_use]
    pub fn contents(&self) -> Contents {
        self.shared.index.contents()
    }

    /// See [`crate::engine::Engine::expire`].
    #[must_use]
    pub fn expire(&self) -> Expired {
        let (index, hubs) = (&self.shared.index, &self.shared.hubs);
        index.forget_empty(hubs, EMPTY_LOGS, FORGET_SLICE);
        let (expired, filled) = index.expire_slice(hubs);
        let more = index.forget_ids() | (expired > 0);
        self.shared.publish(filled);
        Expired { messages: index.take_expired(), more }
    }

    /// Forgets all empty logs now, as if many others had become empty since.
    #[cfg(test)]
    pub(crate) fn forget_empty(&self) {
        self.shared.index.forget_empty(&self.shared.hubs, 0, usize::MAX);
    }

    /// How many addresses cost memory.
    #[cfg(test)]
    pub(crate) fn logs(&self) -> usize {
        self.shared.index.logs()
    }
}
