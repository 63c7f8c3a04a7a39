//! The address of a client: the other end of its connection, or what a trusted proxy says.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::Extensions;

use crate::config::{Access, ProxyHeader};
use crate::edge::headers::{Headers, text};
use crate::link::Link;
use crate::log::Repeated;
use crate::sync::lock;

/// The headers with which proxies name clients.
const PROXY_HEADERS: [&str; 2] = ["x-forwarded-for", "forwarded"];

/// More headers that proxies add, and programs that ask by themselves do not.
const HEADERS_OF_PROXIES: [&str; 3] = ["x-forwarded-host", "x-real-ip", "via"];

/// An untrusted proxy is logged at most once in this time.
const WARNING_INTERVAL: Duration = Duration::from_secs(600);

/// The other end of a connection, as the operating system knows it. `None` in tests without a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer(pub Option<IpAddr>);

/// The peer of the connection that a request came over.
#[must_use]
pub(crate) fn peer_of(extensions: &Extensions) -> Peer {
    Peer(extensions.get::<Arc<Link>>().and_then(|link| link.peer()))
}

/// The address of the client: the peer, or what a trusted proxy says.
#[must_use]
pub(crate) fn client_address(access: &Access, Peer(peer): Peer, headers: Headers<'_>) -> Option<IpAddr> {
    let peer = peer?.to_canonical();
    if !access.is_trusted_proxy(peer) {
        if PROXY_HEADERS.iter().any(|name| headers.contains(name)) {
            warn_of_untrusted(peer);
        }
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

/// The address of the client behind the peer, if that is a trusted proxy.
#[must_use]
pub(crate) fn client_behind_proxy(access: &Access, peer: Peer, headers: Headers<'_>) -> Option<IpAddr> {
    let is_trusted = access.is_trusted_proxy(peer.0?);
    if is_trusted { client_address(access, peer, headers) } else { None }
}

/// Whether a request has come through a proxy, as far as its headers say.
#[must_use]
pub(super) fn came_through_proxy(headers: Headers<'_>) -> bool {
    PROXY_HEADERS.iter().chain(&HEADERS_OF_PROXIES).any(|name| headers.contains(name))
}

/// Says that a proxy is not trusted, if the peer is one.
fn warn_of_untrusted(peer: IpAddr) {
    static WARNED: Mutex<Repeated> = Mutex::new(Repeated::every(WARNING_INTERVAL));
    let Some(unlogged) = lock(&WARNED).note(Instant::now()) else { return };
    tracing::warn!(
        %peer,
        unlogged,
        "a request names a client behind this peer, which is not trusted; if it is your proxy, name it with --trust-proxy: \
         without that, all its clients count as one address"
    );
}

/// The hops of a request as this header names them, the client first. `None` for a hop without an address.
fn hops(headers: Headers<'_>, header: ProxyHeader) -> Vec<Option<IpAddr>> {
    let name = match header {
        ProxyHeader::XForwardedFor => "x-forwarded-for",
        ProxyHeader::Forwarded => "forwarded",
    };
    let values = headers.all(name).filter_map(text);
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
    use axum::http::{HeaderMap, HeaderName, HeaderValue};

    use super::*;
    use crate::config::Config;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        pairs.iter().copied().map(pair).collect()
    }

    #[test]
    fn x_forwarded_for_lists_addresses() {
        let hops = |value| {
            let headers = headers(&[("x-forwarded-for", value), ("forwarded", "for=6.6.6.6")]);
            hops((&headers).into(), ProxyHeader::XForwardedFor)
        };
        assert_eq!(hops("1.2.3.4, 10.0.0.1"), [ip("1.2.3.4"), ip("10.0.0.1")]);
        assert_eq!(hops("unknown, [2001:db8::1]"), [None, ip("2001:db8::1")]);
    }

    #[test]
    fn forwarded_names_each_hop_with_for() {
        let hops = |value| {
            let headers = headers(&[("forwarded", value), ("x-forwarded-for", "6.6.6.6")]);
            hops((&headers).into(), ProxyHeader::Forwarded)
        };
        assert_eq!(
            hops(r#"for=1.2.3.4;proto=https, for="[2001:db8::1]:4711", by=x"#),
            [ip("1.2.3.4"), ip("2001:db8::1"), None]
        );
        assert_eq!(hops("For=\"1.2.3.4:80\""), [ip("1.2.3.4")]);
    }

    #[test]
    fn only_trusted_proxies_name_the_client() {
        let mut access = Config::default().access;
        access.trust_proxy = vec!["10.0.0.0/8".parse().unwrap()];
        let client = |peer, forwarded| {
            client_address(&access, Peer(ip(peer)), (&headers(&[("x-forwarded-for", forwarded)])).into())
        };
        assert_eq!(client("192.0.2.1", "1.1.1.1"), ip("192.0.2.1"), "the peer is no proxy");
        assert_eq!(client("10.0.0.1", "6.6.6.6, 1.1.1.1"), ip("1.1.1.1"), "6.6.6.6 may be invented");
        assert_eq!(client("::ffff:10.0.0.1", "1.1.1.1, 10.0.0.2"), ip("1.1.1.1"), "two proxies");
        assert_eq!(client("10.0.0.1", "unknown"), ip("10.0.0.1"), "the proxy names nobody");
        assert_eq!(client_address(&access, Peer(None), (&HeaderMap::new()).into()), None);
    }
}
