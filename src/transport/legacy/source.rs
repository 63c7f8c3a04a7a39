//! Where a request of the x0 client comes from.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::Version;

use crate::budget::Holder;
use crate::config::Access;
use crate::edge::{Gateway, Query, RequestHead, client_address};
use crate::link::Link;
use crate::message::MAX_NAME;
use crate::metrics::SentBy;

/// How a refusal is logged and counted that is no error in an answer. The page would stop for good: its poll is held instead.
pub(super) const LOGGED: (&str, SentBy) = ("legacy", SentBy::Legacy);

/// Where a request comes from. This tells repeats apart, and whether the answer before arrived.
#[derive(Debug)]
pub(super) struct RequestSource {
    /// The client's address, if known.
    pub(super) address: Option<IpAddr>,
    /// The connection.
    pub(super) link: Arc<Link>,
    /// Parameter `a__`. The x0 client chooses a random one for each request; a repeat has the same.
    pub(super) request_id: Option<String>,
    /// Whether a live page uses this connection again: a browser has made it, and keeps it alive.
    pub(super) reusable: bool,
    /// Whether the connection carries one request after the other. Over HTTP/2 requests are concurrent, and say nothing
    /// about each other.
    pub(super) sequential: bool,
}

impl RequestSource {
    pub(super) fn of(access: &Access, head: RequestHead<'_>) -> Self {
        let RequestHead { version, query, check, link } = head;
        let connection = check.headers.get("connection");
        let closes = connection.is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
        let query = Query::of(query).unwrap_or_default();
        let request_id = query.get("a__").filter(|id| id.len() <= MAX_NAME).map(str::to_owned);
        Self {
            address: client_address(access, check.peer, check.headers),
            link: link.map_or_else(Link::new, Arc::clone),
            request_id,
            reusable: version == Version::HTTP_11 && check.headers.contains("origin") && !closes,
            sequential: version < Version::HTTP_2,
        }
    }

    /// Notes that a registered session polls here.
    pub(super) fn prove(&self, gateway: &Gateway) {
        self.link.prove();
        gateway.proved_addresses.note(self.address);
    }

    /// How a body counts in the memory budget. The session that sends it is known at its end only, so what counts is
    /// whether a registered session polls on its connection or from its address.
    pub(super) fn holder(&self, gateway: &Gateway) -> Holder {
        match self.link.is_proved() || gateway.proved_addresses.contains(self.address) {
            true => Holder::Proved,
            false => Holder::Unproved,
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use axum::http::request::Builder;

    use super::*;
    use crate::transport::testing::gateway;

    fn source(request: Builder) -> RequestSource {
        let request = request.body(Body::empty()).unwrap();
        RequestSource::of(&gateway(&[]).access(), (&request).into())
    }

    #[tokio::test]
    async fn a_browsers_kept_alive_connection_is_reusable() {
        let browser = || Request::post("/").header("origin", "http://x0.test");
        assert!(source(browser()).reusable);
        assert!(source(browser().header("connection", "keep-alive")).reusable);
        assert!(!source(browser().header("connection", "Close")).reusable);
        assert!(!source(Request::post("/")).reusable);
        assert!(!source(browser().version(Version::HTTP_10)).reusable);
    }

    #[tokio::test]
    async fn only_http_1_carries_one_request_after_the_other() {
        assert!(source(Request::post("/")).sequential);
        assert!(!source(Request::post("/").version(Version::HTTP_2)).sequential);
    }

    #[tokio::test]
    async fn the_request_id_has_a_bounded_length() {
        assert_eq!(source(Request::post("/?x=1&a__=17")).request_id.as_deref(), Some("17"));
        assert_eq!(source(Request::post("/")).request_id, None);
        let long = format!("/?a__={}", "x".repeat(MAX_NAME + 1));
        assert_eq!(source(Request::post(long)).request_id, None);
    }
}
