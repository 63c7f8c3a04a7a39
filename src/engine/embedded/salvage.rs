//! Saving what is intact in a damaged store.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use rusqlite::Connection;

use crate::engine::embedded::disk::{self, Disk};
use crate::engine::embedded::files::{Files, remove, sync_dir};
use crate::engine::embedded::recovery::{LoadError, damaged, scan};
use crate::engine::embedded::rows::{self, MessageRow, ReadError, StoreIdentity, StoreTotals};
use crate::engine::embedded::storage::{Durability, OpenError};
use crate::engine::embedded::{random_epoch, random_secret};
use crate::message::Seq;

/// A new directory for what is damaged.
pub(super) fn make_aside(files: &Files) -> Result<PathBuf, OpenError> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let dir = files.dir.join(format!("damaged-{}", now.as_millis()));
    fs::create_dir_all(&dir).map_err(|error| files.io("make the directory", &dir, error))?;
    Ok(dir)
}

/// Puts the damaged files aside and the salvaged one in their place. A start that was interrupted here goes on
/// here: the new file is whole as soon as it has its name.
pub(super) fn switch_to_new(files: &Files) -> Result<PathBuf, OpenError> {
    let aside = make_aside(files)?;
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
        // What it says is about the log that is gone.
        .and_then(|()| remove(&files.running))
        .and_then(|()| sync_dir(&files.dir))
        .map_err(|error| files.io("rename", &files.salvaged, error))?;
    Ok(aside)
}

/// A log that is damaged in its middle may lie over a database that already has all of it. Then the database
/// alone is newer than the database with what can be read of the log.
pub(super) fn prefer_database_alone(files: &Files) -> Result<(), OpenError> {
    let commits = |connection: rusqlite::Result<Connection>| -> Result<i64, ReadError> {
        let connection = connection?;
        let state = StoreTotals::read(&connection)?;
        let seen = scan(&connection, false, |_| Ok(()))?;
        if state.agrees(&seen) { Ok(state.commits) } else { Err(ReadError::Damaged("sums".to_owned())) }
    };
    let Ok(alone) = commits(disk::open_alone(&files.database)) else { return Ok(()) };
    // On a copy, so that nothing of the log is brought into the database yet.
    let with_log = {
        let dir = files.dir.join("trial");
        let trial = Files::of(&dir);
        let made = fs::create_dir_all(&dir)
            .and_then(|()| fs::copy(&files.database, &trial.database))
            .and_then(|_| fs::copy(&files.wal, &trial.wal));
        let found = made.is_ok().then(|| commits(Connection::open(&trial.database)));
        fs::remove_dir_all(&dir).map_err(|error| files.io("remove", &dir, error))?;
        found
    };
    if !matches!(with_log, Some(Ok(with_log)) if with_log >= alone) && with_log.is_some() {
        for path in [&files.wal, &files.shm] {
            remove(path).map_err(|error| files.io("remove", path, error))?;
        }
    }
    Ok(())
}

pub(super) struct Saved {
    pub(super) messages: i64,
    /// Fewer than were counted, where the count can still be read.
    pub(super) missing: Option<i64>,
}

/// Makes a new file, `salvaged`, of what is intact in a damaged store, which stays as it is.
pub(super) fn salvage(files: &Files, durability: Durability, why: &str) -> Result<Saved, OpenError> {
    let sqlite = |error| OpenError::Sqlite { path: files.salvaged.clone(), error };
    let nothing = |error: &dyn std::fmt::Display| damaged(files, &format_args!("{why}; {error}"));
    let source = disk::open_to_read(&files.database).map_err(|error| nothing(&error))?;
    let identity = StoreIdentity::read(&source);
    let state = StoreTotals::read(&source);
    let building = files.salvaged.with_extension("building");
    for suffix in ["", "-wal", "-shm"] {
        let path = PathBuf::from(format!("{}{suffix}", building.display()));
        remove(&path).map_err(|error| files.io("remove", &path, error))?;
    }
    let identity = identity.unwrap_or_else(|_| StoreIdentity {
        epoch: random_epoch(),
        origin: Seq::START,
        secret: random_secret(),
        inode: 0,
    });
    let disk = Disk::create(&building, durability, &identity).map_err(sqlite)?;
    let transaction = disk.connection().unchecked_transaction().map_err(sqlite)?;
    let mut saved = StoreTotals::default();
    let mut highest = 0;
    // What cannot be reached from one end may be from the other.
    let mut edges = (i64::MIN, i64::MAX);
    for backwards in [false, true] {
        loop {
            let mut reached = None;
            let result = rows_between(&source, backwards, edges, |row| {
                reached = Some(row.seq);
                if row.address().is_ok() {
                    if rows::copy(row, &transaction).map_err(LoadError::Write)? {
                        saved.add(row.seq);
                    }
                    highest = highest.max(row.seq);
                }
                Ok(())
            });
            // In a damaged file rows may come in another order, and twice.
            match reached {
                Some(seq) if backwards => edges.1 = edges.1.min(seq),
                Some(seq) => edges.0 = edges.0.max(seq),
                None => {}
            }
            match result {
                Ok(()) => break,
                Err(LoadError::Write(error)) => return Err(sqlite(error)),
                Err(LoadError::Open(error)) => return Err(error),
                Err(LoadError::Read(error)) if !rows::is_damage(&error) => return Err(nothing(&error)),
                // A row whose checksum is wrong is passed by; what follows it can be read.
                Err(LoadError::Read(ReadError::Damaged(_))) => match next_seq(&source, backwards, edges) {
                    Some(damaged) if backwards => edges.1 = damaged,
                    Some(damaged) => edges.0 = damaged,
                    None => break,
                },
                Err(LoadError::Read(_)) => break,
            }
        }
    }
    // Registrations as far as they can be read: who is missing registers again after the next login.
    let registered = rows::read_directory(&source, |session, registration| {
        Ok(rows::write_registration(&transaction, session, Some(&registration), &mut saved)?)
    });
    if let Err(error) = registered {
        tracing::error!(%error, "some registered sessions are lost");
    }
    if saved.messages == 0 && state.as_ref().map_or(true, |state| state.messages > 0) {
        return Err(nothing(&"nothing of it can be read"));
    }
    saved.newest = highest.max(state.as_ref().map_or(0, |state| state.newest));
    saved.forgotten = saved.newest;
    saved.write(&transaction).map_err(sqlite)?;
    transaction.commit().map_err(sqlite)?;
    // What is not copied from the log into the file would be left behind with it, and SQLite would not say so.
    disk.copy_log().map_err(sqlite)?;
    disk.close().map_err(sqlite)?;
    let log = PathBuf::from(format!("{}-wal", building.display()));
    if fs::metadata(&log).is_ok_and(|data| data.len() > 0) {
        return Err(files.io("empty", &log, io::Error::other("the log was not copied into the file")));
    }
    File::open(&building)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&building, &files.salvaged))
        .and_then(|()| sync_dir(&files.dir))
        .map_err(|error| files.io("rename", &building, error))?;
    let missing = state.ok().map(|state| state.messages - saved.messages);
    Ok(Saved { messages: saved.messages, missing })
}

/// Reads the messages between two seqs, from one end; damaged rows end it.
fn rows_between(
    connection: &Connection,
    backwards: bool,
    (after, before): (i64, i64),
    mut each: impl FnMut(&MessageRow<'_>) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    let sql = rows::scan_sql(backwards).replace("ORDER", "WHERE seq > ?1 AND seq < ?2 ORDER");
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([after, before])?;
    while let Some(row) = rows.next()? {
        each(&MessageRow::of(row)?)?;
    }
    Ok(())
}

/// The first seq between two, from one end. In a damaged file it may lie outside of them: then there is none.
fn next_seq(connection: &Connection, backwards: bool, (after, before): (i64, i64)) -> Option<i64> {
    let order = if backwards { "DESC" } else { "ASC" };
    let sql = format!("SELECT seq FROM message WHERE seq > ?1 AND seq < ?2 ORDER BY seq {order} LIMIT 1");
    let seq = connection.query_row(&sql, [after, before], |row| row.get(0)).ok()?;
    (after < seq && seq < before).then_some(seq)
}
