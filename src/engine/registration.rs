//! Registered sessions, as every engine knows them.

use std::time::Duration;

use crate::message::{Handle, Seq, SessionId, UserId};

/// A session to register.
#[derive(Debug, Clone)]
pub struct Register {
    /// The session.
    pub session: SessionId,
    /// The user it belongs to; `None` to keep its user.
    pub user: Option<UserId>,
    /// How long the registration lasts.
    pub ttl: Duration,
    /// Who asks for it.
    pub by: Registrar,
}

/// Who asks for a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registrar {
    /// A backend. It may shorten a registration, and register a session again that was ended.
    Backend {
        /// Whether the id is a proof on every transport from now on.
        proof: bool,
    },
    /// Anyone, in `open` mode. As a backend; and what was stored for a registration without a user goes to the next user.
    Anyone,
    /// The holder of a token. It may only prolong a registration.
    Token {
        /// Until when the token is accepted, in Unix milliseconds.
        until: u64,
    },
}

/// A registered session; one that was ended and stays revoked for a while; or the former owner of what still waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The user it belongs to; `None` if it belongs to nobody.
    pub user: Option<UserId>,
    /// When it expires, in Unix milliseconds.
    pub expires_at: u64,
    /// Who registered it, or what became of it.
    pub source: RegistrationSource,
    /// Until when tokens for it are accepted, as far as is known, in Unix milliseconds; 0 if none is known.
    pub tokens_until: u64,
    /// What was stored or sent up to here was for an earlier owner.
    pub since: Seq,
}

/// Who registered a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistrationSource {
    /// A backend registered it: its id is a proof for x0's requests.
    Backend {
        /// Until when, in Unix milliseconds; tokens may keep it registered for longer.
        until: u64,
        /// Whether its id is a proof on every transport.
        proof: bool,
    },
    /// The holder of a token registered it.
    Token,
    /// It was ended: until it expires no token registers it again.
    Revoked,
    /// It has expired, and something of it is left: messages that wait, receipts to come, or readers. When it expires as
    /// such, the engine looks again.
    Former {
        /// What was stored or sent up to here is for its user alone.
        through: Seq,
    },
}

/// What a look-up in this node's copy of the directory did not find.
#[derive(Debug, Clone, Copy)]
pub enum Lookup<'a> {
    /// A session, by its id.
    Session(&'a SessionId),
    /// A session, by its handle.
    Handle(Handle),
    /// The sessions of a user.
    User(&'a UserId),
}
