//! Who is registered: sessions, the users they belong to, and until when. And which sessions were ended.

use std::collections::{BTreeSet, HashMap};

use aws_lc_rs::hmac;

use crate::clock::millis;
use crate::engine::{Register, RegisterError, Registrar};
use crate::message::{Handle, SessionId, UserId};

/// A registered session, or one that was ended and is barred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Who it belongs to, if to anybody.
    pub user: Option<UserId>,
    /// When the registration (or the bar) ends, in Unix milliseconds.
    pub ends: u64,
    /// It was ended: until `ends` no token brings it back.
    pub barred: bool,
}

/// Derives handles from session ids.
#[derive(Clone)]
pub(super) struct Handles(hmac::Key);

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handles")
    }
}

impl Handles {
    /// Handles are the same as long as the store's secret is.
    pub(super) fn new(secret: &[u8; 16]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Self(hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, b"handles").as_ref()))
    }

    /// The first 128 bits of HMAC-SHA-256 over the id.
    pub(super) fn of(&self, session: &SessionId) -> Handle {
        let tag = hmac::sign(&self.0, session.as_str().as_bytes());
        let mut handle = [0; 16];
        handle.copy_from_slice(&tag.as_ref()[..16]);
        Handle(handle)
    }
}

/// All registered sessions. Costs nothing for those that are not.
#[derive(Debug)]
pub(super) struct Directory {
    derive: Handles,
    sessions: HashMap<SessionId, Registration>,
    users: HashMap<UserId, BTreeSet<SessionId>>,
    handles: HashMap<Handle, SessionId>,
    ends: BTreeSet<(u64, SessionId)>,
}

impl Directory {
    pub(super) fn new(derive: Handles) -> Self {
        Self {
            derive,
            sessions: HashMap::new(),
            users: HashMap::new(),
            handles: HashMap::new(),
            ends: BTreeSet::new(),
        }
    }

    /// Changes what is known of a session; `None` forgets it.
    pub(super) fn set(&mut self, session: &SessionId, to: Option<Registration>) {
        let handle = self.derive.of(session);
        if let Some(Registration { user, ends, .. }) = self.sessions.remove(session) {
            self.ends.remove(&(ends, session.clone()));
            self.handles.remove(&handle);
            if let Some(user) = user
                && let Some(sessions) = self.users.get_mut(&user)
            {
                sessions.remove(session);
                if sessions.is_empty() {
                    self.users.remove(&user);
                }
            }
        }
        if let Some(registration) = to {
            self.ends.insert((registration.ends, session.clone()));
            if let Some(user) = &registration.user {
                self.users.entry(user.clone()).or_default().insert(session.clone());
            }
            if !registration.barred {
                self.handles.insert(handle, session.clone());
            }
            self.sessions.insert(session.clone(), registration);
        }
    }

    /// What a session's registration becomes, `None` if it stays as it is; and which other session gives way.
    pub(super) fn plan(
        &self,
        register: &Register,
        now: u64,
        most: usize,
    ) -> Result<(Option<Registration>, Option<SessionId>), RegisterError> {
        let Register { session, user, ttl, by } = register;
        let wanted = now.saturating_add(millis(*ttl)).min(i64::MAX.unsigned_abs());
        let known = self.sessions.get(session).filter(|known| known.ends > now);
        if known.is_some_and(|known| known.barred) && *by == Registrar::Token {
            return Err(RegisterError::Ended);
        }
        let known = known.filter(|known| !known.barred);
        let owner = known.and_then(|known| known.user.as_ref());
        if let (Some(owner), Some(user)) = (owner, user)
            && owner != user
        {
            return Err(RegisterError::Taken);
        }
        let ends = match (by, known) {
            (Registrar::Token, Some(known)) => known.ends.max(wanted),
            _ => wanted,
        };
        let user = user.as_ref().or(owner);
        // A token is shown with every reconnect: not each of them is worth a write.
        let is_close = |known: &Registration| known.ends + millis(*ttl) / 8 >= ends;
        if *by == Registrar::Token
            && known.is_some_and(|known| known.user.as_ref() == user && is_close(known))
        {
            return Ok((None, None));
        }
        let mut gives_way = None;
        if owner != user
            && let Some(user) = user
        {
            let others = self.sessions_of(user, now);
            if others.len() >= most {
                // What a backend has said stays; a page without a memory makes one session after the other.
                if *by == Registrar::Backend {
                    return Err(RegisterError::TooMany { limit: most });
                }
                gives_way = others.into_iter().min_by_key(|other| self.sessions[other].ends);
            }
        }
        Ok((Some(Registration { user: user.cloned(), ends, barred: false }), gives_way))
    }

    /// A session's registration, if it has not ended.
    pub(super) fn get(&self, session: &SessionId, now: u64) -> Option<&Registration> {
        self.sessions.get(session).filter(|registration| registration.ends > now && !registration.barred)
    }

    /// Whether a session was ended, and is barred.
    pub(super) fn is_barred(&self, session: &SessionId, now: u64) -> bool {
        self.sessions.get(session).is_some_and(|registration| registration.barred && registration.ends > now)
    }

    /// The registered session with this handle.
    pub(super) fn session_of(&self, handle: Handle, now: u64) -> Option<&SessionId> {
        self.handles.get(&handle).filter(|session| self.get(session, now).is_some())
    }

    /// The sessions of a user, in the order of their names.
    pub(super) fn sessions_of(&self, user: &UserId, now: u64) -> Vec<SessionId> {
        let sessions = self.users.get(user).into_iter().flatten();
        sessions.filter(|session| self.get(session, now).is_some()).cloned().collect()
    }

    /// One session whose registration (or bar) has ended.
    pub(super) fn ended(&self, now: u64) -> Option<SessionId> {
        self.ends.first().filter(|(ends, _)| *ends <= now).map(|(_, session)| session.clone())
    }

    /// Gives back the room of sessions that are gone.
    pub(super) fn shrink(&mut self) {
        crate::hub::shrink(&mut self.sessions);
        crate::hub::shrink(&mut self.users);
        crate::hub::shrink(&mut self.handles);
    }
}
