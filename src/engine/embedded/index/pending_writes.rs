//! What changed in memory and is not written to the disk yet, besides new messages.

use crate::engine::Registration;
use crate::engine::embedded::index::queue::Waiter;
use crate::message::{Address, Seq, SessionId};
use crate::table::Table;

/// How many floors of emptied addresses are remembered, so that returning readers are told exactly what they missed.
pub(crate) const MAX_FLOORS: usize = 65_536;

/// What an emptied log leaves behind: the floor, and the highest seq that expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Floor {
    pub(crate) floor: Seq,
    pub(crate) expired: Seq,
}

/// A message that is to be deleted from the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PendingDelete {
    pub(crate) seq: Seq,
    /// The receipt that must be stored no later than the deletion; [`Seq::START`] if there is none.
    pub(crate) receipt: Seq,
}

/// Changes that the next commits write.
#[derive(Debug, Default)]
pub(crate) struct PendingWrites {
    /// Those that go with a receipt: the shards have the others.
    pub(crate) deletes: Vec<PendingDelete>,
    /// Whether a receipt goes with one of them.
    pub(crate) has_receipts: bool,
    /// Those that were not written when they were due. The shards have newer ones.
    pub(crate) floors: Table<Address, Floor>,
    /// Registrations that changed; `None` for one that is no more.
    pub(crate) registrations: Table<SessionId, Option<Registration>>,
    /// Told when the registrations are stored.
    pub(crate) waiters: Vec<Waiter>,
}

impl PendingWrites {
    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.deletes.is_empty() && self.floors.is_empty() && self.registrations.is_empty()
    }

    /// Notes a deletion, and the seq of its receipt.
    pub(super) fn note_delete(&mut self, seq: Seq, receipt: Seq) {
        self.has_receipts |= receipt > Seq::START;
        self.deletes.push(PendingDelete { seq, receipt });
    }

    /// Takes the deletions, with the floors that go with them, if they are due.
    pub(crate) fn take(&mut self, deletes_are_due: bool) -> Self {
        if deletes_are_due {
            return std::mem::take(self);
        }
        let (registrations, waiters) =
            (std::mem::take(&mut self.registrations), std::mem::take(&mut self.waiters));
        Self { registrations, waiters, ..Self::default() }
    }

    /// Takes back what could not be written. What has changed again since then wins.
    pub(crate) fn requeue(
        &mut self,
        floors: impl IntoIterator<Item = (Address, Floor)>,
        registrations: impl IntoIterator<Item = (SessionId, Option<Registration>)>,
    ) {
        for (address, floor) in floors {
            self.floors.entry(address).or_insert(floor);
        }
        for (session, registration) in registrations {
            self.registrations.entry(session).or_insert(registration);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox(n: usize) -> Address {
        Address::Session(SessionId::new(&n.to_string()).unwrap())
    }

    fn floor(seq: u64) -> Floor {
        Floor { floor: Seq(seq), expired: Seq::START }
    }

    #[test]
    fn what_changed_since_a_failed_commit_wins() {
        let mut writes = PendingWrites::default();
        assert!(writes.is_empty());
        let session = SessionId::new("s").unwrap();
        writes.floors.insert(mailbox(1), floor(9));
        writes.requeue([(mailbox(1), floor(5)), (mailbox(2), floor(6))], [(session.clone(), None)]);
        assert_eq!((writes.floors[&mailbox(1)], writes.floors[&mailbox(2)]), (floor(9), floor(6)));
        assert_eq!(writes.registrations[&session], None);
        assert!(!writes.is_empty());
    }

    #[test]
    fn floors_are_written_with_the_deletions_that_they_stand_for() {
        let mut writes = PendingWrites::default();
        writes.note_delete(Seq(3), Seq::START);
        writes.floors.insert(mailbox(1), floor(3));
        writes.registrations.insert(SessionId::new("s").unwrap(), None);
        let taken = writes.take(false);
        assert_eq!((taken.deletes.len(), taken.floors.len(), taken.registrations.len()), (0, 0, 1));
        let taken = writes.take(true);
        assert_eq!((taken.deletes.len(), taken.floors.len(), taken.has_receipts), (1, 1, false));
        writes.note_delete(Seq(4), Seq(5));
        assert!(writes.has_receipts);
    }
}
