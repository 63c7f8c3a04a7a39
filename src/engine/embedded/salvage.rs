//! Saves what is intact in a damaged store into a new file. The damaged files are kept aside.
//!
//! There is no repair in place. Intact rows are copied, and a new epoch says that messages may be missing.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use rusqlite::Connection;

use crate::engine::embedded::disk::Disk;
use crate::engine::embedded::disk::open::{open_alone, open_to_read};
use crate::engine::embedded::files::{Files, remove, sync_dir};
use crate::engine::embedded::rows::ReadError;
use crate::engine::embedded::rows::message::{INSERT_IF_ABSENT, insertion, scan_intact};
use crate::engine::embedded::rows::registration::{read_directory, write_registration};
use crate::engine::embedded::rows::store::{StoreIdentity, StoreTotals};
use crate::engine::embedded::storage::{Durability, OpenError};
use crate::message::Seq;

/// What could be saved.
#[derive(Debug)]
pub(super) struct Saved {
    pub(super) messages: i64,
    /// How many fewer than were counted, if the count can be read.
    pub(super) missing: Option<i64>,
}

/// Makes a new file, `salvaged`, of what is intact in a damaged store. The store stays as it is.
///
/// If the log is damaged, the database may have messages that the readable part of the log lacks, and the other way
/// round: then the file gets the messages of both. Some of them may have been acknowledged.
///
/// # Errors
/// Nothing of the store can be read, or the new file cannot be written.
pub(super) fn salvage(
    files: &Files,
    durability: Durability,
    log_is_damaged: bool,
    why: &str,
) -> Result<Saved, OpenError> {
    let sqlite = |error| OpenError::Sqlite { path: files.salvaged.clone(), error };
    let nothing = |error: &dyn std::fmt::Display| files.damaged(&format_args!("{why}; {error}"));
    let alone = log_is_damaged.then(|| open_alone(&files.database));
    let opened = std::iter::once(open_to_read(&files.database)).chain(alone);
    let views: Vec<Connection> = opened.flatten().collect();
    let identity = views.iter().find_map(|view| StoreIdentity::read(view).ok());
    let identity = identity.unwrap_or_else(|| StoreIdentity::new(Seq::START, 0));
    let totals = views.iter().find_map(|view| StoreTotals::read(view).ok());

    let building = files.salvaged.with_extension("building");
    let log = PathBuf::from(format!("{}-wal", building.display()));
    for path in [&building, &log, &PathBuf::from(format!("{}-shm", building.display()))] {
        remove(path).map_err(|error| files.io("remove", path, error))?;
    }
    let disk = Disk::create(&building, durability, &identity, 0).map_err(sqlite)?;
    let transaction = disk.connection().unchecked_transaction().map_err(sqlite)?;
    let mut saved = StoreTotals::default();
    for view in &views {
        match copy_messages(view, &transaction, &mut saved) {
            Ok(()) => {}
            Err(CopyError::Write(error)) => return Err(sqlite(error)),
            Err(CopyError::Read(error)) if error.is_damage() => {}
            // It cannot be read now: that is no reason to give messages up.
            Err(CopyError::Read(error)) => return Err(nothing(&error)),
        }
    }
    if saved.messages == 0 && totals.is_none_or(|totals| totals.messages > 0) {
        return Err(nothing(&"nothing of it can be read"));
    }
    copy_registrations(views.first(), &transaction, &mut saved);
    saved.newest = saved.newest.max(totals.map_or(0, |totals| totals.newest));
    saved.forgotten = saved.newest;
    saved.write(&transaction).map_err(sqlite)?;
    transaction.commit().map_err(sqlite)?;
    // What stays in the log would be left behind with it, and SQLite does not report that.
    disk.copy_log().and_then(|()| disk.close()).map_err(sqlite)?;
    if fs::metadata(&log).is_ok_and(|data| data.len() > 0) {
        return Err(files.io("empty", &log, io::Error::other("the log was not copied into the file")));
    }
    File::open(&building)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&building, &files.salvaged))
        .and_then(|()| sync_dir(&files.dir))
        .map_err(|error| files.io("rename", &building, error))?;
    let missing = totals.map(|totals| (totals.messages - saved.messages).max(0));
    Ok(Saved { messages: saved.messages, missing })
}

/// Why a copy ended.
enum CopyError {
    Read(ReadError),
    Write(rusqlite::Error),
}

impl From<ReadError> for CopyError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

/// Copies the intact messages that can be reached from either end.
fn copy_messages(from: &Connection, to: &Connection, saved: &mut StoreTotals) -> Result<(), CopyError> {
    let mut statement = insertion(to, INSERT_IF_ABSENT).map_err(CopyError::Write)?;
    let mut copy = |backwards: bool| {
        scan_intact(from, backwards, |row| {
            if row.insert(&mut statement).map_err(CopyError::Write)? {
                saved.add(row.seq);
                saved.newest = saved.newest.max(row.seq);
            }
            Ok(())
        })
    };
    match copy(false) {
        Err(CopyError::Read(error)) if error.is_damage() => copy(true),
        copied => copied,
    }
}

/// Copies registrations as far as they can be read. A session that is missing registers again at its next login.
fn copy_registrations(from: Option<&Connection>, to: &Connection, saved: &mut StoreTotals) {
    let Some(from) = from else { return };
    let copied = read_directory(from, |session, registration| {
        Ok(write_registration(to, session, Some(&registration), saved)?)
    });
    if let Err(error) = copied {
        tracing::error!(%error, "some registered sessions are lost");
    }
}

/// Moves the damaged files aside and puts the salvaged one in their place. Returns where the damaged ones are.
///
/// A start that was interrupted here continues here: the salvaged file is whole as soon as it has its name.
pub(super) fn switch_to_salvaged(files: &Files) -> Result<PathBuf, OpenError> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let aside = files.dir.join(format!("damaged-{}", now.as_millis()));
    fs::create_dir_all(&aside).map_err(|error| files.io("make the directory", &aside, error))?;
    for path in [&files.database, &files.wal, &files.shm] {
        match fs::rename(path, aside.join(path.file_name().unwrap_or_default())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(files.io("move", path, error));
            }
            _ => {}
        }
    }
    fs::rename(&files.salvaged, &files.database)
        .and_then(|()| sync_dir(&aside))
        // The note is about the log that was moved.
        .and_then(|()| remove(&files.running))
        .and_then(|()| sync_dir(&files.dir))
        .map_err(|error| files.io("rename", &files.salvaged, error))?;
    Ok(aside)
}
