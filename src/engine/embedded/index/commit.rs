//! Messages become visible: they are as durable as the level says.

use std::sync::atomic::Ordering;

use crate::engine::Registration;
use crate::engine::embedded::index::shards::Shard;
use crate::engine::embedded::index::{
    Floor, FollowUp, Index, Intake, Pending, PendingDelete, Published, Waiter,
};
use crate::message::{Address, Outcome, Seq, SessionId};
use crate::table::Table;

/// What the writer takes to commit next, except for changes of registrations that somebody waits for.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) appends: Vec<Pending>,
    pub(crate) deletes: Vec<PendingDelete>,
    pub(crate) floors: Table<Address, Floor>,
    pub(crate) registrations: Table<SessionId, Option<Registration>>,
    pub(crate) waiters: Vec<Waiter>,
}

impl Index {
    /// Takes messages to commit next, in order, and what else is to be written; deletions only if they are due.
    /// [`Self::take_notes`] must follow.
    pub(in crate::engine::embedded) fn take(
        &self,
        intake: &mut Intake,
        most: (usize, usize),
        deletes_are_due: bool,
    ) -> Taken {
        let appends = self.take_appends(intake, most);
        let writes = intake.writes.take(deletes_are_due);
        let (deletes, floors) = (writes.deletes, writes.floors);
        Taken { appends, deletes, floors, registrations: writes.registrations, waiters: writes.waiters }
    }

    /// Takes so many messages, and bytes of them, to commit next, in order.
    pub(in crate::engine::embedded) fn take_appends(
        &self,
        intake: &mut Intake,
        (messages, bytes): (usize, usize),
    ) -> Vec<Pending> {
        let appends = intake.queue.take(messages, bytes);
        self.note_queue(intake);
        appends
    }

    /// Takes what the shards have noted, which is newer. Nothing is locked.
    pub(in crate::engine::embedded) fn take_notes(&self, taken: &mut Taken) {
        let mut deletes = Vec::new();
        for mut shard in self.shards.each() {
            shard.backing.take_notes(&mut deletes, &mut taken.floors);
        }
        taken.deletes.extend(deletes.into_iter().map(|seq| PendingDelete { seq, receipt: Seq::START }));
    }

    /// These messages are durable: they can be seen now, and are added to `publications`. Returns the waiters to tell.
    pub(in crate::engine::embedded) fn commit(
        &self,
        group: Vec<Pending>,
        publications: &mut Vec<Published>,
    ) -> Vec<(Seq, Waiter)> {
        let Some(last) = group.last().map(|last| last.seq) else { return Vec::new() };
        // Before somebody sees one of them.
        self.committed.store(last.0, Ordering::Release);
        {
            let mut recent = self.recent.lock();
            group.iter().for_each(|pending| recent.push(&pending.publication));
        }
        let mut follow = FollowUp::default();
        let mut waiters = Vec::with_capacity(group.len());
        for mut pending in group {
            waiters.extend(pending.waiter.take().map(|waiter| (pending.seq, waiter)));
            // The store is broken: its waiters are told by their absence.
            let Some(mut shard) = self.shards.lock(&pending.address) else { return Vec::new() };
            publications.extend(self.commit_one(&mut shard, pending, &mut follow));
        }
        self.settled.store(last.0, Ordering::Release);
        if let Some(mut intake) = self.intake.lock() {
            waiters.extend(intake.queue.take_repeats(last));
        }
        self.follow_up(follow);
        waiters
    }

    /// A message can be seen now. Returns what is to be published; nothing if its session was ended meanwhile.
    fn commit_one(
        &self,
        shard: &mut Shard,
        Pending { seq, address, publication, .. }: Pending,
        follow: &mut FollowUp,
    ) -> Option<Published> {
        shard.committed = seq;
        let before = shard.logs.commit(&address, seq);
        let prev = self.make_visible(shard, &address, seq, before, follow)?;
        Some(Published { address, publication, prev })
    }

    /// A message can be seen now: its log has committed it, and returned `prev` and `floor`. Returns the seq that was published
    /// before it at its address; `None` if it is not to be published.
    pub(super) fn make_visible(
        &self,
        shard: &mut Shard,
        address: &Address,
        seq: Seq,
        (prev, floor): (Seq, Seq),
        follow: &mut FollowUp,
    ) -> Option<Seq> {
        if seq <= floor {
            // Its session was ended while it was written: there is nobody to read it.
            self.remove_ended(shard, address, follow);
            return None;
        }
        if matches!(address, Address::Topic(_)) {
            let committed = self.committed_in(shard);
            let removed = shard.logs.remove_oldest(address, &self.settings.history, committed);
            self.drop_entries(shard, address, &removed, Outcome::Expired, follow);
        }
        Some(prev)
    }
}
