//! Look-ups of registered sessions.

use crate::engine::{Embedded, Registration};
use crate::message::{Handle, SessionId, UserId};

impl Embedded {
    /// See [`crate::engine::Engine::is_revoked`].
    #[must_use]
    pub fn is_revoked(&self, session: &SessionId) -> bool {
        let now = self.shared.clock.now();
        self.shared.index.sessions(|sessions| sessions.is_revoked(session, now)).unwrap_or_default()
    }

    /// See [`crate::engine::Engine::session_of`].
    #[must_use]
    pub fn session_of(&self, handle: Handle) -> Option<SessionId> {
        let now = self.shared.clock.now();
        self.shared.index.sessions(|sessions| sessions.session_of(handle, now).cloned())?
    }

    /// See [`crate::engine::Engine::registration`].
    #[must_use]
    pub fn registration(&self, session: &SessionId) -> Option<Registration> {
        let now = self.shared.clock.now();
        self.shared
            .index
            .sessions(|sessions| sessions.get(session, now).map(|known| self.shared.clock.shown(known)))?
    }

    /// See [`crate::engine::Engine::sessions_of`].
    #[must_use]
    pub fn sessions_of(&self, user: &UserId) -> Vec<SessionId> {
        let now = self.shared.clock.now();
        self.shared.index.sessions(|sessions| sessions.sessions_of(user, now)).unwrap_or_default()
    }
}
