//! Registered sessions: their users, and when they expire. And revoked sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::clock::millis;
use crate::engine::handles::Handles;
use crate::engine::{Register, RegisterError, Registrar, Registration, RegistrationSource};
use crate::message::{Address, Handle, NameRange, Seq, SessionId, UserId};
use crate::sync::shrink;
use crate::table::Table;

/// What a registration changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RegistrationChange {
    /// What the session's registration becomes.
    pub(super) registration: Registration,
    /// The session that loses its registration for it, and what is left of that.
    pub(super) gives_way: Option<(SessionId, Option<Registration>)>,
    /// Another user takes the session: what was stored up to here was for the former owner.
    pub(super) takes_over: Option<Seq>,
}

impl Registration {
    /// Whether it registers a session, until it expires.
    pub(super) fn registers(&self) -> bool {
        matches!(self.source, RegistrationSource::Backend { .. } | RegistrationSource::Token)
    }

    /// Whether a session is registered by it now.
    fn is_current(&self, now: u64) -> bool {
        self.registers() && self.expires_at > now
    }

    /// Up to where something is for its user alone, if it is not a current one. Seqs up to `newest` were given.
    fn owned_through(&self, newest: Seq) -> Seq {
        match self.source {
            RegistrationSource::Former { through } => through,
            RegistrationSource::Revoked => self.since,
            RegistrationSource::Backend { .. } | RegistrationSource::Token => newest,
        }
    }

    /// What is left of it when it ends, in a store that has given seqs up to `newest`.
    pub(super) fn into_former(self, newest: Seq, expires_at: u64) -> Self {
        let source = RegistrationSource::Former { through: self.owned_through(newest) };
        Self { source, expires_at, ..self }
    }
}

/// The expiry and the source of a registration; `None` if it stays as it is.
fn lifetime(
    register: &Register,
    known: Option<&Registration>,
    same_user: bool,
    now: u64,
) -> Option<(u64, RegistrationSource)> {
    let ttl = millis(register.ttl);
    let wanted = now.saturating_add(ttl).min(i64::MAX.unsigned_abs());
    match (register.by, known) {
        (Registrar::Backend { proof }, _) => {
            Some((wanted, RegistrationSource::Backend { until: wanted, proof }))
        }
        // Other clients are told the ids of sessions.
        (Registrar::Anyone, _) => Some((wanted, RegistrationSource::Backend { until: wanted, proof: false })),
        // A token comes with every reconnect. Not each of them is worth a write.
        (Registrar::Token { until }, Some(known))
            if known.expires_at >= wanted && known.tokens_until >= until && same_user =>
        {
            None
        }
        (Registrar::Token { .. }, known) => {
            let later = wanted.saturating_add(ttl / 8);
            let (expires_at, source) =
                known.map_or((0, RegistrationSource::Token), |known| (known.expires_at, known.source));
            Some((later.max(expires_at), source))
        }
    }
}

/// When what is known of a session expires, in Unix milliseconds, and the session.
pub(super) type ExpiryKey = (u64, SessionId);

/// All registered sessions, revoked ones, and former owners of what still waits. Other sessions cost nothing.
///
/// Invariants: `by_expiry` lists what is in `sessions`; `users` and `handles` list the registered sessions among them;
/// `user_names` has the keys of `users`, in their order.
#[derive(Debug)]
pub(super) struct RegistrationTable {
    handle_key: Handles,
    sessions: Table<SessionId, Registration>,
    users: Table<UserId, BTreeSet<SessionId>>,
    user_names: BTreeSet<UserId>,
    handles: BTreeMap<Handle, SessionId>,
    by_expiry: BTreeSet<ExpiryKey>,
}

impl RegistrationTable {
    pub(super) fn new(handle_key: Handles) -> Self {
        Self {
            handle_key,
            sessions: Table::default(),
            users: Table::default(),
            user_names: BTreeSet::new(),
            handles: BTreeMap::new(),
            by_expiry: BTreeSet::new(),
        }
    }

    /// Changes a session's registration; `None` removes it.
    pub(super) fn set(&mut self, session: &SessionId, to: Option<Registration>) {
        let handle = self.handle_key.of(session);
        if let Some(Registration { user, expires_at, .. }) = self.sessions.remove(session) {
            self.by_expiry.remove(&(expires_at, session.clone()));
            self.handles.remove(&handle);
            if let Some(user) = user
                && let Some(sessions) = self.users.get_mut(&user)
            {
                sessions.remove(session);
                if sessions.is_empty() {
                    self.users.remove(&user);
                    self.user_names.remove(&user);
                }
            }
        }
        if let Some(registration) = to {
            self.by_expiry.insert((registration.expires_at, session.clone()));
            if registration.registers() {
                if let Some(user) = &registration.user {
                    let sessions = self.users.entry(user.clone()).or_default();
                    if sessions.is_empty() {
                        self.user_names.insert(user.clone());
                    }
                    sessions.insert(session.clone());
                }
                self.handles.insert(handle, session.clone());
            }
            self.sessions.insert(session.clone(), registration);
        }
    }

    /// What a session's registration becomes, which other session gives way to it, and what was for a former owner. Seqs
    /// up to `newest` were given. `None` if nothing changes.
    ///
    /// # Errors
    /// [`RegisterError`] says why the session cannot be registered.
    pub(super) fn plan(
        &self,
        register: &Register,
        (now, newest): (u64, Seq),
        max_sessions: usize,
        is_connected: impl Fn(&SessionId) -> bool,
    ) -> Result<Option<RegistrationChange>, RegisterError> {
        let Register { session, user, by, .. } = register;
        let is_revoked = self.is_revoked(session, now);
        if is_revoked && matches!(by, Registrar::Token { .. }) {
            return Err(RegisterError::Ended);
        }
        let known = self.get(session, now);
        let owner = known.and_then(|known| known.user.as_ref());
        if let (Some(owner), Some(user)) = (owner, user)
            && owner != user
        {
            return Err(RegisterError::Taken);
        }
        let user = user.as_ref().or(owner);
        let Some((expires_at, source)) = lifetime(register, known, owner == user, now) else {
            return Ok(None);
        };
        let gives_way = match user {
            Some(user) if owner != Some(user) => {
                self.make_way(session, user, now, max_sessions, is_connected)?
            }
            _ => None,
        };
        let before = self.sessions.get(session);
        let takes_over = before
            .filter(|before| !before.is_current(now) && !is_same_owner(before, user, *by))
            .map(|before| before.owned_through(newest));
        let since = takes_over.or(before.map(|before| before.since)).unwrap_or_default();
        let shown = if let Registrar::Token { until } = by { *until } else { 0 };
        let tokens_until = before.map_or(0, |before| before.tokens_until).max(shown);
        let registration = Registration { user: user.cloned(), expires_at, source, tokens_until, since };
        let gives_way = gives_way.map(|other| (other, None));
        Ok(Some(RegistrationChange { registration, gives_way, takes_over }))
    }

    /// The session that gives way to another one, if their user has too many.
    ///
    /// Only a token's session that is not connected gives way: a page that remembers no session makes a new one with
    /// every visit.
    fn make_way(
        &self,
        session: &SessionId,
        user: &UserId,
        now: u64,
        max_sessions: usize,
        is_connected: impl Fn(&SessionId) -> bool,
    ) -> Result<Option<SessionId>, RegisterError> {
        let others = self.sessions_of(user, now);
        if others.len() < max_sessions {
            return Ok(None);
        }
        let may_go = |other: &SessionId| {
            self.sessions[other].source == RegistrationSource::Token
                && other != session
                && !is_connected(other)
        };
        let goes = others.into_iter().filter(may_go).min_by_key(|other| self.sessions[other].expires_at);
        goes.map(Some).ok_or(RegisterError::TooMany { limit: max_sessions })
    }

    /// A session's registration, unless it has expired or is revoked.
    pub(super) fn get(&self, session: &SessionId, now: u64) -> Option<&Registration> {
        self.sessions.get(session).filter(|registration| registration.is_current(now))
    }

    /// Whether a mailbox belongs to this user, and to the registration with this `since`. `None` is anybody.
    pub(super) fn is_for(
        &self,
        mailbox: &Address,
        (user, since): (Option<&UserId>, Option<Seq>),
        now: u64,
    ) -> bool {
        let Some(session) = mailbox.session() else { return true };
        let known = self.get(session, now);
        user.is_none_or(|user| known.and_then(|known| known.user.as_ref()) == Some(user))
            && since.is_none_or(|since| known.is_some_and(|known| known.since == since))
    }

    /// Whether nothing is known of any session.
    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// All that is known of a session, whether it is registered or not.
    pub(super) fn entry(&self, session: &SessionId) -> Option<&Registration> {
        self.sessions.get(session)
    }

    /// Something for the former owner of a session comes late, with this seq. Returns what is known of the session then;
    /// `None` if it has no former owner.
    pub(super) fn raise_former(&mut self, session: &SessionId, to: Seq) -> Option<&Registration> {
        let former = self.sessions.get_mut(session)?;
        let RegistrationSource::Former { through } = &mut former.source else { return None };
        *through = to;
        Some(former)
    }

    /// Whether a session was ended and is still revoked.
    pub(super) fn is_revoked(&self, session: &SessionId, now: u64) -> bool {
        self.sessions.get(session).is_some_and(|registration| {
            registration.source == RegistrationSource::Revoked && registration.expires_at > now
        })
    }

    /// The registered session with this handle.
    pub(super) fn session_of(&self, handle: Handle, now: u64) -> Option<&SessionId> {
        self.handles.get(&handle).filter(|session| self.get(session, now).is_some())
    }

    /// The sessions of a user, in the order of their names.
    pub(super) fn sessions_of(&self, user: &UserId, now: u64) -> Vec<SessionId> {
        let Some(sessions) = self.users.get(user) else { return Vec::new() };
        // Those of users are registered: they are looked up only if a registration has expired.
        let all = self.by_expiry.first().is_some_and(|(expires_at, _)| *expires_at > now);
        sessions.iter().filter(|session| all || self.get(session, now).is_some()).cloned().collect()
    }

    /// The first `limit` users in this range that have registered sessions. Those of some may have expired.
    pub(super) fn users(&self, range: NameRange<'_>, limit: usize) -> Vec<UserId> {
        range.first_of(&self.user_names, limit)
    }

    /// The first `limit` registered sessions after a handle, in the order of their handles.
    pub(super) fn by_handle(
        &self,
        after: Option<Handle>,
        limit: usize,
        now: u64,
    ) -> Vec<(Handle, SessionId)> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let sessions = self.handles.range((start, Bound::Unbounded));
        let current = sessions.filter(|(_, session)| self.get(session, now).is_some());
        current.take(limit).map(|(handle, session)| (*handle, session.clone())).collect()
    }

    /// Visits the registered sessions among the next `limit` entries in the order of expiry. Returns where to go on, unless that
    /// is the end. A session whose registration is prolonged meanwhile may be visited again.
    pub(super) fn visit(
        &self,
        after: Option<&ExpiryKey>,
        limit: usize,
        mut each: impl FnMut(&SessionId),
    ) -> Option<ExpiryKey> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut last, mut seen) = (None, 0);
        for key in self.by_expiry.range((start, Bound::Unbounded)).take(limit) {
            if self.sessions[&key.1].registers() {
                each(&key.1);
            }
            (last, seen) = (Some(key), seen + 1);
        }
        last.filter(|_| seen == limit).cloned()
    }

    /// Whether this session's registration has expired, and was not looked at since.
    pub(super) fn has_expired(&self, session: &SessionId, now: u64) -> bool {
        let some_have = self.by_expiry.first().is_some_and(|(expires_at, _)| *expires_at <= now);
        some_have && self.sessions.get(session).is_some_and(|known| known.expires_at <= now)
    }

    /// One session with an expired registration.
    pub(super) fn ended(&self, now: u64) -> Option<SessionId> {
        self.by_expiry
            .first()
            .filter(|(expires_at, _)| *expires_at <= now)
            .map(|(_, session)| session.clone())
    }

    /// Frees the memory of sessions that are gone.
    pub(super) fn shrink(&mut self) {
        shrink(&mut self.sessions);
        shrink(&mut self.users);
    }
}

/// Whether what is left of a registration is for its next user too.
fn is_same_owner(before: &Registration, user: Option<&UserId>, by: Registrar) -> bool {
    match &before.user {
        None => user.is_none() || by == Registrar::Anyone,
        owner => owner.as_ref() == user,
    }
}

#[cfg(test)]
mod tests;
