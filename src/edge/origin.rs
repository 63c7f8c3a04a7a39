//! Which pages may use this server: the check of a request's origin.

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Uri, header};

use crate::config::Access;
use crate::edge::address::{Peer, peer_of};
use crate::edge::refusal::Refusal;
use crate::protocol::{Close, Code};

/// What the check of an origin looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OriginCheck<'a> {
    /// The address of the request.
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

impl OriginCheck<'_> {
    /// Whether pages of the origin that the request names may use this server.
    #[must_use]
    pub(crate) fn origin_allowed(&self, access: &Access) -> bool {
        let Some(origin) = self.headers.get(header::ORIGIN) else {
            // A browser sends no origin where a page reads no answer, as for an image. It still names the site.
            let site = self.headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
            return !matches!(site, Some(b"cross-site" | b"same-site"));
        };
        let Ok(origin) = origin.to_str() else { return false };
        if access.allow_origin.iter().any(|known| known == "*" || known.eq_ignore_ascii_case(origin)) {
            return true;
        }
        // Same origin. Schemes are not compared: a proxy may have changed the scheme.
        let authority = origin.split_once("://").map(|(_, authority)| strip_default_port(authority));
        let host = self.host(access).map(strip_default_port);
        matches!((host, authority), (Some(host), Some(authority)) if host.eq_ignore_ascii_case(authority))
    }

    /// The host that the client asked for. Over HTTP/2 it is in the address, not in a header.
    fn host(&self, access: &Access) -> Option<&str> {
        let named = |name: &str| self.headers.get(name).and_then(|host| host.to_str().ok());
        let by_proxy = self.peer.0.filter(|peer| access.is_trusted_proxy(*peer));
        by_proxy
            .and_then(|_| named("x-forwarded-host"))
            .or_else(|| self.uri.authority().map(|authority| authority.as_str()))
            .or_else(|| named("host"))
    }
}

/// A host without the default port of its scheme.
fn strip_default_port(host: &str) -> &str {
    host.strip_suffix(":443").or_else(|| host.strip_suffix(":80")).unwrap_or(host)
}

/// The refusal of a page whose origin is not allowed.
#[must_use]
pub(crate) fn origin_refused(headers: &HeaderMap) -> Refusal {
    let origin = headers.get(header::ORIGIN).map_or("another site", |origin| origin.to_str().unwrap_or("?"));
    let origin: String = origin.chars().take(80).collect();
    let text = format!("pages of {origin} may not use this server; --allow-origin allows them");
    Refusal::new(Code::Forbidden, text).closing(Close::OriginRefused)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;
    use crate::config::Config;

    fn access(allowed: &[&str]) -> Access {
        let mut access = Config::default().access;
        access.allow_origin = allowed.iter().map(|origin| (*origin).to_owned()).collect();
        access
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        pairs.iter().copied().map(pair).collect()
    }

    fn allowed(access: &Access, uri: &str, peer: &str, pairs: &[(&'static str, &'static str)]) -> bool {
        let (uri, headers) = (uri.parse().unwrap(), headers(pairs));
        let peer = Peer(Some(peer.parse().unwrap()));
        OriginCheck { uri: &uri, headers: &headers, peer }.origin_allowed(access)
    }

    #[test]
    fn pages_of_this_server_may_use_it() {
        let check =
            |origin, host| allowed(&access(&[]), "/", "192.0.2.1", &[("origin", origin), ("host", host)]);
        assert!(check("https://msg.example", "msg.example"));
        assert!(check("https://msg.example", "MSG.example:443"));
        assert!(check("http://localhost:8080", "localhost:8080"));
        assert!(!check("https://msg.example:8443", "msg.example"));
        assert!(!check("https://evil.example", "msg.example"));
        assert!(!check("null", "msg.example"));
    }

    #[test]
    fn over_http2_the_host_is_in_the_address() {
        let check = |uri| allowed(&access(&[]), uri, "192.0.2.1", &[("origin", "https://msg.example")]);
        assert!(check("https://msg.example/v1/messages"));
        assert!(!check("https://other.example/v1/messages"));
        assert!(!check("/v1/messages"), "no host at all");
    }

    #[test]
    fn allowed_origins_are_listed_or_all() {
        let check = |access: &Access, origin| {
            allowed(access, "/", "192.0.2.1", &[("origin", origin), ("host", "msg.example")])
        };
        let some = access(&["https://app.example"]);
        assert!(check(&some, "https://app.example") && check(&some, "https://APP.example"));
        assert!(!check(&some, "http://app.example") && !check(&some, "https://app.example.evil"));
        assert!(check(&access(&["*"]), "https://evil.example"));
    }

    #[test]
    fn a_request_without_an_origin_must_not_come_from_another_site() {
        let check = |pairs| allowed(&access(&[]), "/", "192.0.2.1", pairs);
        assert!(check(&[]), "no browser");
        assert!(check(&[("sec-fetch-site", "same-origin")]) && check(&[("sec-fetch-site", "none")]));
        assert!(!check(&[("sec-fetch-site", "cross-site")]) && !check(&[("sec-fetch-site", "same-site")]));
    }

    #[test]
    fn only_a_trusted_proxy_names_the_host() {
        let mut access = access(&[]);
        access.trust_proxy = vec!["10.0.0.0/8".parse().unwrap()];
        let pairs = [
            ("origin", "https://msg.example"),
            ("host", "backend:8080"),
            ("x-forwarded-host", "msg.example"),
        ];
        assert!(allowed(&access, "/", "10.0.0.1", &pairs));
        assert!(!allowed(&access, "/", "192.0.2.1", &pairs));
    }

    #[test]
    fn the_refusal_names_the_origin_within_limits() {
        assert!(origin_refused(&HeaderMap::new()).message.contains("another site"));
        let long = HeaderValue::from_str(&"x".repeat(500)).unwrap();
        let refusal = origin_refused(&HeaderMap::from_iter([(header::ORIGIN, long)]));
        assert!(refusal.message.len() < 200);
        assert_eq!((refusal.code, refusal.close), (Code::Forbidden, Close::OriginRefused));
    }
}
