//! Who is registered: sessions, the users they belong to, and until when.

use std::collections::{BTreeSet, HashMap};

use crate::message::{SessionId, UserId};

/// A registered session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Who it belongs to, if to anybody.
    pub user: Option<UserId>,
    /// When the registration ends, in Unix milliseconds.
    pub ends: u64,
}

/// All registered sessions. Costs nothing for those that are not.
#[derive(Debug, Default)]
pub(super) struct Directory {
    sessions: HashMap<SessionId, Registration>,
    users: HashMap<UserId, BTreeSet<SessionId>>,
    ends: BTreeSet<(u64, SessionId)>,
}

impl Directory {
    /// Registers a session, or changes its registration; `None` ends it. Answers whether anything was there.
    pub(super) fn set(&mut self, session: &SessionId, to: Option<Registration>) -> bool {
        let before = self.sessions.remove(session);
        if let Some(Registration { user, ends }) = &before {
            self.ends.remove(&(*ends, session.clone()));
            if let Some(user) = user
                && let Some(sessions) = self.users.get_mut(user)
            {
                sessions.remove(session);
                if sessions.is_empty() {
                    self.users.remove(user);
                }
            }
        }
        if let Some(registration) = to {
            self.ends.insert((registration.ends, session.clone()));
            if let Some(user) = &registration.user {
                self.users.entry(user.clone()).or_default().insert(session.clone());
            }
            self.sessions.insert(session.clone(), registration);
        }
        before.is_some()
    }

    /// A session's registration, if it has not ended.
    pub(super) fn get(&self, session: &SessionId, now: u64) -> Option<&Registration> {
        self.sessions.get(session).filter(|registration| registration.ends > now)
    }

    /// The sessions of a user, in the order of their names.
    pub(super) fn sessions_of(&self, user: &UserId, now: u64) -> Vec<SessionId> {
        let sessions = self.users.get(user).into_iter().flatten();
        sessions.filter(|session| self.get(session, now).is_some()).cloned().collect()
    }

    /// One session whose registration has ended.
    pub(super) fn ended(&self, now: u64) -> Option<SessionId> {
        self.ends.first().filter(|(ends, _)| *ends <= now).map(|(_, session)| session.clone())
    }
}
