//! Registered sessions, as every engine knows them.

use std::time::Duration;

use crate::message::{Handle, SessionId, UserId};

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
    Backend,
    /// The holder of a token. It may only prolong a registration.
    Token,
}

/// A registered session, or one that was ended and stays revoked for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The user it belongs to; `None` if it belongs to nobody.
    pub user: Option<UserId>,
    /// When it expires, in Unix milliseconds.
    pub expires_at: u64,
    /// Who registered it, or that it was ended.
    pub source: RegistrationSource,
}

/// Who registered a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistrationSource {
    /// A backend registered it: its id is a proof.
    Backend {
        /// Until when, in Unix milliseconds; tokens may keep it registered for longer.
        until: u64,
    },
    /// The holder of a token registered it.
    Token,
    /// It was ended: until it expires no token registers it again.
    Revoked,
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
