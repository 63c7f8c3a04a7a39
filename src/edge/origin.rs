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

/// The refusal of a page's origin.
#[must_use]
pub(crate) fn origin_refused(headers: &HeaderMap) -> Refusal {
    let origin = headers.get(header::ORIGIN).map_or("another site", |origin| origin.to_str().unwrap_or("?"));
    let origin: String = origin.chars().take(80).collect();
    let text = format!("pages of {origin} are not let in; --allow-origin lets them");
    Refusal::new(Code::Forbidden, text).closing(Close::OriginRefused)
}
