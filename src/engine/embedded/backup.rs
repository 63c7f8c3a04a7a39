//! Copies of a store, and their way back.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use rusqlite::Connection;

use crate::engine::embedded::crash::inspect_after_crash;
use crate::engine::embedded::disk::copy::copy_into;
use crate::engine::embedded::disk::open::FORMAT;
use crate::engine::embedded::files::{Files, sync_dir};
use crate::engine::embedded::report::{Report, is_in_use, open_unchanged, report};
use crate::engine::embedded::rows::ReadError;
use crate::engine::embedded::rows::store::StoreIdentity;
use crate::engine::embedded::storage::OpenError;
use crate::engine::embedded::{place, private};

/// The number of no file.
const NO_FILE: u64 = 0;

/// What a copy is called until it is complete. A start takes such a file for what an interrupted one has left.
const UNFINISHED: &str = "store.building";

/// Copies a store into a new or empty directory, as it is at one moment. A server may use it meanwhile: it does not wait. Returns what the
/// copy holds.
///
/// # Errors
/// There is no store, or a server must open it first. The directory holds something. Or the copy is not intact: then it is no store.
pub fn back_up(dir: &Path, to: &Path) -> Result<Report, OpenError> {
    let source = Files::of(&place::find(dir));
    if !source.database.exists() {
        return Err(OpenError::NoStore { dir: dir.to_owned() });
    }
    // Held while nobody else uses the store, so that no server begins to recover it.
    let lock = if is_in_use(&source) { None } else { Some(source.lock()?) };
    let unready = |why: String| OpenError::Unready { dir: dir.to_owned(), why };
    if lock.is_some() {
        let findings = inspect_after_crash(&source)?;
        if let Some(why) = findings.lost {
            return Err(unready(why));
        }
        if source.salvaged.exists() {
            return Err(unready("a recovery was interrupted".to_owned()));
        }
    }
    let connection = open_unchanged(&source, lock.is_none()).map_err(|error| source.sqlite(error))?;
    let format: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|error| source.sqlite(error))?;
    if format != FORMAT {
        return Err(unready(format!("it has format {format}, and this version copies format {FORMAT}")));
    }
    let target = empty_dir(to)?;
    // Of two that copy to the same place, the second one finds the place taken.
    let target_lock = target.lock()?;
    refuse_occupied(&target)?;
    let copied = copy(&connection, &target, target_lock);
    _ = private::remove(&target.lock);
    copied
}

/// Puts a copy of a store into `dir`, in which there must be none. Returns what it holds. The next start begins a new epoch: positions
/// after the copy was made are not those of this store.
///
/// # Errors
/// The copy is not intact, or there is a store already.
pub fn restore(from: &Path, dir: &Path) -> Result<Report, OpenError> {
    let source = Files::of(&place::find(from));
    if source.database.exists() && is_in_use(&source) {
        return Err(OpenError::InUse { dir: from.to_owned() });
    }
    let found = report(from)?;
    if !found.intact {
        return Err(source.damaged(&found.problems.join("; ")));
    }
    let target = Files::of(&place::prepare(dir)?);
    place::secure_lock(&target)?;
    let lock = target.lock()?;
    refuse_occupied(&target)?;
    // A directory that was copied while no server ran may have messages in its log only.
    let connection = open_unchanged(&source, false).map_err(|error| source.sqlite(error))?;
    copy(&connection, &target, lock)
}

fn refuse_occupied(target: &Files) -> Result<(), OpenError> {
    let files = [&target.database, &target.wal, &target.marker, &target.salvaged];
    match files.into_iter().any(|path| path.exists()) {
        true => Err(OpenError::Occupied { dir: target.dir.clone() }),
        false => Ok(()),
    }
}

/// The files of a store to be, in a directory that is made or empty.
fn empty_dir(dir: &Path) -> Result<Files, OpenError> {
    let failed = |what, error: io::Error| OpenError::Io { what, path: dir.to_owned(), error };
    match private::create_dir(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if fs::read_dir(dir).map_err(|error| failed("look into", error))?.next().is_some() {
                return Err(OpenError::Occupied { dir: dir.to_owned() });
            }
            private::narrow(dir).map_err(|error| failed("narrow", error))?;
        }
        Err(error) => return Err(failed("make the directory", error)),
    }
    Ok(Files::of(&dir.canonicalize().map_err(|error| failed("find", error))?))
}

/// Copies what a connection sees at one moment, makes a store of it, and verifies that. Nobody else may use it before.
fn copy(from: &Connection, to: &Files, lock: File) -> Result<Report, OpenError> {
    let unfinished = to.dir.join(UNFINISHED);
    let copied = copy_into(from, &unfinished).map_err(|error| to.sqlite(error)).and_then(|()| {
        become_a_copy(&unfinished).map_err(|error| to.unreadable(error))?;
        fs::rename(&unfinished, &to.database).map_err(|error| to.io("rename", &unfinished, error))?;
        to.mark()?;
        sync_dir(&to.dir).map_err(|error| to.io("sync", &to.dir, error))?;
        drop(lock);
        report(&to.dir)
    });
    match copied {
        Ok(report) if report.intact => Ok(report),
        other => {
            // What is not a copy must not look like one.
            for path in [&unfinished, &to.database, &to.marker] {
                _ = private::remove(path);
            }
            Err(other.map_or_else(|error| error, |report| to.damaged(&report.problems.join("; "))))
        }
    }
}

/// Has the next start take a store for a copy, whichever file it is in: where files do not tell when they were made, a new one may have the
/// number of one that was removed.
fn become_a_copy(path: &Path) -> Result<(), ReadError> {
    let store = Connection::open(path)?;
    let identity = StoreIdentity { file: NO_FILE, ..StoreIdentity::read(&store)? };
    identity.write(&store)?;
    store.close().map_err(|(_, error)| error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::file_id::FileId;
    use crate::engine::embedded::fixture::{commit, open, stored};

    #[test]
    fn a_copy_says_so_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (data, to) = (dir.path().join("data"), dir.path().join("copy"));
        let mut opened = open(&data).unwrap();
        let seqs = commit(&mut opened, 3, &[]);
        let found = back_up(&data, &to).unwrap();
        assert_eq!((found.intact, found.messages, &found.notes), (true, 3, &Vec::new()));
        let connection = Connection::open(to.join("store.db")).unwrap();
        let identity = StoreIdentity::read(&connection).unwrap();
        assert_eq!((identity.file, &identity.epoch), (NO_FILE, &opened.identity.epoch));
        let file = FileId::of(&fs::metadata(to.join("store.db")).unwrap());
        assert!(!file.has(NO_FILE));
        drop(connection);
        let copied = open(&to).unwrap();
        assert_eq!(stored(&copied), seqs);
        assert_ne!(copied.identity.epoch, opened.identity.epoch);
    }

    /// A directory that was copied by hand after a crash: its messages are in the log.
    #[test]
    fn what_is_in_the_log_only_is_restored_too() {
        let dir = tempfile::tempdir().unwrap();
        let (data, by_hand, to) =
            (dir.path().join("data"), dir.path().join("by hand"), dir.path().join("to"));
        let mut opened = open(&data).unwrap();
        let seqs = commit(&mut opened, 3, &[]);
        private::create_dir(&by_hand).unwrap();
        for file in fs::read_dir(&data).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), by_hand.join(file.file_name())).unwrap();
        }
        assert!(matches!(restore(&data, &to), Err(OpenError::InUse { .. })));
        assert_eq!(restore(&by_hand, &to).unwrap().messages, 3);
        assert_eq!(stored(&open(&to).unwrap()), seqs);
    }

    #[test]
    fn what_somebody_else_makes_a_store_of_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (data, to) = (dir.path().join("data"), dir.path().join("copy"));
        let mut opened = open(&data).unwrap();
        commit(&mut opened, 1, &[]);
        let target = empty_dir(&to).unwrap();
        let held = target.lock().unwrap();
        assert!(matches!(back_up(&data, &to), Err(OpenError::InUse { .. } | OpenError::Occupied { .. })));
        drop(held);
        fs::remove_file(&target.lock).unwrap();
        back_up(&data, &to).unwrap();
        assert!(matches!(back_up(&data, &to), Err(OpenError::Occupied { .. })));
        assert!(report(&to).unwrap().intact);
    }
}
