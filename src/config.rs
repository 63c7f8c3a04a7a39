//! All settings with their units and defaults. A flag overrides its `X0_MSG_*` environment variable.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

mod access;
mod listen;
mod parse;

use parse::{above_zero, budget_size, payload_size, size};

pub use access::{Access, Auth, ProxyHeader, Secret, Secrets};
pub use listen::Listen;

/// Settings of `serve`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
pub struct Config {
    /// Address and port to listen on; `localhost:8080` or `8080` for this machine only, `:8080` for all addresses. Port 0
    /// picks a free port and logs it
    #[arg(long, env = "X0_MSG_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: Listen,

    /// Directory of the store. It is created if it does not exist. `--durability memory` does not use it
    #[arg(long, env = "X0_MSG_DATA_DIR", value_name = "DIR", default_value = "./x0-msg-data")]
    pub data_dir: PathBuf,

    /// Where a message is stored before its sender gets "sent"
    #[arg(long, env = "X0_MSG_DURABILITY", value_name = "LEVEL", value_enum, default_value_t = Level::Fsync)]
    pub durability: Level,

    /// How long a legacy long-poll waits for a message before it gets an empty answer
    #[arg(long, env = "X0_MSG_POLL_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = above_zero)]
    pub poll_timeout: Duration,

    /// Interval of pings. A connection without any frame for two intervals is closed
    #[arg(long, env = "X0_MSG_HEARTBEAT", value_name = "TIME", default_value = "25s", value_parser = above_zero)]
    pub heartbeat: Duration,

    /// How long a WebSocket may take to send `hello`
    #[arg(long, env = "X0_MSG_HELLO_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = above_zero)]
    pub hello_timeout: Duration,

    /// How long the headers of a request may take. Also how long a connection may idle between requests
    #[arg(long, env = "X0_MSG_HEADER_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = above_zero)]
    pub header_timeout: Duration,

    /// How long a stop waits for connections to end
    #[arg(long, env = "X0_MSG_DRAIN_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = above_zero)]
    pub drain_timeout: Duration,

    /// Largest payload of a message, in bytes
    #[arg(long, env = "X0_MSG_MAX_PAYLOAD", value_name = "BYTES", default_value_t = 1 << 20, value_parser = payload_size, help_heading = "Limits")]
    pub max_payload: usize,

    /// Most unread messages of one session. Further messages are refused
    #[arg(
        long,
        env = "X0_MSG_MAILBOX_MESSAGES",
        value_name = "N",
        default_value_t = 10_000,
        help_heading = "Limits"
    )]
    pub mailbox_messages: usize,

    /// Most unread bytes of one session. Further messages are refused
    #[arg(long, env = "X0_MSG_MAILBOX_BYTES", value_name = "BYTES", default_value_t = 64 << 20, value_parser = size, help_heading = "Limits")]
    pub mailbox_bytes: usize,

    /// Most messages in the history of a topic
    #[arg(
        long,
        env = "X0_MSG_TOPIC_MESSAGES",
        value_name = "N",
        default_value_t = 1_000,
        help_heading = "Limits"
    )]
    pub topic_messages: usize,

    /// Most bytes in the history of a topic
    #[arg(long, env = "X0_MSG_TOPIC_BYTES", value_name = "BYTES", default_value_t = 16 << 20, value_parser = size, help_heading = "Limits")]
    pub topic_bytes: usize,

    /// How long a message stays in the history of a topic
    #[arg(long, env = "X0_MSG_TOPIC_AGE", value_name = "TIME", default_value = "24h", value_parser = above_zero, help_heading = "Limits")]
    pub topic_age: Duration,

    /// How long an unread message is stored if its sender names no ttl
    #[arg(long, env = "X0_MSG_TTL", value_name = "TIME", default_value = "7d", value_parser = above_zero, help_heading = "Limits")]
    pub ttl: Duration,

    /// Longest ttl of a message, and of a session that a backend registers
    #[arg(long, env = "X0_MSG_MAX_TTL", value_name = "TIME", default_value = "30d", value_parser = above_zero, help_heading = "Limits")]
    pub max_ttl: Duration,

    /// Most topics one connection may read
    #[arg(long, env = "X0_MSG_MAX_TOPICS", value_name = "N", default_value_t = 128, help_heading = "Limits")]
    pub max_topics: usize,

    /// How long message ids of senders are remembered. A retry within this time is not stored again
    #[arg(long, env = "X0_MSG_DEDUP_WINDOW", value_name = "TIME", default_value = "2m", value_parser = above_zero, help_heading = "Limits")]
    pub dedup_window: Duration,

    /// Most bytes of all stored messages together [default: 1 GiB in memory, 4 GiB on disk]
    #[arg(long, env = "X0_MSG_STORE_LIMIT", value_name = "BYTES", value_parser = size, help_heading = "Limits")]
    pub store_limit: Option<usize>,

    /// Most bytes of all clients together that are being received or wait to be written, like 64MiB [default: a quarter of the
    /// memory of the machine or of the control group, at most 1 GiB]. Large messages wait or are refused beyond
    #[arg(long, env = "X0_MSG_MEMORY_BUDGET", value_name = "BYTES", value_parser = budget_size, help_heading = "Limits")]
    pub memory_budget: Option<usize>,

    /// Most messages that wait to be written to the disk. Further messages are refused with `overloaded`
    #[arg(
        long,
        env = "X0_MSG_APPEND_QUEUE",
        value_name = "N",
        default_value_t = 16_384,
        help_heading = "Limits"
    )]
    pub append_queue: usize,

    /// Who may use this server
    #[command(flatten)]
    pub access: Access,

    /// Slots of the broadcast channel of each address
    #[arg(long, env = "X0_MSG_HUB_SLOTS", value_name = "N", default_value_t = 16, hide = true)]
    pub hub_slots: usize,
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

impl Default for Config {
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Only {
            #[command(flatten)]
            config: Config,
        }
        <Only as clap::Parser>::parse_from(["x0-msg-server"]).config
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Serve {
        #[command(flatten)]
        config: Config,
    }

    fn parse(flags: &[&str]) -> Result<Config, clap::Error> {
        Serve::try_parse_from([&["x0-msg-server"], flags].concat()).map(|serve| serve.config)
    }

    #[test]
    fn flags_are_consistent_and_each_has_its_environment_variable() {
        let command = Serve::command();
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
        assert!(parse(&["--tls-cert", "cert.pem"]).unwrap_err().to_string().contains("--tls-key"));
        assert!(parse(&["--tls-key", "key.pem"]).unwrap_err().to_string().contains("--tls-cert"));
        parse(&["--tls-cert", "cert.pem", "--tls-key", "key.pem"]).unwrap();
    }

    #[test]
    fn an_invalid_value_is_refused_with_its_flag() {
        for flags in [
            ["--ttl", "0s"],
            ["--max-payload", "1"],
            ["--auth", "none"],
            ["--trust-proxy", "x"],
            ["--listen", "x"],
        ] {
            let error = parse(&flags).unwrap_err().to_string();
            assert!(error.contains(flags[0]), "{error}");
        }
    }
}
