//! Copies of a store, and their way back.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use rusqlite::Connection;

use crate::engine::embedded::crash::inspect_after_crash;
use crate::engine::embedded::disk::copy::copy_into;
use crate::engine::embedded::disk::open::{FORMAT, open_alone};
use crate::engine::embedded::files::{Files, sync_dir};
use crate::engine::embedded::report::{Report, is_in_use, open_unchanged, report};
use crate::engine::embedded::storage::OpenError;
use crate::engine::embedded::{place, private};

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
    copy(&connection, &empty_dir(to)?)
}

/// Puts a copy of a store into `dir`, in which there must be none. Returns what it holds. The next start begins a new epoch: positions
/// after the copy was made are not those of this store.
///
/// # Errors
/// The copy is not intact, or there is a store already.
pub fn restore(from: &Path, dir: &Path) -> Result<Report, OpenError> {
    let found = report(from)?;
    let source = Files::of(&place::find(from));
    if !found.intact {
        return Err(source.damaged(&found.problems.join("; ")));
    }
    let target = Files::of(&place::prepare(dir)?);
    place::secure_lock(&target)?;
    let _lock = target.lock()?;
    if [&target.database, &target.wal, &target.marker, &target.salvaged].into_iter().any(|path| path.exists())
    {
        return Err(OpenError::Occupied { dir: target.dir });
    }
    let connection = open_alone(&source.database).map_err(|error| source.sqlite(error))?;
    copy(&connection, &target)
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

/// Copies what a connection sees at one moment, verifies it, and makes a store of it.
fn copy(from: &Connection, to: &Files) -> Result<Report, OpenError> {
    let unfinished = to.dir.join(UNFINISHED);
    let copied = copy_into(from, &unfinished).map_err(|error| to.sqlite(error)).and_then(|()| {
        fs::rename(&unfinished, &to.database).map_err(|error| to.io("rename", &unfinished, error))?;
        to.mark()?;
        sync_dir(&to.dir).map_err(|error| to.io("sync", &to.dir, error))?;
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
