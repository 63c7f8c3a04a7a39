//! What waits for the writer, and its lock. What a panic leaves behind is not used again.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::engine::embedded::index::changes::Changes;
use crate::engine::embedded::index::noted::Noted;
use crate::engine::embedded::index::pending_writes::PendingWrites;
use crate::engine::embedded::index::queue::{CommitQueue, Waiter};
use crate::engine::{EngineError, Fatal, QueueBounds};

/// What is said of a store after a panic under one of its locks.
pub(crate) const BROKEN: &str = "the store has failed because of a defect";

/// Whether a panic has left the store half changed.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    broken: AtomicBool,
    fatal: Fatal,
}

impl Breaker {
    /// A panic has left a part of the store half changed: no part is used again.
    pub(super) fn trip(&self) {
        self.broken.store(true, Ordering::SeqCst);
    }

    /// Whether it is broken. If so, it says that the store cannot go on.
    pub(super) fn is_broken(&self) -> bool {
        let broken = self.broken.load(Ordering::Relaxed);
        if broken {
            self.fatal.declare(BROKEN);
        }
        broken
    }

    /// Tells when the store cannot go on.
    pub(crate) fn fatal(&self) -> &Fatal {
        &self.fatal
    }
}

/// What waits for the writer.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(super) queue: CommitQueue,
    pub(super) changes: Changes,
    pub(super) writes: PendingWrites,
    /// What the shards have to write.
    noted: Arc<Noted>,
    /// Why the last commit failed; `None` when it did not.
    pub(crate) failing: Option<Arc<str>>,
    pub(crate) stop: Option<Stop>,
    pub(crate) writer: WriterState,
}

/// Whether the writer sleeps, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriterState {
    /// It looks at everything before it sleeps. There may also be no writer.
    Awake,
    /// Only what somebody waits for wakes it: the rest is held back for a moment.
    Holding,
    /// So many messages wake it: fewer wait for others.
    Filling(usize),
    /// Anything to write wakes it.
    Idle,
}

impl Intake {
    fn new(bounds: QueueBounds, noted: Arc<Noted>) -> Self {
        Self {
            queue: CommitQueue::new(bounds),
            changes: Changes::default(),
            writes: PendingWrites::default(),
            noted,
            failing: None,
            stop: None,
            writer: WriterState::Awake,
        }
    }

    /// Whether the writer must be woken for what is to be written: once, and by the caller, without the lock.
    pub(super) fn must_wake_writer(&mut self) -> bool {
        let wakes = match self.writer {
            WriterState::Awake => false,
            WriterState::Holding => self.awaited() > 0,
            WriterState::Filling(full) => self.queue.len() >= full || self.queue.is_half_full(),
            WriterState::Idle => self.awaited() > 0 || self.has_writes(),
        };
        if wakes {
            self.writer = WriterState::Awake;
        }
        wakes
    }

    /// How many messages wait to be committed.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The bytes of these messages, with their envelopes.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queue.bytes()
    }

    /// Whether messages should not wait in the queue for others.
    pub(crate) fn queue_is_half_full(&self) -> bool {
        self.queue.is_half_full()
    }

    /// How much is to be written that somebody waits for, receipts included.
    pub(crate) fn awaited(&self) -> usize {
        self.queue.len() + self.changes.len() + self.writes.waiters.len()
    }

    /// Whether anything but messages is to be written.
    pub(crate) fn has_writes(&self) -> bool {
        !self.writes.is_empty() || !self.noted.is_empty()
    }

    /// How many deletions are noted that were not taken yet, and whether a receipt goes with one.
    pub(crate) fn noted_deletes(&self) -> (usize, bool) {
        (self.writes.deletes.len() + self.noted.deletes(), self.writes.has_receipts)
    }

    /// What is to be written besides messages.
    pub(crate) fn writes(&mut self) -> &mut PendingWrites {
        &mut self.writes
    }

    /// The changes that were taken are stored, or have failed.
    pub(crate) fn changes_done(&mut self) {
        self.changes.done();
    }

    /// Why nothing is taken any more, if the store is being closed.
    ///
    /// # Errors
    /// It is being closed.
    pub(crate) fn check_open(&self) -> Result<(), EngineError> {
        match self.stop {
            None => Ok(()),
            Some(_) => {
                let reason = self.failing.clone().unwrap_or_else(|| "the server is stopping".into());
                Err(EngineError::Unavailable { reason })
            }
        }
    }

    /// Nothing is committed any more: returns all waiters.
    pub(crate) fn give_up(&mut self) -> Vec<Waiter> {
        let mut waiters = self.queue.give_up();
        waiters.append(&mut self.changes.give_up());
        waiters.append(&mut self.writes.waiters);
        waiters
    }
}

/// How the writer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It writes what is left, and closes the store.
    InOrder,
    /// It writes nothing more, as if the process had been killed.
    AtOnce,
}

/// What waits for the writer, and its lock.
///
/// Held while one append is queued, and while the writer takes what is queued; never across an await or a disk access.
/// Taken below the lock of a shard. Once a panic has broken any part of the store, what waits is dropped, which fails
/// all waiters, and the lock is not given again.
#[derive(Debug)]
pub(crate) struct IntakeLock {
    intake: Mutex<Option<Intake>>,
    /// Wakes the writer.
    work: Condvar,
    breaker: Arc<Breaker>,
}

/// What waits for the writer, locked.
#[derive(Debug)]
pub(crate) struct IntakeGuard<'a>(MutexGuard<'a, Option<Intake>>);

impl IntakeLock {
    pub(super) fn new(bounds: QueueBounds, noted: Arc<Noted>, breaker: Arc<Breaker>) -> Self {
        let intake = Intake::new(bounds, noted);
        Self { intake: Mutex::new(Some(intake)), work: Condvar::new(), breaker }
    }

    /// Locks it; `None` once a panic has broken the store.
    pub(crate) fn lock(&self) -> Option<IntakeGuard<'_>> {
        match self.intake.lock() {
            Ok(guard) if guard.is_some() && !self.breaker.is_broken() => Some(IntakeGuard(guard)),
            Ok(guard) => {
                self.discard(guard);
                None
            }
            Err(poisoned) => {
                self.discard(poisoned.into_inner());
                None
            }
        }
    }

    /// Waits for [`Self::wake`], but not longer than `timeout`. Returns the lock and whether that time is over.
    pub(crate) fn wait<'a>(
        &self,
        guard: IntakeGuard<'a>,
        timeout: Duration,
    ) -> Option<(IntakeGuard<'a>, bool)> {
        match self.work.wait_timeout(guard.0, timeout) {
            Ok((guard, waited)) if guard.is_some() && !self.breaker.is_broken() => {
                Some((IntakeGuard(guard), waited.timed_out()))
            }
            Ok((guard, _)) => {
                self.discard(guard);
                None
            }
            Err(poisoned) => {
                self.discard(poisoned.into_inner().0);
                None
            }
        }
    }

    /// Wakes the writer. The caller holds no lock, so that the writer finds it free.
    pub(crate) fn wake(&self) {
        self.work.notify_all();
    }

    /// Drops what waits in a store that a panic has broken.
    fn discard(&self, mut guard: MutexGuard<'_, Option<Intake>>) {
        let broken = guard.take();
        drop(guard);
        drop(broken);
        self.breaker.trip();
        self.breaker.is_broken();
    }
}

impl Deref for IntakeGuard<'_> {
    type Target = Intake;

    fn deref(&self) -> &Intake {
        self.0.as_ref().expect("a guard is made for an intake that is there")
    }
}

impl DerefMut for IntakeGuard<'_> {
    fn deref_mut(&mut self) -> &mut Intake {
        self.0.as_mut().expect("a guard is made for an intake that is there")
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use tokio::sync::oneshot;

    use super::*;
    use crate::engine::embedded::fixture::settings;
    use crate::engine::embedded::index::changes::StagedChange;
    use crate::message::SessionId;

    fn intake() -> IntakeLock {
        IntakeLock::new(settings().queue, Arc::default(), Arc::default())
    }

    fn break_it(store: &IntakeLock) {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut store = store.lock().unwrap();
            store.failing = Some("half changed".into());
            panic!("a defect, for the test");
        }));
        assert!(panicked.is_err());
    }

    #[test]
    fn a_store_is_locked_again_and_again_until_a_panic_breaks_it() {
        let store = intake();
        store.lock().unwrap().stop = Some(Stop::InOrder);
        assert_eq!(store.lock().unwrap().stop, Some(Stop::InOrder));
        break_it(&store);
        assert_eq!(store.breaker.fatal().reason(), None, "nobody has noticed yet");
        assert!(store.lock().is_none() && store.lock().is_none(), "for ever");
        assert_eq!(store.breaker.fatal().reason().as_deref(), Some(BROKEN));
    }

    #[test]
    fn a_writer_is_woken_once_and_only_for_what_it_sleeps_for() {
        let locked = intake();
        let mut store = locked.lock().unwrap();
        let (waiter, _commit) = oneshot::channel();
        store.writer = WriterState::Holding;
        assert!(!store.must_wake_writer(), "nobody waits for anything");
        store.changes.stage(StagedChange::End(SessionId::new("A").unwrap(), Duration::ZERO, waiter));
        store.writer = WriterState::Awake;
        assert!(!store.must_wake_writer(), "it is awake");
        for asleep in [WriterState::Holding, WriterState::Idle] {
            store.writer = asleep;
            assert!(store.must_wake_writer() && !store.must_wake_writer(), "{asleep:?}");
        }
    }

    #[test]
    fn a_wait_ends_with_a_wake_up_with_its_time_or_with_a_broken_store() {
        let store = intake();
        let guard = store.lock().unwrap();
        let (guard, timed_out) = store.wait(guard, Duration::ZERO).unwrap();
        assert!(timed_out && guard.stop.is_none());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                store.lock().unwrap().stop = Some(Stop::AtOnce);
                store.wake();
            });
            let mut guard = guard;
            while guard.stop.is_none() {
                let (again, timed_out) = store.wait(guard, Duration::from_secs(60)).unwrap();
                assert!(!timed_out);
                guard = again;
            }
        });
        let guard = store.lock().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                break_it(&store);
                store.wake();
            });
            let mut guard = Some(guard);
            // A wake-up without cause is possible; the end is the broken store.
            while let Some(held) = guard {
                guard = store.wait(held, Duration::from_secs(60)).map(|(held, timed_out)| {
                    assert!(!timed_out);
                    held
                });
            }
        });
    }
}
