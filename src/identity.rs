//! Who asks, and what that allows. In `open` mode whoever names a session holds it, and anyone may send anywhere.
//! In `token` mode clients show a token, backends an API key, and x0 pages a session that a backend has registered.

use std::sync::Arc;

use crate::config::{Access, Auth};
use crate::message::{Author, Handle, SenderName, SessionId, TopicName, UserId};
use crate::protocol::To;

mod backend;
mod jwks;
mod pattern;
mod reload;
mod token;

pub use backend::Backend;
pub use pattern::{Patterns, SendPatterns};
pub use reload::{Current, watch_files};
pub use token::{Claims, SKEW, Tokens, sign, verify_with_secret};

use backend::Backends;

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

/// What came with a request.
#[derive(Debug)]
pub enum Proof {
    /// Nothing.
    None,
    /// A good token.
    Token(Claims),
    /// An API key.
    Backend(Arc<Backend>),
}

/// Why what came with a request proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// It is not what it should be.
    #[error("{0}")]
    Wrong(String),
    /// It cannot be told now.
    #[error("{0}")]
    Unavailable(String),
}

/// Why authentication cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SetupError(pub String);

/// What proofs are checked against.
#[derive(Debug)]
pub struct Identity {
    auth: Auth,
    tokens: Option<Tokens>,
    backends: Current<Backends>,
    /// Whether there are to be API keys, whatever has become of them.
    has_keys: bool,
}

impl Identity {
    /// Reads the keys, and goes on watching them. Call it within a tokio runtime, whose end ends that.
    ///
    /// # Errors
    /// [`SetupError`] names the file that cannot be used, and why.
    pub fn new(access: &Access) -> Result<Self, SetupError> {
        let tokens = match access.auth {
            Auth::Open => None,
            Auth::Token => Tokens::new(access)?,
        };
        let backends = Backends::watch(access)?;
        if access.auth == Auth::Token && tokens.is_none() && backends.get().is_empty() {
            let text = "--auth token needs something to check proofs with: --token-key-file, --token-jwks-url, \
                        X0_MSG_TOKEN_SECRET, --api-key-file or X0_MSG_API_KEYS";
            return Err(SetupError(text.to_owned()));
        }
        let has_keys = access.api_key_file.is_some() || access.secrets.api_keys.is_some();
        Ok(Self { auth: access.auth, tokens, backends, has_keys })
    }

    /// How clients prove who they are.
    #[must_use]
    pub fn auth(&self) -> Auth {
        self.auth
    }

    /// Whether sessions may be managed without a key.
    #[must_use]
    pub fn everyone_manages(&self) -> bool {
        self.auth == Auth::Open && !self.has_keys
    }

    /// Whether a backend's key is still known.
    #[must_use]
    pub fn holds(&self, backend: &Backend) -> bool {
        self.backends.get().hold(backend)
    }

    /// Checks what came with a request: the bearer of its `Authorization` header, or the `token` of a `hello`.
    ///
    /// # Errors
    /// [`Unproven`] says what is wrong with it.
    pub async fn check(&self, bearer: Option<&str>) -> Result<Proof, Unproven> {
        let Some(bearer) = bearer else { return Ok(Proof::None) };
        let backends = self.backends.get();
        if let Some(backend) = backends.find(bearer) {
            return Ok(Proof::Backend(backend));
        }
        match &self.tokens {
            Some(tokens) => tokens.verify(bearer).await.map(Proof::Token),
            // In `open` mode nobody has to prove anything; only a key that was to allow something must be right.
            None if self.auth == Auth::Open && (!self.has_keys || Tokens::is_one(bearer)) => Ok(Proof::None),
            None => Err(Unproven::Wrong("this is none of the API keys known here".to_owned())),
        }
    }
}
