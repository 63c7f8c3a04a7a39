//! Where a server listens.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Where a server listens: an address and a port, or the shorter forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// On this address.
    On(SocketAddr),
    /// On this port of the loopback addresses, of IPv4 and IPv6: `localhost:8080` or `8080`.
    Loopback(u16),
    /// On this port of all addresses, of IPv4 and IPv6: `:8080`.
    All(u16),
}

impl Listen {
    /// The addresses to listen on. A system may lack that of IPv6, which comes second.
    #[must_use]
    pub fn addresses(self) -> Vec<SocketAddr> {
        let on = |ip: IpAddr, port| SocketAddr::from((ip, port));
        match self {
            Self::On(address) => vec![address],
            Self::Loopback(port) => {
                vec![on(Ipv4Addr::LOCALHOST.into(), port), on(Ipv6Addr::LOCALHOST.into(), port)]
            }
            Self::All(port) => {
                vec![on(Ipv4Addr::UNSPECIFIED.into(), port), on(Ipv6Addr::UNSPECIFIED.into(), port)]
            }
        }
    }

    /// Whether only programs on this machine reach it.
    #[must_use]
    pub fn is_loopback(self) -> bool {
        self.addresses().iter().all(|address| address.ip().to_canonical().is_loopback())
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::On(address));
        }
        let invalid = || {
            "must be an address and a port, like 127.0.0.1:8080 or [::1]:8080, or localhost:8080, 8080 or :8080".to_owned()
        };
        let (host, port) = text.rsplit_once(':').map_or((None, text), |(host, port)| (Some(host), port));
        let port = port.parse().map_err(|_| invalid())?;
        match host {
            Some("") => Ok(Self::All(port)),
            None => Ok(Self::Loopback(port)),
            Some(host) if host.eq_ignore_ascii_case("localhost") => Ok(Self::Loopback(port)),
            Some(_) => Err(invalid()),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On(address) => address.fmt(f),
            Self::Loopback(port) => write!(f, "localhost:{port}"),
            Self::All(port) => write!(f, ":{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_name_loopback_or_all_addresses() {
        for (text, listen, is_loopback) in [
            ("127.0.0.1:0", Listen::On(SocketAddr::from(([127, 0, 0, 1], 0))), true),
            ("0.0.0.0:8080", Listen::On(SocketAddr::from(([0, 0, 0, 0], 8080))), false),
            ("localhost:8080", Listen::Loopback(8080), true),
            ("LocalHost:0", Listen::Loopback(0), true),
            ("8080", Listen::Loopback(8080), true),
            (":8080", Listen::All(8080), false),
        ] {
            let parsed: Listen = text.parse().unwrap();
            assert_eq!((parsed, parsed.is_loopback()), (listen, is_loopback), "{text}");
            assert_eq!(parsed.to_string().parse(), Ok(parsed), "{text}");
        }
        for wrong in [
            "",
            ":",
            "localhost",
            "127.0.0.1",
            "msg.example:80",
            ":65536",
            "-1",
            "::1:8080x",
            "http://localhost:80",
        ] {
            assert!(wrong.parse::<Listen>().unwrap_err().contains("like 127.0.0.1:8080"), "{wrong}");
        }
    }
}
