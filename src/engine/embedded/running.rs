//! Notes in the file `running` that a process uses the store, and how: the next start reads it after a crash.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::engine::embedded::disk::Disk;
use crate::engine::embedded::disk::open::WAL_BYTES;
use crate::engine::embedded::files::{Files, sync_dir};
use crate::engine::embedded::private::{self, remove};
use crate::engine::embedded::rows::clock::ClockReading;
use crate::engine::embedded::storage::{Durability, OpenError};

/// What the file `running` holds.
#[derive(Debug, Serialize, Deserialize, Default)]
pub(super) struct Running {
    /// The length that the write-ahead log was made, in bytes. Zero if it has no fixed length.
    pub(super) wal: u64,
    /// The durability level.
    pub(super) durability: String,
    /// Identifies the start of the machine.
    pub(super) boot: String,
}

impl Running {
    /// What this process notes about a log of this length.
    pub(super) fn now(wal: u64, durability: Durability) -> Self {
        Self { wal, durability: durability.name().to_owned(), boot: boot() }
    }

    /// What the last process noted; `None` if it ended in order.
    pub(super) fn read(files: &Files) -> Result<Option<Self>, OpenError> {
        match fs::read(&files.running) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or_default())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(files.io("read", &files.running, error)),
        }
    }

    /// Whether the machine was started again since then.
    pub(super) fn rebooted(&self) -> bool {
        self.boot != boot()
    }
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Makes the log as long as it is going to be and notes that the store is in use, and what the clocks show.
pub(super) fn begin(files: &Files, disk: &Disk, durability: Durability, clock: ClockReading) {
    // Restarts the log, so that leftover frames get a different salt and are never replayed.
    if let Err(error) = disk.restart_log() {
        tracing::warn!(%error, "the write-ahead log cannot be copied into the database now");
    }
    // The first commit makes the log.
    if let Err(error) = clock.write(disk.connection()) {
        tracing::warn!(%error, "the store cannot be written to now; the writer tries again");
    }
    let length = match lengthen(&files.wal) {
        Ok(()) => WAL_BYTES,
        Err(error) => {
            tracing::warn!(%error, path = %files.wal.display(), "no room to prepare the write-ahead log");
            0
        }
    };
    if let Err(error) = reserve_room(&files.reserve) {
        tracing::warn!(%error, path = %files.reserve.display(), "no room is kept for the next start");
    }
    if let Err(error) = note_running(files, length, durability) {
        // Without the note a cut log is not noticed. On a full disk that is better than not to start.
        tracing::warn!(%error, "the file `running` cannot be written");
    }
}

fn note_running(files: &Files, wal: u64, durability: Durability) -> Result<(), OpenError> {
    let running = Running::now(wal, durability);
    let text = serde_json::to_string(&running).expect("strings and numbers always encode");
    files.write(&files.running, &text)
}

fn lengthen(wal: &Path) -> io::Result<()> {
    let mut file = private::options().append(true).open(wal)?;
    let length = file.metadata()?.len();
    let zeros = vec![0; 1 << 18];
    let mut missing = WAL_BYTES.saturating_sub(length);
    while missing > 0 {
        let slice = usize::try_from(missing).unwrap_or(usize::MAX).min(zeros.len());
        if let Err(error) = file.write_all(&zeros[..slice]) {
            file.set_len(length)?;
            return Err(error);
        }
        missing -= slice as u64;
    }
    file.sync_all()
}

/// Room kept for the next start, in bytes.
const RESERVE: usize = 1 << 20;

fn reserve_room(reserve: &Path) -> io::Result<()> {
    let written = private::create(reserve).and_then(|mut file| file.write_all(&vec![0; RESERVE]));
    if written.is_err() {
        remove(reserve)?;
    }
    written
}

/// Notes that the log is about to be removed.
pub(super) fn ending(files: &Files, durability: Durability) -> io::Result<()> {
    note_running(files, 0, durability).map_err(io::Error::other)
}

/// Notes that the store was left in order.
///
/// # Errors
/// The log is still there: another connection reads it, and SQLite does not report that.
pub(super) fn end(files: &Files) -> io::Result<()> {
    if files.wal.exists() {
        return Err(io::Error::other("store.db-wal is still in use"));
    }
    remove(&files.running)?;
    sync_dir(&files.dir)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::engine::embedded::crash::inspect_after_crash;
    use crate::engine::embedded::fixture::{commit, open};

    #[test]
    fn a_running_store_has_its_log_at_full_length_and_a_note() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(dir.path());
        let mut opened = open(dir.path()).unwrap();
        commit(&mut opened, 3, &[]);
        assert_eq!(fs::metadata(&files.wal).unwrap().len(), WAL_BYTES);
        let running = Running::read(&files).unwrap().unwrap();
        assert_eq!(
            (running.wal, running.durability.as_str(), running.rebooted()),
            (WAL_BYTES, "fsync", false)
        );
        assert_eq!(fs::metadata(&files.reserve).unwrap().len(), RESERVE as u64);
        drop(opened);
        let findings = inspect_after_crash(&files).unwrap();
        assert!(findings.crashed && findings.lost.is_none());
        File::options().write(true).open(&files.wal).unwrap().set_len(WAL_BYTES / 2).unwrap();
        let findings = inspect_after_crash(&files).unwrap();
        assert!(findings.log_is_damaged && findings.lost.unwrap().contains("cut short"));
    }

    #[test]
    fn an_end_in_order_leaves_neither_log_nor_note() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(dir.path());
        let opened = open(dir.path()).unwrap();
        ending(&files, Durability::Fsync).unwrap();
        assert!(end(&files).is_err(), "the log is still in use");
        opened.disk.close(opened.clock.reading()).unwrap();
        end(&files).unwrap();
        assert!(!files.wal.exists() && Running::read(&files).unwrap().is_none());
        assert!(!inspect_after_crash(&files).unwrap().crashed);
    }

    #[test]
    fn a_damaged_note_still_says_that_the_process_did_not_end_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(dir.path());
        fs::write(&files.running, "{").unwrap();
        let running = Running::read(&files).unwrap().unwrap();
        assert_eq!((running.wal, running.durability.as_str()), (0, ""));
    }
}
