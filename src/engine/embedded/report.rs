//! Reports to operators what a store holds. Verifies it and changes nothing.

use std::collections::HashSet;
use std::path::Path;

use rusqlite::Connection;
use serde::Serialize;

use crate::engine::embedded::crash::inspect_after_crash;
use crate::engine::embedded::disk::open::{FORMAT, open_alone, open_to_read};
use crate::engine::embedded::files::Files;
use crate::engine::embedded::load::quick_check;
use crate::engine::embedded::place;
use crate::engine::embedded::rows::ReadError;
use crate::engine::embedded::rows::message::scan;
use crate::engine::embedded::rows::store::{StoreIdentity, StoreTotals};
use crate::engine::embedded::storage::OpenError;

/// What a store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether everything is there and intact.
    pub intact: bool,
    /// What is wrong.
    pub problems: Vec<String>,
    /// What an operator may want to know, besides problems.
    pub notes: Vec<String>,
    /// The epoch of the store.
    pub epoch: Option<String>,
    /// Mailboxes with messages.
    pub mailboxes: usize,
    /// Topics with messages.
    pub topics: usize,
    /// Intact messages.
    pub messages: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// When the oldest message was sent, in Unix milliseconds.
    pub oldest: Option<u64>,
    /// Bytes of the store's files.
    pub disk: u64,
}

/// Reads and verifies everything in a store, and changes nothing.
///
/// # Errors
/// `NoStore`, `Missing`, `Newer`, `Sqlite` or `Io`: the store cannot be read.
pub fn report(dir: &Path) -> Result<Report, OpenError> {
    let files = Files::of(&place::find(dir));
    if !files.database.exists() {
        return Err(match files.marker.exists() || files.wal.exists() {
            true => OpenError::Missing { path: files.database },
            false => OpenError::NoStore { dir: dir.to_owned() },
        });
    }
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |data| data.len());
    let disk = [&files.database, &files.wal, &files.shm].into_iter().map(|path| size(path)).sum();
    let mut report = Report { disk, ..Report::default() };
    let in_use = is_in_use(&files);
    look_at_files(&files, in_use, &mut report)?;
    let sqlite = |error| files.sqlite(error);
    let connection = open_unchanged(&files, in_use).map_err(sqlite)?;
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap_or(FORMAT);
    if found > FORMAT {
        return Err(OpenError::Newer { dir: dir.to_owned(), found, known: FORMAT });
    }
    // One transaction sees one state of a store that a server writes to meanwhile.
    let connection = connection.unchecked_transaction().map_err(sqlite)?;
    let rows = look_at_rows(&connection, &mut report);
    let structure = quick_check(&connection);
    report
        .problems
        .extend([rows, structure].into_iter().filter_map(Result::err).map(|error| error.to_string()));
    report.intact = report.problems.is_empty();
    Ok(report)
}

/// Whether a process uses a store.
pub(super) fn is_in_use(files: &Files) -> bool {
    matches!(files.lock_to_look(), Err(OpenError::InUse { .. }))
}

/// Looks at what the last process left. A running server's log changes: only a log at rest is inspected.
fn look_at_files(files: &Files, in_use: bool, report: &mut Report) -> Result<(), OpenError> {
    if in_use {
        report.notes.push("a server uses this store now".to_owned());
        return Ok(());
    }
    let findings = inspect_after_crash(files)?;
    report.problems.extend(findings.lost);
    if findings.crashed {
        let note = "the last server did not end in order; the next start recovers the store";
        report.notes.push(note.to_owned());
    }
    if files.salvaged.exists() {
        report.problems.push("a recovery was interrupted; the next start finishes it".to_owned());
    }
    Ok(())
}

impl Files {
    /// Takes the lock for a moment, if there is a lock file.
    fn lock_to_look(&self) -> Result<(), OpenError> {
        if !self.lock.exists() {
            return Ok(());
        }
        self.lock().map(drop)
    }
}

/// Opens a store for reading only.
pub(super) fn open_unchanged(files: &Files, in_use: bool) -> rusqlite::Result<Connection> {
    let no_log = std::fs::metadata(&files.wal).map_or(true, |data| data.len() == 0);
    if !in_use && no_log {
        // So SQLite writes nothing beside it, not even its shared memory.
        return open_alone(&files.database);
    }
    open_to_read(&files.database)
}

fn look_at_rows(connection: &Connection, report: &mut Report) -> Result<(), ReadError> {
    let totals = StoreTotals::read(connection);
    let identity = StoreIdentity::read(connection);
    let mut seen = HashSet::new();
    let scanned = scan(connection, |row| {
        report.messages += 1;
        report.bytes += row.payload.len() as u64;
        let ts = u64::try_from(row.ts).unwrap_or_default();
        report.oldest = Some(report.oldest.map_or(ts, |oldest| oldest.min(ts)));
        if !seen.contains(row.address) {
            seen.insert(row.address.to_owned());
            match row.address()?.is_mailbox() {
                true => report.mailboxes += 1,
                false => report.topics += 1,
            }
        }
        Ok(())
    })?;
    report.epoch = Some(identity?.epoch.as_str().to_owned());
    totals?.verify(&scanned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::fixture::{commit, open as open_store};
    use crate::engine::embedded::rows::to_sql_int;

    #[test]
    fn a_store_is_reported_whether_it_is_in_use_crashed_or_damaged() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(report(dir.path()), Err(OpenError::NoStore { .. })));
        let mut opened = open_store(dir.path()).unwrap();
        let seqs = commit(&mut opened, 3, &[]);
        let found = report(dir.path()).unwrap();
        assert!(found.intact && found.notes[0].contains("uses this store now"), "{found:?}");
        assert_eq!((found.messages, found.mailboxes, found.topics, found.oldest), (3, 1, 0, Some(1)));
        assert_eq!((found.bytes, found.epoch.as_deref()), (3 * 502, Some(opened.identity.epoch.as_str())));
        drop(opened);
        let found = report(dir.path()).unwrap();
        assert!(found.intact && found.notes[0].contains("did not end in order"), "{found:?}");

        let opened = open_store(dir.path()).unwrap();
        opened
            .disk
            .connection()
            .execute("UPDATE message SET ts = 8 WHERE seq = ?1", [to_sql_int(seqs[1].0)])
            .unwrap();
        drop(opened);
        let found = report(dir.path()).unwrap();
        assert!(!found.intact && found.problems == [format!("message {} is damaged", seqs[1])], "{found:?}");
    }

    #[test]
    fn a_missing_file_is_not_an_empty_store() {
        let dir = tempfile::tempdir().unwrap();
        drop(open_store(dir.path()).unwrap());
        std::fs::remove_file(Files::of(dir.path()).database).unwrap();
        assert!(matches!(report(dir.path()), Err(OpenError::Missing { .. })));
    }
}
