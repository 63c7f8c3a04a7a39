//! Messages become visible: they are as durable as the level says.

use crate::engine::embedded::index::{Index, Pending, Published, Waiter};
use crate::message::{Address, Outcome, Seq};

impl Index {
    /// These messages are durable: they can be seen now, and are added to `publications`. Returns the waiters to tell.
    pub(crate) fn commit(
        &mut self,
        group: Vec<Pending>,
        publications: &mut Vec<Published>,
    ) -> Vec<(Seq, Waiter)> {
        let Some(last) = group.last().map(|last| last.seq) else { return Vec::new() };
        self.committed = last;
        let mut waiters = Vec::with_capacity(group.len());
        for mut pending in group {
            waiters.extend(pending.waiter.take().map(|waiter| (pending.seq, waiter)));
            publications.extend(self.commit_one(pending));
        }
        waiters.extend(self.queue.take_repeats(last));
        waiters
    }

    /// Commits everything that is queued, at level `memory`: there is nothing to wait for, and nobody waits.
    pub(crate) fn commit_queued(&mut self, publications: &mut Vec<Published>) {
        // The receipts of what leaves a history are queued, too.
        while let Some(pending) = self.queue.pop() {
            self.committed = pending.seq;
            publications.extend(self.commit_one(pending));
        }
    }

    /// A message can be seen now. Returns what is to be published; nothing if its session was ended meanwhile.
    fn commit_one(&mut self, Pending { seq, address, publication, .. }: Pending) -> Option<Published> {
        self.backing.commit(&publication);
        let (prev, floor) = self.logs.commit(&address, seq);
        if seq <= floor {
            // Its session was ended while it was written: there is nobody to read it.
            self.remove_ended(&address);
            return None;
        }
        if matches!(address, Address::Topic(_)) {
            let removed = self.logs.remove_oldest(&address, &self.settings.history, self.committed);
            self.drop_entries(&address, &removed, Outcome::Expired);
        }
        Some(Published { address, publication, prev })
    }
}
