//! Registrations and ends of sessions that a caller waits for. They become visible after their commit.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::engine::embedded::index::pending_writes::Floor;
use crate::engine::embedded::index::queue::Waiter;
use crate::engine::registrations::RegistrationChange;
use crate::engine::{EngineError, Register, RegisterError, Registration};
use crate::message::{Address, Seq, SessionId, UserId};

/// Tells the caller what became of a registration.
pub(crate) type RegisterWaiter = oneshot::Sender<Result<Seq, RegisterError>>;

/// A change that waits for the next commit.
#[derive(Debug)]
pub(super) enum StagedChange {
    Register(Register, RegisterWaiter),
    End(SessionId, Duration, Waiter),
}

impl StagedChange {
    fn session(&self) -> &SessionId {
        match self {
            Self::Register(register, _) => &register.session,
            Self::End(session, ..) => session,
        }
    }

    fn user(&self) -> Option<&UserId> {
        match self {
            Self::Register(register, _) => register.user.as_ref(),
            Self::End(..) => None,
        }
    }
}

/// A change that is being committed.
#[derive(Debug)]
pub(crate) enum PlannedChange {
    Register {
        session: SessionId,
        change: RegistrationChange,
        waiter: RegisterWaiter,
    },
    End {
        session: SessionId,
        /// Keeps tokens from registering the session again.
        revoked: Option<Registration>,
        /// Where the mailbox ends, if it has had messages.
        floor: Option<Floor>,
        waiter: Waiter,
    },
}

impl PlannedChange {
    /// Whether it stores a registration.
    pub(crate) fn registers(&self) -> bool {
        matches!(self, Self::Register { .. })
    }

    /// The rows of the directory that it changes.
    pub(crate) fn registrations(&self) -> impl Iterator<Item = (&SessionId, Option<&Registration>)> {
        let (gives_way, session, to) = match self {
            Self::Register { session, change, .. } => {
                (change.gives_way.as_ref(), session, Some(&change.registration))
            }
            Self::End { session, revoked, .. } => (None, session, revoked.as_ref()),
        };
        gives_way.map(|(other, to)| (other, to.as_ref())).into_iter().chain([(session, to)])
    }

    /// The floor that it raises.
    pub(crate) fn floor(&self) -> Option<(Address, Floor)> {
        match self {
            Self::Register { .. } => None,
            Self::End { session, floor, .. } => floor.map(|floor| (Address::Session(session.clone()), floor)),
        }
    }

    /// Tells the caller.
    pub(crate) fn tell(self, result: Result<Seq, EngineError>) {
        // Nobody may wait any more.
        match self {
            Self::Register { waiter, .. } => _ = waiter.send(result.map_err(RegisterError::from)),
            Self::End { waiter, .. } => _ = waiter.send(result),
        }
    }
}

/// Who a change is about: the session, and the user that it gets.
type Subject = (SessionId, Option<UserId>);

/// The changes that wait, in their order, and the subjects of those that are being committed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    staged: VecDeque<StagedChange>,
    in_flight: Vec<Subject>,
}

impl Changes {
    pub(super) fn len(&self) -> usize {
        self.staged.len()
    }

    pub(super) fn stage(&mut self, change: StagedChange) {
        self.staged.push_back(change);
    }

    /// Whether a change of this session is not decided yet.
    pub(super) fn has(&self, session: &SessionId) -> bool {
        self.in_flight.iter().any(|(other, _)| other == session)
            || self.staged.iter().any(|change| change.session() == session)
    }

    /// Whether a session is about to belong to another user.
    pub(super) fn is_promised_to_other(&self, session: &SessionId, user: Option<&UserId>) -> bool {
        let is_other = |owner: Option<&UserId>| owner.is_some() && user.is_some() && owner != user;
        self.in_flight.iter().any(|(other, owner)| other == session && is_other(owner.as_ref()))
            || self.staged.iter().any(|change| change.session() == session && is_other(change.user()))
    }

    /// The next change to plan, unless it depends on one that is being committed.
    pub(super) fn next(&mut self) -> Option<StagedChange> {
        let next = self.staged.front()?;
        let depends = |(session, user): &Subject| {
            session == next.session() || user.is_some() && user.as_ref() == next.user()
        };
        if self.in_flight.iter().any(depends) { None } else { self.staged.pop_front() }
    }

    /// This change is being committed.
    pub(super) fn begin(&mut self, change: &PlannedChange) {
        let subjects = change.registrations();
        let subjects = subjects.map(|(session, to)| (session.clone(), to.and_then(|to| to.user.clone())));
        self.in_flight.extend(subjects);
    }

    /// The commit has succeeded or failed.
    pub(super) fn done(&mut self) {
        self.in_flight.clear();
    }

    /// Empties the list. Returns the waiters for ends; those for registrations are told by their absence.
    pub(super) fn give_up(&mut self) -> Vec<Waiter> {
        let waiter = |change| match change {
            StagedChange::Register(..) => None,
            StagedChange::End(_, _, waiter) => Some(waiter),
        };
        self.staged.drain(..).filter_map(waiter).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Registrar, RegistrationSource};

    fn session(name: &str) -> SessionId {
        SessionId::new(name).unwrap()
    }

    fn user(name: &str) -> Option<UserId> {
        Some(UserId::new(name).unwrap())
    }

    fn register(name: &str, owner: &str) -> StagedChange {
        let ttl = Duration::from_secs(9);
        let register = Register {
            session: session(name),
            user: user(owner),
            ttl,
            by: Registrar::Backend { proof: false },
        };
        StagedChange::Register(register, oneshot::channel().0)
    }

    fn planned(name: &str, owner: &str) -> PlannedChange {
        let (source, since) = (RegistrationSource::Token, Seq::START);
        let registration = Registration { user: user(owner), expires_at: 9, source, tokens_until: 0, since };
        let gives_way = Some((session("old"), None));
        let change = RegistrationChange { registration, gives_way, takes_over: None };
        PlannedChange::Register { session: session(name), change, waiter: oneshot::channel().0 }
    }

    #[test]
    fn changes_of_one_session_or_user_are_committed_one_after_the_other() {
        let mut changes = Changes::default();
        for (name, owner) in [("A", "ann"), ("B", "bob"), ("A", "eve"), ("C", "ann")] {
            changes.stage(register(name, owner));
        }
        for (name, owner) in [("A", "ann"), ("B", "bob")] {
            assert_eq!(changes.next().unwrap().session(), &session(name));
            changes.begin(&planned(name, owner));
        }
        assert!(changes.next().is_none(), "it is about A");
        assert!(changes.has(&session("A")) && changes.has(&session("old")) && !changes.has(&session("D")));
        changes.done();
        assert_eq!(changes.next().unwrap().session(), &session("A"));
        changes.begin(&planned("X", "ann"));
        assert!(changes.next().is_none(), "it is about ann");
        assert_eq!(changes.len(), 1);
    }

    #[test]
    fn a_session_is_promised_to_one_user() {
        let mut changes = Changes::default();
        changes.stage(register("A", "ann"));
        changes.begin(&planned("B", "bob"));
        for (name, owner) in [("A", "ann"), ("B", "bob")] {
            assert!(!changes.is_promised_to_other(&session(name), user(owner).as_ref()));
            assert!(changes.is_promised_to_other(&session(name), user("eve").as_ref()));
        }
        assert!(!changes.is_promised_to_other(&session("C"), user("eve").as_ref()));
    }

    #[test]
    fn who_waits_for_an_end_is_returned_when_the_list_is_given_up() {
        let mut changes = Changes::default();
        changes.stage(register("A", "ann"));
        changes.stage(StagedChange::End(session("B"), Duration::ZERO, oneshot::channel().0));
        assert_eq!((changes.give_up().len(), changes.len()), (1, 0));
    }
}
