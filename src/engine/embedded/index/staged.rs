//! Registrations and ends that a caller waits for: they take effect with their commit.

use std::time::Duration;

use crate::engine::embedded::index::changes::StagedChange;
use crate::engine::embedded::index::{
    Floor, FollowUp, Index, Intake, PlannedChange, RegisterWaiter, Waiter, broken,
};
use crate::engine::{EngineError, Register, RegisterError};
use crate::hub::Hubs;
use crate::message::{Address, Seq, SessionId};

impl Index {
    /// Registers a session with the next commit.
    ///
    /// # Errors
    /// It is refused by what is known now. Later the waiter is told.
    pub(in crate::engine::embedded) fn stage_registration(
        &self,
        register: &Register,
        hubs: &Hubs,
        waiter: RegisterWaiter,
    ) -> Result<(), RegisterError> {
        // It is locked while a registration changes.
        let shard = self.shards.lock(&Address::Session(register.session.clone())).ok_or_else(broken)?;
        let is_undecided = |intake: &Intake| intake.changes.has(&register.session);
        if !is_undecided(&*self.intake.lock().ok_or_else(broken)?) {
            self.plan(register, hubs)?;
        }
        let staged = self.stage(StagedChange::Register(register.clone(), waiter));
        drop(shard);
        self.follow_up(staged?);
        Ok(())
    }

    /// Ends a session with the next commit; see [`Self::end`].
    ///
    /// # Errors
    /// The store is being closed: its readers come back.
    pub(in crate::engine::embedded) fn stage_end(
        &self,
        session: &SessionId,
        revoked_for: Duration,
        waiter: Waiter,
    ) -> Result<(), EngineError> {
        let staged = self.stage(StagedChange::End(session.clone(), revoked_for, waiter))?;
        self.follow_up(staged);
        Ok(())
    }

    fn stage(&self, change: StagedChange) -> Result<FollowUp, EngineError> {
        let mut intake = self.intake.lock().ok_or_else(broken)?;
        intake.check_open()?;
        intake.changes.stage(change);
        Ok(FollowUp { wakes: intake.must_wake_writer(), ..FollowUp::default() })
    }

    /// The waiter is told when everything that was noted so far is stored.
    ///
    /// # Errors
    /// The store is being closed.
    pub(in crate::engine::embedded) fn wait_for_writes(&self, waiter: Waiter) -> Result<(), EngineError> {
        let mut intake = self.intake.lock().ok_or_else(broken)?;
        intake.check_open()?;
        intake.writes.waiters.push(waiter);
        let wakes = intake.must_wake_writer();
        drop(intake);
        self.follow_up(FollowUp { wakes, ..FollowUp::default() });
        Ok(())
    }

    /// Takes registrations and ends to commit next, with messages up to `through`. Those that are refused are told.
    pub(in crate::engine::embedded) fn begin_changes(&self, hubs: &Hubs, through: Seq) -> Vec<PlannedChange> {
        let mut planned = Vec::new();
        // Only the writer takes them.
        while let Some(change) = self.intake.lock().and_then(|mut intake| intake.changes.next()) {
            if let Some(change) = self.plan_change(change, hubs, through)
                && let Some(mut intake) = self.intake.lock()
            {
                intake.changes.begin(&change);
                planned.push(change);
            }
        }
        planned
    }

    fn plan_change(&self, change: StagedChange, hubs: &Hubs, through: Seq) -> Option<PlannedChange> {
        match change {
            StagedChange::Register(register, waiter) => {
                let refused = match self.plan(&register, hubs) {
                    Ok(Some(mut change)) => {
                        if let Some((other, left)) = &mut change.gives_way {
                            let shard = self.shards.lock(&Address::Session(other.clone()))?;
                            self.gives_way(&shard, other, left);
                        }
                        let session = register.session;
                        return Some(PlannedChange::Register { session, change, waiter });
                    }
                    Ok(None) => Ok(self.committed()),
                    Err(refused) => Err(refused),
                };
                _ = waiter.send(refused);
                None
            }
            StagedChange::End(session, revoked_for, waiter) => {
                let address = Address::Session(session.clone());
                let shard = self.shards.lock(&address)?;
                let floor = shard
                    .logs
                    .get(&address)
                    .map(|log| Floor { floor: log.last().min(through), expired: log.position().expired });
                let revoked = self.revoked(&session, revoked_for);
                Some(PlannedChange::End { session, revoked, floor, waiter })
            }
        }
    }

    /// These changes are stored: they become visible.
    pub(in crate::engine::embedded) fn apply_changes(&self, changes: &[PlannedChange], hubs: &Hubs) {
        let mut follow = FollowUp::default();
        for change in changes {
            let session = match change {
                PlannedChange::Register { session, .. } | PlannedChange::End { session, .. } => session,
            };
            let Some(mut shard) = self.shards.lock(&Address::Session(session.clone())) else { return };
            for (session, to) in change.registrations() {
                self.sessions.set(session, to.cloned());
                // What was noted meanwhile is older now.
                if let Some(mut intake) = self.intake.lock() {
                    intake.writes.registrations.remove(session);
                }
            }
            match change {
                PlannedChange::Register { session, change, .. } => {
                    if let Some(through) = change.takes_over {
                        self.take_over(&mut shard, session, through, hubs, &mut follow);
                    }
                }
                PlannedChange::End { session, .. } => self.end_mailbox(&mut shard, session, &mut follow),
            }
        }
        self.follow_up(follow);
    }
}
