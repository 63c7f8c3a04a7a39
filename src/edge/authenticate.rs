//! Authentication of requests: from a token, an API key or a session's name to a [`Grant`].

use std::sync::Arc;

use axum::http::request::Parts;
use axum::http::{HeaderMap, header};

use crate::broker::BrokerError;
use crate::config::Auth;
use crate::edge::address::{client_address, peer_of};
use crate::edge::caller::Caller;
use crate::edge::gateway::Gateway;
use crate::edge::query::Query;
use crate::edge::refusal::Refusal;
use crate::engine::{Commit, RegisterError};
use crate::grant::{Backend, Client, Grant};
use crate::identity::{Claims, Credentials};
use crate::message::{SessionId, UserId};
use crate::protocol::Code;

/// What happens when neither a token nor its request names a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionPolicy {
    /// A session is created. The answer names it.
    Create,
    /// The request is refused: its answer has no place to name a new session.
    Require,
    /// Every token is refused: the call is for backends.
    BackendOnly,
}

/// The query and the caller of an authenticated request.
#[derive(Debug)]
pub(crate) struct ApiRequest {
    /// The query.
    pub query: Query,
    /// The caller.
    pub caller: Caller,
}

/// The bearer of the `Authorization` header (RFC 6750 section 2.1).
///
/// # Errors
/// `unauthorized` if the header holds something else.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let bearer = text.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let bearer = bearer.map(|(_, bearer)| bearer.trim()).filter(|bearer| !bearer.is_empty());
    let invalid = || {
        Refusal::new(Code::Unauthorized, "header `Authorization` must be Bearer and a token or an API key")
    };
    bearer.ok_or_else(invalid).map(Some)
}

/// The grant of an API key. In `open` mode a backend may also use a session.
fn backend_grant(backend: Arc<Backend>, session: Option<SessionId>, open: bool) -> Result<Grant, Refusal> {
    match session {
        None => Ok(Grant::Backend(backend)),
        Some(session) if open => Ok(Grant::Open { session: Some(session), manages: backend.sessions }),
        Some(_) => Err(Refusal::new(
            Code::Forbidden,
            "an API key has no session: leave `session` out, or show a token of the session",
        )),
    }
}

impl Gateway {
    /// The grant of a request that shows this bearer and names this session.
    ///
    /// # Errors
    /// `unauthorized` without credentials, or with invalid ones. `forbidden` for a session that is not the caller's, or
    /// for a token where only backends are allowed. `bad_request` for a token without a session where `policy` requires
    /// one. `unavailable` while the keys of tokens cannot be fetched.
    pub(crate) async fn identify(
        &self,
        bearer: Option<&str>,
        session: Option<SessionId>,
        policy: SessionPolicy,
    ) -> Result<Grant, Refusal> {
        let open = self.identity.auth() == Auth::Open;
        match self.identity.check(bearer).await? {
            Credentials::None if open => {
                Ok(Grant::Open { session, manages: self.identity.manages_without_key() })
            }
            Credentials::None => Err(Refusal::new(
                Code::Unauthorized,
                "show a token: `Authorization: Bearer …`, or over WebSocket {\"type\":\"hello\",\"token\":\"…\"}",
            )),
            Credentials::Backend(backend) => backend_grant(backend, session, open),
            Credentials::Token(_) if policy == SessionPolicy::BackendOnly => {
                Err(Refusal::new(Code::Forbidden, "sessions are managed by backends, with an API key"))
            }
            Credentials::Token(claims) => self.token_grant(claims, session, policy).await,
        }
    }

    /// The grant of a token, for its session.
    async fn token_grant(
        &self,
        claims: Claims,
        requested: Option<SessionId>,
        policy: SessionPolicy,
    ) -> Result<Grant, Refusal> {
        let Claims { user, session, expires_at, send, topics } = claims;
        let session = match (session, requested) {
            (Some(session), None) => session,
            (Some(session), Some(requested)) if session == requested => session,
            (Some(_), Some(_)) => {
                let text = "the token is for another session than the one asked for; leave `session` out";
                return Err(Refusal::new(Code::Forbidden, text));
            }
            (None, requested) => self.session_of_user(&user, requested, policy).await?,
        };
        let handle = self.broker.handle(&session);
        let mut client = Client::new(session, handle, Some(user), expires_at);
        self.register_from_token(&client).await?;
        (client.send, client.topics) = (send, topics);
        Ok(Grant::Client(client.into()))
    }

    /// The session of a token that names only its user.
    async fn session_of_user(
        &self,
        user: &UserId,
        requested: Option<SessionId>,
        policy: SessionPolicy,
    ) -> Result<SessionId, Refusal> {
        match requested {
            Some(requested) if self.owns(user, &requested).await => Ok(requested),
            Some(_) => Err(Refusal::new(
                Code::Forbidden,
                "no session of this user is registered under this name; leave `session` out to get a new one",
            )),
            None if policy == SessionPolicy::Create => Ok(self.broker.make_session(user)),
            None => Err(Refusal::new(
                Code::BadRequest,
                "the token names no session (`sid`): name one of its user's, like the one that `welcome` names over \
                 WebSocket",
            )),
        }
    }

    /// Whether a session was made for this user here, or is registered as this user's.
    async fn owns(&self, user: &UserId, session: &SessionId) -> bool {
        self.broker.is_made_for(session, user)
            || self.broker.directory().user_of(session).await.is_some_and(|owner| owner == *user)
    }

    /// Keeps the session of a token registered for as long as the token is accepted.
    pub(crate) fn prolong(&self, client: &Client) {
        // An error cannot matter: the session is this user's, and an ended session has no reader any more.
        drop(self.registration_of(client));
    }

    async fn register_from_token(&self, client: &Client) -> Result<(), BrokerError> {
        match self.registration_of(client) {
            Some(registration) => Ok(registration.decided().await?),
            None => Ok(()),
        }
    }

    fn registration_of(&self, client: &Client) -> Option<Commit<RegisterError>> {
        let user = client.user.as_ref()?;
        let ttl = self.config.access.token_session_ttl(self.broker.now(), client.accepted_until());
        Some(self.broker.register_from_token(&client.session, user, ttl))
    }

    /// The caller of an HTTP request that names this session.
    ///
    /// # Errors
    /// Those of [`Self::identify`].
    pub(crate) async fn authenticate_as(
        &self,
        head: &Parts,
        session: Option<SessionId>,
        policy: SessionPolicy,
    ) -> Result<Caller, Refusal> {
        let grant = self.identify(bearer(&head.headers)?, session, policy).await?;
        let address = client_address(&self.config.access, peer_of(&head.extensions), &head.headers);
        Ok(Caller { grant, address })
    }

    /// The query and the caller of an HTTP request.
    ///
    /// # Errors
    /// Those of [`Self::identify`], and `bad_request` if parameter `session` is no name.
    pub(crate) async fn authenticate(
        &self,
        head: &Parts,
        policy: SessionPolicy,
    ) -> Result<ApiRequest, Refusal> {
        let query = Query::of(&head.uri);
        let session = query.session()?;
        let caller = self.authenticate_as(head, session, policy).await?;
        Ok(ApiRequest { query, caller })
    }
}
