//! One budget in bytes for all doors: for what is being received, and for what waits to be written.
//!
//! Bytes are taken with a [`Permit`], before they are held, and given back when it is dropped. What is small needs none
//! ([`SMALL`]): a spent budget stops large messages only. All holders that have proved nothing get at most half of the
//! budget together, so the other half is left to those that have.
//!
//! Shared bytes count once: all deliveries of a publication have one permit together.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::log::Repeated;
use crate::sync::lock;

mod machine;

pub(crate) use machine::default_bytes;

/// So many bytes of one frame, body or answer need no permit. The limits on connections bound them.
pub(crate) const SMALL: usize = 4 * 1024;

/// Most bytes of one connection, or one request, that has proved nothing where proofs are asked for.
pub(crate) const UNPROVED_MOST: usize = 64 * 1024;

/// A permit grows by so many bytes at least, so that a body that comes in small parts does not grow it each time.
const STEP: usize = 16 * 1024;

/// What a sender, or a client, is told when there is no room.
pub(crate) const SPENT: &str = "the memory budget is spent (see --memory-budget); try again in a moment";

/// A spent budget is logged at most once in this time.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Who holds bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A connection or a request that has proved who it is, or a reader of messages.
    Proved,
    /// One that has not. All of these together hold at most half of the budget.
    Unproved,
}

/// The budget of a process. Cheap to clone; takes no lock while there is room.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    /// Bytes of the whole budget.
    bytes: usize,
    /// One permit for each byte that is free. It is fair: who waits first gets its bytes first.
    free: Semaphore,
    /// The same for what [`Holder::Unproved`] may hold.
    free_for_unproved: Semaphore,
    /// Bounds how often a spent budget is logged.
    spent: Mutex<Repeated>,
}

impl Budget {
    /// A budget of so many bytes, at most [`Self::MOST`].
    #[must_use]
    pub(crate) fn new(bytes: usize) -> Self {
        let bytes = bytes.min(Self::MOST);
        Self(Arc::new(Pool {
            bytes,
            free: Semaphore::new(bytes),
            free_for_unproved: Semaphore::new(bytes / 2),
            spent: Mutex::new(Repeated::every(REPORT_INTERVAL)),
        }))
    }

    /// Most bytes of a budget: more than any machine has.
    pub(crate) const MOST: usize = Semaphore::MAX_PERMITS;

    /// Bytes that are held now.
    #[must_use]
    pub(crate) fn used(&self) -> usize {
        self.0.bytes - self.0.free.available_permits()
    }

    /// Bytes of the whole budget.
    #[must_use]
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Whether this holder gets so many bytes now.
    #[must_use]
    pub(crate) fn has_room(&self, holder: Holder, bytes: usize) -> bool {
        let room = |pool: &Semaphore| pool.available_permits() >= bytes;
        room(&self.0.free) && (holder == Holder::Proved || room(&self.0.free_for_unproved))
    }

    /// A permit for no bytes yet.
    #[must_use]
    pub(crate) fn permit(&self, holder: Holder) -> Permit {
        Permit { budget: self.clone(), holder, bytes: 0 }
    }

    /// A permit that covers so many bytes; `None` if there is no room for them now. That is logged.
    #[must_use]
    pub(crate) fn try_acquire(&self, holder: Holder, bytes: usize) -> Option<Permit> {
        let permit = self.acquire_now(holder, bytes);
        if permit.is_none() {
            self.note_spent();
        }
        permit
    }

    /// The same for one that can do with less: a lack of room is not logged.
    #[must_use]
    pub(crate) fn acquire_now(&self, holder: Holder, bytes: usize) -> Option<Permit> {
        let mut permit = self.permit(holder);
        permit.grow(bytes).then_some(permit)
    }

    /// Waits for a permit that covers so many bytes.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, besides the place in the queue.
    pub(crate) async fn acquire(&self, holder: Holder, bytes: usize) -> Permit {
        let mut permit = self.permit(holder);
        permit.cover(bytes).await;
        permit
    }

    /// Logs that somebody has to wait, or is refused.
    fn note_spent(&self) {
        let Some(unlogged) = lock(&self.0.spent).note(Instant::now()) else { return };
        tracing::warn!(
            bytes = self.0.bytes,
            used = self.used(),
            unlogged,
            "the memory budget is spent (see --memory-budget): large messages wait or are refused"
        );
    }
}

/// Bytes of a [`Budget`], given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Budget,
    holder: Holder,
    /// Bytes taken from the budget.
    bytes: usize,
}

impl Permit {
    /// How many more bytes it takes to cover `bytes`. Nobody can have more than what there is: one that asks for more
    /// gets all of it.
    fn missing(&self, bytes: usize) -> u32 {
        if bytes <= SMALL.max(self.bytes) {
            return 0;
        }
        let most = match self.holder {
            Holder::Proved => self.budget.0.bytes,
            Holder::Unproved => self.budget.0.bytes / 2,
        };
        let missing = (bytes - self.bytes).max(STEP).min(most.saturating_sub(self.bytes));
        u32::try_from(missing).unwrap_or(u32::MAX)
    }

    /// Whether it covers so many bytes, or all that there is.
    #[must_use]
    pub(crate) fn covers(&self, bytes: usize) -> bool {
        self.missing(bytes) == 0
    }

    /// Grows until it covers so many bytes. `false` if there is no room for that now: it is as before. That is logged.
    #[must_use]
    pub(crate) fn try_cover(&mut self, bytes: usize) -> bool {
        let grown = self.grow(bytes);
        if !grown {
            self.budget.note_spent();
        }
        grown
    }

    /// The same for one that can do with less: a lack of room is not logged.
    #[must_use]
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let missing = self.missing(bytes);
        if missing == 0 {
            return true;
        }
        let Pool { free, free_for_unproved, .. } = &*self.budget.0;
        let taken = match self.holder {
            Holder::Proved => free.try_acquire_many(missing).map(|free| free.forget()),
            Holder::Unproved => free_for_unproved.try_acquire_many(missing).and_then(|unproved| {
                free.try_acquire_many(missing)?.forget();
                unproved.forget();
                Ok(())
            }),
        };
        if taken.is_ok() {
            self.bytes += missing as usize;
        }
        taken.is_ok()
    }

    /// Grows until it covers so many bytes. Waits for room.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the permit as it was.
    pub(crate) async fn cover(&mut self, bytes: usize) {
        if self.try_cover(bytes) {
            return;
        }
        let missing = self.missing(bytes);
        let Pool { free, free_for_unproved, .. } = &*self.budget.0;
        let unproved = match self.holder {
            Holder::Proved => None,
            Holder::Unproved => Some(free_for_unproved.acquire_many(missing).await.expect("never closed")),
        };
        free.acquire_many(missing).await.expect("never closed").forget();
        if let Some(unproved) = unproved {
            unproved.forget();
        }
        self.bytes += missing as usize;
    }

    /// Gives back what is not needed to cover so many bytes.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let needed = if bytes <= SMALL { 0 } else { bytes };
        self.give_back(self.bytes.saturating_sub(needed));
    }

    /// Its holder has proved who it is: its bytes no longer count against the others that have not.
    pub(crate) fn prove(&mut self) {
        if self.holder == Holder::Unproved {
            self.budget.0.free_for_unproved.add_permits(self.bytes);
            self.holder = Holder::Proved;
        }
    }

    fn give_back(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.bytes -= bytes;
        self.budget.0.free.add_permits(bytes);
        if self.holder == Holder::Unproved {
            self.budget.0.free_for_unproved.add_permits(bytes);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    const KIB: usize = 1024;

    fn room(budget: &Budget) -> (usize, usize) {
        (budget.0.free.available_permits(), budget.0.free_for_unproved.available_permits())
    }

    #[test]
    fn a_permit_is_given_back_when_it_is_dropped() {
        let budget = Budget::new(100 * KIB);
        let permit = budget.try_acquire(Holder::Proved, 60 * KIB).unwrap();
        assert_eq!((budget.used(), permit.bytes, room(&budget)), (60 * KIB, 60 * KIB, (40 * KIB, 50 * KIB)));
        assert!(budget.has_room(Holder::Proved, 40 * KIB) && !budget.has_room(Holder::Proved, 41 * KIB));
        assert!(budget.try_acquire(Holder::Proved, 41 * KIB).is_none());
        drop(permit);
        assert_eq!(room(&budget), (100 * KIB, 50 * KIB));
    }

    #[test]
    fn what_is_small_needs_no_room() {
        let budget = Budget::new(0);
        let mut permit = budget.try_acquire(Holder::Unproved, SMALL).unwrap();
        assert_eq!(permit.bytes, 0);
        assert!(budget.try_acquire(Holder::Proved, KIB).is_some());
        let budget = Budget::new(100 * KIB);
        assert!(budget.permit(Holder::Proved).try_cover(SMALL) && permit.try_cover(1));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_unproved_together_get_half() {
        let budget = Budget::new(100 * KIB);
        let first = budget.try_acquire(Holder::Unproved, 30 * KIB).unwrap();
        assert!(!budget.has_room(Holder::Unproved, 21 * KIB));
        assert!(budget.try_acquire(Holder::Unproved, 21 * KIB).is_none());
        assert_eq!(room(&budget), (70 * KIB, 20 * KIB), "a refusal takes nothing");
        let mut second = budget.try_acquire(Holder::Unproved, 20 * KIB).unwrap();
        assert!(budget.try_acquire(Holder::Proved, 50 * KIB).is_some());
        second.prove();
        assert_eq!(room(&budget), (50 * KIB, 20 * KIB));
        drop((first, second));
        assert_eq!(room(&budget), (100 * KIB, 50 * KIB));
    }

    #[test]
    fn a_permit_grows_in_steps_and_shrinks() {
        let budget = Budget::new(100 * KIB);
        let mut permit = budget.permit(Holder::Unproved);
        for (bytes, taken) in
            [(SMALL, 0), (SMALL + 1, 16), (16 * KIB, 16), (16 * KIB + 1, 32), (50 * KIB, 50)]
        {
            assert!(permit.try_cover(bytes));
            assert_eq!(budget.used(), taken * KIB, "{bytes}");
        }
        for (bytes, left) in [(60, 50), (20, 20), (4, 0)] {
            permit.shrink_to(bytes * KIB);
            assert_eq!(room(&budget), ((100 - left) * KIB, (50 - left) * KIB));
        }
    }

    #[test]
    fn one_that_asks_for_more_than_there_is_gets_all() {
        let budget = Budget::new(100 * KIB);
        let all = budget.try_acquire(Holder::Proved, 200 * KIB).unwrap();
        assert_eq!(budget.used(), 100 * KIB);
        drop(all);
        let half = budget.try_acquire(Holder::Unproved, 200 * KIB).unwrap();
        assert_eq!(half.bytes, 50 * KIB);
    }

    #[tokio::test]
    async fn who_waits_first_gets_its_room_first() {
        let budget = Budget::new(100 * KIB);
        let held = budget.try_acquire(Holder::Proved, 90 * KIB).unwrap();
        let mut large = Box::pin(budget.acquire(Holder::Proved, 80 * KIB));
        let mut small = Box::pin(budget.acquire(Holder::Unproved, 20 * KIB));
        assert!(poll!(&mut large).is_pending() && poll!(&mut small).is_pending());
        drop(held);
        let std::task::Poll::Ready(large) = poll!(&mut large) else { panic!("there is room") };
        assert_eq!(small.await.bytes, 20 * KIB);
        drop(large);
        assert_eq!(room(&budget), (100 * KIB, 50 * KIB));
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_takes_nothing() {
        let budget = Budget::new(100 * KIB);
        let held = budget.try_acquire(Holder::Proved, 100 * KIB).unwrap();
        let mut permit = budget.permit(Holder::Unproved);
        {
            let mut waiting = Box::pin(permit.cover(20 * KIB));
            assert!(poll!(&mut waiting).is_pending());
        }
        drop(held);
        assert_eq!((permit.bytes, room(&budget)), (0, (100 * KIB, 50 * KIB)));
    }
}
