//! Every setting with its unit and default. Flags win over `X0_MSG_*` environment variables.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

mod access;
mod parse;

use parse::{above_zero, payload_size};

pub use access::{Access, Auth, ProxyHeader, Secret, Secrets};

/// Settings of `serve`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
pub struct Config {
    /// Address and port to listen on; port 0 picks a free one, which is logged
    #[arg(long, env = "X0_MSG_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Directory of the store; made if it is not there. Not used by `--durability memory`
    #[arg(long, env = "X0_MSG_DATA_DIR", value_name = "DIR", default_value = "./x0-msg-data")]
    pub data_dir: PathBuf,

    /// What a message must have reached before its sender is told "sent"
    #[arg(long, env = "X0_MSG_DURABILITY", value_name = "LEVEL", value_enum, default_value_t = Level::Fsync)]
    pub durability: Level,

    /// How long a legacy long-poll waits for a message before it is answered empty
    #[arg(long, env = "X0_MSG_POLL_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = above_zero)]
    pub poll_timeout: Duration,

    /// How often WebSockets are pinged; a peer silent for twice as long is closed
    #[arg(long, env = "X0_MSG_HEARTBEAT", value_name = "TIME", default_value = "25s", value_parser = above_zero)]
    pub heartbeat: Duration,

    /// How long a WebSocket may take to say hello
    #[arg(long, env = "X0_MSG_HELLO_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = above_zero)]
    pub hello_timeout: Duration,

    /// How long a request may take to send its headers, and a connection may idle between requests
    #[arg(long, env = "X0_MSG_HEADER_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = above_zero)]
    pub header_timeout: Duration,

    /// How long a graceful stop waits for connections to finish
    #[arg(long, env = "X0_MSG_DRAIN_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = above_zero)]
    pub drain_timeout: Duration,

    /// Largest payload of a message, in bytes
    #[arg(long, env = "X0_MSG_MAX_PAYLOAD", value_name = "BYTES", default_value_t = 1 << 20, value_parser = payload_size, help_heading = "Limits")]
    pub max_payload: usize,

    /// Most unread messages of one session; further senders are refused
    #[arg(
        long,
        env = "X0_MSG_MAILBOX_MESSAGES",
        value_name = "N",
        default_value_t = 10_000,
        help_heading = "Limits"
    )]
    pub mailbox_messages: usize,

    /// Most unread bytes of one session; further senders are refused
    #[arg(long, env = "X0_MSG_MAILBOX_BYTES", value_name = "BYTES", default_value_t = 64 << 20, help_heading = "Limits")]
    pub mailbox_bytes: usize,

    /// Most messages a topic's history keeps
    #[arg(
        long,
        env = "X0_MSG_TOPIC_MESSAGES",
        value_name = "N",
        default_value_t = 1_000,
        help_heading = "Limits"
    )]
    pub topic_messages: usize,

    /// Most bytes a topic's history keeps
    #[arg(long, env = "X0_MSG_TOPIC_BYTES", value_name = "BYTES", default_value_t = 16 << 20, help_heading = "Limits")]
    pub topic_bytes: usize,

    /// How long a topic's history keeps a message
    #[arg(long, env = "X0_MSG_TOPIC_AGE", value_name = "TIME", default_value = "24h", value_parser = above_zero, help_heading = "Limits")]
    pub topic_age: Duration,

    /// How long an unread message is kept whose sender names no ttl
    #[arg(long, env = "X0_MSG_TTL", value_name = "TIME", default_value = "7d", value_parser = above_zero, help_heading = "Limits")]
    pub ttl: Duration,

    /// Longest ttl a sender may name, or a backend for a session
    #[arg(long, env = "X0_MSG_MAX_TTL", value_name = "TIME", default_value = "30d", value_parser = above_zero, help_heading = "Limits")]
    pub max_ttl: Duration,

    /// Most topics one connection may read
    #[arg(long, env = "X0_MSG_MAX_TOPICS", value_name = "N", default_value_t = 128, help_heading = "Limits")]
    pub max_topics: usize,

    /// How long a sender's message id is remembered, so that a retry is stored once
    #[arg(long, env = "X0_MSG_DEDUP_WINDOW", value_name = "TIME", default_value = "2m", value_parser = above_zero, help_heading = "Limits")]
    pub dedup_window: Duration,

    /// Most bytes of stored messages of all sessions and topics together [default: 1 GiB in memory, 4 GiB on disk]
    #[arg(long, env = "X0_MSG_STORE_LIMIT", value_name = "BYTES", help_heading = "Limits")]
    pub store_limit: Option<usize>,

    /// Most messages that wait to be written to the disk; further senders are told `overloaded`
    #[arg(
        long,
        env = "X0_MSG_APPEND_QUEUE",
        value_name = "N",
        default_value_t = 16_384,
        help_heading = "Limits"
    )]
    pub append_queue: usize,

    /// Who may come in
    #[command(flatten)]
    pub access: Access,

    /// Slots of the live channel of each address
    #[arg(long, env = "X0_MSG_HUB_SLOTS", value_name = "N", default_value_t = 16, hide = true)]
    pub hub_slots: usize,
}

/// What a message must have reached before its sender is told "sent".
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// The disk: it survives anything short of losing that
    Fsync,
    /// The operating system: it survives the end of this process, not of the machine
    Os,
    /// The memory of this process: it survives nothing
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
