//! Who asks: what a request proves, and where it comes from.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::broker::BrokerError;
use crate::config::{Auth, ProxyHeader};
use crate::edge::{Gateway, Query, Refusal};
use crate::grant::{Client, Grant};
use crate::identity::{Claims, CredentialError, Credentials};
use crate::limits::{Payer, Place};
use crate::link::Link;
use crate::message::SessionId;
use crate::protocol::{Close, Code};

/// The other end of a connection, as the system knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub Option<IpAddr>);

/// What happens when neither a token nor its request names a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionPolicy {
    /// A session is created. The answer names it.
    Create,
    /// The request is refused: its answer has no place to name a new session.
    Require,
    /// Every token is refused: the call is for backends.
    BackendOnly,
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// What it may do.
    pub grant: Grant,
    /// The client's address, where it is known.
    pub address: Option<IpAddr>,
}

impl From<CredentialError> for Refusal {
    fn from(error: CredentialError) -> Self {
        match error {
            CredentialError::Invalid(text) => Self::new(Code::Unauthorized, text),
            CredentialError::Unavailable(text) => Self::new(Code::Unavailable, text),
        }
    }
}

/// The bearer of the `Authorization` header (RFC 6750 section 2.1).
///
/// # Errors
/// `unauthorized` if the header holds something else.
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let bearer = text.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let bearer = bearer.map(|(_, bearer)| bearer.trim()).filter(|bearer| !bearer.is_empty());
    let told = || {
        Refusal::new(Code::Unauthorized, "header `Authorization` must be Bearer and a token or an API key")
    };
    bearer.ok_or_else(told).map(Some)
}

impl Gateway {
    /// What a request may do that brings this bearer, and names this session.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub async fn identify(
        &self,
        bearer: Option<&str>,
        session: Option<SessionId>,
        policy: SessionPolicy,
    ) -> Result<Grant, Refusal> {
        const HOW: &str = "show a token: `Authorization: Bearer …`, or over WebSocket \
                           {\"type\":\"hello\",\"token\":\"…\"}";
        let refuse = |code, text: &str| Err(Refusal::new(code, text));
        let open = self.identity.auth() == Auth::Open;
        match self.identity.check(bearer).await? {
            Credentials::None if open => {
                Ok(Grant::Open { session, manages: self.identity.everyone_manages() })
            }
            Credentials::None => refuse(Code::Unauthorized, HOW),
            Credentials::Backend(backend) => match session {
                None => Ok(Grant::Backend(backend)),
                Some(session) if open => {
                    Ok(Grant::Open { session: Some(session), manages: backend.sessions })
                }
                Some(_) => refuse(
                    Code::Forbidden,
                    "an API key holds no session: leave `session` out, or show a token of the session",
                ),
            },
            Credentials::Token(_) if policy == SessionPolicy::BackendOnly => {
                refuse(Code::Forbidden, "sessions are managed by backends, with an API key")
            }
            Credentials::Token(claims) => self.carried(claims, session, policy),
        }
    }

    /// What a token allows, for the session it names, or the one of its user's that is asked for, or a new one.
    fn carried(
        &self,
        claims: Claims,
        asked: Option<SessionId>,
        policy: SessionPolicy,
    ) -> Result<Grant, Refusal> {
        let Claims { user, session, expires, send, topics } = claims;
        let session = match (session, asked) {
            (Some(session), None) => session,
            (Some(session), Some(asked)) if session == asked => session,
            (Some(_), Some(_)) => {
                let text = "the token is for another session than the one asked for; leave `session` out";
                return Err(Refusal::new(Code::Forbidden, text));
            }
            (None, Some(asked)) if self.broker.is_made_for(&asked, &user) => asked,
            (None, Some(asked)) => match self.broker.directory().user_of(&asked) {
                Some(owner) if owner == user => asked,
                _ => {
                    let text = "no session of this user is registered under this name; leave `session` out to get a new one";
                    return Err(Refusal::new(Code::Forbidden, text));
                }
            },
            (None, None) if policy == SessionPolicy::Create => self.broker.make_session(&user),
            (None, None) => {
                let text = "the token names no session (`sid`): name one of its user's, like the one that `welcome` names \
                            over WebSocket";
                return Err(Refusal::new(Code::BadRequest, text));
            }
        };

        let handle = self.broker.handle(&session);
        let mut client = Client::new(session, handle, Some(user), expires);
        self.carry(&client)?;
        (client.send, client.topics) = (send, topics);
        Ok(Grant::Client(client.into()))
    }

    /// Keeps the session of a token registered as long as that is good.
    pub fn prolong(&self, client: &Client) {
        // It was carried before: it cannot be somebody else's, and an ended one has no reader any more.
        _ = self.carry(client);
    }

    fn carry(&self, client: &Client) -> Result<(), BrokerError> {
        let Some(user) = &client.user else { return Ok(()) };
        let ttl = self.config.access.carried_ttl(self.broker.now(), client.good_until());
        self.broker.carry(&client.session, user, ttl)
    }

    /// Who asks by HTTP.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub async fn caller(
        &self,
        head: &Parts,
        session: Option<SessionId>,
        policy: SessionPolicy,
    ) -> Result<Caller, Refusal> {
        let grant = self.identify(bearer(&head.headers)?, session, policy).await?;
        Ok(Caller { grant, address: self.client_address(peer_of(&head.extensions), &head.headers) })
    }

    /// The address of the client: what a trusted proxy says, or the other end of the connection.
    #[must_use]
    pub fn client_address(&self, Peer(peer): Peer, headers: &HeaderMap) -> Option<IpAddr> {
        let peer = peer?.to_canonical();
        if !self.is_proxy(peer) {
            return Some(peer);
        }
        // The last one that is no proxy of ours; what is before it may be made up.
        let hops = hops(headers, self.config.access.proxy_header);
        let mut client = peer;
        for hop in hops.iter().rev() {
            let Some(address) = hop else { break };
            client = *address;
            if !self.is_proxy(client) {
                break;
            }
        }
        Some(client)
    }

    /// Whether the peer is a proxy, behind which there are many.
    #[must_use]
    pub fn is_proxy(&self, address: IpAddr) -> bool {
        self.config.access.trust_proxy.iter().any(|net| net.contains(&address.to_canonical()))
    }

    /// A place among the connections of a client's address.
    ///
    /// # Errors
    /// `rate_limited` if it has too many.
    pub fn place(&self, address: Option<IpAddr>) -> Result<Place, Refusal> {
        self.addresses.take(address).ok_or_else(|| {
            let most = self.addresses.most();
            let text = format!(
                "{most} connections from this address already, the most allowed (see --connections-per-address); close \
                 some first"
            );
            Refusal::new(Code::RateLimited, text).closing(Close::Overloaded)
        })
    }

    /// Who pays for a send; `None` for a backend, which may send as much as it likes.
    pub(super) fn payer(caller: &Caller) -> Option<Payer> {
        match (&caller.grant, caller.address) {
            (Grant::Backend(_), _) => None,
            // However many sessions a user has.
            (Grant::Client(client), _) if client.user.is_some() => client.user.clone().map(Payer::User),
            (grant, address) => match grant.session() {
                Some(session) => Some(Payer::Session(session.clone())),
                None => address.map(Payer::Address),
            },
        }
    }

    /// Whether pages of the origin that a browser names may use this server.
    #[must_use]
    pub fn origin_allowed(&self, head: OriginCheck<'_>) -> bool {
        let OriginCheck { uri, headers, peer } = head;
        let Some(origin) = headers.get(header::ORIGIN) else {
            // A browser names no origin where a page needs no answer, as for an image; but it says that much.
            let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
            return !matches!(site, Some(b"cross-site" | b"same-site"));
        };
        let Ok(origin) = origin.to_str() else { return false };
        let allowed = &self.config.access.allow_origin;
        if allowed.iter().any(|known| known == "*" || known.eq_ignore_ascii_case(origin)) {
            return true;
        }
        // The same origin: over HTTP/2 the host is in the address. Which scheme it was, a proxy may have changed.
        let named = |name: &str| headers.get(name).and_then(|host| host.to_str().ok());
        let by_proxy = peer.0.filter(|peer| self.is_proxy(*peer)).and_then(|_| named("x-forwarded-host"));
        let host = by_proxy.or_else(|| uri.authority().map(|authority| authority.as_str()));
        let host = host.or_else(|| named("host"));
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        matches!((host, authority), (Some(host), Some(authority)) if strip_default_port(host).eq_ignore_ascii_case(strip_default_port(authority)))
    }
}

/// What tells where a request comes from.
#[derive(Debug, Clone, Copy)]
pub struct OriginCheck<'a> {
    /// Its address.
    pub uri: &'a Uri,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// The other end of its connection.
    pub peer: Peer,
}

impl<'a> From<&'a Parts> for OriginCheck<'a> {
    fn from(head: &'a Parts) -> Self {
        Self { uri: &head.uri, headers: &head.headers, peer: peer_of(&head.extensions) }
    }
}

/// A host without the port that its scheme has anyway.
fn strip_default_port(host: &str) -> &str {
    host.strip_suffix(":443").or_else(|| host.strip_suffix(":80")).unwrap_or(host)
}

/// Whom a request came from, as its proxies say in this header, the first one first. `None` for a hop that has no
/// address.
fn hops(headers: &HeaderMap, from: ProxyHeader) -> Vec<Option<IpAddr>> {
    let name = match from {
        ProxyHeader::XForwardedFor => "x-forwarded-for",
        ProxyHeader::Forwarded => "forwarded",
    };
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let items = values.flat_map(|value| value.split(',')).map(str::trim);
    items
        .map(|item| match from {
            ProxyHeader::XForwardedFor => node(item),
            // RFC 7239 section 4.
            ProxyHeader::Forwarded => {
                let pairs = item.split(';').filter_map(|pair| pair.trim().split_once('='));
                let mut named = pairs.filter(|(name, _)| name.eq_ignore_ascii_case("for"));
                named.next().and_then(|(_, value)| node(value.trim_matches('"')))
            }
        })
        .collect()
}

/// An address, with or without a port (RFC 7239 section 6).
fn node(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return Some(address.ip().to_canonical());
    }
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    inner.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// Refuses what comes from pages of origins that are not let in: also what they need no answer of.
pub async fn check_origin(
    axum::extract::State(gateway): axum::extract::State<Arc<Gateway>>,
    request: Request,
    next: Next,
) -> Response {
    let (uri, headers, peer) = (request.uri(), request.headers(), peer_of(request.extensions()));
    if gateway.origin_allowed(OriginCheck { uri, headers, peer }) {
        return next.run(request).await;
    }
    origin_refused(request.headers()).into_response()
}

/// The refusal of a page's origin.
#[must_use]
pub fn origin_refused(headers: &HeaderMap) -> Refusal {
    let origin = headers.get(header::ORIGIN).map_or("another site", |origin| origin.to_str().unwrap_or("?"));
    let origin: String = origin.chars().take(80).collect();
    let text = format!("pages of {origin} are not let in; --allow-origin lets them");
    Refusal::new(Code::Forbidden, text).closing(Close::OriginRefused)
}

/// Which session a request names, and who asks for it.
pub struct ApiRequest {
    /// The query.
    pub query: Query,
    /// Who asks.
    pub caller: Caller,
}

impl std::fmt::Debug for ApiRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiRequest").field("caller", &self.caller).finish_non_exhaustive()
    }
}

/// The peer that the server noted with a request; nobody's in tests without a socket.
#[must_use]
pub fn peer_of(extensions: &Extensions) -> Peer {
    Peer(extensions.get::<Arc<Link>>().and_then(|link| link.peer()))
}

impl Gateway {
    /// Takes the head of a request apart.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub async fn authenticate(&self, head: &Parts, policy: SessionPolicy) -> Result<ApiRequest, Refusal> {
        let query = Query::of(&head.uri);
        let session = query.session()?;
        let caller = self.caller(head, session, policy).await?;
        Ok(ApiRequest { query, caller })
    }
}

impl Caller {
    /// The session whose mailbox is asked for.
    ///
    /// # Errors
    /// `unauthorized` if there is none.
    pub fn session(&self) -> Result<&SessionId, Refusal> {
        let how = match self.grant {
            Grant::Backend(_) => "an API key holds no session; show a token of the session instead",
            _ => "say whose mailbox to read: add ?session=… to the address",
        };
        self.grant.session().ok_or_else(|| Refusal::new(Code::Unauthorized, how))
    }
}

/// What a browser is told that a token is wanted (RFC 6750 section 3).
pub(super) const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"x0-msg-server\"");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hops_are_read_from_the_header_that_is_believed() {
        let hops = |name: &'static str, value: &'static str| {
            let name = header::HeaderName::from_static(name);
            let from = match name.as_str() {
                "forwarded" => ProxyHeader::Forwarded,
                _ => ProxyHeader::XForwardedFor,
            };
            let other = match from {
                ProxyHeader::Forwarded => ("x-forwarded-for", "6.6.6.6"),
                ProxyHeader::XForwardedFor => ("forwarded", "for=6.6.6.6"),
            };
            let other = (header::HeaderName::from_static(other.0), HeaderValue::from_static(other.1));
            super::hops(&HeaderMap::from_iter([(name, HeaderValue::from_static(value)), other]), from)
        };
        let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        assert_eq!(hops("x-forwarded-for", "1.2.3.4, 10.0.0.1"), [ip("1.2.3.4"), ip("10.0.0.1")]);
        assert_eq!(hops("x-forwarded-for", "unknown, [2001:db8::1]"), [None, ip("2001:db8::1")]);
        assert_eq!(
            hops("forwarded", r#"for=1.2.3.4;proto=https, for="[2001:db8::1]:4711", by=x"#),
            [ip("1.2.3.4"), ip("2001:db8::1"), None]
        );
        assert_eq!(hops("forwarded", "For=\"1.2.3.4:80\""), [ip("1.2.3.4")]);
    }
}
