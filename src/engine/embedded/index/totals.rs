//! What all shards count together: bytes, and what each author has.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::engine::embedded::index::part::Part;
use crate::engine::embedded::index::payers::{PayerId, Payers};
use crate::engine::{EngineError, Share, Usage};
use crate::message::SenderName;
use crate::sync::Padded;

/// What all stored messages take, and those of each author.
///
/// Room is reserved before a message is placed, so that appends at several addresses do not exceed a bound together.
#[derive(Debug, Default)]
pub(super) struct Totals {
    bytes: Padded<AtomicUsize>,
    payers: Part<Payers>,
}

impl Totals {
    /// Bytes of all stored messages, and of those that are being placed.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Reserves room in a store of `limit` bytes for a message of this cost. `payer` is its author, if authors have shares.
    /// [`Self::release`] gives the room back.
    ///
    /// # Errors
    /// `QuotaExceeded` or `StoreFull`.
    pub(super) fn reserve(
        &self,
        cost: usize,
        limit: usize,
        payer: Option<&SenderName>,
    ) -> Result<PayerId, EngineError> {
        let Some(name) = payer else {
            self.reserve_bytes(cost, limit)?;
            return Ok(PayerId::NONE);
        };
        let whole = Usage { messages: usize::MAX, bytes: limit };
        let mut payers = self.payers.lock();
        let own = payers.usage(payers.find(name));
        let (used, more) = (Usage { messages: 0, bytes: self.bytes() }, Usage { messages: 1, bytes: cost });
        Share::Store.check(whole, used, own, more)?;
        self.reserve_bytes(cost, whole.for_authors().bytes)?;
        Ok(payers.enter(name, cost))
    }

    fn reserve_bytes(&self, cost: usize, limit: usize) -> Result<(), EngineError> {
        // Never more than the limit, not even for a moment: nobody is refused for what another one is refused.
        let reserved = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bytes| {
            bytes.checked_add(cost).filter(|bytes| *bytes <= limit)
        });
        reserved.map(|_| ()).map_err(|_| EngineError::StoreFull { limit })
    }

    /// A message is there whether there is room or not: a receipt, or one that is read back from the disk.
    pub(super) fn add(&self, cost: usize, payer: Option<&SenderName>) -> PayerId {
        self.bytes.fetch_add(cost, Ordering::Relaxed);
        payer.map(|name| self.payers.lock().enter(name, cost)).unwrap_or_default()
    }

    /// A message has left, or is not placed.
    pub(super) fn release(&self, cost: usize, payer: PayerId) {
        self.release_bytes(cost);
        self.discharge(payer, cost);
    }

    /// Messages of so many bytes have left. Each is also taken from its author by [`Self::discharge`].
    pub(super) fn release_bytes(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// An author has one message less.
    pub(super) fn discharge(&self, payer: PayerId, cost: usize) {
        if payer != PayerId::NONE {
            self.payers.lock().remove(payer, cost);
        }
    }

    /// An author has its first message in a history.
    pub(super) fn enter_topic(&self, payer: PayerId) {
        self.payers.lock().enter_topic(payer);
    }

    /// An author has no message in a history any more. Called before its last message is discharged.
    pub(super) fn leave_topic(&self, payer: PayerId) {
        self.payers.lock().leave_topic(payer);
    }

    /// In how many histories an author has messages.
    pub(super) fn topics(&self, payer: PayerId) -> usize {
        self.payers.lock().topics(payer)
    }

    /// The id of an author; [`PayerId::NONE`] if it has no messages.
    pub(super) fn find(&self, name: &SenderName) -> PayerId {
        self.payers.lock().find(name)
    }

    #[cfg(test)]
    pub(super) fn usage(&self, payer: PayerId) -> Usage {
        self.payers.lock().usage(payer)
    }

    #[cfg(test)]
    pub(super) fn all_payers(&self) -> std::collections::HashMap<PayerId, (Usage, usize)> {
        self.payers.lock().all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_not_reserved() {
        let totals = Totals::default();
        assert_eq!(totals.reserve(60, 100, None), Ok(PayerId::NONE));
        assert_eq!(totals.reserve(41, 100, None), Err(EngineError::StoreFull { limit: 100 }));
        assert_eq!(totals.bytes(), 60);
        assert_eq!(totals.reserve(40, 100, None), Ok(PayerId::NONE));
        totals.release(60, PayerId::NONE);
        assert_eq!(totals.bytes(), 40);
    }

    #[test]
    fn an_author_pays_from_the_reservation_on() {
        let (totals, ann) = (Totals::default(), SenderName::new("ann").unwrap());
        let payer = totals.reserve(10, 1000, Some(&ann)).unwrap();
        assert_eq!((totals.find(&ann), totals.usage(payer).bytes), (payer, 10));
        totals.release(10, payer);
        assert_eq!((totals.find(&ann), totals.bytes()), (PayerId::NONE, 0));
    }

    #[test]
    fn threads_together_reserve_no_more_than_the_limit() {
        let totals = Totals::default();
        let reserve = || (0..1_000).filter(|_| totals.reserve(7, 10_000, None).is_ok()).count();
        let reserved: usize = std::thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(reserve));
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((totals.bytes(), reserved), (7 * 1428, 1428), "as many as fit");
    }
}
