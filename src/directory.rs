//! Finds sessions by their ids, users and handles. What this node does not know is confirmed by the engine.

use std::time::Duration;

use crate::clock::Clock;
use crate::engine::{Engine, Lookup, Registration, RegistrationSource};
use crate::grant::{Client, Grant, Proof};
use crate::message::{Handle, SessionId, UserId};
use crate::protocol::To;

/// Where the id of a session is to be a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdScope {
    /// In requests of the x0 client: a backend has registered the session.
    X0,
    /// On every transport: a backend has registered the session with `proof`.
    Everywhere,
}

/// Which mailboxes a message goes to, as far as this node knows at once.
#[derive(Debug, Default)]
pub(crate) struct KnownMailboxes {
    /// How many they are.
    pub(crate) count: usize,
    /// Whose they are, if the message is for a user.
    pub(crate) sessions: Vec<SessionId>,
}

impl KnownMailboxes {
    /// A message for one session, topic or backend.
    const ONE: Self = Self { count: 1, sessions: Vec::new() };
}

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

    /// The holder of a session whose id is a proof in this scope.
    pub async fn holder(&self, session: &SessionId, scope: IdScope) -> Option<Client> {
        let known = self.known_holder(session, scope);
        if known.is_some() {
            return known;
        }
        self.engine.confirm(Lookup::Session(session)).await;
        self.known_holder(session, scope)
    }

    fn known_holder(&self, session: &SessionId, scope: IdScope) -> Option<Client> {
        let (user, _) = self.known_proof(session, scope)?;
        let handle = self.engine.handle(session);
        Some(Client::new(session.clone(), handle, user, Proof::SessionId))
    }

    /// The user of a session whose id is a proof in this scope, and for how long it is one.
    fn known_proof(&self, session: &SessionId, scope: IdScope) -> Option<(Option<UserId>, Duration)> {
        let registration = self.engine.registration(session)?;
        let RegistrationSource::Backend { until, proof } = registration.source else { return None };
        let left = Duration::from_millis(until.saturating_sub(self.clock.now()));
        let accepted = !left.is_zero() && (proof || scope == IdScope::X0);
        accepted.then_some((registration.user, left))
    }

    /// How long the id of a session is a proof in this scope, as far as this node knows at once; zero if it is none.
    #[must_use]
    pub fn id_left(&self, session: &SessionId, scope: IdScope) -> Duration {
        self.known_proof(session, scope).map_or(Duration::ZERO, |(_, left)| left)
    }

    /// How long the id of a client's session goes on to prove on every transport that it is this client's; zero if the session
    /// belongs to another user by now.
    #[must_use]
    pub(crate) fn proof_left(&self, client: &Client) -> Duration {
        match self.known_proof(&client.session, IdScope::Everywhere) {
            Some((user, left)) if user == client.user => left,
            _ => Duration::ZERO,
        }
    }

    /// The holder of a session, as soon as a backend has registered it for x0 pages.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn arrival(&self, session: &SessionId) -> Client {
        loop {
            let arrived = self.engine.arrivals().next(session);
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            if let Some(client) = self.holder(session, IdScope::X0).await {
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

    /// The registered session with this handle.
    pub(crate) async fn session_of(&self, handle: Handle) -> Option<SessionId> {
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

    /// Which mailboxes a message goes to, as far as this node knows at once.
    #[must_use]
    pub(crate) fn known_mailboxes(&self, grant: &Grant, to: &To) -> KnownMailboxes {
        let of_user = |user: &UserId| {
            let sessions = self.known_sessions_of(user);
            KnownMailboxes { count: sessions.len(), sessions }
        };
        match to {
            To::Session(_) | To::Topic(_) | To::Backend(_) | To::Reply(_) => KnownMailboxes::ONE,
            To::User(user) => of_user(user),
            To::Peer(name) if self.means_one_session(grant, name) => KnownMailboxes::ONE,
            To::Peer(name) => of_user(&UserId::from(name)),
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
