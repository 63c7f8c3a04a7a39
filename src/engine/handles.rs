//! Handles: public names of sessions, derived from their ids with the store's secret.

use aws_lc_rs::hmac;

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
    /// Derives the key from the store's secret.
    pub(super) fn new(secret: &[u8; 16]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Self(hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, b"handles").as_ref()))
    }

    /// The handle of a session.
    pub(super) fn of(&self, session: &SessionId) -> Handle {
        Handle(self.tag(b"s", session.as_str()))
    }

    /// Proves that this store made these random bits for a user.
    pub(super) fn mac(&self, user: &UserId, bits: [u8; 16]) -> [u8; 16] {
        self.tag(&bits, user.as_str())
    }

    /// The first 128 bits of HMAC-SHA-256. The length of `before` tells handles and proofs apart.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_and_proofs_depend_on_the_secret_and_on_everything_they_are_made_of() {
        let (here, there) = (Handles::new(&[1; 16]), Handles::new(&[2; 16]));
        let session = SessionId::new("A").unwrap();
        assert_eq!(here.of(&session), Handles::new(&[1; 16]).of(&session));
        assert_ne!(here.of(&session), there.of(&session));
        assert_ne!(here.of(&session), here.of(&SessionId::new("B").unwrap()));
        let user = UserId::new("A").unwrap();
        assert_ne!(here.mac(&user, [0; 16]), there.mac(&user, [0; 16]));
        assert_ne!(here.mac(&user, [0; 16]), here.mac(&user, [1; 16]));
        assert_ne!(here.mac(&user, [0; 16]), here.of(&session).0);
    }
}
