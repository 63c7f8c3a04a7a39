//! Registered sessions: made, registered, looked up, ended.

use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::broker::{Broker, BrokerError};
use crate::engine::{Commit, Lookup, Register, RegisterError, Registrar, Registration};
use crate::hub::Connections;
use crate::message::{Address, Handle, SessionId, UserId};

/// What the ids of generated sessions begin with.
const GENERATED_PREFIX: &str = "s-";

/// What is known of a session.
#[derive(Debug)]
pub struct SessionState {
    /// Its registration, if it has one.
    pub registration: Option<Registration>,
    /// Its public name.
    pub handle: Handle,
    /// Its connections now.
    pub connections: Connections,
    /// Messages that wait for it.
    pub waiting: usize,
}

impl Broker {
    /// Registers a session on a backend's word; as a `proof`, its id is enough on every transport, where sessions are proved
    /// at all. Waits until that is stored.
    ///
    /// # Errors
    /// [`BrokerError::TtlTooLong`], [`BrokerError::Register`], [`BrokerError::Engine`].
    pub async fn register(
        &self,
        session: &SessionId,
        user: Option<UserId>,
        ttl: Duration,
        proof: bool,
    ) -> Result<(), BrokerError> {
        if ttl > self.limits.ttl {
            return Err(BrokerError::TtlTooLong { limit: self.limits.ttl.as_secs() });
        }
        let by = if self.limits.secret_ids { Registrar::Backend { proof } } else { Registrar::Anyone };
        let register = Register { session: session.clone(), user, ttl, by };
        self.engine.register(&register).await?;
        self.engine.confirm(Lookup::Session(session)).await;
        Ok(())
    }

    /// Registers the session that a token names. The token is accepted until `until`, in Unix milliseconds.
    /// [`Commit::decided`] says whether the token may have it. Nobody needs to wait until that is stored: after a crash the
    /// token comes again.
    pub(crate) fn register_from_token(
        &self,
        session: &SessionId,
        user: &UserId,
        (ttl, until): (Duration, u64),
    ) -> Commit<RegisterError> {
        let (session, user, by) = (session.clone(), Some(user.clone()), Registrar::Token { until });
        self.engine.register(&Register { session, user, ttl, by })
    }

    /// The public name of a session.
    #[must_use]
    pub fn handle(&self, session: &SessionId) -> Handle {
        self.engine.handle(session)
    }

    /// A new session for a user. Its id cannot be guessed. No other user can have it: see [`Self::is_made_for`].
    #[must_use]
    pub(crate) fn make_session(&self, user: &UserId) -> SessionId {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).expect("the operating system gives random numbers");
        let id = [bits, self.engine.mac(user, bits)].concat();
        SessionId::new(&format!("{GENERATED_PREFIX}{}", URL_SAFE_NO_PAD.encode(id)))
            .expect("45 characters are a name")
    }

    /// Whether [`Self::make_session`] ever made this session for this user.
    #[must_use]
    pub(crate) fn is_made_for(&self, session: &SessionId, user: &UserId) -> bool {
        let id = session
            .as_str()
            .strip_prefix(GENERATED_PREFIX)
            .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let Some((bits, mac)) = id.as_deref().and_then(|id| id.split_first_chunk::<16>()) else {
            return false;
        };
        verify_slices_are_equal(&self.engine.mac(user, *bits), mac).is_ok()
    }

    /// Ends a session: its readers end, its mailbox is deleted.
    pub fn end(&self, session: &SessionId) -> Commit {
        self.engine.end(session, self.limits.revoked_for)
    }

    /// What is known of a session.
    pub async fn session(&self, session: &SessionId) -> SessionState {
        let registration = self.directory.registration(session).await;
        let (connections, waiting) = self.mailbox_state(&session.into()).await;
        SessionState { registration, handle: self.engine.handle(session), connections, waiting }
    }

    /// Who reads a mailbox, and how many messages wait in it.
    pub async fn mailbox_state(&self, mailbox: &Address) -> (Connections, usize) {
        (self.engine.presence(mailbox).await, self.engine.waiting(mailbox).await)
    }
}
