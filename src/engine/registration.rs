//! Registered sessions, as every engine knows them.

use std::time::Duration;

use crate::message::{Handle, SessionId, UserId};

/// A session to register.
#[derive(Debug, Clone)]
pub struct Register {
    /// Which.
    pub session: SessionId,
    /// Who it belongs to. `None` leaves it with whom it belonged to before.
    pub user: Option<UserId>,
    /// How long the registration lasts.
    pub ttl: Duration,
    /// On whose word.
    pub by: Registrar,
}

/// On whose word a session is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registrar {
    /// A backend's: it may shorten a registration, and revive a session that was ended.
    Backend,
    /// A token's: it may prolong a registration.
    Token,
}

/// A registered session, or one that was ended and stays revoked for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Who it belongs to, if to anybody.
    pub user: Option<UserId>,
    /// When it expires, in Unix milliseconds.
    pub expires_at: u64,
    /// On whose word it is registered, or that it was ended.
    pub source: RegistrationSource,
}

/// On whose word a session is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistrationSource {
    /// A backend registered it: its id is a proof.
    Backend {
        /// Until when, in Unix milliseconds; tokens may keep it registered for longer.
        until: u64,
    },
    /// A token named it.
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
