//! What is derived from the secret of the store.

use std::time::Duration;

use crate::clock::millis;
use crate::engine::DecryptError;
use crate::engine::embedded::Embedded;
use crate::message::{Handle, SessionId, UserId};

impl Embedded {
    /// See [`crate::engine::Engine::handle`].
    #[must_use]
    pub fn handle(&self, session: &SessionId) -> Handle {
        self.shared.handles.of(session)
    }

    /// See [`crate::engine::Engine::mac`].
    #[must_use]
    pub fn mac(&self, user: &UserId, bits: [u8; 16]) -> [u8; 16] {
        self.shared.handles.mac(user, bits)
    }

    /// See [`crate::engine::Engine::encrypt`].
    #[must_use]
    pub fn encrypt(&self, content: &[u8], lifetime: Duration) -> String {
        let expires_at = self.shared.clock.now().saturating_add(millis(lifetime));
        self.shared.cipher.encrypt(content, expires_at)
    }

    /// See [`crate::engine::Engine::decrypt`].
    ///
    /// # Errors
    /// [`DecryptError`].
    pub fn decrypt(&self, text: &str) -> Result<Vec<u8>, DecryptError> {
        self.shared.cipher.decrypt(text, self.shared.clock.now())
    }
}
