//! The state that callers and the writer share, and its lock. What a panic leaves behind is not used again.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::engine::Fatal;
use crate::engine::embedded::index::{Index, Published};

/// What is said of a store after a panic under its lock.
pub(super) const BROKEN: &str = "the store has failed because of a defect";

/// Everything that is known of what is stored.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) index: Index,
    /// Why the last commit failed; `None` when it did not.
    pub(super) failing: Option<Arc<str>>,
    pub(super) stop: Option<Stop>,
    /// Committed at level `memory` under the lock that is held, in commit order. Empty while nobody holds it.
    pub(super) committed: Vec<Published>,
    pub(super) writer: WriterState,
}

/// Whether the writer sleeps, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriterState {
    /// It looks at everything before it sleeps. There may also be no writer.
    Awake,
    /// Only what somebody waits for wakes it: the rest is held back for a moment.
    Holding,
    /// So many messages wake it: fewer wait for others.
    Filling(usize),
    /// Anything to write wakes it.
    Idle,
}

impl Store {
    /// Whether the writer must be woken for what is to be written: once, and by the caller, without the lock.
    pub(super) fn must_wake_writer(&mut self) -> bool {
        let wakes = match self.writer {
            WriterState::Awake => false,
            WriterState::Holding => self.index.awaited() > 0,
            WriterState::Filling(full) => self.index.queued() >= full || self.index.queue_is_half_full(),
            WriterState::Idle => self.index.awaited() > 0 || self.index.has_writes(),
        };
        if wakes {
            self.writer = WriterState::Awake;
        }
        wakes
    }
}

/// How the writer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// It writes what is left, and closes the store.
    InOrder,
    /// It writes nothing more, as if the process had been killed.
    AtOnce,
}

/// The lock of a store.
///
/// Held for one append, one read or one slice of expiry; never across an await or a disk access. A panic under it can
/// leave the store half changed. Then the store is dropped, which fails all waiters, and the lock is not given
/// again.
#[derive(Debug)]
pub(super) struct StoreLock {
    store: Mutex<Option<Store>>,
    /// Set when a panic breaks the store.
    fatal: Fatal,
}

/// A locked store.
#[derive(Debug)]
pub(super) struct StoreGuard<'a>(MutexGuard<'a, Option<Store>>);

impl StoreLock {
    pub(super) fn new(index: Index, fatal: Fatal) -> Self {
        let store =
            Store { index, failing: None, stop: None, committed: Vec::new(), writer: WriterState::Awake };
        Self { store: Mutex::new(Some(store)), fatal }
    }

    /// Locks the store; `None` once a panic has broken it.
    pub(super) fn lock(&self) -> Option<StoreGuard<'_>> {
        match self.store.lock() {
            Ok(guard) => guard.is_some().then_some(StoreGuard(guard)),
            Err(poisoned) => {
                self.discard(poisoned.into_inner());
                None
            }
        }
    }

    /// Waits for `work`, but not longer than `timeout`. Returns the lock and whether that time is over.
    pub(super) fn wait<'a>(
        &self,
        guard: StoreGuard<'a>,
        work: &Condvar,
        timeout: Duration,
    ) -> Option<(StoreGuard<'a>, bool)> {
        match work.wait_timeout(guard.0, timeout) {
            Ok((guard, waited)) => guard.is_some().then_some((StoreGuard(guard), waited.timed_out())),
            Err(poisoned) => {
                self.discard(poisoned.into_inner().0);
                None
            }
        }
    }

    /// Drops a store that a panic has left half changed.
    fn discard(&self, mut guard: MutexGuard<'_, Option<Store>>) {
        let broken = guard.take();
        drop(guard);
        drop(broken);
        self.fatal.declare(BROKEN);
    }
}

impl Deref for StoreGuard<'_> {
    type Target = Store;

    fn deref(&self) -> &Store {
        self.0.as_ref().expect("a guard is made for a store that is there")
    }
}

impl DerefMut for StoreGuard<'_> {
    fn deref_mut(&mut self) -> &mut Store {
        self.0.as_mut().expect("a guard is made for a store that is there")
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use tokio::sync::oneshot;

    use super::*;
    use crate::engine::embedded::fixture::settings;
    use crate::engine::embedded::store_clock::StoreClock;
    use crate::message::{Seq, SessionId};

    fn store() -> StoreLock {
        let clock = StoreClock::begin(settings().clock, None);
        StoreLock::new(Index::in_memory(settings(), clock, &[7; 16], Seq(100)), Fatal::default())
    }

    fn break_it(store: &StoreLock) {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut store = store.lock().unwrap();
            store.failing = Some("half changed".into());
            panic!("a defect, for the test");
        }));
        assert!(panicked.is_err());
    }

    #[test]
    fn a_store_is_locked_again_and_again_until_a_panic_breaks_it() {
        let store = store();
        store.lock().unwrap().stop = Some(Stop::InOrder);
        assert_eq!(store.lock().unwrap().stop, Some(Stop::InOrder));
        break_it(&store);
        assert_eq!(store.fatal.reason(), None, "nobody has noticed yet");
        assert!(store.lock().is_none() && store.lock().is_none(), "for ever");
        assert_eq!(store.fatal.reason().as_deref(), Some(BROKEN));
    }

    #[test]
    fn a_writer_is_woken_once_and_only_for_what_it_sleeps_for() {
        let locked = store();
        let mut store = locked.lock().unwrap();
        let (waiter, _commit) = oneshot::channel();
        store.writer = WriterState::Holding;
        assert!(!store.must_wake_writer(), "nobody waits for anything");
        store.index.stage_end(&SessionId::new("A").unwrap(), Duration::ZERO, waiter);
        store.writer = WriterState::Awake;
        assert!(!store.must_wake_writer(), "it is awake");
        for asleep in [WriterState::Holding, WriterState::Idle] {
            store.writer = asleep;
            assert!(store.must_wake_writer() && !store.must_wake_writer(), "{asleep:?}");
        }
    }

    #[test]
    fn a_wait_ends_with_a_wake_up_with_its_time_or_with_a_broken_store() {
        let (store, work) = (store(), Condvar::new());
        let guard = store.lock().unwrap();
        let (guard, timed_out) = store.wait(guard, &work, Duration::ZERO).unwrap();
        assert!(timed_out && guard.stop.is_none());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                store.lock().unwrap().stop = Some(Stop::AtOnce);
                work.notify_all();
            });
            let mut guard = guard;
            while guard.stop.is_none() {
                let (again, timed_out) = store.wait(guard, &work, Duration::from_secs(60)).unwrap();
                assert!(!timed_out);
                guard = again;
            }
        });
        let guard = store.lock().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                break_it(&store);
                work.notify_all();
            });
            let mut guard = Some(guard);
            // A wake-up without cause is possible; the end is the broken store.
            while let Some(held) = guard {
                guard = store.wait(held, &work, Duration::from_secs(60)).map(|(held, timed_out)| {
                    assert!(!timed_out);
                    held
                });
            }
        });
    }
}
