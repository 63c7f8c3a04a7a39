//! The files of a store: what each is for, and which process may use them.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::embedded::disk::open::FORMAT;
use crate::engine::embedded::file_id::FileId;
use crate::engine::embedded::private;
use crate::engine::embedded::rows::ReadError;
use crate::engine::embedded::storage::OpenError;

/// The text of the marker, before the format's number.
const MARKER: &str = "x0-msg-server store, format";

/// The files of a store.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) dir: PathBuf,
    pub(super) database: PathBuf,
    pub(super) wal: PathBuf,
    pub(super) shm: PathBuf,
    /// Undoes an unfinished change of the database while it has no write-ahead log yet.
    pub(super) journal: PathBuf,
    /// Says that the directory is a store, and its format. Written last when a store is made.
    pub(super) marker: PathBuf,
    /// Locked by the process that uses the store.
    pub(super) lock: PathBuf,
    /// A new database file with what was intact in a damaged one, ready to take its place.
    pub(super) salvaged: PathBuf,
    /// Keeps room on a full disk for the files that SQLite needs to open the store.
    pub(super) reserve: PathBuf,
    /// Exists while a process uses the store. Found at the start, it says that the last process did not end in order.
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
            journal: file("store.db-journal"),
            marker: file("format"),
            lock: file("lock"),
            salvaged: file("store.salvaged"),
            reserve: file("reserve"),
            running: file("running"),
        }
    }

    /// All files that a store can have.
    pub(super) fn all(&self) -> [&PathBuf; 9] {
        let Self { dir: _, database, wal, shm, journal, marker, lock, salvaged, reserve, running } = self;
        [database, wal, shm, journal, marker, lock, salvaged, reserve, running]
    }

    /// Whether a file holds nothing that a start needs.
    pub(super) fn can_be_made_again(&self, path: &Path) -> bool {
        [&self.shm, &self.lock, &self.reserve].into_iter().any(|file| file == path)
    }

    /// Takes the store for this process.
    pub(super) fn lock(&self) -> Result<File, OpenError> {
        let file = private::options().create(true).truncate(false).open(&self.lock);
        let file = file.map_err(|error| self.io("open", &self.lock, error))?;
        // `check` holds the lock for a moment.
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

    /// Writes a small file atomically: it is there as a whole or not at all.
    pub(super) fn write(&self, path: &Path, text: &str) -> Result<(), OpenError> {
        let new = path.with_extension("new");
        let written = private::create(&new).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, path)
        });
        written.and_then(|()| sync_dir(&self.dir)).map_err(|error| self.io("write", path, error))
    }

    /// The error for a store that is damaged beyond use.
    pub(super) fn damaged(&self, why: &dyn std::fmt::Display) -> OpenError {
        OpenError::Damaged { path: self.database.clone(), why: why.to_string() }
    }

    /// The error for SQLite's refusal to use the database.
    pub(super) fn sqlite(&self, error: rusqlite::Error) -> OpenError {
        OpenError::Sqlite { path: self.database.clone(), error }
    }

    /// The error for a database that is damaged, or cannot be read now.
    pub(super) fn unreadable(&self, error: ReadError) -> OpenError {
        let is_damage = error.is_damage();
        match error {
            ReadError::Sqlite(error) if !is_damage => self.sqlite(error),
            error => self.damaged(&error),
        }
    }

    /// Which file the database is.
    pub(super) fn id(&self) -> Result<FileId, OpenError> {
        let metadata = fs::metadata(&self.database);
        metadata.map(|data| FileId::of(&data)).map_err(|error| self.io("look at", &self.database, error))
    }

    /// Writes the marker: the directory is a store from here on.
    pub(super) fn mark(&self) -> Result<(), OpenError> {
        self.write(&self.marker, &format!("{MARKER} {FORMAT}\n"))
    }

    /// The format that the marker names, if there is one.
    pub(super) fn format(&self) -> Result<Option<i64>, OpenError> {
        let text = match fs::read_to_string(&self.marker) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // It is damaged: not text. The database has the number too.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(Some(FORMAT)),
            Err(error) => return Err(self.io("read", &self.marker, error)),
        };
        let number = text.trim().strip_prefix(MARKER).and_then(|number| number.trim().parse().ok());
        Ok(Some(number.unwrap_or(FORMAT)))
    }
}

/// Reads a database and its log as a whole.
///
/// SQLite reports a disk that cannot be read (`EIO`) as damage. Only what can be read is known to be damaged.
pub(super) fn try_read(database: &Path) -> io::Result<()> {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    for path in [database, Path::new(&log)] {
        match File::open(path) {
            Ok(mut file) => drop(io::copy(&mut file, &mut io::sink())?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Syncs a directory, so that files that were made or renamed in it are there after a stop of the machine.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_names_the_format_and_damage_to_it_is_not_another_format() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(dir.path());
        assert_eq!(files.format().unwrap(), None);
        files.mark().unwrap();
        assert_eq!(files.format().unwrap(), Some(FORMAT));
        for (text, format) in [("x0-msg-server store, format 7", 7), ("x0-msg", FORMAT)] {
            fs::write(&files.marker, text).unwrap();
            assert_eq!(files.format().unwrap(), Some(format));
        }
        fs::write(&files.marker, [0xff, 0xfe]).unwrap();
        assert_eq!(files.format().unwrap(), Some(FORMAT));
    }

    #[test]
    fn one_process_at_a_time_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(dir.path());
        let held = files.lock().unwrap();
        assert!(matches!(files.lock(), Err(OpenError::InUse { .. })));
        drop(held);
        files.lock().unwrap();
    }
}
