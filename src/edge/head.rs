//! The head of a request, whoever has read it.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::Version;
use axum::http::request::Parts;

use crate::edge::address::Peer;
use crate::edge::headers::Headers;
use crate::edge::origin::OriginCheck;
use crate::link::Link;

/// The head of a request, besides its method and its path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestHead<'a> {
    pub version: Version,
    /// Empty if there is none.
    pub query: &'a str,
    /// Its headers, and what checks of origins look at besides.
    pub check: OriginCheck<'a>,
    /// The connection. `None` in tests without a socket.
    pub link: Option<&'a Arc<Link>>,
}

impl<'a> RequestHead<'a> {
    /// The head of a request of HTTP/1.1 that names no host in its address.
    #[must_use]
    pub(crate) fn over_http1(query: &'a str, headers: Headers<'a>, link: &'a Arc<Link>) -> Self {
        let check = OriginCheck { authority: None, headers, peer: Peer(link.peer()) };
        Self { version: Version::HTTP_11, query, check, link: Some(link) }
    }
}

impl<'a> From<&'a Request> for RequestHead<'a> {
    fn from(request: &'a Request) -> Self {
        Self {
            version: request.version(),
            query: request.uri().query().unwrap_or_default(),
            check: request.into(),
            link: request.extensions().get(),
        }
    }
}

impl<'a> From<&'a Parts> for RequestHead<'a> {
    fn from(head: &'a Parts) -> Self {
        Self {
            version: head.version,
            query: head.uri.query().unwrap_or_default(),
            check: head.into(),
            link: head.extensions.get(),
        }
    }
}
