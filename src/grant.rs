//! What a caller may do: send, read, manage sessions.
//!
//! In `open` mode everyone may use every session and send to every address. In `token` mode a grant comes from a token,
//! an API key, or a session that a backend has registered. This module does not know how those are checked.

use std::sync::Arc;
use std::time::Duration;

use crate::message::{Address, Author, BackendName, Handle, Kind, SenderName, SessionId, TopicName, UserId};
use crate::protocol::To;

mod pattern;

pub use pattern::{Patterns, SendPatterns};

/// Seconds that clocks may differ. A token is accepted for this long before `nbf` and after `exp`.
pub(crate) const SKEW: u64 = 30;

/// What a request may do.
#[derive(Debug, Clone)]
pub enum Grant {
    /// A request in `open` mode.
    Open {
        /// The session that the request names.
        session: Option<SessionId>,
        /// Whether the request may manage sessions.
        manages: bool,
    },
    /// A client with a proved session.
    Client(Arc<Client>),
    /// A backend with an API key.
    Backend(Arc<Backend>),
}

/// A client with a proved session.
#[derive(Debug)]
pub struct Client {
    /// The session.
    pub session: SessionId,
    /// The public name of the session.
    pub handle: Handle,
    /// The name that receivers see as `from`: the user, or the handle of a session without a user.
    pub from: SenderName,
    /// The user that the session belongs to.
    pub user: Option<UserId>,
    /// Where the client may send. `None` allows every user and session.
    pub send: Option<SendPatterns>,
    /// Which topics the client may read. `None` allows no topic.
    pub topics: Option<Patterns>,
    /// Of which topics the client may see who reads them. `None` allows no topic.
    pub presence: Option<Patterns>,
    /// What proves that it holds the session.
    pub proof: Proof,
}

/// What proves that a client holds its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// A token.
    Token(TokenExpiry),
    /// The id of the session, for as long as a backend has it registered. That may be prolonged and shortened, so no time is
    /// kept here.
    SessionId,
}

/// When a token expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenExpiry {
    /// In Unix milliseconds.
    pub at: u64,
}

impl TokenExpiry {
    /// Until when the token is accepted, in Unix milliseconds. Clocks may differ by [`SKEW`].
    #[must_use]
    pub(crate) fn accepted_until(self) -> u64 {
        self.at + SKEW * 1000
    }

    /// How long the token is accepted at this time, in Unix milliseconds.
    #[must_use]
    pub(crate) fn accepted_for(self, now: u64) -> Duration {
        Duration::from_millis(self.accepted_until().saturating_sub(now))
    }
}

impl Client {
    /// A client with this proof of its session.
    #[must_use]
    pub fn new(session: SessionId, handle: Handle, user: Option<UserId>, proof: Proof) -> Self {
        let from = user.as_ref().map_or_else(|| handle.sender_name(), SenderName::from);
        Self { session, handle, from, user, send: None, topics: None, presence: None, proof }
    }

    /// When its token expires; `None` if its proof is no token.
    #[must_use]
    pub(crate) fn token_expiry(&self) -> Option<TokenExpiry> {
        match self.proof {
            Proof::Token(expiry) => Some(expiry),
            Proof::SessionId => None,
        }
    }
}

/// A backend, as its API key describes it.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The name of the key.
    pub name: Arc<str>,
    /// The name that receivers see as `from`.
    pub from: Option<SenderName>,
    /// Where the backend may send. `None` allows every address.
    pub send: Option<SendPatterns>,
    /// Which topics the backend may read. `None` allows every topic.
    pub topics: Option<Patterns>,
    /// Of which topics the backend may see who reads them. `None` allows every topic.
    pub presence: Option<Patterns>,
    /// Whether the backend may register, look up and end sessions.
    pub sessions: bool,
    /// Whether the backend may see the state of the whole broker: metrics and lists.
    pub ops: bool,
    /// The name of the backend's mailbox, if it has one.
    pub mailbox: Option<BackendName>,
    /// The SHA-256 digest of its key. Digests have equal lengths, so that comparing them takes constant time.
    pub(crate) key_digest: [u8; 32],
}

/// An action that the grant does not allow. The text is for the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Denied(pub String);

impl Grant {
    /// The session of the caller.
    #[must_use]
    pub fn session(&self) -> Option<&SessionId> {
        match self {
            Self::Open { session, .. } => session.as_ref(),
            Self::Client(client) => Some(&client.session),
            Self::Backend(_) => None,
        }
    }

    /// The mailbox of the caller.
    #[must_use]
    pub fn mailbox(&self) -> Option<Address> {
        match self {
            Self::Backend(backend) => backend.mailbox.clone().map(Address::Backend),
            grant => grant.session().map(Address::from),
        }
    }

    /// The client with a proved session.
    #[must_use]
    pub fn client(&self) -> Option<&Client> {
        match self {
            Self::Client(client) => Some(client),
            Self::Open { .. } | Self::Backend(_) => None,
        }
    }

    /// The backend with an API key.
    #[must_use]
    pub fn backend(&self) -> Option<&Backend> {
        match self {
            Self::Backend(backend) => Some(backend),
            Self::Open { .. } | Self::Client(_) => None,
        }
    }

    /// The author of what the caller sends.
    #[must_use]
    pub fn author(&self) -> Author {
        match self {
            Self::Backend(backend) => Author::Backend(Arc::clone(&backend.name)),
            grant => grant.session().cloned().map_or(Author::Anonymous, Author::Session),
        }
    }

    /// The name that receivers see as `from`. It is the id of a session in `open` mode only.
    #[must_use]
    pub fn from(&self) -> Option<SenderName> {
        match self {
            Self::Open { session, .. } => session.as_ref().map(SenderName::from),
            Self::Client(client) => Some(client.from.clone()),
            Self::Backend(backend) => backend.from.clone(),
        }
    }

    /// The name under which others see that the caller reads a topic. Backends and callers without a session have none.
    #[must_use]
    pub(crate) fn member(&self) -> Option<SenderName> {
        match self {
            Self::Backend(_) => None,
            grant => grant.from(),
        }
    }

    /// What the caller's messages are. Receivers can tell a backend from a user of the same name.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Backend(_) => Kind::FromBackend,
            Self::Open { .. } | Self::Client(_) => Kind::Message,
        }
    }

    /// The author whose shares a message counts against. Backends have no shares, and in `open` mode names prove nothing.
    #[must_use]
    pub fn payer(&self) -> Option<SenderName> {
        self.client().map(|client| client.from.clone())
    }

    /// Checks that the caller may send to this address.
    ///
    /// # Errors
    /// [`Denied`] says what would allow it.
    pub(crate) fn may_send(&self, to: &To) -> Result<(), Denied> {
        // Only who was asked has a `reply_to`.
        if matches!(to, To::Reply(_)) {
            return Ok(());
        }
        let (allowed, list) = match self {
            Self::Open { .. } => return Ok(()),
            Self::Client(client) => match &client.send {
                Some(send) => (send.allow(to), "the token's `send` list"),
                None => (!matches!(to, To::Topic(_) | To::Backend(_)), "a token without a `send` list"),
            },
            Self::Backend(backend) => {
                (backend.send.as_ref().is_none_or(|send| send.allow(to)), "this API key's `send` list")
            }
        };
        match allowed {
            true => Ok(()),
            false => Err(Denied(format!(
                "{list} does not allow this address; it needs `{}`, or a prefix of that followed by *",
                SendPatterns::item(to)
            ))),
        }
    }

    /// Checks that the caller may read this topic.
    ///
    /// # Errors
    /// [`Denied`] says what would allow it.
    pub(crate) fn may_read(&self, topic: &TopicName) -> Result<(), Denied> {
        let allowed = |list: &Patterns| list.allow(topic.as_str());
        let holder = match self {
            Self::Client(client) if !client.topics.as_ref().is_some_and(allowed) => "token",
            Self::Backend(backend) if !backend.topics.as_ref().is_none_or(allowed) => "API key",
            _ => return Ok(()),
        };
        Err(Denied(format!(
            "topic `{topic}` may not be read; the `topics` list of the {holder} needs it, or a prefix of it followed by *"
        )))
    }

    /// Checks that the caller may see who reads this topic.
    ///
    /// # Errors
    /// [`Denied`] says what would allow it.
    pub(crate) fn may_see_members(&self, topic: &TopicName) -> Result<(), Denied> {
        let allowed = |list: &Patterns| list.allow(topic.as_str());
        let holder = match self {
            Self::Client(client) if !client.presence.as_ref().is_some_and(allowed) => "token",
            Self::Backend(backend) if !backend.presence.as_ref().is_none_or(allowed) => "API key",
            _ => return Ok(()),
        };
        Err(Denied(format!(
            "who reads topic `{topic}` may not be seen; the `presence` list of the {holder} needs it, or a prefix of it \
             followed by *"
        )))
    }

    /// Checks that the caller may register, look up and end sessions.
    ///
    /// # Errors
    /// [`Denied`] says what would allow it.
    pub(crate) fn may_manage(&self) -> Result<(), Denied> {
        match self {
            Self::Open { manages: true, .. } => Ok(()),
            Self::Backend(backend) if backend.sessions => Ok(()),
            Self::Backend(_) => {
                Err(Denied("this API key may not manage sessions (`sessions = false`)".to_owned()))
            }
            _ => Err(Denied("sessions are managed by backends, with an API key".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests;
