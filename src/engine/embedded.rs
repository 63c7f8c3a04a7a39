//! The engine of one machine: an index in memory, and below it, unless the level is `memory`, a store on disk.
//!
//! An append takes its place in the index under a lock and goes into a bounded queue. One writer takes
//! everything that is queued and commits it as one transaction; then it can be seen, goes to the hubs in
//! commit order, and its senders are told. At level `memory` there is nothing to wait for: the same steps are
//! taken at once, under the lock.
//!
//! Deletions are written with the next commit, or after a moment. A crash in between makes an acknowledged
//! message come again; it cannot make an unacknowledged one go.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::engine::{
    Append, Arrivals, Batch, Commit, EngineError, Expired, Health, Lookup, Position, Register, RegisterError,
    Registration, Settings,
};
use crate::hub::{Connections, Hubs};
use crate::message::{
    Address, Epoch, Gap, GapReason, Handle, Item, Message, Publication, Seq, SessionId, UserId,
};
use crate::sync::lock;

mod crash;
mod dedup;
mod disk;
mod files;
mod handles;
mod index;
mod load;
mod reader;
mod recovery;
mod registrations;
mod report;
mod rows;
mod running;
mod salvage;
mod storage;
mod wal;
mod writer;

pub use report::{Report, report};
pub use storage::{Durability, OpenError, Storage};
pub use writer::Writer;

use handles::Handles;
use index::{Appended, Committed, EMPTY_LOGS, Index, Pending, Published, ReadSlot};
use reader::ReadPool;
use rows::store::{first_seq, random_epoch, random_secret};

/// How long deletions wait for a commit to ride on.
const LINGER: Duration = Duration::from_millis(50);

/// How long to wait before the disk is asked again that could not be read.
const READ_AGAIN: Duration = Duration::from_millis(200);

/// The log hears of every so many attempts.
const READ_TOLD: u32 = 150;

/// How many empty logs one slice of expiry looks at.
const FORGET_SLICE: usize = 512;

/// Stores messages in this process; cheap to clone.
#[derive(Debug, Clone)]
pub struct Embedded {
    inner: Arc<Inner>,
    /// Ends the writer with the last handle.
    _closing: Arc<Closing>,
}

#[derive(Debug)]
struct Inner {
    hubs: Hubs,
    clock: Clock,
    epoch: Epoch,
    /// Where the seqs of this epoch begin.
    origin: Seq,
    /// A copy of the newest committed seq, readable without the lock.
    newest: AtomicU64,
    /// Protects everything that is known of what is stored. Held for one append, one read or one slice of
    /// expiry; never across an await or a disk access. The hubs' lock is taken inside it, never the other way
    /// round.
    store: Mutex<Store>,
    /// Wakes the writer.
    work: Condvar,
    /// Where messages are read from that are not in memory; `None` at level `memory`.
    readers: Option<ReadPool>,
    durability: Option<Durability>,
    /// A copy of the index's, usable without the lock.
    handles: Handles,
    arrivals: Arrivals,
    /// Keeps other processes out of the store.
    _lock: Option<File>,
}

#[derive(Debug)]
struct Store {
    index: Index,
    /// Why the last commit failed; `None` when it did not.
    failing: Option<Arc<str>>,
    stop: Option<Stop>,
}

/// How the writer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Writes what is left, and closes the store.
    InOrder,
    /// Writes nothing more, as if the process had been killed.
    AtOnce,
}

/// Ends the writer when dropped, and waits for it.
#[derive(Debug)]
struct Closing {
    inner: Arc<Inner>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Closing {
    fn close(&self) {
        lock(&self.inner.store).stop.get_or_insert(Stop::InOrder);
        self.inner.work.notify_all();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the writer of the store has panicked");
        }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    /// Makes a group visible, which is as durable as the level says. The caller publishes it next.
    fn committed(&self, store: &mut Store, group: Vec<Pending>) -> Committed {
        let committed = store.index.commit(group);
        self.newest.store(store.index.committed().0, Ordering::Release);
        committed
    }

    /// Without a disk, what is queued is committed.
    fn settle(&self, store: &mut Store) {
        if self.readers.is_some() {
            return;
        }
        while store.index.queued() > 0 {
            let group = store.index.take(usize::MAX, usize::MAX);
            let committed = self.committed(store, group);
            self.publish(&committed.publications);
        }
    }

    fn publish(&self, publications: &[Published]) {
        for Published { address, publication, prev } in publications {
            debug_assert!(publication.seq() > Some(*prev), "seqs of one address are published in order");
            self.hubs.publish(address, publication, *prev);
        }
    }

    /// Wakes the writer up if there is something new for it.
    fn wake(&self, store: &mut Store) {
        if self.readers.is_some() && (store.index.queued() > 0 || store.index.has_writes()) {
            self.work.notify_one();
        }
    }
}

fn stopping<E: From<EngineError>>() -> Commit<E> {
    Commit::done(Err(EngineError::Unavailable { reason: "the server is stopping".into() }.into()))
}

impl Embedded {
    /// An empty store in memory with a new epoch.
    #[must_use]
    pub fn in_memory(settings: Settings, hubs: Hubs) -> Self {
        let newest = first_seq(settings.clock);
        let index = Index::in_memory(settings, &random_secret(), newest);
        Self::of(Inner {
            hubs,
            clock: settings.clock,
            handles: index.handles().clone(),
            arrivals: Arrivals::new(),
            epoch: random_epoch(),
            origin: newest,
            newest: AtomicU64::new(newest.0),
            store: Mutex::new(Store { index, failing: None, stop: None }),
            work: Condvar::new(),
            readers: None,
            durability: None,
            _lock: None,
        })
    }

    fn of(inner: Inner) -> Self {
        let inner = Arc::new(inner);
        let closing = Closing { inner: Arc::clone(&inner), thread: Mutex::new(None) };
        Self { inner, _closing: Arc::new(closing) }
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
        *lock(&engine._closing.thread) = Some(thread);
        Ok(engine)
    }

    /// Opens the store, and leaves it to the caller when its writer takes its turns.
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
        let engine = Self::of(Inner {
            hubs,
            clock: settings.clock,
            handles: opened.index.handles().clone(),
            arrivals: Arrivals::new(),
            epoch: opened.identity.epoch.clone(),
            origin: opened.identity.origin,
            newest: AtomicU64::new(opened.index.committed().0),
            readers: Some(ReadPool::of(opened.disk.path(), stepped)),
            store: Mutex::new(Store { index: opened.index, failing: None, stop: None }),
            work: Condvar::new(),
            durability: Some(durability),
            _lock: Some(opened.lock),
        });
        let window = settings.dedup_window;
        let writer = Writer::new(Arc::clone(&engine.inner), opened.disk, opened.files, window);
        Ok((engine, writer))
    }

    /// Writes what is left, closes the store, and waits for that. What is appended afterwards is refused.
    pub fn close(&self) {
        self._closing.close();
    }

    /// Stops writing at once, as a killed process does. For tests of recovery.
    pub fn abandon(&self) {
        lock(&self.inner.store).stop = Some(Stop::AtOnce);
        self._closing.close();
    }

    /// See [`crate::engine::Engine::append`].
    pub fn append(&self, append: Append) -> Commit {
        let mut guard = lock(&self.inner.store);
        let store = &mut *guard;
        if self.inner.readers.is_none() {
            let place = store.index.append(append, None);
            self.inner.settle(store);
            return Commit::done(place.map(|(Appended::New(seq) | Appended::Known(seq))| seq));
        }
        if store.stop.is_some() {
            let reason = store.failing.clone().unwrap_or_else(|| "the server is stopping".into());
            return Commit::done(Err(EngineError::Unavailable { reason }));
        }
        let (waiter, commit) = oneshot::channel();
        match store.index.append(append, Some(waiter)) {
            Err(error) => Commit::done(Err(error)),
            Ok(Appended::Known(seq)) if seq <= store.index.committed() => Commit::done(Ok(seq)),
            Ok(_) => {
                self.inner.work.notify_one();
                Commit::accepted(commit)
            }
        }
    }

    /// See [`crate::engine::Engine::register`].
    pub fn register(&self, register: &Register) -> Commit<RegisterError> {
        let mut guard = lock(&self.inner.store);
        let store = &mut *guard;
        if store.stop.is_some() {
            return stopping();
        }
        let commit = match store.index.register(register, &self.inner.hubs) {
            Err(refused) => return Commit::done(Err(refused)),
            Ok(false) => return Commit::done(Ok(store.index.committed())),
            Ok(true) => self.after_commit(store),
        };
        drop(guard);
        self.inner.arrivals.wake(&register.session);
        commit
    }

    /// See [`crate::engine::Engine::end`].
    pub fn end(&self, session: &SessionId, revoked_for: Duration) -> Commit {
        let mut guard = lock(&self.inner.store);
        let store = &mut *guard;
        // A store that is being closed ends nothing: its readers come back.
        if store.stop.is_some() {
            return stopping();
        }
        store.index.end(session, revoked_for);
        self.inner.settle(store);
        let commit = self.after_commit(store);
        drop(guard);
        self.inner.hubs.end(&Address::Session(session.clone()));
        commit
    }

    /// See [`crate::engine::Engine::presence`].
    pub async fn presence(&self, address: &Address) -> Connections {
        self.inner.hubs.presence(address)
    }

    /// See [`crate::engine::Engine::confirm`]: what is known here is all there is.
    pub async fn confirm(&self, _: Lookup<'_>) {}

    pub(crate) fn arrivals(&self) -> &Arrivals {
        &self.inner.arrivals
    }

    /// Resolves when what was changed just now is stored.
    fn after_commit<E: From<EngineError>>(&self, store: &mut Store) -> Commit<E> {
        if self.inner.readers.is_none() {
            return Commit::done(Ok(store.index.committed()));
        }
        let (waiter, commit) = oneshot::channel();
        if let Some(writes) = store.index.writes() {
            writes.waiters.push(waiter);
        }
        self.inner.work.notify_one();
        Commit::accepted(commit)
    }

    /// See [`crate::engine::Engine::is_revoked`].
    #[must_use]
    pub fn is_revoked(&self, session: &SessionId) -> bool {
        lock(&self.inner.store).index.sessions().is_revoked(session, self.inner.clock.now())
    }

    /// See [`crate::engine::Engine::handle`].
    #[must_use]
    pub fn handle(&self, session: &SessionId) -> Handle {
        self.inner.handles.of(session)
    }

    /// See [`crate::engine::Engine::mac`].
    #[must_use]
    pub fn mac(&self, user: &UserId, bits: [u8; 16]) -> [u8; 16] {
        self.inner.handles.mac(user, bits)
    }

    /// See [`crate::engine::Engine::session_of`].
    #[must_use]
    pub fn session_of(&self, handle: Handle) -> Option<SessionId> {
        lock(&self.inner.store).index.sessions().session_of(handle, self.inner.clock.now()).cloned()
    }

    /// See [`crate::engine::Engine::waiting`].
    pub async fn waiting(&self, session: &SessionId) -> usize {
        lock(&self.inner.store).index.waiting(session)
    }

    /// See [`crate::engine::Engine::registration`].
    #[must_use]
    pub fn registration(&self, session: &SessionId) -> Option<Registration> {
        lock(&self.inner.store).index.sessions().get(session, self.inner.clock.now()).cloned()
    }

    /// See [`crate::engine::Engine::sessions_of`].
    #[must_use]
    pub fn sessions_of(&self, user: &UserId) -> Vec<SessionId> {
        lock(&self.inner.store).index.sessions().sessions_of(user, self.inner.clock.now())
    }

    /// See [`crate::engine::Engine::publish_volatile`].
    pub fn publish_volatile(&self, address: &Address, message: &Message) {
        self.inner.hubs.publish_volatile(address, &Publication::encode(address, None, message).into());
    }

    /// See [`crate::engine::Engine::read`].
    pub async fn read(&self, address: &Address, after: Seq, limit: usize) -> Batch {
        let mut attempts = 0_u32;
        loop {
            let plan = lock(&self.inner.store).index.read(address, after, limit);
            let on_disk: Vec<Seq> = plan
                .slots
                .iter()
                .filter_map(|slot| match slot {
                    ReadSlot::OnDisk(seq) => Some(*seq),
                    ReadSlot::Ready(_) => None,
                })
                .collect();
            let fetched = match &self.inner.readers {
                Some(readers) if !on_disk.is_empty() => match readers.fetch(on_disk).await {
                    Ok(found) => found,
                    Err(reader::TransientRead(reason)) => {
                        if attempts.is_multiple_of(READ_TOLD) {
                            tracing::error!(reason, "cannot read stored messages now; trying again");
                        }
                        attempts += 1;
                        tokio::time::sleep(READ_AGAIN).await;
                        continue;
                    }
                },
                _ => Vec::new(),
            };
            let mut fetched = fetched.into_iter();
            let mut batch =
                Batch { items: Vec::with_capacity(plan.slots.len()), cursor: plan.cursor, more: plan.more };
            let mut at = after;
            let mut moved = false;
            for slot in plan.slots {
                let item = match slot {
                    ReadSlot::Ready(item) => item,
                    ReadSlot::OnDisk(seq) => match fetched.next().flatten() {
                        Some(publication) => Item::Message(publication),
                        None if lock(&self.inner.store).index.holds(address, seq) => {
                            Item::Gap(Gap { from: at, to: seq, reason: GapReason::Lost })
                        }
                        // It was acknowledged while it was being read: look again.
                        None => {
                            moved = true;
                            break;
                        }
                    },
                };
                at = match &item {
                    Item::Message(message) => message.seq().unwrap_or(at),
                    Item::Gap(gap) => gap.to,
                };
                batch.items.push(item);
            }
            if !moved {
                return batch;
            }
        }
    }

    /// See [`crate::engine::Engine::trim`].
    pub fn trim(&self, address: &Address, through: Seq) {
        let mut guard = lock(&self.inner.store);
        let store = &mut *guard;
        store.index.trim(address, through);
        store.index.forget_empty(&self.inner.hubs, EMPTY_LOGS, 4);
        self.inner.settle(store);
        self.inner.wake(store);
    }

    /// See [`crate::engine::Engine::position`].
    pub async fn position(&self, address: &Address) -> Position {
        lock(&self.inner.store).index.position(address)
    }

    /// See [`crate::engine::Engine::newest`].
    pub async fn newest(&self, _: &Address, _: Seq) -> Seq {
        Seq(self.inner.newest.load(Ordering::Acquire))
    }

    /// See [`crate::engine::Engine::origin`].
    #[must_use]
    pub fn origin(&self, _: &Address) -> Seq {
        self.inner.origin
    }

    /// See [`crate::engine::Engine::epoch`].
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.inner.epoch.clone()
    }

    /// See [`crate::engine::Engine::durability`].
    #[must_use]
    pub fn durability(&self) -> &'static str {
        self.inner.durability.map_or("memory", Durability::name)
    }

    /// See [`crate::engine::Engine::health`].
    #[must_use]
    pub fn health(&self) -> Health {
        Health { failing: lock(&self.inner.store).failing.clone() }
    }

    /// See [`crate::engine::Engine::expire`].
    #[must_use]
    pub fn expire(&self) -> Expired {
        let mut guard = lock(&self.inner.store);
        let store = &mut *guard;
        store.index.forget_empty(&self.inner.hubs, EMPTY_LOGS, FORGET_SLICE);
        let more = store.index.expire_slice() > 0;
        self.inner.settle(store);
        self.inner.wake(store);
        Expired { messages: store.index.take_expired(), more }
    }

    /// Forgets all empty logs now, as if many others had become empty since.
    #[cfg(test)]
    pub(crate) fn forget_empty(&self) {
        lock(&self.inner.store).index.forget_empty(&self.inner.hubs, 0, usize::MAX);
    }

    /// How many addresses cost memory.
    #[cfg(test)]
    pub(crate) fn logs(&self) -> usize {
        lock(&self.inner.store).index.logs()
    }
}
