//! The files of a store: what each is for, who may use them, and how their last user left them.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::embedded::disk::{Disk, FORMAT, WAL_BYTES};
use crate::engine::embedded::storage::{Durability, OpenError};

/// The files of a store.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) dir: PathBuf,
    pub(super) database: PathBuf,
    pub(super) wal: PathBuf,
    pub(super) shm: PathBuf,
    /// Says that this is a store, and of which format. Written last when a store is made.
    pub(super) marker: PathBuf,
    /// Held locked by the process that uses the store.
    pub(super) lock: PathBuf,
    /// A new database file of what was intact in a damaged one, to be put in its place.
    pub(super) salvaged: PathBuf,
    /// Room on a full disk for what SQLite needs to open the store.
    pub(super) reserve: PathBuf,
    /// Exists while a process uses the store: found at the start, that process did not end in order.
    pub(super) running: PathBuf,
}

impl Files {
    pub(super) fn of(dir: &Path) -> Self {
        let file = |name: &str| dir.join(name);
        Self {
            dir: dir.to_owned(),
            database: file("store.db"),
            wal: file("store.db-wal"),
            shm: file("store.db-shm"),
            marker: file("format"),
            lock: file("lock"),
            salvaged: file("store.salvaged"),
            reserve: file("reserve"),
            running: file("running"),
        }
    }

    /// Takes the store for this process.
    pub(super) fn lock(&self) -> Result<File, OpenError> {
        let file = File::options().create(true).truncate(false).write(true).open(&self.lock);
        let file = file.map_err(|error| self.io("open", &self.lock, error))?;
        // `check` holds it for a moment.
        for _ in 0..10 {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(30)),
                Err(TryLockError::Error(error)) => return Err(self.io("lock", &self.lock, error)),
            }
        }
        Err(OpenError::InUse { dir: self.dir.clone() })
    }

    pub(super) fn io(&self, what: &'static str, path: &Path, error: io::Error) -> OpenError {
        OpenError::Io { what, path: path.to_owned(), error }
    }

    /// Writes a small file that is there as a whole or not at all.
    pub(super) fn write(&self, path: &Path, text: &str) -> Result<(), OpenError> {
        let new = path.with_extension("new");
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, path)
        });
        written.and_then(|()| sync_dir(&self.dir)).map_err(|error| self.io("write", path, error))
    }

    /// The format that the marker names, if there is one.
    pub(super) fn format(&self) -> Result<Option<i64>, OpenError> {
        let text = match fs::read_to_string(&self.marker) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // Not text: damaged. The database has the number too.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(Some(FORMAT)),
            Err(error) => return Err(self.io("read", &self.marker, error)),
        };
        let number = text.trim().strip_prefix(MARKER).and_then(|number| number.trim().parse().ok());
        Ok(Some(number.unwrap_or(FORMAT)))
    }
}

pub(super) const MARKER: &str = "x0-msg-server store, format";

/// What the file `running` holds.
#[derive(Debug, Serialize, Deserialize, Default)]
pub(super) struct Running {
    /// How long the write-ahead log was made, in bytes.
    pub(super) wal: u64,
    /// The level that was in force.
    pub(super) durability: String,
    /// Which start of the machine it was.
    pub(super) boot: String,
}

pub(super) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes the log as long as it is going to be, and notes that the store is in use.
pub(super) fn begin(files: &Files, disk: &Disk, durability: Durability) {
    // A log that a crash left gets another name, so to speak: what was unfinished in it is not met again.
    if let Err(error) = disk.restart_log() {
        tracing::warn!(%error, "the write-ahead log cannot be copied into the database now");
    }
    // The first commit makes the log.
    let made = disk.connection().execute_batch("BEGIN IMMEDIATE; UPDATE state SET crc = crc; COMMIT");
    if let Err(error) = made {
        tracing::warn!(%error, "the store cannot be written to now; it is going to be tried again");
    }
    let length = match lengthen(&files.wal) {
        Ok(()) => WAL_BYTES,
        Err(error) => {
            tracing::warn!(%error, path = %files.wal.display(), "no room to prepare the write-ahead log");
            0
        }
    };
    if let Err(error) = set_aside(&files.reserve) {
        tracing::warn!(%error, path = %files.reserve.display(), "no room is kept for the next start");
    }
    if let Err(error) = note_running(files, length, durability) {
        // Without it, a cut log is not noticed: a lesser evil than not to start on a full disk.
        tracing::warn!(%error, "this run cannot be noted");
    }
}

fn note_running(files: &Files, wal: u64, durability: Durability) -> Result<(), OpenError> {
    let running = Running { wal, durability: durability.name().to_owned(), boot: boot() };
    let text = serde_json::to_string(&running).expect("strings and numbers always encode");
    files.write(&files.running, &text)
}

fn lengthen(wal: &Path) -> io::Result<()> {
    let mut file = File::options().append(true).open(wal)?;
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

fn set_aside(reserve: &Path) -> io::Result<()> {
    let written = File::create(reserve).and_then(|mut file| file.write_all(&vec![0; RESERVE]));
    if written.is_err() {
        remove(reserve)?;
    }
    written
}

/// Notes that the log is about to go.
pub(super) fn ending(files: &Files, durability: Durability) -> io::Result<()> {
    note_running(files, 0, durability).map_err(io::Error::other)
}

/// Notes that the store was left in order, if it was: SQLite says nothing when somebody still reads the log.
pub(super) fn end(files: &Files) -> io::Result<()> {
    if files.wal.exists() {
        return Err(io::Error::other("store.db-wal is still in use"));
    }
    remove(&files.running)?;
    sync_dir(&files.dir)
}
