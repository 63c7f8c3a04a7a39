//! Registered sessions: their users, and when they expire. And revoked sessions.

use std::collections::{BTreeSet, HashMap};

use crate::clock::millis;
use crate::engine::embedded::handles::Handles;
use crate::engine::{Register, RegisterError, Registrar, Registration, RegistrationSource};
use crate::message::{Handle, Seq, SessionId, UserId};
use crate::sync::shrink;

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
        (Registrar::Backend | Registrar::Anyone, _) => {
            Some((wanted, RegistrationSource::Backend { until: wanted }))
        }
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

/// All registered sessions, revoked ones, and former owners of what still waits. Other sessions cost nothing.
///
/// Invariant: `by_expiry` lists what is in `sessions`; `users` and `handles` list the registered sessions among them.
#[derive(Debug)]
pub(super) struct RegistrationTable {
    handle_key: Handles,
    sessions: HashMap<SessionId, Registration>,
    users: HashMap<UserId, BTreeSet<SessionId>>,
    handles: HashMap<Handle, SessionId>,
    by_expiry: BTreeSet<(u64, SessionId)>,
}

impl RegistrationTable {
    pub(super) fn new(handle_key: Handles) -> Self {
        Self {
            handle_key,
            sessions: HashMap::new(),
            users: HashMap::new(),
            handles: HashMap::new(),
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
                }
            }
        }
        if let Some(registration) = to {
            self.by_expiry.insert((registration.expires_at, session.clone()));
            if registration.registers() {
                if let Some(user) = &registration.user {
                    self.users.entry(user.clone()).or_default().insert(session.clone());
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
        let sessions = self.users.get(user).into_iter().flatten();
        sessions.filter(|session| self.get(session, now).is_some()).cloned().collect()
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
        shrink(&mut self.handles);
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
mod tests {
    use std::time::Duration;

    use super::*;

    fn session(name: &str) -> SessionId {
        SessionId::new(name).unwrap()
    }

    fn register(name: &str, user: Option<&str>, ttl: u64, by: Registrar) -> Register {
        let user = user.map(|user| UserId::new(user).unwrap());
        Register { session: session(name), user, ttl: Duration::from_millis(ttl), by }
    }

    /// A token that says nothing about how long it is accepted.
    const TOKEN: Registrar = Registrar::Token { until: 0 };

    fn ended(user: Option<&str>, source: RegistrationSource, since: u64) -> Registration {
        let user = user.map(|user| UserId::new(user).unwrap());
        Registration { user, expires_at: 50, source, tokens_until: 0, since: Seq(since) }
    }

    fn table() -> RegistrationTable {
        RegistrationTable::new(Handles::new(&[7; 16]))
    }

    /// Plans a registration for a user who may have two sessions, and applies it.
    fn apply(table: &mut RegistrationTable, register: &Register, now: u64) -> Result<bool, RegisterError> {
        let Some(change) = table.plan(register, (now, Seq(7)), 2, |other| other.as_str() == "connected")?
        else {
            return Ok(false);
        };
        if let Some((other, _)) = change.gives_way {
            table.set(&other, None);
        }
        table.set(&register.session, Some(change.registration));
        assert_consistent(table);
        Ok(true)
    }

    fn assert_consistent(table: &RegistrationTable) {
        let of_users: usize = table.users.values().map(BTreeSet::len).sum();
        let current = || table.sessions.values().filter(|known| known.registers());
        assert_eq!(of_users, current().filter(|known| known.user.is_some()).count());
        let listed: BTreeSet<_> =
            table.sessions.iter().map(|(name, known)| (known.expires_at, name.clone())).collect();
        assert_eq!(table.by_expiry, listed);
        assert_eq!(table.handles.len(), current().count());
    }

    #[test]
    fn a_backend_sets_the_time_and_a_token_only_prolongs_it() {
        let mut table = table();
        let mut at = |ttl, by, now| {
            let changes = apply(&mut table, &register("A", Some("u"), ttl, by), now);
            (changes, table.get(&session("A"), now).unwrap().clone())
        };
        let (_, known) = at(1000, Registrar::Backend, 0);
        assert_eq!(known.source, RegistrationSource::Backend { until: 1000 });
        assert_eq!(at(500, TOKEN, 0).0, Ok(false), "it lasts longer already");
        let (_, known) = at(1000, TOKEN, 100);
        assert_eq!((known.expires_at, known.source), (1225, RegistrationSource::Backend { until: 1000 }));
        assert_eq!(at(200, Registrar::Backend, 100).1.expires_at, 300, "a backend shortens it");
    }

    #[test]
    fn a_session_of_one_user_is_not_given_to_another() {
        let mut table = table();
        apply(&mut table, &register("A", Some("u"), 1000, TOKEN), 0).unwrap();
        for by in [Registrar::Backend, TOKEN] {
            assert_eq!(apply(&mut table, &register("A", Some("v"), 1, by), 0), Err(RegisterError::Taken));
        }
        apply(&mut table, &register("A", None, 9000, Registrar::Backend), 0).unwrap();
        assert_eq!(table.get(&session("A"), 0).unwrap().user, Some(UserId::new("u").unwrap()));
        assert_eq!(apply(&mut table, &register("A", Some("v"), 1, TOKEN), 9000), Ok(true), "expired");
    }

    #[test]
    fn a_revoked_session_comes_back_only_by_a_backend_or_after_its_time() {
        let mut table = table();
        table.set(&session("A"), Some(ended(None, RegistrationSource::Revoked, 0)));
        assert_consistent(&table);
        assert!(table.is_revoked(&session("A"), 49) && table.get(&session("A"), 49).is_none());
        let token = register("A", None, 1000, TOKEN);
        assert_eq!(apply(&mut table, &token, 49), Err(RegisterError::Ended));
        assert_eq!(apply(&mut table, &register("A", None, 10, Registrar::Backend), 49), Ok(true));
        assert!(!table.is_revoked(&session("A"), 49));
        assert_eq!(apply(&mut table, &token, 50), Ok(true));
    }

    /// Up to where the former owner loses what waits, and what the registration says of that afterwards.
    fn taken_over(table: &RegistrationTable, user: Option<&str>, by: Registrar) -> (Option<u64>, u64) {
        let change = table.plan(&register("A", user, 10, by), (60, Seq(7)), 2, |_| false).unwrap().unwrap();
        (change.takes_over.map(|seq| seq.0), change.registration.since.0)
    }

    #[test]
    fn what_waits_is_for_its_owner_only() {
        let mut table = table();
        assert_eq!(taken_over(&table, Some("u"), TOKEN), (None, 0), "nobody had it");
        for (source, through) in [
            (RegistrationSource::Former { through: Seq(5) }, 5),
            // It expired a moment ago, and nobody has looked yet.
            (RegistrationSource::Backend { until: 50 }, 7),
            (RegistrationSource::Token, 7),
        ] {
            table.set(&session("A"), Some(ended(Some("u"), source, 3)));
            assert_eq!(table.get(&session("A"), 60), None);
            assert_consistent(&table);
            for by in [TOKEN, Registrar::Backend, Registrar::Anyone] {
                assert_eq!(taken_over(&table, Some("u"), by), (None, 3), "it comes back");
                assert_eq!(taken_over(&table, Some("v"), by), (Some(through), through), "{source:?} {by:?}");
                assert_eq!(taken_over(&table, None, by), (Some(through), through));
            }
            table.set(&session("A"), Some(ended(None, source, 3)));
            assert_eq!(taken_over(&table, Some("v"), TOKEN), (Some(through), through));
            assert_eq!(taken_over(&table, Some("v"), Registrar::Anyone), (None, 3), "names are free");
        }
        table.set(&session("A"), Some(ended(None, RegistrationSource::Revoked, 4)));
        assert_eq!(taken_over(&table, Some("v"), TOKEN), (Some(4), 4), "what came after the end stays");
    }

    #[test]
    fn the_longest_token_is_known() {
        let mut table = table();
        let token = |until| register("A", Some("u"), 10, Registrar::Token { until });
        for (until, changes, known) in [(100, true, 100), (90, false, 100), (120, true, 120)] {
            assert_eq!(apply(&mut table, &token(until), 0), Ok(changes), "{until}");
            assert_eq!(table.get(&session("A"), 0).unwrap().tokens_until, known);
        }
        apply(&mut table, &register("A", None, 5, Registrar::Backend), 0).unwrap();
        assert_eq!(table.get(&session("A"), 0).unwrap().tokens_until, 120);
    }

    #[test]
    fn the_oldest_unconnected_session_of_a_token_gives_way() {
        let mut table = table();
        let token = |name, ttl| register(name, Some("u"), ttl, TOKEN);
        apply(&mut table, &token("connected", 100), 0).unwrap();
        apply(&mut table, &token("B", 200), 0).unwrap();
        apply(&mut table, &token("C", 300), 0).unwrap();
        let user = UserId::new("u").unwrap();
        assert_eq!(table.sessions_of(&user, 0), [session("C"), session("connected")]);
        apply(&mut table, &register("C", Some("u"), 300, Registrar::Backend), 0).unwrap();
        assert_eq!(apply(&mut table, &token("D", 1), 0), Err(RegisterError::TooMany { limit: 2 }));
        assert_eq!(apply(&mut table, &token("C", 900), 0), Ok(true), "it is one of them");
    }

    #[test]
    fn handles_lead_to_registered_sessions_only() {
        let mut table = table();
        let handle = Handles::new(&[7; 16]).of(&session("A"));
        assert_eq!(table.session_of(handle, 0), None);
        apply(&mut table, &register("A", None, 80, TOKEN), 0).unwrap();
        assert_eq!(table.session_of(handle, 0), Some(&session("A")));
        assert_eq!((table.session_of(handle, 90), table.ended(89)), (None, None));
        assert_eq!(table.ended(90), Some(session("A")));
        table.set(&session("A"), None);
        assert_consistent(&table);
        assert!(table.sessions.is_empty() && table.handles.is_empty());
    }
}
