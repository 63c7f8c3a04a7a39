//! Settings of who may come in: authentication, and the doors.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use crate::config::parse::{above_zero, at_least_one, network, origin};

/// How clients prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Auth {
    /// Whoever names a session holds it
    Open,
    /// Clients show a token, backends an API key; x0 pages poll for sessions that a backend has registered
    Token,
}

/// How a reverse proxy says who its client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProxyHeader {
    /// As most do
    XForwardedFor,
    /// As RFC 7239 says
    Forwarded,
}

/// A secret: it can be used, and is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Secrets that come with the environment: flags are seen by everybody on the machine.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// `X0_MSG_TOKEN_SECRET`: a key of tokens signed with HS256.
    pub token: Option<Secret>,
    /// `X0_MSG_API_KEYS`: API keys as `name:key`, with spaces or commas between.
    pub api_keys: Option<Secret>,
}

impl Secrets {
    /// Those of this process.
    #[must_use]
    pub fn from_env() -> Self {
        let get = |name| std::env::var(name).ok().filter(|value| !value.is_empty()).map(Secret);
        Self { token: get("X0_MSG_TOKEN_SECRET"), api_keys: get("X0_MSG_API_KEYS") }
    }
}

/// Who may come in.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Access")]
pub struct Access {
    /// How clients prove who they are
    #[arg(long, env = "X0_MSG_AUTH", value_name = "MODE", value_enum, default_value_t = Auth::Open)]
    pub auth: Auth,

    /// Key that tokens are verified with: a public key (PEM), a JWK set (JSON), or a secret of at least 32 bytes
    /// (anything else, HS256). May be given several times, and changes while the server runs. A secret may also come
    /// in X0_MSG_TOKEN_SECRET
    #[arg(long, env = "X0_MSG_TOKEN_KEY_FILE", value_name = "FILE", value_delimiter = ',')]
    pub token_key_file: Vec<PathBuf>,

    /// Address of a JWK set that tokens are verified with
    #[arg(long, env = "X0_MSG_TOKEN_JWKS_URL", value_name = "URL")]
    pub token_jwks_url: Option<String>,

    /// How often the JWK set is fetched; also when a token names a key that is not in it
    #[arg(long, env = "X0_MSG_TOKEN_JWKS_REFRESH", value_name = "TIME", default_value = "5m", value_parser = above_zero)]
    pub token_jwks_refresh: Duration,

    /// Who a token must be meant for (`aud`); may be given several times, one of them suffices
    #[arg(long, env = "X0_MSG_TOKEN_AUDIENCE", value_name = "NAME", value_delimiter = ',')]
    pub token_audience: Vec<String>,

    /// Who a token must come from (`iss`); may be given several times, one of them suffices
    #[arg(long, env = "X0_MSG_TOKEN_ISSUER", value_name = "NAME", value_delimiter = ',')]
    pub token_issuer: Vec<String>,

    /// API keys of backends (TOML); changes while the server runs. They may also come in X0_MSG_API_KEYS, as name:key
    #[arg(long, env = "X0_MSG_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// How long a session stays registered that names no ttl; one that came with a token, at most until that expires
    #[arg(long, env = "X0_MSG_SESSION_TTL", value_name = "TIME", default_value = "24h", value_parser = above_zero)]
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

    /// Origin whose pages may use this server, as `https://app.example`; may be given several times, * is any
    #[arg(long, env = "X0_MSG_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    pub allow_origin: Vec<String>,

    /// Origin whose pages may use the addresses of today's x0 client
    #[arg(long, env = "X0_MSG_LEGACY_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', default_value = "*", value_parser = origin)]
    pub legacy_allow_origin: Vec<String>,

    /// Certificate chain (PEM); changes while the server runs. With it the server speaks TLS only
    #[arg(long, env = "X0_MSG_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate (PEM)
    #[arg(long, env = "X0_MSG_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Address or network of a reverse proxy that is believed who its clients are, and which host they asked
    /// (X-Forwarded-Host); may be given several times
    #[arg(long, env = "X0_MSG_TRUST_PROXY", value_name = "NET", value_delimiter = ',', value_parser = network)]
    pub trust_proxy: Vec<IpNet>,

    /// Header in which such a proxy says who its client is; what a client has put into the other one is passed on
    #[arg(long, env = "X0_MSG_PROXY_HEADER", value_name = "HEADER", value_enum, default_value_t = ProxyHeader::XForwardedFor)]
    pub proxy_header: ProxyHeader,

    /// Messages a user, or a session without one, may send in a second [default: 100 with --auth token, any number otherwise]; 0 is any number
    #[arg(long, env = "X0_MSG_SEND_RATE", value_name = "N", help_heading = "Limits")]
    pub send_rate: Option<u32>,

    /// Messages a user, or a session without one, may send at once, before its rate counts [default: ten seconds' worth]
    #[arg(long, env = "X0_MSG_SEND_BURST", value_name = "N", help_heading = "Limits")]
    pub send_burst: Option<u32>,

    /// Connections of one session at the same time [default: 64 with --auth token, any number otherwise]; 0 is any number
    #[arg(long, env = "X0_MSG_CONNECTIONS_PER_SESSION", value_name = "N", help_heading = "Limits")]
    pub connections_per_session: Option<usize>,

    /// Connections from one client address (of IPv6: one /64 network) at the same time [default: 1024 with --auth token,
    /// any number otherwise]; 0 is any number
    #[arg(long, env = "X0_MSG_CONNECTIONS_PER_ADDRESS", value_name = "N", help_heading = "Limits")]
    pub connections_per_address: Option<usize>,

    /// What must not stand on a command line
    #[arg(skip)]
    pub secrets: Secrets,
}

impl Access {
    /// A limit that counts by default only where sessions are proved: in `open` mode anyone can take another name.
    fn limit<T: PartialEq + Default>(&self, set: Option<T>, default: T) -> Option<T> {
        let default = if self.auth == Auth::Token { Some(default) } else { None };
        set.or(default).filter(|n| *n != T::default())
    }

    /// Whether the peer at this address is a trusted proxy. Many clients share its address.
    #[must_use]
    pub fn is_trusted_proxy(&self, address: IpAddr) -> bool {
        self.trust_proxy.iter().any(|net| net.contains(&address.to_canonical()))
    }

    /// Messages a session may send in a second, and at once.
    #[must_use]
    pub fn rate(&self) -> Option<(u32, u32)> {
        let rate = self.limit(self.send_rate, 100)?;
        Some((rate, self.send_burst.filter(|burst| *burst > 0).unwrap_or(rate.saturating_mul(10))))
    }

    /// Connections of one session.
    #[must_use]
    pub fn max_connections_per_session(&self) -> usize {
        self.limit(self.connections_per_session, 64).unwrap_or(usize::MAX)
    }

    /// Connections from one client address.
    #[must_use]
    pub fn max_connections_per_address(&self) -> usize {
        self.limit(self.connections_per_address, 1024).unwrap_or(usize::MAX)
    }

    /// For how long tokens of an ended session are refused. Zero in `open` mode, where there are no tokens.
    #[must_use]
    pub fn revoked_for(&self) -> Duration {
        match self.auth {
            Auth::Open => Duration::ZERO,
            Auth::Token => self.session_ttl,
        }
    }

    /// How long the session of a token stays registered. The token is accepted until then, in Unix milliseconds.
    #[must_use]
    pub fn token_session_ttl(&self, now: u64, until: u64) -> Duration {
        Duration::from_millis(until.saturating_sub(now)).min(self.session_ttl)
    }
}
