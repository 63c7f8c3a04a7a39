//! Which pages may use this server: the check of a request's origin.

use axum::extract::Request;
use axum::http::request::Parts;

use crate::config::Access;
use crate::edge::address::{Peer, peer_of};
use crate::edge::headers::{Headers, text};
use crate::edge::refusal::Refusal;
use crate::protocol::{Close, Code};

/// What the check of an origin looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OriginCheck<'a> {
    /// The host in the address of the request.
    pub authority: Option<&'a str>,
    /// Its headers.
    pub headers: Headers<'a>,
    /// The other end of its connection.
    pub peer: Peer,
}

impl<'a> From<&'a Parts> for OriginCheck<'a> {
    fn from(head: &'a Parts) -> Self {
        let authority = head.uri.authority().map(|authority| authority.as_str());
        Self { authority, headers: (&head.headers).into(), peer: peer_of(&head.extensions) }
    }
}

impl<'a> From<&'a Request> for OriginCheck<'a> {
    fn from(request: &'a Request) -> Self {
        let authority = request.uri().authority().map(|authority| authority.as_str());
        Self { authority, headers: request.headers().into(), peer: peer_of(request.extensions()) }
    }
}

impl OriginCheck<'_> {
    /// Whether pages of the origin that the request names may use this server.
    #[must_use]
    pub(crate) fn origin_allowed(&self, access: &Access) -> bool {
        let mut origins = self.headers.all("origin").peekable();
        if origins.peek().is_none() {
            // A browser sends no origin where a page reads no answer, as for an image. It still names the site.
            let site = self.headers.get("sec-fetch-site");
            return !matches!(site, Some(b"cross-site" | b"same-site"));
        }
        // A browser names one. With several, one of them may be the page's.
        origins.all(|origin| text(origin).is_some_and(|origin| self.is_ours(access, origin)))
    }

    /// Whether an origin is this server's own, or an allowed one.
    fn is_ours(&self, access: &Access, origin: &str) -> bool {
        access.allowed_origins().any(|known| known == "*" || known.eq_ignore_ascii_case(origin))
            || self.is_own(access, origin)
    }

    /// Whether an origin is this server's own.
    fn is_own(&self, access: &Access, origin: &str) -> bool {
        // Same origin. Schemes are not compared: a proxy may have changed the scheme.
        let authority = origin.split_once("://").map(|(_, authority)| strip_default_port(authority));
        let host = self.host(access).map(strip_default_port);
        matches!((host, authority), (Some(host), Some(authority)) if host.eq_ignore_ascii_case(authority))
    }

    /// Whether a GET that acknowledges was meant to: any page can cause one, with an image or a link.
    ///
    /// Browsers name the site of such a request, except to hosts over plain HTTP. There the page is told by its `Referer`,
    /// and a request that looks like a browser's must have one.
    #[must_use]
    pub(crate) fn get_may_acknowledge(&self, access: &Access) -> bool {
        let text = |name| self.headers.text(name);
        // No page can add these without being asked for its origin.
        let bearer =
            text("authorization").is_some_and(|value| value.to_ascii_lowercase().starts_with("bearer"));
        let asked = bearer || self.headers.contains("last-event-id");
        if asked || self.headers.contains("origin") || access.allow_origin.iter().any(|all| all == "*") {
            return true;
        }
        if let Some(site) = text("sec-fetch-site") {
            let is_element = !matches!(text("sec-fetch-dest"), None | Some("empty" | "document"));
            return matches!(site, "same-origin" | "none") && !is_element;
        }
        if text("sec-fetch-dest").is_some_and(|dest| dest != "empty") {
            return false;
        }
        match text("referer") {
            Some(page) => self.is_ours(access, origin_of(page)),
            None => !is_browser(text("user-agent"), text("accept-language"), text("accept")),
        }
    }

    /// Whether a net event of the x0 client without an origin comes from one of these, or of this server, or from no
    /// browser. Any page can cause such a GET with any `Accept`: only its `Referer` and the site tell.
    #[must_use]
    pub(crate) fn net_event_allowed(&self, access: &Access, allowed: &[String]) -> bool {
        let text = |name| self.headers.text(name);
        match (text("sec-fetch-site"), text("referer")) {
            (Some(site), _) => matches!(site, "same-origin" | "none"),
            (None, Some(page)) => {
                let origin = origin_of(page);
                allowed.iter().any(|known| known.eq_ignore_ascii_case(origin)) || self.is_own(access, origin)
            }
            (None, None) => !is_browser(text("user-agent"), text("accept-language"), text("accept")),
        }
    }

    /// The host that the client asked for. Over HTTP/2 it is in the address, not in a header.
    fn host(&self, access: &Access) -> Option<&str> {
        let by_proxy = self.peer.0.filter(|peer| access.is_trusted_proxy(*peer));
        by_proxy
            .and_then(|_| self.headers.text("x-forwarded-host"))
            .or(self.authority)
            .or_else(|| self.headers.text("host"))
    }
}

/// The origin of a page.
fn origin_of(page: &str) -> &str {
    let path = page.find("://").and_then(|scheme| Some(scheme + 3 + page[scheme + 3..].find('/')?));
    &page[..path.unwrap_or(page.len())]
}

/// Whether a request looks like one that a browser makes for a page: it says its language, or accepts what a page shows.
fn is_browser(agent: Option<&str>, language: Option<&str>, accept: Option<&str>) -> bool {
    let shows = |accept: &str| {
        let kinds =
            ["image/", "text/html", "text/css", "video/", "audio/", "font/", "application/signed-exchange"];
        accept.split(',').any(|kind| kinds.iter().any(|shown| kind.trim_start().starts_with(shown)))
    };
    agent.is_some_and(|agent| agent.starts_with("Mozilla/")) && language.is_some()
        || accept.is_some_and(shows)
}

/// The refusal of a GET that acknowledges, and that any page may have caused.
#[must_use]
pub(crate) fn acknowledgement_refused() -> Refusal {
    let text = "this GET acknowledges, and any page can cause one with an image or a link: pages send it with their \
                `Referer`; otherwise send a header `Origin` or a token with it, or acknowledge with POST /v1/ack";
    Refusal::new(Code::Forbidden, text)
}

/// A host without the default port of its scheme.
fn strip_default_port(host: &str) -> &str {
    host.strip_suffix(":443").or_else(|| host.strip_suffix(":80")).unwrap_or(host)
}

/// The refusal of a page whose origin is not allowed.
#[must_use]
pub(crate) fn origin_refused(headers: Headers<'_>) -> Refusal {
    let origin = headers.get("origin").map_or("another site", |origin| text(origin).unwrap_or("?"));
    let origin: String = origin.chars().take(80).collect();
    let text = format!("pages of {origin} may not use this server; --allow-origin allows them");
    Refusal::new(Code::Forbidden, text).closing(Close::OriginRefused)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};

    use super::*;
    use crate::config::Config;

    fn access(allowed: &[&str]) -> Access {
        let mut access = Config::default().access;
        access.allow_origin = allowed.iter().map(|origin| (*origin).to_owned()).collect();
        access
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let mut headers = HeaderMap::new();
        pairs.iter().copied().map(pair).for_each(|(name, value)| _ = headers.append(name, value));
        headers
    }

    fn allowed(access: &Access, uri: &str, peer: &str, pairs: &[(&'static str, &'static str)]) -> bool {
        let (uri, headers): (Uri, _) = (uri.parse().unwrap(), headers(pairs));
        let authority = uri.authority().map(|authority| authority.as_str());
        let peer = Peer(Some(peer.parse().unwrap()));
        OriginCheck { authority, headers: (&headers).into(), peer }.origin_allowed(access)
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
    fn every_origin_that_a_request_names_counts() {
        let check = |second| {
            let pairs = [("host", "msg.example"), ("origin", "https://msg.example"), ("origin", second)];
            allowed(&access(&[]), "/", "192.0.2.1", &pairs)
        };
        assert!(check("https://msg.example") && !check("https://evil.example"));
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
    fn pages_of_x0_may_use_every_server() {
        for allowed_origins in [&[][..], &["https://app.example"]] {
            let check = |origin| {
                let headers = [("origin", origin), ("host", "msg.example")];
                allowed(&access(allowed_origins), "/", "192.0.2.1", &headers)
            };
            assert!(check("http://x0-app.x0.localnet") && check("https://x0-app.x0.localnet"));
            assert!(!check("http://x0-app.x0.localnet:81") && !check("http://other.x0.localnet"));
        }
    }

    #[test]
    fn a_request_without_an_origin_must_not_come_from_another_site() {
        let check = |pairs| allowed(&access(&[]), "/", "192.0.2.1", pairs);
        assert!(check(&[]), "no browser");
        assert!(check(&[("sec-fetch-site", "same-origin")]) && check(&[("sec-fetch-site", "none")]));
        assert!(!check(&[("sec-fetch-site", "cross-site")]) && !check(&[("sec-fetch-site", "same-site")]));
    }

    /// Whether a GET with these headers to msg.example may acknowledge.
    fn acknowledges(access: &Access, pairs: &[(&'static str, &'static str)]) -> bool {
        let pairs = [&[("host", "msg.example:8080")], pairs].concat();
        let headers = headers(&pairs);
        let peer = Peer(Some([192, 0, 2, 1].into()));
        OriginCheck { authority: None, headers: (&headers).into(), peer }.get_may_acknowledge(access)
    }

    const BROWSER: (&str, &str) = ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0");
    const LANGUAGE: (&str, &str) = ("accept-language", "en");

    #[test]
    fn programs_and_own_pages_may_acknowledge_with_a_get() {
        let own = [BROWSER, LANGUAGE, ("accept", "*/*"), ("referer", "http://msg.example:8080/page?x=1")];
        let allowed = [BROWSER, LANGUAGE, ("referer", "https://app.example/")];
        for pairs in [
            &[][..],
            &[("user-agent", "curl/8.1"), ("accept", "*/*")],
            &[("user-agent", "python-requests/2"), ("accept", "*/*")],
            &[("accept", "application/json")],
            &own,
            &allowed,
            &[BROWSER, LANGUAGE, ("sec-fetch-site", "same-origin"), ("sec-fetch-dest", "empty")],
            &[BROWSER, LANGUAGE, ("sec-fetch-site", "none"), ("sec-fetch-dest", "document")],
            &[BROWSER, LANGUAGE, ("authorization", "Bearer a.b.c")],
            &[BROWSER, LANGUAGE, ("last-event-id", "7")],
            &[BROWSER, LANGUAGE, ("origin", "http://msg.example:8080")],
        ] {
            assert!(acknowledges(&access(&["https://app.example"]), pairs), "{pairs:?}");
        }
        assert!(acknowledges(&access(&["*"]), &[BROWSER, LANGUAGE]));
    }

    #[test]
    fn an_image_or_a_link_of_any_page_does_not_acknowledge() {
        for pairs in [
            &[BROWSER, LANGUAGE, ("accept", "image/avif,image/webp,*/*;q=0.8")][..],
            &[BROWSER, LANGUAGE, ("accept", "*/*")],
            &[("accept", "image/png,*/*")],
            &[("accept", "*/*, text/html")],
            &[("sec-fetch-site", "same-origin"), ("sec-fetch-dest", "image")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-dest", "image")],
            &[("referer", "http://evil.example/")],
            &[("referer", "http://msg.example:8081/")],
            &[("referer", "http://msg.example:8080.evil.example")],
            // A browser adds it by itself where a proxy asked for it.
            &[BROWSER, LANGUAGE, ("authorization", "Basic eDow")],
        ] {
            assert!(!acknowledges(&access(&[]), pairs), "{pairs:?}");
        }
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
        assert!(origin_refused((&HeaderMap::new()).into()).message.contains("another site"));
        let long = HeaderValue::from_str(&"x".repeat(500)).unwrap();
        let refusal = origin_refused((&HeaderMap::from_iter([(header::ORIGIN, long)])).into());
        assert!(refusal.message.len() < 200);
        assert_eq!((refusal.code, refusal.close), (Code::Forbidden, Close::OriginRefused));
    }
}
