//! Authentication of requests: from a token, an API key or a session's name to a [`Grant`].

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::request::Parts;

use crate::broker::BrokerError;
use crate::budget::Holder;
use crate::config::Auth;
use crate::edge::address::{client_address, peer_of};
use crate::edge::caller::Caller;
use crate::edge::gateway::Gateway;
use crate::edge::headers::{Headers, text};
use crate::edge::proof::{NamedSession, Proved, Shown};
use crate::edge::query::Query;
use crate::edge::refusal::Refusal;
use crate::engine::{Commit, RegisterError};
use crate::grant::{Backend, Client, Grant, Proof, TokenExpiry};
use crate::identity::{Claims, Credentials};
use crate::message::{Handle, NameError, SessionId, UserId};
use crate::protocol::Code;

/// What happens when neither a token nor its request names a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionPolicy {
    /// A session is created. The answer names it.
    Create,
    /// The request is refused: its answer has no place to name a new session.
    Require,
    /// The request has to do with no session. None is created.
    Unneeded,
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
fn bearer(headers: Headers<'_>) -> Result<Option<&str>, Refusal> {
    let Some(value) = headers.get("authorization") else { return Ok(None) };
    let bearer = text(value)
        .unwrap_or_default()
        .split_once(' ')
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
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

fn no_credentials() -> Refusal {
    let text =
        "show a token: `Authorization: Bearer …`, or over WebSocket {\"type\":\"hello\",\"token\":\"…\"}";
    Refusal::new(Code::Unauthorized, text)
}

/// The refusal of a session that is named in an address, without a proof.
fn session_in_address() -> Refusal {
    let text = "a session in the address proves nothing, since logs show addresses. Show a token; or the id of a session that is \
                registered with `proof`, as `Authorization: Bearer …`, as `session` in a body, or over WebSocket in \
                {\"type\":\"hello\",\"session\":\"…\"}";
    Refusal::new(Code::Unauthorized, text)
}

/// The text for a session that is named without another proof, and is none itself.
const NO_PROOF: &str = "no session is registered with `proof` under this id; show a token, or let a backend register the \
                        session with \"proof\":true";

/// The grant of a client that shows the id of its session.
fn session_grant(
    client: Client,
    requested: Option<&SessionId>,
    policy: SessionPolicy,
) -> Result<Grant, Refusal> {
    if policy == SessionPolicy::BackendOnly {
        return Err(backends_only());
    }
    match requested {
        Some(requested) if *requested != client.session => {
            let text = "the bearer is the id of another session than the one asked for; leave `session` out";
            Err(Refusal::new(Code::Forbidden, text))
        }
        _ => Ok(Grant::Client(client.into())),
    }
}

fn backends_only() -> Refusal {
    Refusal::new(Code::Forbidden, "sessions are managed by backends, with an API key")
}

impl Gateway {
    /// The grant of a request that shows a bearer or names a session.
    ///
    /// # Errors
    /// `unauthorized` without credentials, or with invalid ones. `rate_limited` after too many invalid ones. `forbidden` for a
    /// session that is not the caller's, or for a client where only backends are allowed. `bad_request` for a token without
    /// a session where `policy` requires one. `unavailable` while the keys of tokens cannot be fetched.
    pub(crate) async fn identify(&self, shown: Shown<'_>, policy: SessionPolicy) -> Result<Grant, Refusal> {
        let Shown { bearer, session, address } = shown;
        let granted = async {
            let proved = self.check_bearer(bearer, address).await?;
            self.grant_of((proved, address), session, policy).await
        };
        granted.await.map_err(|refusal: Refusal| refusal.of_client(address))
    }

    async fn grant_of(
        &self,
        (proved, address): (Proved, Option<IpAddr>),
        named: Option<NamedSession>,
        policy: SessionPolicy,
    ) -> Result<Grant, Refusal> {
        let open = self.identity.auth() == Auth::Open;
        let session = named.as_ref().map(|named| named.id().clone());
        if open && session.as_ref().is_some_and(|session| Handle::has_shape(session.as_str())) {
            return Err(Refusal::new(Code::BadRequest, format!("field `session` {}", NameError::Handle)));
        }
        match proved {
            Proved::Credentials(Credentials::None) if open => {
                Ok(Grant::Open { session, manages: self.identity.manages_without_key() })
            }
            Proved::Credentials(Credentials::None) => match named {
                None => Err(no_credentials()),
                Some(NamedSession::InAddress(_)) => Err(session_in_address()),
                Some(NamedSession::Hidden(session)) => {
                    session_grant(self.check_id(&session, address, NO_PROOF).await?, None, policy)
                }
            },
            Proved::Credentials(Credentials::Backend(backend)) => backend_grant(backend, session, open),
            Proved::Credentials(Credentials::Token(_)) if policy == SessionPolicy::BackendOnly => {
                Err(backends_only())
            }
            Proved::Credentials(Credentials::Token(claims)) => {
                self.token_grant(claims, session, policy).await
            }
            Proved::Session(client) => session_grant(client, session.as_ref(), policy),
        }
    }

    /// What the bearer in a head proves. A wrong one counts: so ask once.
    ///
    /// # Errors
    /// `unauthorized` for a wrong proof, `rate_limited` after too many. `unavailable` while the keys of tokens cannot be
    /// fetched.
    pub(crate) async fn prove(&self, head: &Parts) -> Result<Proved, Refusal> {
        let (bearer, address) = (self.bearer((&head.headers).into())?, self.address(head));
        self.check_bearer(bearer, address).await.map_err(|refusal| refusal.of_client(address))
    }

    /// The grant of a request that names this session, by what [`Self::prove`] has found.
    ///
    /// # Errors
    /// Those of [`Self::identify`].
    pub(crate) async fn grant_of_proved(
        &self,
        (head, proved): (&Parts, Proved),
        named: Option<NamedSession>,
        policy: SessionPolicy,
    ) -> Result<Grant, Refusal> {
        let address = self.address(head);
        let grant = self.grant_of((proved, address), named, policy).await;
        grant.map_err(|refusal| refusal.of_client(address))
    }

    /// The bearer of the `Authorization` header. A broker that checks no credentials ignores every other scheme: the
    /// header may be meant for a proxy in front.
    ///
    /// # Errors
    /// `unauthorized` if the header holds something else, where credentials are checked.
    pub(crate) fn bearer<'a>(&self, headers: Headers<'a>) -> Result<Option<&'a str>, Refusal> {
        match bearer(headers) {
            Err(_) if !self.identity.checks_credentials() => Ok(None),
            bearer => bearer,
        }
    }

    /// The grant of a token, for its session.
    async fn token_grant(
        &self,
        claims: Claims,
        requested: Option<SessionId>,
        policy: SessionPolicy,
    ) -> Result<Grant, Refusal> {
        let Claims { user, session, expires_at, send, topics, presence } = claims;
        let is_lasting = session.is_some() || requested.is_some() || policy != SessionPolicy::Unneeded;
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
        let mut client =
            Client::new(session, handle, Some(user), Proof::Token(TokenExpiry { at: expires_at }));
        if is_lasting {
            self.register_from_token(&client).await?;
        }
        (client.send, client.topics, client.presence) = (send, topics, presence);
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
            None if policy != SessionPolicy::Require => Ok(self.broker.make_session(user)),
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

    /// Keeps the session of a token registered for as long as the token is accepted. The id of a session prolongs nothing.
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
        let (user, expiry) = (client.user.as_ref()?, client.token_expiry()?);
        let until = expiry.accepted_until();
        let ttl = self.config.access.token_session_ttl(self.broker.now(), until);
        Some(self.broker.register_from_token(&client.session, user, (ttl, until)))
    }

    /// The caller of an HTTP request that names this session, and shows this proof in its body or one in its head.
    ///
    /// # Errors
    /// Those of [`Self::identify`].
    pub(crate) async fn authenticate_as(
        &self,
        head: &Parts,
        (session, token): (Option<NamedSession>, Option<&str>),
        policy: SessionPolicy,
    ) -> Result<Caller, Refusal> {
        let bearer = match token {
            Some(token) => Some(token.trim()),
            None => self.bearer((&head.headers).into())?,
        };
        let address = self.address(head);
        let grant = self.identify(Shown { bearer, session, address }, policy).await?;
        Ok(Caller { grant, address })
    }

    /// The address of the client.
    pub(super) fn address(&self, head: &Parts) -> Option<IpAddr> {
        client_address(&self.access(), peer_of(&head.extensions), (&head.headers).into())
    }

    /// The query and the caller of an HTTP request.
    ///
    /// # Errors
    /// Those of [`Self::identify`], and `bad_request` if the query is not UTF-8 or parameter `session` is no name.
    pub(crate) async fn authenticate(
        &self,
        head: &Parts,
        policy: SessionPolicy,
    ) -> Result<ApiRequest, Refusal> {
        let query = Query::parse(&head.uri)?;
        let session = query.session()?.map(NamedSession::InAddress);
        let caller = self.authenticate_as(head, (session, None), policy).await?;
        Ok(ApiRequest { query, caller })
    }

    /// How the body of a request counts in the memory budget: by the proof in the head.
    ///
    /// # Errors
    /// `unauthorized` for a wrong proof, `rate_limited` after too many. `unavailable` while the keys of tokens cannot be
    /// fetched.
    pub(crate) async fn holder(&self, head: &Parts) -> Result<Holder, Refusal> {
        Ok(match self.prove(head).await? {
            Proved::Credentials(Credentials::None) => Holder::Unproved,
            Proved::Credentials(Credentials::Token(_) | Credentials::Backend(_)) | Proved::Session(_) => {
                Holder::Proved
            }
        })
    }

    /// The query of a HEAD request. Its credentials are checked, and nothing changes: a token registers no session.
    ///
    /// # Errors
    /// `unauthorized` without credentials, or with invalid ones, `rate_limited` after too many. `bad_request` if the query is
    /// not UTF-8 or parameter `session` is no name.
    pub(crate) async fn check_head(&self, head: &Parts) -> Result<Query, Refusal> {
        let query = Query::parse(&head.uri)?;
        let session = query.session()?;
        match self.prove(head).await? {
            Proved::Credentials(Credentials::None) if self.identity.auth() == Auth::Token => {
                Err(if session.is_some() { session_in_address() } else { no_credentials() })
            }
            _ => Ok(query),
        }
    }
}

#[cfg(test)]
mod tests;
