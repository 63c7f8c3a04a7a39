//! Settings of access: authentication, origins, TLS, proxies, and limits for each client.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use crate::config::parse::{at_least_one, claim, file, host, lifetime, network, number, origin, size, wait};
use crate::config::secrets::Secrets;

/// How clients authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Auth {
    /// Everyone who names a session may use it
    Open,
    /// Clients show a token, or the id of a session that a backend registered as a proof, and backends an API key. x0 pages
    /// use sessions that a backend has registered
    Token,
}

impl Auth {
    /// The name on the command line.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Token => "token",
        }
    }
}

/// The header in which a reverse proxy names its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProxyHeader {
    /// The header that most proxies send
    XForwardedFor,
    /// The header of RFC 7239
    Forwarded,
}

/// The origins of x0's pages: all installations of x0 use this name.
const X0_ORIGINS: [&str; 2] = ["http://x0-app.x0.localnet", "https://x0-app.x0.localnet"];

/// Who may use the server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Access")]
pub struct Access {
    /// How clients authenticate
    #[arg(long, env = "X0_MSG_AUTH", value_name = "MODE", value_enum, default_value_t = Auth::Open)]
    pub auth: Auth,

    /// File with a key that verifies tokens: a public key (PEM), a JWK set (JSON), or else a secret of at least 32 bytes
    /// (HS256). May be given several times. A changed file is read again while the server runs. X0_MSG_TOKEN_SECRET may
    /// hold a secret instead
    #[arg(long, env = "X0_MSG_TOKEN_KEY_FILE", value_name = "FILE", value_delimiter = ',', value_parser = file)]
    pub token_key_file: Vec<PathBuf>,

    /// Address of a JWK set that verifies tokens
    #[arg(long, env = "X0_MSG_TOKEN_JWKS_URL", value_name = "URL", hide_env_values = true)]
    pub token_jwks_url: Option<String>,

    /// How often the JWK set is fetched. A token with an unknown key also causes a fetch
    #[arg(long, env = "X0_MSG_TOKEN_JWKS_REFRESH", value_name = "TIME", default_value = "5m", value_parser = wait)]
    pub token_jwks_refresh: Duration,

    /// How long the keys of the JWK set prove tokens while it cannot be fetched
    #[arg(long, env = "X0_MSG_TOKEN_JWKS_MAX_AGE", value_name = "TIME", default_value = "24h", value_parser = lifetime)]
    pub token_jwks_max_age: Duration,

    /// Audience (`aud`) that a token must have. May be given several times; one of them suffices
    #[arg(long, env = "X0_MSG_TOKEN_AUDIENCE", value_name = "NAME", value_delimiter = ',', value_parser = claim)]
    pub token_audience: Vec<String>,

    /// Issuer (`iss`) that a token must have. May be given several times; one of them suffices
    #[arg(long, env = "X0_MSG_TOKEN_ISSUER", value_name = "NAME", value_delimiter = ',', value_parser = claim)]
    pub token_issuer: Vec<String>,

    /// File with the API keys of backends (TOML). A changed file is read again while the server runs. X0_MSG_API_KEYS may
    /// hold keys instead, as name:key
    #[arg(long, env = "X0_MSG_API_KEY_FILE", value_name = "FILE", value_parser = file)]
    pub api_key_file: Option<PathBuf>,

    /// How long a session stays registered if its backend names no ttl. The session of a token stays registered for this
    /// time or until the token expires, whichever is shorter. Tokens of an ended session are refused for this time, and
    /// until the last one expires that was seen
    #[arg(long, env = "X0_MSG_SESSION_TTL", value_name = "TIME", default_value = "24h", value_parser = lifetime)]
    pub session_ttl: Duration,

    /// Most registered sessions of one user
    #[arg(
        long,
        env = "X0_MSG_SESSIONS_PER_USER",
        value_name = "N",
        default_value_t = 100,
        value_parser = at_least_one
    )]
    pub sessions_per_user: usize,

    /// Origin whose pages may use this server, like `https://app.example`, beside its own pages and those of x0. May be
    /// given several times; * allows all
    #[arg(long, env = "X0_MSG_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    pub allow_origin: Vec<String>,

    /// Origin whose pages may use the addresses of today's x0 client. May be given several times; * allows all
    #[arg(long, env = "X0_MSG_LEGACY_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', default_value = "*", value_parser = origin)]
    pub legacy_allow_origin: Vec<String>,

    /// Host by which an open broker on loopback is reached, like `msg.example`. It serves only loopback names and
    /// addresses, x0's name for it, the hosts of --allow-origin, and these. May be given several times; * allows all
    #[arg(long, env = "X0_MSG_HOST", value_name = "HOST", value_delimiter = ',', value_parser = host)]
    pub host: Vec<String>,

    /// File with the certificate chain (PEM). The server then speaks TLS only. A changed file is read again while the server
    /// runs
    #[arg(long, env = "X0_MSG_TLS_CERT", value_name = "FILE", value_parser = file)]
    pub tls_cert: Option<PathBuf>,

    /// File with the private key of the certificate (PEM)
    #[arg(long, env = "X0_MSG_TLS_KEY", value_name = "FILE", value_parser = file)]
    pub tls_key: Option<PathBuf>,

    /// Address or network of a trusted reverse proxy. The server believes its headers about the client's address and the
    /// host (X-Forwarded-Host). May be given several times
    #[arg(long, env = "X0_MSG_TRUST_PROXY", value_name = "NET", value_delimiter = ',', value_parser = network)]
    pub trust_proxy: Vec<IpNet>,

    /// Header in which a trusted proxy names the client. The other header is ignored, since a client may have set it
    #[arg(long, env = "X0_MSG_PROXY_HEADER", value_name = "HEADER", value_enum, default_value_t = ProxyHeader::XForwardedFor)]
    pub proxy_header: ProxyHeader,

    /// Most messages in a second from one user, or from one session without a user [default: 100 with --auth token, no
    /// limit otherwise]. 0 means no limit
    #[arg(long, env = "X0_MSG_SEND_RATE", value_name = "N", value_parser = number::<u32>, help_heading = "Limits")]
    pub send_rate: Option<u32>,

    /// Most messages at once from one user, or from one session without a user, before the rate applies [default: ten
    /// times the rate]
    #[arg(long, env = "X0_MSG_SEND_BURST", value_name = "N", value_parser = number::<u32>, help_heading = "Limits")]
    pub send_burst: Option<u32>,

    /// Most bytes of payloads in a second from one user, or from one session without a user, counted for each mailbox
    /// [default: 16MiB with --auth token, no limit otherwise]. Ten times as many at once. 0 means no limit
    #[arg(long, env = "X0_MSG_SEND_BYTES_RATE", value_name = "BYTES", value_parser = size, help_heading = "Limits")]
    pub send_bytes_rate: Option<usize>,

    /// Most connections of one session at the same time [default: 64 with --auth token, no limit otherwise]. 0 means no
    /// limit
    #[arg(long, env = "X0_MSG_CONNECTIONS_PER_SESSION", value_name = "N", value_parser = number::<usize>, help_heading = "Limits")]
    pub connections_per_session: Option<usize>,

    /// Most connections of one client address at the same time; of IPv6, of one /64 network [default: a quarter of what
    /// the limit of open files allows, with --auth token at most 1024]. 0 means no limit
    #[arg(long, env = "X0_MSG_CONNECTIONS_PER_ADDRESS", value_name = "N", value_parser = number::<usize>, help_heading = "Limits")]
    pub connections_per_address: Option<usize>,

    /// Secrets, which are no flags
    #[arg(skip)]
    pub secrets: Secrets,
}

impl Access {
    /// A limit with a default in `token` mode only. In `open` mode anyone can evade a limit with another name.
    fn limit<T: PartialEq + Default>(&self, set: Option<T>, default: T) -> Option<T> {
        let default = if self.auth == Auth::Token { Some(default) } else { None };
        set.or(default).filter(|n| *n != T::default())
    }

    /// Whether API keys are configured, even if their file holds none now.
    #[must_use]
    pub(crate) fn has_api_keys(&self) -> bool {
        self.api_key_file.is_some() || self.secrets.api_keys.is_some()
    }

    /// Whether the peer at this address is a trusted proxy. Many clients share its address.
    #[must_use]
    pub(crate) fn is_trusted_proxy(&self, address: IpAddr) -> bool {
        self.trust_proxy.iter().any(|net| net.contains(&address.to_canonical()))
    }

    /// The origins whose pages may use `/v1` and `/ws`, beside this server's own: those of `--allow-origin` and of x0. `*`
    /// means all.
    pub(crate) fn allowed_origins(&self) -> impl Iterator<Item = &str> {
        self.allow_origin.iter().map(String::as_str).chain(X0_ORIGINS)
    }

    /// Messages that a sender may send in a second, and at once. `None` means no limit.
    #[must_use]
    pub fn rate(&self) -> Option<(u32, u32)> {
        let rate = self.limit(self.send_rate, 100)?;
        Some((rate, self.send_burst.filter(|burst| *burst > 0).unwrap_or(rate.saturating_mul(10))))
    }

    /// Bytes that a sender may send in a second. `None` means no limit.
    #[must_use]
    pub fn bytes_rate(&self) -> Option<usize> {
        self.limit(self.send_bytes_rate, 16 << 20)
    }

    /// Most connections of one session.
    #[must_use]
    pub(crate) fn max_connections_per_session(&self) -> usize {
        self.limit(self.connections_per_session, 64).unwrap_or(usize::MAX)
    }

    /// Most connections of one client address.
    #[must_use]
    pub(crate) fn max_connections_per_address(&self) -> usize {
        self.limit(self.connections_per_address, 1024).unwrap_or(usize::MAX)
    }

    /// How long the session of a token stays registered. The token is accepted until then, in Unix milliseconds.
    #[must_use]
    pub(crate) fn token_session_ttl(&self, now: u64, until: u64) -> Duration {
        Duration::from_millis(until.saturating_sub(now)).min(self.session_ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn access(auth: Auth) -> Access {
        Access { auth, ..Config::default().access }
    }

    #[test]
    fn limits_have_defaults_in_token_mode_only() {
        let (open, token) = (access(Auth::Open), access(Auth::Token));
        assert_eq!((open.bytes_rate(), token.bytes_rate()), (None, Some(16 << 20)));
        assert_eq!((open.rate(), token.rate()), (None, Some((100, 1_000))));
        assert_eq!(
            (open.max_connections_per_session(), token.max_connections_per_session()),
            (usize::MAX, 64)
        );
        assert_eq!(
            (open.max_connections_per_address(), token.max_connections_per_address()),
            (usize::MAX, 1024)
        );
    }

    #[test]
    fn zero_means_no_limit() {
        let mut access = access(Auth::Token);
        (access.send_rate, access.send_bytes_rate) = (Some(0), Some(0));
        access.connections_per_session = Some(0);
        access.connections_per_address = Some(0);
        assert_eq!((access.rate(), access.bytes_rate()), (None, None));
        assert_eq!(access.max_connections_per_session(), usize::MAX);
        assert_eq!(access.max_connections_per_address(), usize::MAX);
    }

    #[test]
    fn a_limit_that_is_set_applies_in_open_mode_too() {
        let mut access = access(Auth::Open);
        access.send_rate = Some(7);
        assert_eq!(access.rate(), Some((7, 70)), "ten times the rate at once");
        access.send_burst = Some(9);
        assert_eq!(access.rate(), Some((7, 9)));
        access.send_rate = Some(u32::MAX);
        access.send_burst = None;
        assert_eq!(access.rate(), Some((u32::MAX, u32::MAX)));
    }

    #[test]
    fn a_token_registers_its_session_at_most_for_the_session_ttl() {
        let mut access = access(Auth::Token);
        access.session_ttl = Duration::from_secs(60);
        assert_eq!(access.token_session_ttl(1_000, 31_000), Duration::from_secs(30));
        assert_eq!(access.token_session_ttl(1_000, 1_000_000), Duration::from_secs(60));
        assert_eq!(access.token_session_ttl(2_000, 1_000), Duration::ZERO);
    }

    #[test]
    fn proxies_are_trusted_by_network() {
        let mut access = access(Auth::Open);
        let trusted = |access: &Access, address: &str| access.is_trusted_proxy(address.parse().unwrap());
        assert!(!trusted(&access, "127.0.0.1"), "nobody by default");
        access.trust_proxy = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        for address in ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"] {
            assert!(trusted(&access, address), "{address}");
        }
        assert!(!trusted(&access, "11.0.0.1"));
    }
}
