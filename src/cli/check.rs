//! `check`: verifies a store and prints what it holds.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::Args;

use crate::cli::say::print;
use crate::edge::encode;
use crate::engine::embedded::{Report, report};

/// Settings of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Directory of the store
    #[arg(long, env = "X0_MSG_DATA_DIR", value_name = "DIR", default_value = "./x0-msg-data")]
    data_dir: PathBuf,
    /// File of settings (TOML), of which `data-dir` counts [default: /etc/x0-msg-server.toml, if it exists]
    #[arg(id = "config_file", long = "config", env = "X0_MSG_CONFIG", value_name = "FILE")]
    _file: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Verifies a store, changes nothing, and prints what it holds.
///
/// # Errors
/// There is no store, it cannot be read, or it is damaged.
pub fn check(args: &CheckArgs) -> Result<()> {
    let report = report(&args.data_dir)?;
    match args.json {
        true => print(encode(&report))?,
        false => print(text(&report).trim_end())?,
    }
    if !report.intact {
        bail!("the store in {} is damaged", args.data_dir.display());
    }
    Ok(())
}

pub(super) fn text(report: &Report) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push(format!("{name:<10} {value}\n"));
    line("store", if report.intact { "intact" } else { "DAMAGED" }.to_owned());
    if let Some(epoch) = &report.epoch {
        line("epoch", epoch.clone());
    }
    line("mailboxes", report.mailboxes.to_string());
    line("topics", report.topics.to_string());
    line("messages", report.messages.to_string());
    line("bytes", format!("{} of payloads, {} on disk", report.bytes, report.disk));
    if let Some(oldest) = report.oldest {
        let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(oldest));
        line("oldest", at.to_string());
    }
    for note in &report.notes {
        line("note", note.clone());
    }
    for problem in &report.problems {
        line("problem", problem.clone());
    }
    lines.concat()
}
