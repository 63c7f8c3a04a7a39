//! What the files say about the end of the last process, before SQLite touches them.

use std::fs;

use crate::engine::embedded::files::Files;
use crate::engine::embedded::running::Running;
use crate::engine::embedded::storage::{Durability, OpenError};
use crate::engine::embedded::wal::{self, Wal};

/// What the files say about the end of the last process.
#[derive(Debug, Default)]
pub(super) struct CrashFindings {
    /// Why confirmed messages may be missing, if they may.
    pub(super) lost: Option<String>,
    /// Whether the log is damaged: SQLite would read a part of it and overwrite the rest.
    pub(super) log_is_damaged: bool,
    /// Whether the last process did not end in order.
    pub(super) crashed: bool,
}

/// Looks at the log and the note of the last process.
pub(super) fn inspect_after_crash(files: &Files) -> Result<CrashFindings, OpenError> {
    let wal = wal::inspect(&files.wal).map_err(|error| files.io("read", &files.wal, error))?;
    let length = fs::metadata(&files.wal).map_or(0, |data| data.len());
    let running = Running::read(files)?;
    let mut findings = judge(running.as_ref(), wal, length);
    findings.crashed = running.is_some();
    Ok(findings)
}

fn judge(running: Option<&Running>, wal: Wal, length: u64) -> CrashFindings {
    let level_was = |level: Durability| running.is_some_and(|running| running.durability == level.name());
    let rebooted = running.is_some_and(Running::rebooted);
    let expected = running.map_or(0, |running| running.wal);
    let lost = |why: String| CrashFindings { lost: Some(why), ..CrashFindings::default() };
    let damaged = |why: String| CrashFindings { log_is_damaged: true, ..lost(why) };
    match wal {
        // A stop of the machine leaves an unfinished write on the disk in any order.
        Wal::Damaged { confirmed: false, .. }
            if rebooted && level_was(Durability::Fsync) && length >= expected =>
        {
            tracing::warn!("the last write was not finished; it was never confirmed and is cut off");
            CrashFindings::default()
        }
        Wal::Damaged { at, .. } => damaged(format!("store.db-wal is damaged at byte {at}")),
        _ if length < expected && length == 0 => lost("store.db-wal is missing".to_owned()),
        _ if length < expected => {
            damaged(format!("store.db-wal was cut short: {length} bytes of at least {expected}"))
        }
        _ if rebooted && level_was(Durability::Os) => lost(
            "the machine stopped while the level was `os`, which keeps nothing safe from that".to_owned(),
        ),
        Wal::Torn { pages } => {
            tracing::warn!(pages, "the last write was not finished; it was never confirmed and is cut off");
            CrashFindings::default()
        }
        _ => CrashFindings::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(running: Option<(u64, Durability, bool)>, wal: Wal, length: u64) -> (Option<String>, bool) {
        let running = running.map(|(wal, durability, rebooted)| {
            let mut running = Running::now(wal, durability);
            if rebooted {
                running.boot = "another start".to_owned();
            }
            running
        });
        let findings = judge(running.as_ref(), wal, length);
        (findings.lost, findings.log_is_damaged)
    }

    const FSYNC: Option<(u64, Durability, bool)> = Some((100, Durability::Fsync, false));
    const FSYNC_REBOOTED: Option<(u64, Durability, bool)> = Some((100, Durability::Fsync, true));
    const OS_REBOOTED: Option<(u64, Durability, bool)> = Some((100, Durability::Os, true));

    #[test]
    fn an_unfinished_write_is_no_loss() {
        for running in [None, FSYNC, FSYNC_REBOOTED] {
            assert_eq!(judged(running, Wal::Torn { pages: 2 }, 100), (None, false));
            assert_eq!(judged(running, Wal::Whole, 100), (None, false));
        }
        let half_written = Wal::Damaged { at: 7, confirmed: false };
        assert_eq!(judged(FSYNC_REBOOTED, half_written, 100), (None, false), "in any order");
    }

    #[test]
    fn damage_to_the_log_is_a_loss() {
        for (running, confirmed) in
            [(None, false), (FSYNC, false), (FSYNC_REBOOTED, true), (OS_REBOOTED, false)]
        {
            let found = judged(running, Wal::Damaged { at: 7, confirmed }, 100);
            assert_eq!(found, (Some("store.db-wal is damaged at byte 7".to_owned()), true));
        }
    }

    #[test]
    fn a_log_that_is_shorter_than_it_was_made_is_a_loss() {
        let (lost, damaged) = judged(FSYNC, Wal::Empty, 0);
        assert_eq!((lost.unwrap().as_str(), damaged), ("store.db-wal is missing", false));
        let (lost, damaged) = judged(FSYNC, Wal::Whole, 99);
        assert!(lost.unwrap().contains("cut short: 99 bytes of at least 100") && damaged);
        assert_eq!(judged(None, Wal::Empty, 0), (None, false), "it ended in order");
    }

    #[test]
    fn the_level_os_is_not_safe_from_a_stop_of_the_machine() {
        assert!(judged(OS_REBOOTED, Wal::Whole, 100).0.unwrap().contains("`os`"));
        assert_eq!(judged(Some((100, Durability::Os, false)), Wal::Whole, 100), (None, false));
    }
}
