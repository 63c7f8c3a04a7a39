//! Finds sessions by their ids, users and handles. What this node does not know is confirmed by the engine.

use crate::clock::Clock;
use crate::engine::{Engine, Lookup, Registration, RegistrationSource};
use crate::grant::{Client, Grant};
use crate::message::{Handle, SessionId, UserId};
use crate::protocol::To;

/// The registered sessions; cheap to clone.
#[derive(Debug, Clone)]
pub struct Directory {
    engine: Engine,
    clock: Clock,
}

impl Directory {
    /// The sessions that are registered with this engine.
    #[must_use]
    pub fn new(engine: Engine, clock: Clock) -> Self {
        Self { engine, clock }
    }

    /// A session's registration, if it has one that has not ended.
    pub async fn registration(&self, session: &SessionId) -> Option<Registration> {
        let known = self.engine.registration(session);
        if known.is_some() {
            return known;
        }
        self.engine.confirm(Lookup::Session(session)).await;
        self.engine.registration(session)
    }

    /// The holder of a session that a backend has registered: its id is the proof.
    pub async fn holder(&self, session: &SessionId) -> Option<Client> {
        let known = self.known_holder(session);
        if known.is_some() {
            return known;
        }
        self.engine.confirm(Lookup::Session(session)).await;
        self.known_holder(session)
    }

    fn known_holder(&self, session: &SessionId) -> Option<Client> {
        let registration = self.engine.registration(session)?;
        let RegistrationSource::Backend { until } = registration.source else { return None };
        if until <= self.clock.now() {
            return None;
        }
        let handle = self.engine.handle(session);
        Some(Client::new(session.clone(), handle, registration.user, until))
    }

    /// The holder of a session, as soon as a backend has registered it.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn arrival(&self, session: &SessionId) -> Client {
        loop {
            let arrived = self.engine.arrivals().next(session);
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            if let Some(client) = self.holder(session).await {
                return client;
            }
            arrived.await;
        }
    }

    /// The session that a sender means by this name: its handle, or its id where the sender may know that.
    pub async fn find(&self, grant: &Grant, name: &SessionId) -> Option<SessionId> {
        if let Some(handle) = Handle::parse(name.as_str())
            && let Some(session) = self.session_of(handle).await
        {
            return Some(session);
        }
        let knows_ids = match grant {
            Grant::Open { .. } | Grant::Backend(_) => true,
            Grant::Client(client) => {
                *name == client.session || client.user.is_some() && self.user_of(name).await == client.user
            }
        };
        knows_ids.then(|| name.clone())
    }

    async fn session_of(&self, handle: Handle) -> Option<SessionId> {
        let known = self.engine.session_of(handle);
        if known.is_some() {
            return known;
        }
        self.engine.confirm(Lookup::Handle(handle)).await;
        self.engine.session_of(handle)
    }

    /// The user of a registered session.
    pub async fn user_of(&self, session: &SessionId) -> Option<UserId> {
        self.registration(session).await?.user
    }

    /// The registered sessions of a user.
    pub async fn sessions_of(&self, user: &UserId) -> Vec<SessionId> {
        let known = self.known_sessions_of(user);
        if !known.is_empty() {
            return known;
        }
        self.engine.confirm(Lookup::User(user)).await;
        self.known_sessions_of(user)
    }

    /// How many mailboxes a message goes to, as far as this node knows at once.
    #[must_use]
    pub(crate) fn known_mailboxes(&self, grant: &Grant, to: &To) -> usize {
        match to {
            To::Session(_) | To::Topic(_) | To::Backend(_) => 1,
            To::User(user) => self.known_sessions_of(user).len(),
            To::Peer(name) if self.means_one_session(grant, name) => 1,
            To::Peer(name) => self.known_sessions_of(&UserId::from(name)).len(),
        }
    }

    /// Whether [`Self::find`] finds a session by this name, as far as this node knows at once.
    fn means_one_session(&self, grant: &Grant, name: &SessionId) -> bool {
        let by_handle = Handle::parse(name.as_str()).and_then(|handle| self.engine.session_of(handle));
        let user = || self.engine.registration(name).and_then(|registration| registration.user);
        by_handle.is_some()
            || match grant {
                Grant::Open { .. } | Grant::Backend(_) => true,
                Grant::Client(client) => {
                    *name == client.session || client.user.is_some() && user() == client.user
                }
            }
    }

    /// The registered sessions of a user, as far as this node knows at once.
    #[must_use]
    pub fn known_sessions_of(&self, user: &UserId) -> Vec<SessionId> {
        self.engine.sessions_of(user)
    }
}
