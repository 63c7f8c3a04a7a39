//! Which hosts an open broker on loopback serves. This protects it from DNS rebinding.
//!
//! Any site can give its own name the address 127.0.0.1. The browser then takes the broker for that site, and its pages
//! may read the answers. Only the host that the request names shows it.

use std::borrow::Cow;
use std::net::IpAddr;

use axum::http::uri::Authority;

use crate::config::{Access, Auth};
use crate::edge::headers::text;
use crate::edge::origin::OriginCheck;
use crate::edge::refusal::Refusal;
use crate::protocol::Code;

/// The name by which x0 pages know this broker.
const X0_HOST: &str = "x0-msg-server.x0.localnet";

/// The hosts that an open broker on loopback serves: loopback names and addresses, x0's name, and those that settings name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServedHosts(());

impl ServedHosts {
    /// The hosts that a broker on this address serves. `None` if it serves all: in `token` mode a request needs a proof,
    /// and a broker that other machines reach does not know its names.
    #[must_use]
    pub(crate) fn new(access: &Access, listen: IpAddr) -> Option<Self> {
        if access.auth != Auth::Open {
            return None;
        }
        Self::on_loopback(access, listen)
    }

    /// The same in any mode: for what needs no proof at this address.
    #[must_use]
    pub(crate) fn on_loopback(access: &Access, listen: IpAddr) -> Option<Self> {
        if !listen.to_canonical().is_loopback() {
            return None;
        }
        (!named(access).any(|name| name == "*")).then_some(Self(()))
    }

    /// Checks all hosts that a request names. A request of HTTP/1.0 may name none; browsers always name one.
    ///
    /// # Errors
    /// `forbidden` for a host that is not served.
    pub(crate) fn check(&self, access: &Access, request: OriginCheck<'_>) -> Result<(), Refusal> {
        let OriginCheck { authority, headers, peer } = request;
        let in_address = authority.map(Some);
        let in_headers = headers.all("host").map(text);
        // Besides the host, not instead of it: a page can set this header itself.
        let by_proxy = peer.0.is_some_and(|peer| access.is_trusted_proxy(peer));
        let forwarded = headers.all("x-forwarded-host").filter(|_| by_proxy).map(text);
        for host in in_address.into_iter().chain(in_headers).chain(forwarded) {
            // Several proxies append to one list.
            for host in host.unwrap_or("?").split(',').map(str::trim).filter(|host| !host.is_empty()) {
                if !serves(access, host) {
                    return Err(refused(host));
                }
            }
        }
        Ok(())
    }
}

/// The hosts that settings name.
fn named(access: &Access) -> impl Iterator<Item = &str> {
    let origins = access.allow_origin.iter().map(|origin| origin.rsplit("://").next().unwrap_or_default());
    access.host.iter().map(String::as_str).chain(origins)
}

fn serves(access: &Access, host: &str) -> bool {
    let Some(name) = host_name(host) else { return false };
    is_loopback(&name) || name == X0_HOST || named(access).filter_map(host_name).any(|known| known == name)
}

/// The name of a host that is plainly one: letters, digits, dots, hyphens and underscores, with an optional port. `None` says
/// nothing: such a host has to be parsed.
#[must_use]
pub(crate) fn plain_host(authority: &str) -> Option<&str> {
    let (name, port) = authority.split_once(':').unwrap_or((authority, ""));
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_port =
        port.bytes().all(|digit| digit.is_ascii_digit()) && (port.is_empty() || port.parse::<u16>().is_ok());
    (!name.is_empty() && name.bytes().all(is_name) && is_port).then_some(name)
}

/// The host of an authority, in lower case, without port and brackets. `None` for text that is no host.
fn host_name(authority: &str) -> Option<Cow<'_, str>> {
    let in_lower_case = |host: &str| host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if let Some(host) = plain_host(authority) {
        let is_in_lower_case = !host.ends_with('.') && !host.bytes().any(|byte| byte.is_ascii_uppercase());
        return Some(if is_in_lower_case { host.into() } else { in_lower_case(host).into() });
    }
    let authority: Authority = authority.parse().ok().filter(|_| !authority.contains('@'))?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    Some(in_lower_case(host).into())
}

/// Whether a request names a host, and only loopback names and addresses.
#[must_use]
pub(super) fn names_loopback_only(request: OriginCheck<'_>) -> bool {
    let in_headers = request.headers.all("host").map(text);
    let mut hosts = request.authority.map(Some).into_iter().chain(in_headers).peekable();
    hosts.peek().is_some()
        && hosts.all(|host| host.and_then(host_name).is_some_and(|name| is_loopback(&name)))
}

/// Whether this is a name or an address of the machine itself (RFC 6761 section 6.3).
fn is_loopback(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => {
            matches!(host, "localhost" | "ip6-localhost" | "ip6-loopback") || host.ends_with(".localhost")
        }
    }
}

fn refused(host: &str) -> Refusal {
    let host: String = host.chars().take(80).collect();
    let text = format!(
        "this open broker on loopback does not serve the host {host}, since any site can give its name a loopback \
         address; --host allows it"
    );
    Refusal::new(Code::Forbidden, text)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};

    use super::*;
    use crate::config::Config;
    use crate::edge::address::Peer;

    const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

    fn access(change: impl FnOnce(&mut Access)) -> Access {
        let mut access = Config::default().access;
        change(&mut access);
        access
    }

    /// Whether a broker on loopback serves a request with these headers from 127.0.0.1.
    fn serves(access: &Access, uri: &str, headers: &[(&'static str, &'static str)]) -> bool {
        let Some(hosts) = ServedHosts::new(access, LOOPBACK.into()) else { return true };
        let pair = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let headers: HeaderMap = headers.iter().copied().map(pair).collect();
        let (uri, peer): (Uri, _) = (uri.parse().unwrap(), Peer(Some(LOOPBACK.into())));
        let authority = uri.authority().map(|authority| authority.as_str());
        hosts.check(access, OriginCheck { authority, headers: (&headers).into(), peer }).is_ok()
    }

    fn serves_host(access: &Access, host: &'static str) -> bool {
        serves(access, "/v1/messages", &[("host", host)])
    }

    #[test]
    fn names_and_addresses_of_this_machine_and_of_x0_are_served() {
        let access = access(|_| {});
        for host in [
            "localhost",
            "LocalHost:8080",
            "app.localhost:8080",
            "localhost.",
            "127.0.0.1:8080",
            "127.1.2.3",
            "[::1]:8080",
            "[::ffff:127.0.0.1]",
            "x0-msg-server.x0.localnet:8080",
            "",
        ] {
            assert!(serves_host(&access, host), "{host}");
        }
        assert!(serves(&access, "/v1/messages", &[]), "HTTP/1.0");
    }

    #[test]
    fn a_plain_host_means_what_a_parser_says() {
        for (authority, name) in [
            ("x", Some("x")),
            ("my_service.Example:8080", Some("my_service.Example")),
            ("127.0.0.1:", Some("127.0.0.1")),
            ("x:65536", None),
            ("x:+1", None),
            ("x:1:2", None),
            ("[::1]", None),
            ("user@x", None),
            ("", None),
            (":80", None),
        ] {
            assert_eq!(plain_host(authority), name, "{authority}");
            let parsed = authority.parse::<Authority>();
            assert!(name.is_none_or(|name| parsed.is_ok_and(|parsed| parsed.host() == name)), "{authority}");
        }
    }

    #[test]
    fn every_other_host_is_refused() {
        let access = access(|_| {});
        for host in [
            "rebind.example:8080",
            "localhost.rebind.example",
            "notlocalhost",
            "127.0.0.1.rebind.example",
            "192.0.2.1:8080",
            "0.0.0.0:8080",
            "[::]:8080",
            "user@localhost",
            "localhost,rebind.example",
            "x0-msg-server.x0.localnet.rebind.example",
            "x y",
            "*",
        ] {
            assert!(!serves_host(&access, host), "{host}");
        }
    }

    #[test]
    fn every_place_that_names_a_host_counts() {
        let access = access(|access| access.trust_proxy = vec!["127.0.0.1/32".parse().unwrap()]);
        let both = |uri, headers| serves(&access, uri, headers);
        assert!(both("https://localhost/v1/messages", &[]), "HTTP/2");
        assert!(!both("https://rebind.example/v1/messages", &[]));
        assert!(!both("http://rebind.example/", &[("host", "localhost")]));
        assert!(!both("/", &[("host", "localhost"), ("host", "rebind.example")]));
        assert!(!both("/", &[("host", "rebind.example"), ("x-forwarded-host", "localhost")]));
        assert!(!both("/", &[("host", "localhost"), ("x-forwarded-host", "localhost, rebind.example")]));
        let untrusted = Config::default().access;
        let headers = [("host", "localhost"), ("x-forwarded-host", "any.example")];
        assert!(serves(&untrusted, "/", &headers), "without --trust-proxy the header means nothing");
    }

    #[test]
    fn settings_allow_more_hosts() {
        let named = access(|access| access.host = vec!["msg.example".to_owned()]);
        assert!(serves_host(&named, "MSG.example:8443") && !serves_host(&named, "other.example"));
        let origin = access(|access| access.allow_origin = vec!["https://app.example:8443".to_owned()]);
        assert!(serves_host(&origin, "app.example") && !serves_host(&origin, "other.example"));
        for all in [
            access(|access| access.host = vec!["*".to_owned()]),
            access(|access| access.allow_origin = vec!["*".to_owned()]),
            access(|access| access.auth = Auth::Token),
        ] {
            assert!(serves_host(&all, "other.example"), "{all:?}");
        }
        assert!(ServedHosts::new(&Config::default().access, [0, 0, 0, 0].into()).is_none());
    }

    #[test]
    fn the_refusal_names_the_host_within_limits_and_the_flag() {
        let refusal = refused(&"x".repeat(500));
        assert!(refusal.message.len() < 250 && refusal.message.contains("--host"), "{}", refusal.message);
    }
}
