//! The index: everything the engine knows without reading the disk.
//!
//! One structure for every level. At level `memory` the messages themselves are in it. At the other levels it holds
//! 24 bytes for each message, and readers fetch the rest from the disk.
//!
//! What is known of an address is in one of many shards, each with a lock. What all shards have in common is counted
//! without a lock, or has one of its own that is held for a moment. A change that concerns one address locks its shard;
//! a receipt goes to another address, and follows once the shard is unlocked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::clock::millis;
use crate::engine::embedded::dedup::Dedup;
use crate::engine::embedded::outbox::{Filled, Outbox};
use crate::engine::embedded::store_clock::StoreClock;
use crate::engine::handles::Handles;
use crate::engine::{EngineError, Position, Settings};
use crate::message::{Address, Outcome, Seq};
use crate::sync::Padded;

mod address_log;
mod appending;
mod backing;
mod builder;
mod changes;
mod commit;
mod contents;
mod directory;
mod expiry;
mod fullness;
mod ids;
mod intake;
mod leaving;
mod listing;
mod logs;
mod noted;
mod outcome;
mod part;
mod payers;
mod pending_writes;
mod prepared;
mod queue;
mod read_plan;
mod receipts;
mod recent;
mod refuse;
mod room;
mod sessions;
mod shards;
mod staged;
mod tallies;
#[cfg(test)]
mod tests;
mod totals;

use backing::Backing;
use fullness::Fullness;
use intake::{Breaker, IntakeLock};
use logs::AddressLogs;
use noted::Noted;
use part::Part;
use pending_writes::MAX_FLOORS;
use read_plan::ReadRequest;
use receipts::Receipts;
use recent::RecentPublications;
use sessions::Sessions;
use shards::{Shard, Shards};
use totals::Totals;

pub(super) use builder::{IndexBuilder, RestoredMessage};
pub(super) use changes::{PlannedChange, RegisterWaiter};
pub(super) use commit::Taken;
pub(super) use intake::{BROKEN, Intake, IntakeGuard, Stop, WriterState};
pub(super) use noted::SHARDS;
pub(super) use outcome::{Appended, Published};
pub(super) use payers::PayerId;
pub(super) use pending_writes::{Floor, PendingDelete};
pub(super) use prepared::PreparedAppend;
pub(super) use queue::{Pending, Waiter, stored_cost};
pub(super) use read_plan::ReadPlan;

/// How many empty logs are remembered: as many as there are floors on the disk.
pub(super) const EMPTY_LOGS: usize = MAX_FLOORS;

/// Everything the engine knows without reading the disk.
#[derive(Debug)]
pub(super) struct Index {
    settings: Settings,
    clock: StoreClock,
    handles: Handles,
    is_on_disk: bool,
    /// Up to here messages may be missing, without a trace of them; [`Seq::START`] if none are.
    lost: Seq,
    /// The newest seq given. With a disk it changes only while the intake is locked, so that its queue is in order.
    newest: Padded<AtomicU64>,
    /// With a disk: nobody has seen a message above this.
    committed: Padded<AtomicU64>,
    /// With a disk: up to here everything is committed or refused, in all shards.
    settled: AtomicU64,
    /// No log that was forgotten reached beyond this.
    forgotten: AtomicU64,
    shards: Shards,
    /// What waits for the writer.
    pub(super) intake: IntakeLock,
    /// Whether the queue had no room for some author when it changed last.
    queue_may_refuse: AtomicBool,
    totals: Arc<Totals>,
    dedup: Part<Dedup>,
    receipts: Receipts,
    /// With a disk: the newest bodies.
    recent: Part<RecentPublications>,
    sessions: Sessions,
    /// Messages that expired and were not reported yet.
    expired: AtomicUsize,
    fullness: Part<Fullness>,
    /// What is committed at level `memory` and not published yet.
    pub(super) outbox: Outbox,
    breaker: Arc<Breaker>,
}

/// When something that is kept this long from `now` on expires. Fits SQLite's integers.
fn expiry(now: u64, age: Duration) -> u64 {
    now.saturating_add(millis(age)).min(i64::MAX.unsigned_abs())
}

/// The answer of a store that a panic has broken.
fn broken() -> EngineError {
    EngineError::Unavailable { reason: BROKEN.into() }
}

/// What a change of a shard leaves to be done when the shard is unlocked.
#[derive(Debug, Default)]
struct FollowUp {
    /// Messages that have left, whose senders get receipts.
    receipts: Vec<(Seq, Outcome)>,
    /// Whether something is to be written that nobody waits for, the first since the writer took all.
    noted: bool,
    /// Whether the writer is to be woken.
    wakes: bool,
    /// What is to be published.
    filled: Filled,
}

impl Index {
    /// An empty index. Its first seq is the one after `newest`.
    pub(super) fn in_memory(settings: Settings, clock: StoreClock, secret: &[u8; 16], newest: Seq) -> Self {
        Self::with((settings, clock), secret, (newest, Seq::START), false)
    }

    fn with(
        (settings, clock): (Settings, StoreClock),
        secret: &[u8; 16],
        (newest, forgotten): (Seq, Seq),
        is_on_disk: bool,
    ) -> Self {
        let (handles, breaker) = (Handles::new(secret), Arc::<Breaker>::default());
        let (totals, noted) = (Arc::<Totals>::default(), Arc::<Noted>::default());
        let backing = || if is_on_disk { Backing::disk(Arc::clone(&noted)) } else { Backing::memory() };
        let shard = || Shard {
            logs: AddressLogs::new(forgotten, settings.tallied(), Arc::clone(&totals)),
            backing: backing(),
            committed: newest,
        };
        let dedup = Dedup::new(millis(settings.dedup_window), settings.id_limits());
        Self {
            handles: handles.clone(),
            is_on_disk,
            lost: Seq::START,
            newest: Padded::new(newest.0.into()),
            committed: Padded::new(newest.0.into()),
            settled: newest.0.into(),
            forgotten: forgotten.0.into(),
            shards: Shards::new(shard, Arc::clone(&breaker)),
            intake: IntakeLock::new(settings.queue, noted, Arc::clone(&breaker)),
            queue_may_refuse: AtomicBool::new(false),
            totals,
            dedup: Part::new(dedup),
            receipts: Receipts::default(),
            recent: Part::default(),
            sessions: Sessions::new(handles),
            expired: AtomicUsize::new(0),
            fullness: Part::default(),
            outbox: Outbox::new(),
            breaker,
            clock,
            settings,
        }
    }

    /// Tells when the store cannot go on.
    pub(super) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    pub(super) fn handles(&self) -> &Handles {
        &self.handles
    }

    /// When something that is kept this long from now on expires.
    pub(super) fn expiry(&self, age: Duration) -> u64 {
        expiry(self.clock.now(), age)
    }

    /// The newest seq given.
    fn newest(&self) -> Seq {
        Seq(self.newest.load(Ordering::Acquire))
    }

    /// Gives the next seq.
    fn give_seq(&self) -> Seq {
        Seq(self.newest.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// The newest seq anyone can have seen.
    pub(super) fn committed(&self) -> Seq {
        if self.is_on_disk { Seq(self.committed.load(Ordering::Acquire)) } else { self.newest() }
    }

    /// Up to here everything in a shard is committed or refused. What is above cannot be seen.
    fn committed_in(&self, shard: &Shard) -> Seq {
        // In memory everything in a shard is committed. What comes later is above all seqs given so far.
        if self.is_on_disk {
            shard.committed.max(Seq(self.settled.load(Ordering::Acquire)))
        } else {
            self.newest()
        }
    }

    /// Logs up to here may have been forgotten.
    pub(super) fn forgotten(&self) -> Seq {
        Seq(self.forgotten.load(Ordering::Acquire))
    }

    fn note_forgotten(&self, shard: &Shard) {
        let forgotten = shard.logs.forgotten();
        if forgotten > self.forgotten() {
            self.forgotten.fetch_max(forgotten.0, Ordering::AcqRel);
        }
    }

    /// Whether the queue had no room for some author when it changed last.
    pub(super) fn queue_may_refuse(&self) -> bool {
        self.queue_may_refuse.load(Ordering::Relaxed)
    }

    /// The queue has changed.
    fn note_queue(&self, intake: &Intake) {
        let may_refuse = intake.queue.may_refuse();
        if may_refuse != self.queue_may_refuse() {
            self.queue_may_refuse.store(may_refuse, Ordering::Relaxed);
        }
    }

    /// What refuses messages because it is full.
    pub(super) fn failing(&self, intake: &Intake) -> Vec<Arc<str>> {
        let stored = (self.totals.bytes(), self.settings.total_bytes);
        self.fullness.lock().failing(stored, intake.queue_is_half_full())
    }

    /// See [`crate::engine::Engine::read`]. `None` once a panic has broken the store.
    pub(super) fn read(&self, address: &Address, after: Seq, limit: usize) -> Option<ReadPlan> {
        let shard = self.shards.lock(address)?;
        let (committed, now) = (self.committed_in(&shard), self.clock.now());
        let request = ReadRequest { address, after, limit, committed, now, lost: self.lost };
        let Some(log) = shard.logs.get(address) else {
            return Some(ReadPlan::nothing(&request, shard.logs.forgotten()));
        };
        let holes = shard.logs.holes();
        Some(match self.is_on_disk {
            false => ReadPlan::of(log, holes, &request, |seq| shard.backing.get(seq)),
            true => {
                let recent = self.recent.lock();
                ReadPlan::of(log, holes, &request, |seq| recent.get(seq))
            }
        })
    }

    /// Whether a message is still there.
    pub(super) fn holds(&self, address: &Address, seq: Seq) -> bool {
        let shard = self.shards.lock(address);
        shard.is_some_and(|shard| shard.logs.get(address).is_some_and(|log| log.holds(seq)))
    }

    /// See [`crate::engine::Engine::held_too_long`].
    pub(super) fn held_too_long(&self, address: &Address, acknowledged: Seq) -> Seq {
        let Some(shard) = self.shards.lock(address) else { return Seq::START };
        shard.logs.get(address).map_or(Seq::START, |log| log.beyond(acknowledged, self.settings.held()))
    }

    /// How many messages wait in a mailbox.
    pub(super) fn waiting(&self, mailbox: &Address) -> usize {
        let Some(shard) = self.shards.lock(mailbox) else { return 0 };
        shard.logs.get(mailbox).map_or(0, |log| log.committed(self.committed_in(&shard)))
    }

    /// See [`crate::engine::Engine::position`].
    pub(super) fn position(&self, address: &Address) -> Position {
        let Some(shard) = self.shards.lock(address) else { return Position::default() };
        let position = shard.logs.position(address, self.committed_in(&shard));
        Position { expired: position.expired.max(self.lost), ..position }
    }

    /// Does what a change has left to be done. No shard is locked. Returns what is to be published.
    fn follow_up(&self, mut follow: FollowUp) -> Filled {
        for (seq, outcome) in std::mem::take(&mut follow.receipts) {
            self.emit_receipt(seq, outcome, &mut follow);
        }
        if follow.noted && !follow.wakes {
            let intake = self.intake.lock();
            follow.wakes = intake.is_some_and(|mut intake| intake.must_wake_writer());
        }
        if follow.wakes {
            self.intake.wake();
        }
        follow.filled
    }

    /// Locks the shard of an address, as a test of what a panic does.
    #[cfg(test)]
    pub(super) fn lock_for_test(&self, address: &Address) -> impl Drop + '_ {
        self.shards.lock(address).expect("nothing has panicked")
    }

    /// How many addresses cost memory.
    #[cfg(test)]
    pub(super) fn logs(&self) -> usize {
        self.shards.each().map(|shard| shard.logs.len()).sum()
    }
}
