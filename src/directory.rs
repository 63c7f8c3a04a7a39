//! Who is meant by a name: registered sessions, their users, and their handles.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Clock;
use crate::engine::{Commit, Engine, Register, RegisterError, RegistrationSource};
use crate::grant::{Client, Grant};
use crate::message::{Handle, SessionId, UserId};

/// Where those wait whose session is not registered yet: each registration wakes the room of its session.
const ROOMS: usize = 256;

/// The registered sessions; cheap to clone.
#[derive(Debug, Clone)]
pub struct Directory {
    engine: Engine,
    clock: Clock,
    rooms: Arc<[Notify; ROOMS]>,
    hash: RandomState,
}

impl Directory {
    /// The sessions that are registered with this engine.
    #[must_use]
    pub fn new(engine: Engine, clock: Clock) -> Self {
        Self {
            engine,
            clock,
            rooms: Arc::new([const { Notify::const_new() }; ROOMS]),
            hash: RandomState::new(),
        }
    }

    fn room(&self, session: &SessionId) -> &Notify {
        let rooms = ROOMS as u64;
        let room = usize::try_from(self.hash.hash_one(session) % rooms).expect("below the number of rooms");
        &self.rooms[room]
    }

    /// Registers a session; see [`Engine::register`].
    ///
    /// # Errors
    /// [`RegisterError`] says why it was not registered.
    pub fn register(&self, register: &Register) -> Result<Option<Commit>, RegisterError> {
        let commit = self.engine.register(register)?;
        if commit.is_some() {
            self.room(&register.session).notify_waiters();
        }
        Ok(commit)
    }

    /// Ends a session; see [`Engine::end`].
    pub fn end(&self, session: &SessionId, revoked_for: Duration) -> Commit {
        self.engine.end(session, revoked_for)
    }

    /// The holder of a session that a backend has registered: for whom its id is the proof.
    #[must_use]
    pub fn holder(&self, session: &SessionId) -> Option<Client> {
        let registration = self.engine.registration(session)?;
        let RegistrationSource::Backend { until } = registration.source else { return None };
        if until <= self.clock.now() {
            return None;
        }
        let handle = self.engine.handle(session);
        Some(Client::new(session.clone(), handle, registration.user, until))
    }

    /// The holder of a session as soon as a backend has registered that.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn arrival(&self, session: &SessionId) -> Client {
        loop {
            let arrived = self.room(session).notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            if let Some(client) = self.holder(session) {
                return client;
            }
            arrived.await;
        }
    }

    /// The session that a sender means by this name: its handle, or its id where the sender may know that.
    #[must_use]
    pub fn find(&self, grant: &Grant, name: &SessionId) -> Option<SessionId> {
        let handle = Handle::parse(name.as_str());
        if let Some(session) = handle.and_then(|handle| self.engine.session_of(handle)) {
            return Some(session);
        }
        let knows_ids = match grant {
            Grant::Open { .. } | Grant::Backend(_) => true,
            Grant::Client(client) => {
                *name == client.session || client.user.is_some() && self.user_of(name) == client.user
            }
        };
        knows_ids.then(|| name.clone())
    }

    /// Who a registered session belongs to.
    #[must_use]
    pub fn user_of(&self, session: &SessionId) -> Option<UserId> {
        self.engine.registration(session)?.user
    }

    /// The registered sessions of a user.
    #[must_use]
    pub fn sessions_of(&self, user: &UserId) -> Vec<SessionId> {
        self.engine.sessions_of(user)
    }
}
