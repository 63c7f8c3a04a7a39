//! Commits that fail, and what becomes of what they held.

use std::sync::Arc;
use std::time::Instant;

use crate::engine::embedded::disk::{CommitGroup, is_new};
use crate::engine::embedded::files::try_read;
use crate::engine::embedded::index::{Pending, PlannedChange};
use crate::engine::embedded::writer::explain::{NO_SPACE, explain, is_damage};
use crate::engine::embedded::writer::{GROUP, RETRY, Retry, Writer, fail, fail_changes, stop_for_good};
use crate::metrics;

impl Writer {
    /// A commit failed: its messages are refused, as are registrations and ends that somebody waits for. Its other changes
    /// wait for a later commit.
    pub(super) fn failed(&mut self, group: CommitGroup, error: &rusqlite::Error) {
        metrics::FAILED_COMMITS.count();
        tracing::debug!(%error, "a commit failed");
        if let Some(mut intake) = self.shared.intake() {
            intake.writes().requeue(group.floors, group.registrations);
        }
        let reason: Arc<str> = explain(error).into();
        self.refuse(group.appends, &reason);
        fail(group.waiters, &reason);
        fail_changes(group.changes, &reason);
        // The next start saves what is intact. A disk that cannot be read may be readable soon.
        if is_damage(error) && try_read(&self.files.database).is_ok() {
            stop_for_good(&self.shared, &reason);
        }
    }

    /// The disk is full: refuses messages and registrations, and keeps what makes room or is small.
    ///
    /// Receipts are small, and the messages that they are about make room: there is headroom for both.
    pub(super) fn keep_what_makes_room(&mut self, group: &mut CommitGroup) {
        let reason: Arc<str> = NO_SPACE.into();
        self.refuse(std::mem::take(&mut group.appends), &reason);
        let registrations = std::mem::take(&mut group.registrations);
        let (refused, ends) =
            std::mem::take(&mut group.changes).into_iter().partition(PlannedChange::registers);
        group.changes = ends;
        fail_changes(refused, &reason);
        let (held, ended): (Vec<_>, Vec<_>) = registrations.into_iter().partition(|(_, to)| is_new(to));
        group.registrations = ended;
        let shared = Arc::clone(&self.shared);
        let Some(mut intake) = shared.intake() else { return };
        group.appends = shared.index.take_appends(&mut intake, GROUP);
        group.newest = group.appends.last().map_or(group.newest, |last| last.seq.max(group.newest));
        self.retry = Some(Retry { at: Instant::now() + RETRY, queued: intake.queued() });
        if held.is_empty() {
            return;
        }
        // Requeues registrations of tokens for a later commit and fails their waiters.
        intake.writes().requeue([], held);
        drop(intake);
        fail(std::mem::take(&mut group.waiters), &reason);
    }

    /// Refuses these messages and those behind them, and tells their senders why. Receipts stay in the queue.
    pub(super) fn refuse(&mut self, appends: Vec<Pending>, reason: &Arc<str>) {
        let shared = Arc::clone(&self.shared);
        let Some((waiters, mut intake)) = shared.index.refuse(appends) else { return };
        if intake.failing.as_ref() != Some(reason) {
            tracing::error!(%reason, "the store cannot take messages now");
        }
        intake.failing = Some(Arc::clone(reason));
        self.retry = Some(Retry { at: Instant::now() + RETRY, queued: intake.queued() });
        drop(intake);
        fail(waiters, reason);
    }
}
