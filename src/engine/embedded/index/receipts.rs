//! Which stored messages have a sender that gets a receipt.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::message::{MessageId, Seq, SessionId};

/// The receipts that are still to come.
///
/// Invariant: `reserved` counts for each session the messages in `by_seq` that it gets receipts for. Each receipt has
/// its room reserved in the mailbox of its session.
#[derive(Debug, Default)]
pub(super) struct ReceiptLedger {
    /// The session that gets the receipt of a stored message, and its id for the message.
    by_seq: HashMap<Seq, (SessionId, MessageId)>,
    reserved: HashMap<SessionId, usize>,
}

impl ReceiptLedger {
    /// A session gets a receipt for this message.
    pub(super) fn reserve(&mut self, seq: Seq, session: SessionId, id: MessageId) {
        *self.reserved.entry(session.clone()).or_default() += 1;
        self.by_seq.insert(seq, (session, id));
    }

    /// A message has left or was refused: takes its receipt out and frees the reserved room.
    pub(super) fn take(&mut self, seq: Seq) -> Option<(SessionId, MessageId)> {
        let (session, id) = self.by_seq.remove(&seq)?;
        if let Entry::Occupied(mut reserved) = self.reserved.entry(session.clone()) {
            *reserved.get_mut() -= 1;
            if *reserved.get() == 0 {
                reserved.remove();
            }
        }
        Some((session, id))
    }

    /// For how many receipts a session's mailbox keeps room.
    pub(super) fn reserved_receipts(&self, session: &SessionId) -> usize {
        self.reserved.get(session).copied().unwrap_or_default()
    }

    /// A session has ended: it gets no more receipts.
    pub(super) fn forget(&mut self, session: &SessionId) {
        if self.reserved.remove(session).is_some() {
            self.by_seq.retain(|_, (to, _)| to != session);
        }
    }

    /// Panics unless the reserved room agrees with the receipts to come.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        let mut counted = HashMap::<_, usize>::new();
        self.by_seq.values().for_each(|(session, _)| *counted.entry(session.clone()).or_default() += 1);
        assert_eq!(counted, self.reserved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> (ReceiptLedger, SessionId, SessionId) {
        let (a, b) = (SessionId::new("a").unwrap(), SessionId::new("b").unwrap());
        let mut ledger = ReceiptLedger::default();
        for (seq, session) in [(1, &a), (2, &b), (3, &a)] {
            ledger.reserve(Seq(seq), session.clone(), MessageId::new(&format!("c-{seq}")).unwrap());
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
    fn an_ended_session_gets_no_receipts() {
        let (mut ledger, a, b) = ledger();
        ledger.forget(&a);
        ledger.assert_consistent();
        assert_eq!((ledger.take(Seq(1)), ledger.take(Seq(3))), (None, None));
        assert_eq!((ledger.reserved_receipts(&a), ledger.reserved_receipts(&b)), (0, 1));
    }
}
