//! Settings of several machines.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::config::parse::{at_least_one, file, name_part};

/// What stores messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// This process, in `--data-dir`
    Embedded,
    /// NATS JetStream, which several nodes share
    Nats,
}

/// Settings of several machines.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster")]
pub struct Cluster {
    /// What stores messages
    #[arg(long, env = "X0_MSG_ENGINE", value_name = "ENGINE", value_enum, default_value_t = EngineKind::Embedded)]
    pub engine: EngineKind,

    /// Addresses of NATS servers, like nats://a:4222,tls://b:4222. With a password in them, they are no flag: set
    /// X0_MSG_NATS_URL or write them into the file of --config
    #[arg(
        long,
        env = "X0_MSG_NATS_URL",
        value_name = "URL",
        default_value = "nats://127.0.0.1:4222",
        hide_env_values = true
    )]
    pub nats_url: String,

    /// File with the credentials of the NATS account
    #[arg(long, env = "X0_MSG_NATS_CREDS", value_name = "FILE", value_parser = file)]
    pub nats_creds: Option<PathBuf>,

    /// File with the token of the NATS servers. X0_MSG_NATS_TOKEN may hold it instead
    #[arg(long, env = "X0_MSG_NATS_TOKEN_FILE", value_name = "FILE", value_parser = file)]
    pub nats_token_file: Option<PathBuf>,

    /// Name of this node, which clients are told in `welcome` [default: a random one]
    #[arg(long, env = "X0_MSG_NATS_NODE", value_name = "NAME", value_parser = name_part)]
    pub nats_node: Option<String>,

    /// What the names of streams and subjects begin with. Nodes with the same prefix form a cluster
    #[arg(long, env = "X0_MSG_NATS_PREFIX", value_name = "NAME", default_value = "x0", value_parser = name_part)]
    pub nats_prefix: String,

    /// On how many NATS servers each message is stored. With 1, a message is lost with the disk of its server
    #[arg(long, env = "X0_MSG_NATS_REPLICAS", value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    pub nats_replicas: usize,

    /// Make streams anew that are missing. What they held is lost. The first node of a cluster makes them without this
    #[arg(long, env = "X0_MSG_NATS_CREATE")]
    pub nats_create: bool,
}
