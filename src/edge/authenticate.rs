//! Authentication of requests: from a token, an API key or a session's name to a [`Grant`].

use std::sync::Arc;

use axum::http::request::Parts;
use axum::http::{HeaderMap, header};

use crate::broker::BrokerError;
use crate::budget::Holder;
use crate::config::Auth;
use crate::edge::address::{client_address, peer_of};
use crate::edge::caller::Caller;
use crate::edge::gateway::Gateway;
use crate::edge::query::Query;
use crate::edge::refusal::Refusal;
use crate::engine::{Commit, RegisterError};
use crate::grant::{Backend, Client, Grant};
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
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
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

fn no_credentials() -> Refusal {
    let text =
        "show a token: `Authorization: Bearer …`, or over WebSocket {\"type\":\"hello\",\"token\":\"…\"}";
    Refusal::new(Code::Unauthorized, text)
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
        if open && session.as_ref().is_some_and(|session| Handle::has_shape(session.as_str())) {
            return Err(Refusal::new(Code::BadRequest, format!("field `session` {}", NameError::Handle)));
        }
        match self.identity.check(bearer).await? {
            Credentials::None if open => {
                Ok(Grant::Open { session, manages: self.identity.manages_without_key() })
            }
            Credentials::None => Err(no_credentials()),
            Credentials::Backend(backend) => backend_grant(backend, session, open),
            Credentials::Token(_) if policy == SessionPolicy::BackendOnly => {
                Err(Refusal::new(Code::Forbidden, "sessions are managed by backends, with an API key"))
            }
            Credentials::Token(claims) => self.token_grant(claims, session, policy).await,
        }
    }

    /// The bearer of the `Authorization` header. A broker that checks no credentials ignores every other scheme: the
    /// header may be meant for a proxy in front.
    ///
    /// # Errors
    /// `unauthorized` if the header holds something else, where credentials are checked.
    pub(crate) fn bearer<'a>(&self, headers: &'a HeaderMap) -> Result<Option<&'a str>, Refusal> {
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
        let until = client.accepted_until();
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
        (session, token): (Option<SessionId>, Option<&str>),
        policy: SessionPolicy,
    ) -> Result<Caller, Refusal> {
        let bearer = match token {
            Some(token) => Some(token.trim()),
            None => self.bearer(&head.headers)?,
        };
        let grant = self.identify(bearer, session, policy).await?;
        let address = client_address(&self.config.access, peer_of(&head.extensions), &head.headers);
        Ok(Caller { grant, address })
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
        let session = query.session()?;
        let caller = self.authenticate_as(head, (session, None), policy).await?;
        Ok(ApiRequest { query, caller })
    }

    /// How the body of a request counts in the memory budget: by the proof in the head.
    ///
    /// # Errors
    /// `unauthorized` for a wrong proof. `unavailable` while the keys of tokens cannot be fetched.
    pub(crate) async fn holder(&self, head: &Parts) -> Result<Holder, Refusal> {
        Ok(match self.identity.check(self.bearer(&head.headers)?).await? {
            Credentials::None => Holder::Unproved,
            Credentials::Token(_) | Credentials::Backend(_) => Holder::Proved,
        })
    }

    /// The query of a HEAD request. Its credentials are checked, and nothing changes: a token registers no session.
    ///
    /// # Errors
    /// `unauthorized` without credentials, or with invalid ones. `bad_request` if the query is not UTF-8 or parameter
    /// `session` is no name.
    pub(crate) async fn check_head(&self, head: &Parts) -> Result<Query, Refusal> {
        let query = Query::parse(&head.uri)?;
        query.session()?;
        match self.identity.check(self.bearer(&head.headers)?).await? {
            Credentials::None if self.identity.auth() == Auth::Token => Err(no_credentials()),
            _ => Ok(query),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use serde_json::{Value, json};
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::broker::Broker;
    use crate::budget::Budget;
    use crate::clock::Clock;
    use crate::config::{Config, Level, Secret};
    use crate::engine::embedded::Embedded;
    use crate::hub::Hubs;
    use crate::identity::{Identity, sign};
    use crate::limits::{ConnectionLimiter, ProvedAddresses, Rates};
    use crate::server::{broker_limits, engine_settings, storage};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const KEY: &str = "a-key-of-a-backend-0123456789abcdef";

    fn gateway(auth: Auth) -> Gateway {
        let mut config = Config { durability: Level::Memory, ..Config::default() };
        config.access.auth = auth;
        config.access.secrets.token = Some(Secret(SECRET.to_owned()));
        config.access.secrets.api_keys = Some(Secret(format!("shop:{KEY}")));
        let (hubs, limits) = (Hubs::new(4), broker_limits(&config));
        let settings = engine_settings(&config, Clock::Wall);
        let engine = Embedded::start(settings, hubs.clone(), &storage(&config)).unwrap();
        Gateway {
            broker: Broker::new(engine.into(), hubs, limits, Clock::Wall),
            identity: Identity::new(&config.access).unwrap(),
            rates: Rates::new(None, None),
            connection_limiter: ConnectionLimiter::new(usize::MAX),
            budget: Budget::new(Budget::MOST),
            proved_addresses: ProvedAddresses::default(),
            config: config.into(),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    fn session(name: &str) -> SessionId {
        SessionId::new(name).unwrap()
    }

    fn token(user: &str, sid: Option<&str>) -> String {
        let claims: Value = json!({ "sub": user, "sid": sid, "exp": Clock::Wall.now() / 1000 + 3600 });
        sign(SECRET.as_bytes(), None, &claims).unwrap()
    }

    async fn code(
        gateway: &Gateway,
        bearer: Option<&str>,
        session: Option<SessionId>,
        policy: SessionPolicy,
    ) -> Code {
        gateway.identify(bearer, session, policy).await.unwrap_err().code
    }

    #[test]
    fn a_bearer_is_a_token_or_a_key_and_nothing_else() {
        let bearer = |value: &'static str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
            super::bearer(&headers).map(|bearer| bearer.map(str::to_owned)).map_err(|refusal| refusal.code)
        };
        assert_eq!(bearer("Bearer a.b.c"), Ok(Some("a.b.c".to_owned())));
        assert_eq!(bearer("bearer  key "), Ok(Some("key".to_owned())));
        for wrong in ["Basic abc", "Bearer", "Bearer ", ""] {
            assert_eq!(bearer(wrong), Err(Code::Unauthorized), "{wrong}");
        }
        assert_eq!(super::bearer(&HeaderMap::new()).unwrap(), None);
    }

    #[tokio::test]
    async fn a_token_is_for_its_session_only() {
        let gateway = gateway(Auth::Token);
        let token = token("ann", Some("A"));
        for requested in [None, Some(session("A"))] {
            let grant = gateway.identify(Some(&token), requested, SessionPolicy::Require).await.unwrap();
            assert_eq!(grant.session(), Some(&session("A")));
        }
        let other = Some(session("B"));
        assert_eq!(code(&gateway, Some(&token), other, SessionPolicy::Require).await, Code::Forbidden);
        assert_eq!(
            gateway.broker.directory().user_of(&session("A")).await,
            Some(UserId::new("ann").unwrap())
        );
    }

    #[tokio::test]
    async fn a_token_without_a_session_gets_one_that_only_its_user_may_name() {
        let gateway = gateway(Auth::Token);
        let (ann, bob) = (token("ann", None), token("bob", None));
        let grant = gateway.identify(Some(&ann), None, SessionPolicy::Create).await.unwrap();
        let created = grant.session().cloned();
        let grant = gateway.identify(Some(&ann), created.clone(), SessionPolicy::Require).await.unwrap();
        assert_eq!(grant.session().cloned(), created);
        assert_eq!(code(&gateway, Some(&bob), created, SessionPolicy::Require).await, Code::Forbidden);
        assert_eq!(code(&gateway, Some(&bob), None, SessionPolicy::Require).await, Code::BadRequest);
    }

    #[tokio::test]
    async fn in_token_mode_credentials_are_required() {
        let gateway = gateway(Auth::Token);
        let named = Some(session("A"));
        assert_eq!(code(&gateway, None, named, SessionPolicy::Create).await, Code::Unauthorized);
        assert_eq!(code(&gateway, Some("a.b.c"), None, SessionPolicy::Create).await, Code::Unauthorized);
    }

    #[tokio::test]
    async fn backends_manage_and_clients_do_not() {
        let gateway = gateway(Auth::Token);
        let grant = gateway.identify(Some(KEY), None, SessionPolicy::BackendOnly).await.unwrap();
        grant.may_manage().unwrap();
        let token = token("ann", Some("A"));
        assert_eq!(code(&gateway, Some(&token), None, SessionPolicy::BackendOnly).await, Code::Forbidden);
        let named = Some(session("A"));
        assert_eq!(code(&gateway, Some(KEY), named, SessionPolicy::Require).await, Code::Forbidden);
    }

    #[tokio::test]
    async fn in_open_mode_everyone_is_accepted_but_a_wrong_key() {
        let gateway = gateway(Auth::Open);
        let named = Some(session("A"));
        let grant = gateway.identify(None, named.clone(), SessionPolicy::Require).await.unwrap();
        assert_eq!(grant.session(), named.as_ref());
        assert!(grant.may_manage().is_err(), "keys are configured");
        let grant = gateway.identify(Some(KEY), named.clone(), SessionPolicy::Require).await.unwrap();
        assert_eq!(grant.session(), named.as_ref());
        grant.may_manage().unwrap();
        assert_eq!(
            code(&gateway, Some("another key"), None, SessionPolicy::Require).await,
            Code::Unauthorized
        );
    }
}
