//! What the handles of an engine and its writer share.

use std::fs::File;
use std::sync::Arc;

use crate::engine::Fatal;
use crate::engine::arrivals::Arrivals;
use crate::engine::crypt::Cipher;
use crate::engine::embedded::dedup::DedupHasher;
use crate::engine::embedded::index::{Index, IntakeGuard};
use crate::engine::embedded::outbox::Filled;
use crate::engine::embedded::publisher::Publisher;
use crate::engine::embedded::reader::ReadPool;
use crate::engine::embedded::stall::CommitTimer;
use crate::engine::embedded::storage::Durability;
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
    /// Everything that is known of what is stored.
    pub(super) index: Index,
    pub(super) commits: CommitTimer,
    /// The disk, if there is one.
    pub(super) disk: Option<DiskAccess>,
    /// Does not hold the rest of this, since a task has it.
    pub(super) publisher: Arc<Publisher>,
}

/// How a store on disk is read.
#[derive(Debug)]
pub(super) struct DiskAccess {
    pub(super) readers: ReadPool,
    pub(super) durability: Durability,
    /// Keeps other processes out of the store.
    pub(super) lock: File,
}

impl Shared {
    pub(super) fn new(
        hubs: Hubs,
        clock: StoreClock,
        (epoch, origin, secret): (Epoch, Seq, &[u8; 16]),
        index: Index,
        disk: Option<DiskAccess>,
    ) -> Self {
        let (fatal, arrivals) = (index.breaker().fatal().clone(), Arrivals::new());
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
            index,
            fatal,
            commits: CommitTimer::new(),
            disk,
            publisher,
        }
    }

    /// Locks what waits for the writer; `None` once a panic has broken the store.
    pub(super) fn intake(&self) -> Option<IntakeGuard<'_>> {
        self.index.intake.lock()
    }

    /// Publishes what was committed at level `memory`. The caller holds no lock.
    pub(super) fn publish(&self, filled: Filled) {
        self.index.outbox.publish(filled, |publications| self.publisher.publish(publications));
    }
}
