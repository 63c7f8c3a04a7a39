//! What the handles of an engine and its writer share.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};

use crate::engine::Fatal;
use crate::engine::arrivals::Arrivals;
use crate::engine::crypt::Cipher;
use crate::engine::embedded::dedup::DedupHasher;
use crate::engine::embedded::handles::Handles;
use crate::engine::embedded::index::{Index, Pending, PlannedChange, Published, Waiter};
use crate::engine::embedded::reader::ReadPool;
use crate::engine::embedded::stall::CommitTimer;
use crate::engine::embedded::storage::Durability;
use crate::engine::embedded::store::{Store, StoreLock};
use crate::engine::embedded::store_clock::StoreClock;
use crate::hub::{EndReason, Hubs};
use crate::message::{Address, Epoch, Seq};
use crate::sync::lock;

/// What the handles of an engine and its writer share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) hubs: Hubs,
    pub(super) clock: StoreClock,
    pub(super) epoch: Epoch,
    /// Where the seqs of this epoch begin.
    pub(super) origin: Seq,
    pub(super) handles: Handles,
    pub(super) cipher: Cipher,
    pub(super) hasher: DedupHasher,
    pub(super) arrivals: Arrivals,
    /// Tells when the store cannot go on.
    pub(super) fatal: Fatal,
    pub(super) store: StoreLock,
    /// Wakes the writer.
    pub(super) work: Condvar,
    pub(super) commits: CommitTimer,
    /// The disk, if there is one.
    pub(super) disk: Option<DiskAccess>,
    /// Taken before the store's lock, to publish what was committed under it. Holds what is being published.
    publishing: Mutex<Vec<Published>>,
    /// A copy of the newest committed seq, readable without the lock.
    newest: AtomicU64,
    /// Whether the queue had no room for some author when it changed last, readable without the lock.
    queue_may_refuse: AtomicBool,
}

/// How a store on disk is read.
#[derive(Debug)]
pub(super) struct DiskAccess {
    pub(super) readers: ReadPool,
    pub(super) durability: Durability,
    /// Keeps other processes out of the store.
    pub(super) _lock: File,
}

impl Shared {
    pub(super) fn new(
        hubs: Hubs,
        clock: StoreClock,
        (epoch, origin, secret): (Epoch, Seq, &[u8; 16]),
        index: Index,
        disk: Option<DiskAccess>,
    ) -> Self {
        let fatal = Fatal::default();
        Self {
            hubs,
            clock,
            epoch,
            origin,
            handles: index.handles().clone(),
            cipher: Cipher::new(secret),
            hasher: DedupHasher::new(secret),
            arrivals: Arrivals::new(),
            newest: AtomicU64::new(index.committed().0),
            store: StoreLock::new(index, fatal.clone()),
            fatal,
            work: Condvar::new(),
            commits: CommitTimer::new(),
            disk,
            publishing: Mutex::default(),
            queue_may_refuse: AtomicBool::new(false),
        }
    }

    /// The newest committed seq.
    pub(super) fn newest(&self) -> Seq {
        Seq(self.newest.load(Ordering::Acquire))
    }

    /// Whether the queue had no room for some author when it changed last.
    pub(super) fn queue_may_refuse(&self) -> bool {
        self.queue_may_refuse.load(Ordering::Relaxed)
    }

    /// Copies what is readable without the lock. Called after every change of the queue or of what is committed.
    pub(super) fn copy_counters(&self, store: &Store) {
        self.newest.store(store.index.committed().0, Ordering::Release);
        self.queue_may_refuse.store(store.index.queue_may_refuse(), Ordering::Relaxed);
    }

    /// Makes a group visible, which is as durable as the level says. The caller publishes it without the lock, in
    /// commit order, and then tells the waiters.
    pub(super) fn commit(
        &self,
        store: &mut Store,
        group: Vec<Pending>,
    ) -> (Vec<Published>, Vec<(Seq, Waiter)>) {
        let mut publications = Vec::with_capacity(group.len());
        let waiters = store.index.commit(group, &mut publications);
        self.copy_counters(store);
        (publications, waiters)
    }

    /// Commits what is queued, if there is no disk to wait for. [`Self::publish_outbox`] must follow, without the lock.
    pub(super) fn settle(&self, store: &mut Store) {
        if self.disk.is_some() {
            return;
        }
        while store.index.queued() > 0 {
            let group = store.index.take(usize::MAX, usize::MAX);
            // There are no waiters at this level.
            store.index.commit(group, &mut store.outbox);
        }
        self.copy_counters(store);
    }

    /// Publishes what was committed at level `memory`. Afterwards everything is published that was in the outbox before.
    ///
    /// Whoever holds `publishing` empties the outbox, so messages are published in commit order.
    pub(super) fn publish_outbox(&self) {
        if self.disk.is_some() {
            return;
        }
        // Poison is ignored: after a panic the messages that may not be published are still in the list, and hubs may
        // repeat a message.
        let mut publishing = lock(&self.publishing);
        if let Some(mut store) = self.store.lock() {
            publishing.append(&mut store.outbox);
        }
        self.publish(&publishing);
        publishing.clear();
        publishing.shrink_to(1024);
    }

    /// Publishes committed messages. The caller does so in commit order.
    pub(super) fn publish(&self, publications: &[Published]) {
        for Published { address, publication, prev } in publications {
            debug_assert!(publication.seq() > Some(*prev), "seqs of one address are published in order");
            self.hubs.publish(address, publication, *prev);
        }
    }

    /// Tells who waits for a session that is registered now, and the readers of one that has ended.
    pub(super) fn announce(&self, changes: &[PlannedChange]) {
        for change in changes {
            match change {
                PlannedChange::Register { session, .. } => self.arrivals.wake(session),
                PlannedChange::End { session, .. } => {
                    self.hubs.end(&Address::Session(session.clone()), EndReason::SessionEnded);
                }
            }
        }
    }
}
