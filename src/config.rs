//! All settings with their units and defaults. A flag overrides its `X0_MSG_*` environment variable, and that overrides the
//! setting of the same name in a file. All three are parsed and checked alike.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tracing_subscriber::filter::Targets;

mod access;
#[cfg(feature = "nats")]
mod cluster;
mod environment;
mod file;
mod listen;
mod load;
mod pages;
mod parse;
mod reload;
mod secrets;
mod sources;
mod template;

use parse::{at_least_one, budget_size, levels, lifetime, payload_size, store_size, wait};

pub use access::{Access, Auth, ProxyHeader};
#[cfg(feature = "nats")]
pub use cluster::{Cluster, EngineKind};
pub(crate) use environment::HANDOVER_FROM;
pub use environment::unknown_variables;
pub use listen::Listen;
pub use load::{LoadError, load};
pub use pages::Pages;
pub(crate) use reload::Reload;
pub use secrets::{Secret, Secrets};
pub use sources::{Setting, Source, Sources};
pub use template::template;
pub(crate) use template::toml_value;

/// Settings of `serve`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
pub struct Config {
    /// Address and port to listen on; `localhost:8080` or `8080` for this machine only, `:8080` for all addresses. Port 0
    /// picks a free port and logs it
    #[arg(long, env = "X0_MSG_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: Listen,

    /// Address and port for operators, beside that of clients: `/metrics`, `/healthz` and `/readyz`, without TLS and without
    /// keys. `9100` is this machine only
    #[arg(long, env = "X0_MSG_OPS_LISTEN", value_name = "ADDR")]
    pub ops_listen: Option<Listen>,

    /// Directory of the store. It is created if it does not exist. `--durability memory` does not use it
    #[arg(long, env = "X0_MSG_DATA_DIR", value_name = "DIR", default_value = "./x0-msg-data")]
    pub data_dir: PathBuf,

    /// Where a message is stored before its sender gets "sent"
    #[arg(long, env = "X0_MSG_DURABILITY", value_name = "LEVEL", value_enum, default_value_t = Level::Fsync)]
    pub durability: Level,

    /// File of settings (TOML): `poll-timeout = "20s"` is --poll-timeout 20s. Flags and environment variables override it
    /// [default: /etc/x0-msg-server.toml, if it exists]
    #[arg(id = "config_file", long = "config", env = "X0_MSG_CONFIG", value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// What is logged: error, warn, info, debug or trace, also for a module of its own, like
    /// info,x0_msg_server::broker=trace. RUST_LOG may name it too
    #[arg(long, env = "X0_MSG_LOG_LEVEL", value_name = "LEVELS", default_value = "info", value_parser = levels)]
    pub log_level: Targets,

    /// How long a legacy long-poll waits for a message before it gets an empty answer
    #[arg(long, env = "X0_MSG_POLL_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = wait)]
    pub poll_timeout: Duration,

    /// Interval of pings. A connection without any frame for two intervals is closed
    #[arg(long, env = "X0_MSG_HEARTBEAT", value_name = "TIME", default_value = "25s", value_parser = wait)]
    pub heartbeat: Duration,

    /// How long a WebSocket may take to send `hello`
    #[arg(long, env = "X0_MSG_HELLO_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = wait)]
    pub hello_timeout: Duration,

    /// How long the headers of a request may take. Also how long a connection may idle between requests
    #[arg(long, env = "X0_MSG_HEADER_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = wait)]
    pub header_timeout: Duration,

    /// How long a stop waits for connections to end
    #[arg(long, env = "X0_MSG_DRAIN_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = wait)]
    pub drain_timeout: Duration,

    /// Largest payload of a message, in bytes
    #[arg(long, env = "X0_MSG_MAX_PAYLOAD", value_name = "BYTES", default_value = "1MiB", value_parser = payload_size, help_heading = "Limits")]
    pub max_payload: usize,

    /// Most unread messages of one session. Further messages are refused
    #[arg(long, env = "X0_MSG_MAILBOX_MESSAGES", value_name = "N", default_value_t = 10_000, value_parser = at_least_one, help_heading = "Limits")]
    pub mailbox_messages: usize,

    /// Most unread bytes of one session. Further messages are refused
    #[arg(long, env = "X0_MSG_MAILBOX_BYTES", value_name = "BYTES", default_value = "64MiB", value_parser = store_size, help_heading = "Limits")]
    pub mailbox_bytes: usize,

    /// Most messages in the history of a topic
    #[arg(long, env = "X0_MSG_TOPIC_MESSAGES", value_name = "N", default_value_t = 1_000, value_parser = at_least_one, help_heading = "Limits")]
    pub topic_messages: usize,

    /// Most bytes in the history of a topic
    #[arg(long, env = "X0_MSG_TOPIC_BYTES", value_name = "BYTES", default_value = "16MiB", value_parser = store_size, help_heading = "Limits")]
    pub topic_bytes: usize,

    /// How long a message stays in the history of a topic
    #[arg(long, env = "X0_MSG_TOPIC_AGE", value_name = "TIME", default_value = "24h", value_parser = lifetime, help_heading = "Limits")]
    pub topic_age: Duration,

    /// How long an unread message is stored if its sender names no ttl
    #[arg(long, env = "X0_MSG_TTL", value_name = "TIME", default_value = "7d", value_parser = lifetime, help_heading = "Limits")]
    pub ttl: Duration,

    /// Longest ttl of a message, and of a session that a backend registers
    #[arg(long, env = "X0_MSG_MAX_TTL", value_name = "TIME", default_value = "30d", value_parser = lifetime, help_heading = "Limits")]
    pub max_ttl: Duration,

    /// Most topics one connection may read
    #[arg(long, env = "X0_MSG_MAX_TOPICS", value_name = "N", default_value_t = 128, value_parser = at_least_one, help_heading = "Limits")]
    pub max_topics: usize,

    /// How long message ids of senders are remembered. A retry within this time is not stored again [default: 15m; 2m with NATS]
    #[arg(long, env = "X0_MSG_DEDUP_WINDOW", value_name = "TIME", value_parser = lifetime, help_heading = "Limits")]
    pub dedup_window: Option<Duration>,

    /// Most bytes of all stored messages together [default: 1 GiB in memory, 4 GiB on disk]
    #[arg(long, env = "X0_MSG_STORE_LIMIT", value_name = "BYTES", value_parser = store_size, help_heading = "Limits")]
    pub store_limit: Option<usize>,

    /// Most bytes of all clients together that are being received or wait to be written, like 64MiB [default: a quarter of the
    /// memory of the machine or of the control group, at most 1 GiB]. Large messages wait or are refused beyond
    #[arg(long, env = "X0_MSG_MEMORY_BUDGET", value_name = "BYTES", value_parser = budget_size, help_heading = "Limits")]
    pub memory_budget: Option<usize>,

    /// Most messages that wait to be written to the disk. Further messages are refused with `overloaded`
    #[arg(long, env = "X0_MSG_APPEND_QUEUE", value_name = "N", default_value_t = 16_384, value_parser = at_least_one, help_heading = "Limits")]
    pub append_queue: usize,

    /// Whether the demo at `/`, the documentation at `/docs/` and the dashboard at `/admin` are served. `/client.js` and
    /// `/x0.js` always are
    #[arg(long, env = "X0_MSG_PAGES", value_name = "WHETHER", value_enum, default_value_t = Pages::On)]
    pub pages: Pages,

    /// Who may use this server
    #[command(flatten)]
    pub access: Access,

    /// Several machines
    #[cfg(feature = "nats")]
    #[command(flatten)]
    pub cluster: Cluster,

    /// Slots of the broadcast channel of each address
    #[arg(long, env = "X0_MSG_HUB_SLOTS", value_name = "N", hide = true)]
    pub hub_slots: Option<usize>,

    /// Where the values come from
    #[arg(skip)]
    pub sources: Sources,
}

/// Where a message is stored before its sender gets "sent".
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// On the disk. It survives a power failure
    Fsync,
    /// In the operating system. It survives a crash of this process, but not of the machine
    Os,
    /// In the memory of this process. It does not survive a restart
    Memory,
}

impl Level {
    /// The name on the wire and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::Os => "os",
            Self::Memory => "memory",
        }
    }
}

impl Config {
    /// Adds where the values come from and the secrets, and checks the settings against each other.
    ///
    /// # Errors
    /// Which settings exclude each other or a secret is where everyone can read it, or the file of a secret cannot be read.
    pub fn complete(&mut self, sources: Sources) -> Result<(), String> {
        self.sources = sources;
        #[cfg(feature = "nats")]
        let nats_token_file = self.cluster.nats_token_file.as_deref();
        #[cfg(not(feature = "nats"))]
        let nats_token_file = None;
        self.access.secrets = Secrets::read(nats_token_file)?;
        #[cfg(feature = "nats")]
        if self.cluster.nats_url.contains('@') && self.sources.is_flag("nats-url") {
            return Err("--nats-url holds a password, which everyone on this machine can read in a command line; set X0_MSG_NATS_URL, \
                        or write nats-url into the file of --config"
                .to_owned());
        }
        self.validate()
    }

    /// Checks settings against each other.
    ///
    /// # Errors
    /// Which settings exclude each other, and why.
    pub fn validate(&self) -> Result<(), String> {
        let Self { ttl, max_ttl, mailbox_bytes, max_payload, access, .. } = self;
        if access.tls_cert.is_some() != access.tls_key.is_some() {
            return Err("--tls-cert and --tls-key belong together; set both, or none".to_owned());
        }
        if ttl > max_ttl {
            let [ttl, max_ttl] = [ttl, max_ttl].map(|time| humantime::format_duration(*time));
            return Err(format!(
                "--ttl {ttl} is longer than --max-ttl {max_ttl}; raise --max-ttl, or lower --ttl"
            ));
        }
        if mailbox_bytes < max_payload {
            return Err(format!(
                "a payload of --max-payload {max_payload} bytes has no room in a mailbox of --mailbox-bytes \
                 {mailbox_bytes}; raise --mailbox-bytes, or lower --max-payload"
            ));
        }
        Ok(())
    }

    /// Whether messages are stored by this process. Otherwise by NATS.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        #[cfg(feature = "nats")]
        return self.cluster.engine == EngineKind::Embedded;
        #[cfg(not(feature = "nats"))]
        true
    }

    /// How long message ids of senders are remembered. NATS remembers those of all messages in memory, so it is shorter there.
    #[must_use]
    pub fn dedup_window(&self) -> Duration {
        const MINUTE: Duration = Duration::from_secs(60);
        #[cfg(feature = "nats")]
        let otherwise = match self.cluster.engine {
            EngineKind::Embedded => 15 * MINUTE,
            EngineKind::Nats => 2 * MINUTE,
        };
        #[cfg(not(feature = "nats"))]
        let otherwise = 15 * MINUTE;
        self.dedup_window.unwrap_or(otherwise)
    }

    /// What is set and has no effect, each with what would give it one.
    #[must_use]
    pub fn without_effect(&self) -> Vec<String> {
        let access = &self.access;
        let unused = [
            ("--token-key-file", !access.token_key_file.is_empty()),
            ("--token-jwks-url", access.token_jwks_url.is_some()),
            ("--token-audience", !access.token_audience.is_empty()),
            ("--token-issuer", !access.token_issuer.is_empty()),
            ("X0_MSG_TOKEN_SECRET", access.secrets.token.is_some()),
        ];
        let unused = unused.into_iter().filter(|(_, is_set)| *is_set && access.auth == Auth::Open);
        let text = |(name, _)| {
            format!("{name} has no effect: this broker is open to everyone; --auth token checks tokens")
        };
        unused.map(text).collect()
    }
}

/// A command line of settings alone.
#[derive(Debug, clap::Parser)]
struct Only {
    #[command(flatten)]
    config: Config,
}

impl Default for Config {
    fn default() -> Self {
        <Only as clap::Parser>::parse_from(["x0-msg-server"]).config
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    fn parse(flags: &[&str]) -> Result<Config, clap::Error> {
        Only::try_parse_from([&["x0-msg-server"], flags].concat()).map(|only| only.config)
    }

    #[test]
    fn flags_are_consistent_and_each_has_its_environment_variable() {
        let command = Only::command();
        command.clone().debug_assert();
        for flag in command.get_arguments() {
            let Some(long) = flag.get_long().filter(|long| *long != "help") else { continue };
            let variable = format!("X0_MSG_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(flag.get_env().and_then(|name| name.to_str()), Some(variable.as_str()), "--{long}");
            assert!(flag.get_help().is_some(), "--{long} explains itself");
        }
    }

    #[test]
    fn lists_are_separated_by_commas_or_repeated() {
        let config = parse(&["--allow-origin", "https://a.example,https://b.example", "--allow-origin", "*"]);
        assert_eq!(config.unwrap().access.allow_origin, ["https://a.example", "https://b.example", "*"]);
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let validate = |flags: &[&str]| parse(flags).unwrap().validate();
        for flags in [["--tls-cert", "cert.pem"], ["--tls-key", "key.pem"]] {
            assert!(validate(&flags).unwrap_err().contains("belong together"));
        }
        validate(&["--tls-cert", "cert.pem", "--tls-key", "key.pem"]).unwrap();
    }

    #[test]
    fn an_invalid_value_is_refused_with_its_flag() {
        for flags in [
            ["--ttl", "0s"],
            ["--max-payload", "1"],
            ["--auth", "none"],
            ["--trust-proxy", "x"],
            ["--listen", "x"],
            ["--mailbox-messages", "0"],
            ["--mailbox-bytes", "5"],
            ["--topic-messages", "none"],
            ["--topic-bytes", "1kB"],
            ["--max-topics", "0"],
            ["--append-queue", "0"],
            ["--store-limit", "5"],
            ["--send-rate", "fast"],
            ["--send-bytes-rate", "16M"],
            ["--log-level", "loud"],
        ] {
            let error = parse(&flags).unwrap_err().to_string();
            assert!(error.contains(flags[0]) && !error.contains("invalid digit"), "{error}");
        }
    }

    #[test]
    fn settings_that_exclude_each_other_are_refused() {
        parse(&[]).unwrap().validate().unwrap();
        let error = parse(&["--ttl", "31d"]).unwrap().validate().unwrap_err();
        assert!(error.contains("is longer than --max-ttl 30days"), "{error}");
        let error =
            parse(&["--mailbox-bytes", "1MiB", "--max-payload", "2MiB"]).unwrap().validate().unwrap_err();
        assert!(error.contains("--mailbox-bytes") && error.contains("--max-payload"), "{error}");
    }

    #[test]
    fn ids_are_remembered_for_as_long_as_the_engine_can() {
        assert_eq!(parse(&[]).unwrap().dedup_window().as_secs(), 900);
        assert_eq!(parse(&["--dedup-window", "3m"]).unwrap().dedup_window().as_secs(), 180);
        #[cfg(feature = "nats")]
        assert_eq!(parse(&["--engine", "nats"]).unwrap().dedup_window().as_secs(), 120);
    }

    #[test]
    fn keys_of_tokens_have_no_effect_in_open_mode_and_that_is_said() {
        let flags = ["--token-key-file", "key", "--token-issuer", "idp"];
        let said = parse(&flags).unwrap().without_effect();
        assert!(said[0].contains("--token-key-file") && said[1].contains("--token-issuer"), "{said:?}");
        assert_eq!(parse(&[&flags[..], &["--auth", "token"]].concat()).unwrap().without_effect(), [""; 0]);
    }
}
