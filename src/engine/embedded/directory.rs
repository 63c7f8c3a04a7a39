//! Who is registered: sessions, the users they belong to, and until when. And which sessions were ended.

use std::collections::{BTreeSet, HashMap};

use aws_lc_rs::hmac;

use crate::clock::millis;
use crate::engine::{Register, RegisterError, Registrar, Registration, RegistrationSource};
use crate::message::{Handle, SessionId, UserId};

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

    /// The handle of a session.
    pub(super) fn of(&self, session: &SessionId) -> Handle {
        Handle(self.tag(b"s", session.as_str()))
    }

    /// What only this store can have said of a user and some random bits.
    pub(super) fn mac(&self, user: &UserId, bits: [u8; 16]) -> [u8; 16] {
        self.tag(&bits, user.as_str())
    }

    /// The first 128 bits of HMAC-SHA-256. Handles and seals are told apart by the length of what stands before.
    fn tag(&self, before: &[u8], name: &str) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&[u8::try_from(before.len()).expect("it is short")]);
        context.update(before);
        context.update(name.as_bytes());
        let mut tag = [0; 16];
        tag.copy_from_slice(&context.sign().as_ref()[..16]);
        tag
    }
}

/// All registered sessions. Costs nothing for those that are not.
#[derive(Debug)]
pub(super) struct Directory {
    derive: Handles,
    sessions: HashMap<SessionId, Registration>,
    users: HashMap<UserId, BTreeSet<SessionId>>,
    handles: HashMap<Handle, SessionId>,
    expires_at: BTreeSet<(u64, SessionId)>,
}

impl Directory {
    pub(super) fn new(derive: Handles) -> Self {
        Self {
            derive,
            sessions: HashMap::new(),
            users: HashMap::new(),
            handles: HashMap::new(),
            expires_at: BTreeSet::new(),
        }
    }

    /// Changes what is known of a session; `None` forgets it.
    pub(super) fn set(&mut self, session: &SessionId, to: Option<Registration>) {
        let handle = self.derive.of(session);
        if let Some(Registration { user, expires_at, .. }) = self.sessions.remove(session) {
            self.expires_at.remove(&(expires_at, session.clone()));
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
            self.expires_at.insert((registration.expires_at, session.clone()));
            if let Some(user) = &registration.user {
                self.users.entry(user.clone()).or_default().insert(session.clone());
            }
            if registration.source != RegistrationSource::Revoked {
                self.handles.insert(handle, session.clone());
            }
            self.sessions.insert(session.clone(), registration);
        }
    }

    /// What a session's registration becomes, `None` if it stays as it is; and which other session gives way. One
    /// that is connected does not.
    pub(super) fn plan(
        &self,
        register: &Register,
        now: u64,
        most: usize,
        is_connected: impl Fn(&SessionId) -> bool,
    ) -> Result<(Option<Registration>, Option<SessionId>), RegisterError> {
        let Register { session, user, ttl, by } = register;
        let wanted = now.saturating_add(millis(*ttl)).min(i64::MAX.unsigned_abs());
        let known = self.sessions.get(session).filter(|known| known.expires_at > now);
        let is_revoked = |known: &&Registration| known.source == RegistrationSource::Revoked;
        if known.as_ref().is_some_and(is_revoked) && *by == Registrar::Token {
            return Err(RegisterError::Ended);
        }
        let known = known.filter(|known| !is_revoked(known));
        let owner = known.and_then(|known| known.user.as_ref());
        if let (Some(owner), Some(user)) = (owner, user)
            && owner != user
        {
            return Err(RegisterError::Taken);
        }
        let user = user.as_ref().or(owner);
        let (expires_at, source) = match (by, known) {
            (Registrar::Backend, _) => (wanted, RegistrationSource::Backend { until: wanted }),
            // A token is shown with every reconnect: not each of them is worth a write.
            (Registrar::Token, Some(known)) if known.expires_at >= wanted && owner == user => {
                return Ok((None, None));
            }
            (Registrar::Token, known) => {
                let expires_at = wanted.saturating_add(millis(*ttl) / 8);
                let known =
                    known.map_or((0, RegistrationSource::Token), |known| (known.expires_at, known.source));
                (expires_at.max(known.0), known.1)
            }
        };
        let mut gives_way = None;
        if owner != user
            && let Some(user) = user
        {
            let others = self.sessions_of(user, now);
            if others.len() >= most {
                // What a backend has said stays, and who is there; a page without a memory makes one session after
                // the other.
                let may_go = |other: &SessionId| {
                    self.sessions[other].source == RegistrationSource::Token
                        && other != session
                        && !is_connected(other)
                };
                let going =
                    others.into_iter().filter(may_go).min_by_key(|other| self.sessions[other].expires_at);
                gives_way = Some(going.ok_or(RegisterError::TooMany { limit: most })?);
            }
        }
        Ok((Some(Registration { user: user.cloned(), expires_at, source }), gives_way))
    }

    /// A session's registration, if it has not ended.
    pub(super) fn get(&self, session: &SessionId, now: u64) -> Option<&Registration> {
        self.sessions.get(session).filter(|registration| {
            registration.expires_at > now && registration.source != RegistrationSource::Revoked
        })
    }

    /// Whether a session was ended, and is revoked.
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

    /// One session whose registration has expired.
    pub(super) fn ended(&self, now: u64) -> Option<SessionId> {
        self.expires_at
            .first()
            .filter(|(expires_at, _)| *expires_at <= now)
            .map(|(_, session)| session.clone())
    }

    /// Gives back the room of sessions that are gone.
    pub(super) fn shrink(&mut self) {
        crate::sync::shrink(&mut self.sessions);
        crate::sync::shrink(&mut self.users);
        crate::sync::shrink(&mut self.handles);
    }
}
