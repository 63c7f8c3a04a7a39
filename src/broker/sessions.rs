//! Registered sessions: made, registered, looked up, ended.

use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::broker::{Broker, BrokerError};
use crate::engine::{Commit, Register, Registrar, Registration};
use crate::hub::Connections;
use crate::message::{Address, Handle, SessionId, UserId};

/// What a session begins with that was made here.
const GENERATED_PREFIX: &str = "s-";

/// What is known of a session.
#[derive(Debug)]
pub struct SessionState {
    /// Its registration, if it has one.
    pub registration: Option<Registration>,
    /// Its public name.
    pub handle: Handle,
    /// Who reads it now.
    pub connections: Connections,
    /// Messages that wait for it.
    pub waiting: usize,
}

impl Broker {
    /// Registers a session on a backend's word. The commit resolves when that is stored; `None` if nothing changes.
    ///
    /// # Errors
    /// Why it is not registered.
    pub fn register(
        &self,
        session: &SessionId,
        user: Option<UserId>,
        ttl: Duration,
    ) -> Result<Option<Commit>, BrokerError> {
        if ttl > self.limits.ttl {
            return Err(BrokerError::TtlTooLong { limit: self.limits.ttl.as_secs() });
        }
        let session = session.clone();
        Ok(self.directory.register(&Register { session, user, ttl, by: Registrar::Backend })?)
    }

    /// Notes that a token carries this session, for as long as it is good.
    ///
    /// # Errors
    /// The session belongs to somebody else, or was ended.
    pub fn register_from_token(
        &self,
        session: &SessionId,
        user: &UserId,
        ttl: Duration,
    ) -> Result<(), BrokerError> {
        let (register, by) = (session.clone(), Registrar::Token);
        // Not waited for: after a crash the token is shown again.
        _ = self.directory.register(&Register { session: register, user: Some(user.clone()), ttl, by })?;
        Ok(())
    }

    /// The public name of a session.
    #[must_use]
    pub fn handle(&self, session: &SessionId) -> Handle {
        self.engine.handle(session)
    }

    /// A new session for a user. Nobody can guess it, and only its user can have it: see [`Self::is_made_for`].
    #[must_use]
    pub fn make_session(&self, user: &UserId) -> SessionId {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).expect("the operating system gives random numbers");
        let sealed = [bits, self.engine.mac(user, bits)].concat();
        SessionId::new(&format!("{GENERATED_PREFIX}{}", URL_SAFE_NO_PAD.encode(sealed)))
            .expect("45 characters are a name")
    }

    /// Whether a session was made for this user here, whenever that was.
    #[must_use]
    pub fn is_made_for(&self, session: &SessionId, user: &UserId) -> bool {
        let sealed = session
            .as_str()
            .strip_prefix(GENERATED_PREFIX)
            .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let Some((bits, mac)) = sealed.as_deref().and_then(|sealed| sealed.split_first_chunk::<16>()) else {
            return false;
        };
        verify_slices_are_equal(&self.engine.mac(user, *bits), mac).is_ok()
    }

    /// Ends a session: its readers are told, its mailbox is deleted. The commit resolves when that is stored.
    pub fn end(&self, session: &SessionId) -> Commit {
        let commit = self.directory.end(session, self.limits.revoked_for);
        // A store that is being closed ends nothing: its readers come back.
        if !commit.is_refused() {
            self.hubs.end(&Address::Session(session.clone()));
        }
        commit
    }

    /// What is known of a session.
    #[must_use]
    pub fn session(&self, session: &SessionId) -> SessionState {
        SessionState {
            registration: self.engine.registration(session),
            handle: self.engine.handle(session),
            connections: self.hubs.presence(&Address::Session(session.clone())),
            waiting: self.engine.waiting(session),
        }
    }
}
