//! Who asks. In `open` mode whoever names a session holds it, and anyone may send anywhere.

use crate::message::SessionId;

/// What a request has proved about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    session: Option<SessionId>,
}

impl Grant {
    /// The holder of a session.
    #[must_use]
    pub fn session(session: SessionId) -> Self {
        Self { session: Some(session) }
    }

    /// Someone without a session, as a backend is in `open` mode.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// The name that receivers see as `from`.
    #[must_use]
    pub fn sender(&self) -> Option<&SessionId> {
        self.session.as_ref()
    }
}
