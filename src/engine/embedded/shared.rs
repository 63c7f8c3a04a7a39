//! What the handles of an engine and its writer share.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar};

use crate::engine::Fatal;
use crate::engine::arrivals::Arrivals;
use crate::engine::crypt::Cipher;
use crate::engine::embedded::dedup::DedupHasher;
use crate::engine::embedded::index::{Index, Pending, Published, Waiter};
use crate::engine::embedded::outbox::Filled;
use crate::engine::embedded::publisher::Publisher;
use crate::engine::embedded::reader::ReadPool;
use crate::engine::embedded::stall::CommitTimer;
use crate::engine::embedded::storage::Durability;
use crate::engine::embedded::store::{Store, StoreLock};
use crate::engine::embedded::store_clock::StoreClock;
use crate::engine::handles::Handles;
use crate::hub::Hubs;
use crate::message::{Epoch, Seq};

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
    /// Does not hold the rest of this, since a task has it.
    pub(super) publisher: Arc<Publisher>,
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
        let (fatal, arrivals) = (Fatal::default(), Arrivals::new());
        let publisher = Publisher::new(hubs.clone(), arrivals.clone()).into();
        Self {
            hubs,
            clock,
            epoch,
            origin,
            handles: index.handles().clone(),
            cipher: Cipher::new(secret),
            hasher: DedupHasher::new(secret),
            arrivals,
            newest: AtomicU64::new(index.committed().0),
            store: StoreLock::new(index, fatal.clone()),
            fatal,
            work: Condvar::new(),
            commits: CommitTimer::new(),
            disk,
            publisher,
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

    /// Makes a group visible, which is as durable as the level says. It must go into the publisher's queue, in commit order.
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

    /// Commits what is queued, if there is no disk to wait for. [`Publisher::publish_outbox`] must follow, without the lock.
    pub(super) fn settle(&self, store: &mut Store) -> Filled {
        if self.disk.is_some() || store.index.queued() == 0 {
            return Filled::default();
        }
        store.index.commit_queued(&mut store.committed);
        self.copy_counters(store);
        let filled = self.publisher.outbox.add(store.committed.drain(..));
        store.committed.shrink_to(1024);
        filled
    }
}
