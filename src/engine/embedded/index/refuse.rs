//! What becomes of messages that cannot be stored.

use crate::engine::embedded::index::{Index, Pending, Waiter};
use crate::message::Seq;

impl Index {
    /// These messages could not be stored, nor can those behind them: removes them and returns their waiters.
    ///
    /// Receipts stay in the queue for a later commit.
    pub(crate) fn refuse(&mut self, group: Vec<Pending>) -> Vec<Waiter> {
        let mut receipts = Vec::new();
        let mut waiters = Vec::new();
        let queued = self.queue.take(usize::MAX, usize::MAX);
        // The newest first: it is the last one of its log, and of the ids. So each is found at once.
        for mut pending in group.into_iter().chain(queued).rev() {
            match pending.waiter.take() {
                None => receipts.push(pending),
                Some(waiter) => {
                    waiters.push(waiter);
                    self.take_back(&pending);
                }
            }
        }
        for mut pending in receipts.into_iter().rev() {
            let log = self.logs.get(&pending.address).expect("a queued message is in its log");
            pending.prev = log.before(pending.seq);
            self.queue.push(pending);
        }
        // Everything else is refused by now: what is above can be seen.
        let visible = self.queue.first().map_or(self.newest, |first| Seq(first.0 - 1));
        self.committed = self.committed.max(visible);
        waiters.extend(self.queue.take_repeats(Seq(u64::MAX)).into_iter().map(|(_, waiter)| waiter));
        waiters
    }

    /// Undoes an append, as if the message had never come.
    fn take_back(&mut self, pending: &Pending) {
        if let Some(id) = pending.send_id {
            self.dedup.revoke(id.key);
        }
        let entry = self.logs.remove(&pending.address, pending.seq).expect("a queued message is in its log");
        if entry.receipt() {
            self.receipts.take(entry.seq);
        }
        self.note_floor_if_empty(&pending.address);
    }

    /// Nothing is committed any more: returns all waiters.
    pub(crate) fn give_up(&mut self) -> Vec<Waiter> {
        let mut waiters = self.queue.give_up();
        waiters.append(&mut self.changes.give_up());
        if let Some(writes) = self.backing.writes_mut() {
            waiters.append(&mut writes.waiters);
        }
        waiters
    }
}
