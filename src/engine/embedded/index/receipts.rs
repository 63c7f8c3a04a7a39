//! Which stored messages have a sender that gets a receipt.

#[cfg(test)]
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::engine::embedded::index::part::Part;
use crate::message::{Address, MessageId, Seq};
use crate::sync::Padded;
use crate::table::Table;

/// The receipts that are still to come, of all shards.
///
/// More is reserved for a mailbox only while its shard is locked. So who holds that lock sees all of it.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    ledger: Part<ReceiptLedger>,
    /// For how many messages there are receipts to come: most brokers have none, and need not look.
    count: Padded<AtomicUsize>,
}

impl Receipts {
    fn change<R>(&self, change: impl FnOnce(&mut ReceiptLedger) -> R) -> R {
        let mut ledger = self.ledger.lock();
        let changed = change(&mut ledger);
        self.count.store(ledger.by_seq.len(), Ordering::Release);
        changed
    }

    fn look<R: Default>(&self, look: impl FnOnce(&ReceiptLedger) -> R) -> R {
        if self.count.load(Ordering::Acquire) == 0 { R::default() } else { look(&self.ledger.lock()) }
    }

    /// A mailbox gets a receipt for this message. Its shard is locked.
    pub(super) fn reserve(&self, seq: Seq, mailbox: Address, id: MessageId) {
        self.change(|ledger| ledger.reserve(seq, mailbox, id));
    }

    /// The mailbox that gets the receipt for a message.
    pub(super) fn receiver(&self, seq: Seq) -> Option<Address> {
        self.look(|ledger| ledger.by_seq.get(&seq).map(|(mailbox, _)| mailbox.clone()))
    }

    /// See [`ReceiptLedger::take`].
    pub(super) fn take(&self, seq: Seq) -> Option<(Address, MessageId)> {
        self.change(|ledger| ledger.take(seq))
    }

    /// For how many receipts a mailbox keeps room. Its shard is locked.
    pub(super) fn reserved(&self, mailbox: &Address) -> usize {
        self.look(|ledger| ledger.reserved_receipts(mailbox))
    }

    /// Whether it knows messages that the holder of a mailbox sent, even if it gets no receipts for them.
    pub(super) fn knows(&self, mailbox: &Address) -> bool {
        self.look(|ledger| ledger.knows(mailbox))
    }

    /// See [`ReceiptLedger::void`]. The shard of the mailbox is locked.
    pub(super) fn void(&self, mailbox: &Address, through: Seq) {
        self.change(|ledger| ledger.void(mailbox, through));
    }

    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        self.ledger.lock().assert_consistent();
    }
}

/// The receipts that are still to come.
///
/// Invariant: `reserved` counts for each mailbox the messages in `by_seq` that it gets receipts for, and those that it gets
/// none for any more. Each receipt has its room reserved in its mailbox.
#[derive(Debug, Default)]
pub(super) struct ReceiptLedger {
    /// The mailbox that gets the receipt of a stored message, and the sender's id for the message.
    by_seq: Table<Seq, (Address, MessageId)>,
    reserved: Table<Address, Reserved>,
}

/// What a mailbox has in the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Reserved {
    /// Receipts to come.
    receipts: usize,
    /// Messages up to here get no receipt any more: the session was ended, or has another owner.
    void_through: Seq,
    /// How many such messages there are.
    void: usize,
}

impl ReceiptLedger {
    /// A mailbox gets a receipt for this message.
    pub(super) fn reserve(&mut self, seq: Seq, mailbox: Address, id: MessageId) {
        self.reserved.entry(mailbox.clone()).or_default().receipts += 1;
        self.by_seq.insert(seq, (mailbox, id));
    }

    /// A message has left or was refused: takes its receipt out and frees the reserved room.
    pub(super) fn take(&mut self, seq: Seq) -> Option<(Address, MessageId)> {
        let (mailbox, id) = self.by_seq.remove(&seq)?;
        let Entry::Occupied(mut entry) = self.reserved.entry(mailbox.clone()) else { return None };
        let reserved = entry.get_mut();
        let is_void = seq <= reserved.void_through;
        match is_void {
            true => reserved.void -= 1,
            false => reserved.receipts -= 1,
        }
        if reserved.receipts + reserved.void == 0 {
            entry.remove();
        }
        (!is_void).then_some((mailbox, id))
    }

    /// For how many receipts a mailbox keeps room.
    pub(super) fn reserved_receipts(&self, mailbox: &Address) -> usize {
        self.reserved.get(mailbox).map_or(0, |reserved| reserved.receipts)
    }

    /// Whether it knows messages that the holder of a mailbox sent, even if it gets no receipts for them.
    pub(super) fn knows(&self, mailbox: &Address) -> bool {
        self.reserved.contains_key(mailbox)
    }

    /// A session has ended, or has another owner: there are no receipts for what was sent up to `through`, which is all
    /// that it sent.
    ///
    /// Takes the same time for any number of them: they leave the ledger with their messages.
    pub(super) fn void(&mut self, mailbox: &Address, through: Seq) {
        if let Some(reserved) = self.reserved.get_mut(mailbox) {
            reserved.void += std::mem::take(&mut reserved.receipts);
            reserved.void_through = reserved.void_through.max(through);
        }
    }

    /// Panics unless the reserved room agrees with the receipts to come.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        let mut counted = HashMap::<_, (usize, usize)>::new();
        for (seq, (mailbox, _)) in &self.by_seq {
            let (receipts, void) = counted.entry(mailbox.clone()).or_default();
            let is_void = self.reserved.get(mailbox).is_some_and(|known| *seq <= known.void_through);
            *if is_void { void } else { receipts } += 1;
        }
        let known =
            self.reserved.iter().map(|(mailbox, known)| (mailbox.clone(), (known.receipts, known.void)));
        assert_eq!(counted, known.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{BackendName, SessionId};

    fn ledger() -> (ReceiptLedger, Address, Address) {
        let (a, b) = (
            Address::Session(SessionId::new("a").unwrap()),
            Address::Backend(BackendName::new("a").unwrap()),
        );
        let mut ledger = ReceiptLedger::default();
        for (seq, mailbox) in [(1, &a), (2, &b), (3, &a)] {
            ledger.reserve(Seq(seq), mailbox.clone(), MessageId::new(&format!("c-{seq}")).unwrap());
        }
        ledger.assert_consistent();
        (ledger, a, b)
    }

    #[test]
    fn a_receipt_gives_its_room_back_once() {
        let (mut ledger, a, b) = ledger();
        assert_eq!((ledger.reserved_receipts(&a), ledger.reserved_receipts(&b)), (2, 1));
        assert_eq!(ledger.take(Seq(1)), Some((a.clone(), MessageId::new("c-1").unwrap())));
        assert_eq!(ledger.take(Seq(1)), None);
        assert_eq!(ledger.reserved_receipts(&a), 1);
        ledger.assert_consistent();
        ledger.take(Seq(2));
        ledger.take(Seq(3));
        assert!(ledger.by_seq.is_empty() && ledger.reserved.is_empty(), "nothing is kept for nobody");
    }

    #[test]
    fn an_ended_session_gets_no_receipts_for_what_it_sent_before() {
        let (mut ledger, a, b) = ledger();
        ledger.void(&a, Seq(3));
        ledger.assert_consistent();
        ledger.reserve(Seq(4), a.clone(), MessageId::new("c-4").unwrap());
        assert_eq!((ledger.reserved_receipts(&a), ledger.reserved_receipts(&b)), (1, 1));
        assert_eq!((ledger.take(Seq(1)), ledger.take(Seq(3))), (None, None));
        ledger.assert_consistent();
        assert_eq!(ledger.take(Seq(4)).map(|(mailbox, _)| mailbox), Some(a.clone()));
        assert!(!ledger.knows(&a) && ledger.knows(&b), "nothing is kept for nobody");
    }
}
