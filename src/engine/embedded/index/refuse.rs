//! What becomes of messages that cannot be stored.

use std::sync::atomic::Ordering;

use crate::engine::embedded::index::shards::Shard;
use crate::engine::embedded::index::{FollowUp, Index, Intake, IntakeGuard, Pending, Waiter};
use crate::message::Seq;

impl Index {
    /// These messages could not be stored, nor can those behind them: removes them, and returns their waiters and the locked
    /// intake. `None` once a panic has broken the store.
    ///
    /// Receipts stay in the queue for a later commit. All shards are locked: nothing comes behind what is refused, and has
    /// that for its predecessor.
    pub(in crate::engine::embedded) fn refuse(
        &self,
        group: Vec<Pending>,
    ) -> Option<(Vec<Waiter>, IntakeGuard<'_>)> {
        let mut shards = self.shards.lock_all()?;
        let mut intake = self.intake.lock()?;
        let mut receipts = Vec::new();
        let mut waiters = Vec::new();
        let queued = intake.queue.take(usize::MAX, usize::MAX);
        // The newest first: it is the last one of its log, and of the ids. So each is found at once.
        for mut pending in group.into_iter().chain(queued).rev() {
            match pending.waiter.take() {
                None => receipts.push(pending),
                Some(waiter) => {
                    waiters.push(waiter);
                    self.take_back(shards.of_mut(&pending.address), &pending);
                }
            }
        }
        for mut pending in receipts.into_iter().rev() {
            let log = shards.of(&pending.address).logs.get(&pending.address);
            pending.prev = log.expect("a queued message is in its log").before(pending.seq);
            intake.queue.push(pending);
        }
        self.settle_refused(&mut intake);
        waiters.extend(intake.queue.take_repeats(Seq(u64::MAX)).into_iter().map(|(_, waiter)| waiter));
        Some((waiters, intake))
    }

    /// Everything but receipts is refused by now: what is below them can be seen.
    fn settle_refused(&self, intake: &mut Intake) {
        let visible = intake.queue.first().map_or(self.newest(), |first| Seq(first.0 - 1));
        self.committed.fetch_max(visible.0, Ordering::AcqRel);
        self.settled.fetch_max(visible.0, Ordering::AcqRel);
        self.note_queue(intake);
    }

    /// Undoes an append, as if the message had never come. The writer is awake, and takes what this notes.
    fn take_back(&self, shard: &mut Shard, pending: &Pending) {
        if let Some(id) = pending.send_id {
            self.dedup.lock().revoke(id.key);
        }
        let entry = shard.logs.remove(&pending.address, pending.seq);
        let entry = entry.expect("a queued message is in its log");
        if entry.receipt() {
            self.receipts.take(entry.seq);
        }
        self.note_floor_if_empty(shard, &pending.address, &mut FollowUp::default());
    }
}
