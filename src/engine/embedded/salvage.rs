//! Saves what is intact in a damaged store into a new file. The damaged files are kept aside.
//!
//! There is no repair in place. Intact rows are copied, and a new epoch says that messages may be missing.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use rusqlite::Connection;

use crate::engine::embedded::disk::open::{self, open_alone, open_to_read};
use crate::engine::embedded::files::{Files, sync_dir};
use crate::engine::embedded::place::ASIDE;
use crate::engine::embedded::private::{self, remove};
use crate::engine::embedded::rows::ReadError;
use crate::engine::embedded::rows::clock::ClockReading;
use crate::engine::embedded::rows::loss::{read_loss, write_loss};
use crate::engine::embedded::rows::message::{INSERT_IF_ABSENT, insertion, scan_intact};
use crate::engine::embedded::rows::registration::{read_directory, write_registration};
use crate::engine::embedded::rows::store::{StoreIdentity, StoreTotals};
use crate::engine::embedded::storage::OpenError;
use crate::message::Seq;

/// Makes a new file, `salvaged`, of what is intact in a damaged store. The store stays as it is.
///
/// If the log is damaged, the database may have messages that the readable part of the log lacks, and the other way
/// round: then the file gets the messages of both. Some of them may have been acknowledged.
///
/// # Errors
/// Nothing of the store can be read, or the new file cannot be written.
pub(super) fn salvage(files: &Files, log_is_damaged: bool, why: &str) -> Result<(), OpenError> {
    let alone = log_is_damaged.then(|| open_alone(&files.database));
    let views: Vec<Connection> =
        std::iter::once(open_to_read(&files.database)).chain(alone).flatten().collect();
    let identity = views.iter().find_map(|view| StoreIdentity::read(view).ok());
    let identity = identity.unwrap_or_else(|| StoreIdentity::new(Seq::START, 0));
    let building = files.salvaged.with_extension("building");
    private::create(&building).map_err(|error| files.io("make", &building, error))?;
    open::create_copy(&building, &identity, |to| copy(&views, to)).map_err(|error| match error {
        CopyError::Read(error) => files.damaged(&format_args!("{why}; {error}")),
        CopyError::Write(error) => OpenError::Sqlite { path: building.clone(), error },
    })?;
    File::open(&building)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&building, &files.salvaged))
        .and_then(|()| sync_dir(&files.dir))
        .map_err(|error| files.io("rename", &building, error))
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

impl From<rusqlite::Error> for CopyError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Write(error)
    }
}

/// Copies what is intact. Returns what the copy counts.
fn copy(views: &[Connection], to: &Connection) -> Result<StoreTotals, CopyError> {
    let counted = views.iter().find_map(|view| StoreTotals::read(view).ok());
    let mut saved = StoreTotals::default();
    for view in views {
        match copy_messages(view, to, &mut saved) {
            Err(CopyError::Read(error)) if error.is_damage() => {}
            // If it cannot be read now, no message is given up.
            copied => copied?,
        }
    }
    if saved.messages == 0 && counted.is_none_or(|counted| counted.messages > 0) {
        return Err(ReadError::Damaged("everything in it".to_owned()).into());
    }
    copy_registrations(views.first(), to, &mut saved);
    if let Some(reading) = views.iter().find_map(|view| ClockReading::read(view).ok().flatten()) {
        reading.write(to)?;
    }
    if let Some(through) = views.iter().find_map(|view| read_loss(view).ok()) {
        write_loss(to, through)?;
    }
    saved.newest = saved.newest.max(counted.map_or(0, |counted| counted.newest));
    saved.forgotten = saved.newest;
    let missing = counted.map(|counted| (counted.messages - saved.messages).max(0));
    tracing::error!(saved = saved.messages, missing, "intact messages were saved");
    Ok(saved)
}

/// Copies the intact messages that can be reached from either end.
fn copy_messages(from: &Connection, to: &Connection, saved: &mut StoreTotals) -> Result<(), CopyError> {
    let mut statement = insertion(to, INSERT_IF_ABSENT, 1)?;
    let mut copy = |backwards: bool| {
        scan_intact(from, backwards, |row| {
            if row.insert(&mut statement)? {
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
    let aside = files.dir.join(format!("{ASIDE}{}", now.as_millis()));
    private::create_dir(&aside).map_err(|error| files.io("make the directory", &aside, error))?;
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
