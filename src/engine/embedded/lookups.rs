//! Look-ups of registered sessions.

use crate::engine::{Embedded, Registration};
use crate::message::{Handle, SessionId, UserId};

impl Embedded {
    /// See [`crate::engine::Engine::is_revoked`].
    #[must_use]
    pub fn is_revoked(&self, session: &SessionId) -> bool {
        let now = self.shared.clock.now();
        self.shared.store.lock().is_some_and(|store| store.index.sessions().is_revoked(session, now))
    }

    /// See [`crate::engine::Engine::session_of`].
    #[must_use]
    pub fn session_of(&self, handle: Handle) -> Option<SessionId> {
        let store = self.shared.store.lock()?;
        store.index.sessions().session_of(handle, self.shared.clock.now()).cloned()
    }

    /// See [`crate::engine::Engine::registration`].
    #[must_use]
    pub fn registration(&self, session: &SessionId) -> Option<Registration> {
        let store = self.shared.store.lock()?;
        store
            .index
            .sessions()
            .get(session, self.shared.clock.now())
            .map(|known| self.shared.clock.shown(known))
    }

    /// See [`crate::engine::Engine::sessions_of`].
    #[must_use]
    pub fn sessions_of(&self, user: &UserId) -> Vec<SessionId> {
        let now = self.shared.clock.now();
        let store = self.shared.store.lock();
        store.map(|store| store.index.sessions().sessions_of(user, now)).unwrap_or_default()
    }
}
