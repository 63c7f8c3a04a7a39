//! What a caller may do: send, read, manage sessions.
//!
//! In `open` mode whoever names a session holds it, and anyone may send anywhere. In `token` mode a grant comes from a
//! token, an API key, or a session that a backend has registered. How those are checked is not known here.

use std::sync::Arc;

use crate::message::{Author, Handle, SenderName, SessionId, TopicName, UserId};
use crate::protocol::To;

mod pattern;

pub use pattern::{Patterns, SendPatterns};

/// Seconds that clocks may differ: a token is accepted for that long before `nbf` and after `exp`.
pub const SKEW: u64 = 30;

/// What a request has proved about itself, and what it may do therefore.
#[derive(Debug, Clone)]
pub enum Grant {
    /// Anybody in `open` mode: the holder of a session, or of none.
    Open {
        /// The session it names.
        session: Option<SessionId>,
        /// Whether it may manage sessions: nobody has to show a key for that.
        manages: bool,
    },
    /// The holder of a session that was proved.
    Client(Arc<Client>),
    /// A backend with an API key.
    Backend(Arc<Backend>),
}

/// The holder of a session.
#[derive(Debug)]
pub struct Client {
    /// Which.
    pub session: SessionId,
    /// Its public name.
    pub handle: Handle,
    /// What receivers see as `from`: its user, or where there is none, the handle.
    pub from: SenderName,
    /// Who it belongs to.
    pub user: Option<UserId>,
    /// Where it may send; to every user and session if its token does not say.
    pub send: Option<SendPatterns>,
    /// Which topics it may read; none if its token does not say.
    pub topics: Option<Patterns>,
    /// When its proof ends, in Unix milliseconds.
    pub expires: u64,
}

impl Client {
    /// The holder of a session whose proof is good until `expires`, in Unix milliseconds.
    #[must_use]
    pub fn new(session: SessionId, handle: Handle, user: Option<UserId>, expires: u64) -> Self {
        let from = user.as_ref().map_or_else(|| handle.sender_name(), SenderName::from);
        Self { session, handle, from, user, send: None, topics: None, expires }
    }

    /// Until when its proof counts, since clocks may differ; in Unix milliseconds.
    #[must_use]
    pub fn good_until(&self) -> u64 {
        self.expires + SKEW * 1000
    }
}

/// Something that is not allowed, in words for the one who asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Denied(pub String);

impl Grant {
    /// The session it holds.
    #[must_use]
    pub fn session(&self) -> Option<&SessionId> {
        match self {
            Self::Open { session, .. } => session.as_ref(),
            Self::Client(client) => Some(&client.session),
            Self::Backend(_) => None,
        }
    }

    /// The proved holder of a session.
    #[must_use]
    pub fn client(&self) -> Option<&Client> {
        match self {
            Self::Client(client) => Some(client),
            Self::Open { .. } | Self::Backend(_) => None,
        }
    }

    /// Who it is to the server.
    #[must_use]
    pub fn author(&self) -> Author {
        match self {
            Self::Backend(backend) => Author::Backend(Arc::clone(&backend.name)),
            grant => grant.session().cloned().map_or(Author::Anonymous, Author::Session),
        }
    }

    /// The name that receivers see as `from`. With proved sessions it is never the session's id.
    #[must_use]
    pub fn from(&self) -> Option<SenderName> {
        match self {
            Self::Open { session, .. } => session.as_ref().map(SenderName::from),
            Self::Client(client) => Some(client.from.clone()),
            Self::Backend(backend) => backend.from.clone(),
        }
    }

    /// Whether it may send there.
    ///
    /// # Errors
    /// [`Denied`] says what would allow it.
    pub fn may_send(&self, to: &To) -> Result<(), Denied> {
        let (allowed, whose) = match self {
            Self::Open { .. } => return Ok(()),
            Self::Client(client) => match &client.send {
                Some(send) => (send.allow(to), "the token's `send` list"),
                None => (!matches!(to, To::Topic(_)), "a token without a `send` list"),
            },
            Self::Backend(backend) => {
                (backend.send.as_ref().is_none_or(|send| send.allow(to)), "this API key's `send` list")
            }
        };
        match allowed {
            true => Ok(()),
            false => Err(Denied(format!(
                "{whose} does not allow this address; it would have to hold `{}`, or a beginning of it and a *",
                SendPatterns::item(to)
            ))),
        }
    }

    /// Whether it may read a topic.
    ///
    /// # Errors
    /// [`Denied`] says what would allow it.
    pub fn may_read(&self, topic: &TopicName) -> Result<(), Denied> {
        let (allowed, whose) = match self {
            Self::Open { .. } => return Ok(()),
            Self::Client(client) => {
                (client.topics.as_ref().is_some_and(|topics| topics.allow(topic.as_str())), "token's")
            }
            Self::Backend(backend) => {
                (backend.topics.as_ref().is_none_or(|topics| topics.allow(topic.as_str())), "API key's")
            }
        };
        match allowed {
            true => Ok(()),
            false => Err(Denied(format!(
                "topic `{topic}` may not be read: the {whose} `topics` list would have to hold it, or a beginning of it \
                 and a *"
            ))),
        }
    }

    /// Whether it may register, look up and end sessions.
    ///
    /// # Errors
    /// [`Denied`] says what would allow it.
    pub fn may_manage(&self) -> Result<(), Denied> {
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

/// A backend, as its API key says.
#[derive(Debug, Clone)]
pub struct Backend {
    /// What its key is called.
    pub name: Arc<str>,
    /// What receivers see as `from`.
    pub from: Option<SenderName>,
    /// Where it may send; anywhere if the key does not say.
    pub send: Option<SendPatterns>,
    /// Which topics it may read; all if the key does not say.
    pub topics: Option<Patterns>,
    /// Whether it may register, look up and end sessions.
    pub sessions: bool,
    /// The SHA-256 digest of its key. Digests have equal lengths, so that comparing them takes constant time.
    pub(crate) key_digest: [u8; 32],
}
