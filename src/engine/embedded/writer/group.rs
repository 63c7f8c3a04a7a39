//! What one commit writes.

use crate::engine::embedded::disk::CommitGroup;
use crate::engine::embedded::index::Taken;
use crate::engine::embedded::writer::Writer;

impl Writer {
    /// What the next commit writes. Nothing is locked.
    pub(super) fn group(&mut self, mut taken: Taken, deletes_are_due: bool) -> CommitGroup {
        let index = &self.shared.index;
        if deletes_are_due {
            index.take_notes(&mut taken);
        }
        let Taken { appends, deletes, floors, registrations, waiters } = taken;
        let committed = index.committed();
        let through = appends.last().map_or(committed, |last| last.seq);
        self.deletes.add(deletes);
        let deletes = if deletes_are_due { self.deletes.next(appends.len(), through) } else { Vec::new() };
        CommitGroup {
            deletes,
            appends,
            floors: floors.into_iter().collect(),
            registrations: registrations.into_iter().collect(),
            waiters,
            changes: index.begin_changes(&self.shared.hubs, through),
            newest: through.max(committed),
            forgotten: index.forgotten(),
            now: self.shared.clock.now(),
            until: index.expiry(self.window),
            remembered: index.remembered_ids(),
            cleaned: Vec::new(),
            clock: self.clock.due(&self.shared.clock),
        }
    }
}
