//! The address of a client: the other end of its connection, or what a trusted proxy says.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::http::{Extensions, HeaderMap};

use crate::config::{Access, ProxyHeader};
use crate::link::Link;

/// The other end of a connection, as the operating system knows it. `None` in tests without a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub Option<IpAddr>);

/// The peer of the connection that a request came over.
#[must_use]
pub fn peer_of(extensions: &Extensions) -> Peer {
    Peer(extensions.get::<Arc<Link>>().and_then(|link| link.peer()))
}

/// The address of the client: the peer, or what a trusted proxy says.
#[must_use]
pub fn client_address(access: &Access, Peer(peer): Peer, headers: &HeaderMap) -> Option<IpAddr> {
    let peer = peer?.to_canonical();
    if !access.is_trusted_proxy(peer) {
        return Some(peer);
    }
    // The last hop that is no trusted proxy. A client can invent the hops before it.
    let mut client = peer;
    for hop in hops(headers, access.proxy_header).iter().rev() {
        let Some(address) = hop else { break };
        client = *address;
        if !access.is_trusted_proxy(client) {
            break;
        }
    }
    Some(client)
}

/// The hops of a request as this header names them, the client first. `None` for a hop without an address.
fn hops(headers: &HeaderMap, header: ProxyHeader) -> Vec<Option<IpAddr>> {
    let name = match header {
        ProxyHeader::XForwardedFor => "x-forwarded-for",
        ProxyHeader::Forwarded => "forwarded",
    };
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let items = values.flat_map(|value| value.split(',')).map(str::trim);
    items
        .map(|item| match header {
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
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.ip().to_canonical());
    }
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    inner.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

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
