//! `migrate`: moves a store into NATS.

use std::io::IsTerminal;

use anyhow::{Result, bail};

use crate::cli::say::{note, print};
use crate::clock::Clock;
use crate::config::{Config, EngineKind, Level};
use crate::engine::nats::{Migrated, migrate as move_store};
use crate::server::{engine_settings, nats_options};

/// Moves the store of one machine into empty streams of NATS, and prints what was moved.
///
/// # Errors
/// The store is in use or damaged, NATS cannot be used, the streams hold something, or it does not fit. The store stays as it
/// is. After an interruption the same command goes on.
pub async fn migrate(mut config: Config) -> Result<()> {
    // The streams are made as the nodes will want them.
    config.cluster.engine = EngineKind::Nats;
    if config.durability == Level::Memory {
        bail!("--durability memory has no store to move");
    }
    let dir = config.data_dir.clone();
    let (settings, options) = (engine_settings(&config, Clock::Wall), nats_options(&config));
    let is_seen = std::io::stderr().is_terminal();
    let migrated = move_store(&dir, settings, options, |done, all| {
        if is_seen {
            note(format_args!("{done} of {all}"));
        }
    });
    print(text(&migrated.await?).trim_end())
}

fn text(migrated: &Migrated) -> String {
    let Migrated { counts, stored, expired, acknowledged, beyond, receipts, with_receipt, scheduled } =
        migrated;
    let mut text = format!("{:<16} {:>10} {:>10}\n", "", "to move", "in NATS");
    for (what, wanted, found) in counts {
        text += &format!("{what:<16} {wanted:>10} {found:>10}\n");
    }
    text += &format!(
        "{with_receipt} messages whose senders get a receipt, {scheduled} of them at expiry even if nobody reads; {receipts} \
         receipts were made now\n"
    );
    text += &format!(
        "{stored} messages in the store; not moved: {expired} expired, {acknowledged} acknowledged, {beyond} beyond \
         --topic-messages\n"
    );
    text
}
