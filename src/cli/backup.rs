//! `backup` and `restore`: copies of a store.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::cli::check::text;
use crate::cli::say::print;
#[cfg(feature = "nats")]
use crate::config::EngineKind;
use crate::engine::embedded::{back_up, restore as put_back};

/// Settings of `backup` and `restore`.
#[derive(Debug, Clone, Args)]
pub struct BackupArgs {
    /// Directory of the copy. `backup` makes it
    dir: PathBuf,
    /// Directory of the store
    #[arg(long, env = "X0_MSG_DATA_DIR", value_name = "DIR", default_value = "./x0-msg-data")]
    data_dir: PathBuf,
    /// File of settings (TOML), of which `data-dir` counts [default: /etc/x0-msg-server.toml, if it exists]
    #[arg(id = "config_file", long = "config", env = "X0_MSG_CONFIG", value_name = "FILE")]
    _file: Option<PathBuf>,
    /// What stores messages
    #[cfg(feature = "nats")]
    #[arg(long, env = "X0_MSG_ENGINE", value_enum, default_value_t = EngineKind::Embedded, hide = true)]
    engine: EngineKind,
}

/// Copies the store, also of a running broker, verifies the copy, and prints what it holds.
///
/// # Errors
/// There is no store, or the directory holds something, or messages are stored elsewhere.
pub fn backup(args: &BackupArgs) -> Result<()> {
    args.refuse_elsewhere()?;
    print(text(&back_up(&args.data_dir, &args.dir)?).trim_end())
}

/// Puts a copy in the place of a store, and prints what it holds.
///
/// # Errors
/// It is not intact, or there is a store already, or messages are stored elsewhere.
pub fn restore(args: &BackupArgs) -> Result<()> {
    args.refuse_elsewhere()?;
    print(text(&put_back(&args.dir, &args.data_dir)?).trim_end())?;
    print(
        "the next start begins a new epoch: clients learn that messages may be missing, and read on from the beginning",
    )
}

impl BackupArgs {
    #[cfg(feature = "nats")]
    fn refuse_elsewhere(&self) -> Result<()> {
        if self.engine == EngineKind::Nats {
            anyhow::bail!(
                "messages are stored by NATS; `nats stream backup` and `nats stream restore` copy its streams, all of one prefix together"
            );
        }
        Ok(())
    }

    #[cfg(not(feature = "nats"))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "with NATS it is used, and may fail")]
    fn refuse_elsewhere(&self) -> Result<()> {
        Ok(())
    }
}
