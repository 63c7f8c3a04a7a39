//! The engine of one machine: an index in memory, and below it, unless the level is `memory`, a store on disk.
//!
//! An append is encoded first. Under the lock it gets its seq and goes into a bounded queue. One writer takes everything
//! that is queued and commits it as one transaction. Then the messages are visible. A task publishes them to the hubs in
//! commit order, and tells their senders. At level `memory` a message is committed under the lock, and published after it.
//!
//! Deletions are held back for a moment, and written together. A crash before that makes an acknowledged message come again; it
//! does not lose an unacknowledged one.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::budget::Holder;
use crate::engine::{
    Append, Arrivals, Batch, Commit, EngineError, Expired, Fatal, Health, Lookup, Position, Register,
    RegisterError, Registrar, Settings,
};
use crate::hub::{EndReason, Hubs};
use crate::message::{Address, Epoch, Publication, Seq, SessionId};

mod at_hand;
mod crash;
pub(super) mod dedup;
mod disk;
mod each;
#[cfg(feature = "nats")]
pub(super) mod export;
mod file_id;
mod files;
#[cfg(test)]
mod fixture;
mod index;
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
mod store;
mod store_clock;
#[cfg(test)]
mod tests;
mod wal;
mod writer;
mod writer_thread;

pub use report::{Report, report};
pub use storage::{Durability, OpenError, Storage};
pub use writer::Writer;

use index::{Appended, EMPTY_LOGS, Index, PreparedAppend};
use reader::{ReadPool, TransientRead};
use rows::store::{first_seq, random_epoch, random_secret};
use shared::{DiskAccess, Shared};
use store::{BROKEN, Stop, Store, StoreGuard};
use store_clock::StoreClock;
use writer_thread::WriterThread;

/// How often a read of the disk that failed is repeated, and after which pause.
const READ_AGAIN: u32 = 2;
const READ_PAUSE: Duration = Duration::from_millis(200);

/// How many empty logs one slice of expiry looks at.
const FORGET_SLICE: usize = 512;

/// How many empty logs one acknowledgement looks at.
const FORGET_ON_TRIM: usize = 4;

/// Stores messages in this process; cheap to clone.
#[derive(Debug, Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
    /// Ends the writer with the last handle.
    writer: Arc<WriterThread>,
}

fn unavailable<E: From<EngineError>>(reason: impl Into<Arc<str>>) -> Commit<E> {
    Commit::done(Err(EngineError::Unavailable { reason: reason.into() }.into()))
}

/// The answer of a store that is being closed.
fn stopping<E: From<EngineError>>(store: &Store) -> Commit<E> {
    unavailable(store.failing.clone().unwrap_or_else(|| "the server is stopping".into()))
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
        let access = DiskAccess { readers, durability, _lock: opened.lock };
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
    }

    /// Stops writing at once, as a killed process does. For tests of recovery.
    pub fn abandon(&self) {
        self.writer.stop(Stop::AtOnce);
    }

    /// See [`crate::engine::Engine::append`].
    pub fn append(&self, append: Append) -> Commit {
        let shared = &*self.shared;
        let id = shared.hasher.id_of(&append);
        // A full queue refuses most appends: then nothing is encoded in vain.
        if shared.queue_may_refuse()
            && let Some(mut store) = shared.store.lock()
            && store.stop.is_none()
            && let Some(refused) = store.index.refuses(
                &append.address,
                id,
                append.payer.as_ref(),
                append.message.payload.get().len(),
            )
        {
            return Commit::done(Err(refused));
        }
        self.append_prepared(PreparedAppend::new(append, id, shared.newest()))
    }

    fn append_in_memory(&self, mut store: StoreGuard<'_>, append: PreparedAppend) -> Commit {
        let appended = store.index.append(append, None);
        self.release(store);
        Commit::done(appended.map(|(Appended::New(seq) | Appended::Known(seq))| seq))
    }

    fn append_to_disk(&self, mut store: StoreGuard<'_>, append: PreparedAppend) -> Commit {
        if store.stop.is_some() {
            return stopping(&store);
        }
        let (waiter, commit) = oneshot::channel();
        let appended = store.index.append(append, Some(waiter));
        self.shared.copy_counters(&store);
        match appended {
            Err(error) => Commit::done(Err(error)),
            Ok(Appended::Known(seq)) if seq <= store.index.committed() => Commit::done(Ok(seq)),
            Ok(_) => {
                self.release(store);
                Commit::accepted(commit)
            }
        }
    }

    /// Releases the lock after a change. Commits and publishes what is queued at level `memory`; wakes the writer at others.
    fn release(&self, mut store: StoreGuard<'_>) {
        let filled = self.shared.settle(&mut store);
        let wakes = store.must_wake_writer();
        drop(store);
        if wakes {
            self.shared.work.notify_one();
        }
        self.shared.publisher.publish_outbox(filled);
    }

    /// See [`crate::engine::Engine::register`].
    pub fn register(&self, register: &Register) -> Commit<RegisterError> {
        let register = &Register { by: self.shared.clock.registrar(register.by), ..register.clone() };
        let Some(mut store) = self.shared.store.lock() else { return unavailable(BROKEN) };
        if store.stop.is_some() {
            return stopping(&store);
        }
        // A token comes again, so its registration need not be stored to count.
        if self.shared.disk.is_some() && !matches!(register.by, Registrar::Token { .. }) {
            let (waiter, commit) = oneshot::channel();
            return match store.index.stage_registration(register, &self.shared.hubs, waiter) {
                Err(refused) => Commit::done(Err(refused)),
                Ok(()) => {
                    self.release(store);
                    Commit::undecided(commit)
                }
            };
        }
        let commit = match store.index.register(register, &self.shared.hubs) {
            Err(refused) => return Commit::done(Err(refused)),
            Ok(false) => return Commit::done(Ok(store.index.committed())),
            Ok(true) => self.after_commit(&mut store),
        };
        self.release(store);
        self.shared.arrivals.wake(&register.session);
        commit
    }

    /// See [`crate::engine::Engine::end`].
    pub fn end(&self, session: &SessionId, revoked_for: Duration) -> Commit {
        let Some(mut store) = self.shared.store.lock() else { return unavailable(BROKEN) };
        // A store that is being closed ends nothing: its readers come back.
        if store.stop.is_some() {
            return stopping(&store);
        }
        if self.shared.disk.is_some() {
            let (waiter, commit) = oneshot::channel();
            store.index.stage_end(session, revoked_for, waiter);
            self.release(store);
            return Commit::accepted(commit);
        }
        store.index.end(session, revoked_for);
        let commit = Commit::done(Ok(store.index.committed()));
        self.release(store);
        self.shared.hubs.end(&Address::Session(session.clone()), EndReason::SessionEnded);
        commit
    }

    /// Resolves when what was changed just now is stored.
    fn after_commit<E: From<EngineError>>(&self, store: &mut Store) -> Commit<E> {
        let committed = store.index.committed();
        let Some(writes) = store.index.writes() else { return Commit::done(Ok(committed)) };
        let (waiter, commit) = oneshot::channel();
        writes.waiters.push(waiter);
        Commit::accepted(commit)
    }

    /// See [`crate::engine::Engine::confirm`]: what is known here is all there is.
    pub async fn confirm(&self, _: Lookup<'_>) {}

    pub(crate) fn arrivals(&self) -> &Arrivals {
        &self.shared.arrivals
    }

    /// See [`crate::engine::Engine::waiting`].
    pub async fn waiting(&self, mailbox: &Address) -> usize {
        self.shared.store.lock().map_or(0, |store| store.index.waiting(mailbox))
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
            let plan = self.shared.store.lock().map(|store| store.index.read(address, after, limit));
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
            let holds = |seq| self.shared.store.lock().is_some_and(|store| store.index.holds(address, seq));
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
        let Some(mut store) = self.shared.store.lock() else { return };
        store.index.trim(address, through);
        store.index.forget_empty(&self.shared.hubs, EMPTY_LOGS, FORGET_ON_TRIM);
        self.release(store);
    }

    /// See [`crate::engine::Engine::held_too_long`].
    #[must_use]
    pub fn held_too_long(&self, address: &Address, acknowledged: Seq) -> Seq {
        self.shared.store.lock().map_or(Seq::START, |store| store.index.held_too_long(address, acknowledged))
    }

    /// See [`crate::engine::Engine::position`].
    pub async fn position(&self, address: &Address) -> Position {
        self.shared.store.lock().map(|store| store.index.position(address)).unwrap_or_default()
    }

    /// See [`crate::engine::Engine::newest`].
    pub async fn newest(&self, _: &Address, _: Seq) -> Seq {
        self.shared.newest()
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
        let storing: Vec<Arc<str>> = match self.shared.store.lock() {
            Some(mut store) => store.failing.clone().into_iter().chain(store.index.failing()).collect(),
            None => vec![BROKEN.into()],
        };
        let stalled = self.shared.commits.stalled(Instant::now()).map(|taken| {
            format!("the disk of --data-dir does not answer: a commit has taken {} s so far", taken.as_secs())
                .into()
        });
        let reading = self.shared.disk.as_ref().and_then(|access| access.readers.failing());
        Health { failing: storing.into_iter().chain(stalled).chain(reading).collect(), is_unreachable: false }
    }

    /// See [`crate::engine::Engine::expire`].
    #[must_use]
    pub fn expire(&self) -> Expired {
        let Some(mut store) = self.shared.store.lock() else { return Expired { messages: 0, more: false } };
        store.index.forget_empty(&self.shared.hubs, EMPTY_LOGS, FORGET_SLICE);
        let more = store.index.forget_ids() | (store.index.expire_slice(&self.shared.hubs) > 0);
        let messages = store.index.take_expired();
        self.release(store);
        Expired { messages, more }
    }

    /// Forgets all empty logs now, as if many others had become empty since.
    #[cfg(test)]
    pub(crate) fn forget_empty(&self) {
        let mut store = self.shared.store.lock().expect("nothing has panicked");
        store.index.forget_empty(&self.shared.hubs, 0, usize::MAX);
    }

    /// How many addresses cost memory.
    #[cfg(test)]
    pub(crate) fn logs(&self) -> usize {
        self.shared.store.lock().expect("nothing has panicked").index.logs()
    }
}
