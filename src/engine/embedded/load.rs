//! Reads a whole store at the start: verifies every checksum and builds the index.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::engine::Settings;
use crate::engine::embedded::disk::Disk;
use crate::engine::embedded::disk::open::{self, APPLICATION, FORMAT};
use crate::engine::embedded::files::Files;
use crate::engine::embedded::index::{IndexBuilder, RestoredMessage, stored_cost};
use crate::engine::embedded::rows::clock::ClockReading;
use crate::engine::embedded::rows::loss::read_loss;
use crate::engine::embedded::rows::message::{MessageRow, scan};
use crate::engine::embedded::rows::registration::read_directory;
use crate::engine::embedded::rows::store::{StoreIdentity, StoreTotals};
use crate::engine::embedded::rows::{ReadError, from_sql_int};
use crate::engine::embedded::storage::{Durability, OpenError};
use crate::engine::embedded::store_clock::StoreClock;
use crate::message::{Address, Seq};

/// How long SQLite's own check of the file's structure may take, beside the reading of everything.
const STRUCTURE_CHECK: Duration = Duration::from_millis(250);

/// A store that was read as a whole.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) disk: Disk,
    pub(super) index: IndexBuilder,
    pub(super) clock: StoreClock,
    pub(super) identity: StoreIdentity,
}

/// Why a store could not be loaded.
#[derive(Debug)]
pub(super) enum LoadError {
    /// It is damaged, or cannot be read now.
    Read(ReadError),
    /// It is not a store of this version.
    Open(OpenError),
}

impl From<ReadError> for LoadError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<rusqlite::Error> for LoadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Read(error.into())
    }
}

/// Reads everything and verifies it.
pub(super) fn load(files: &Files, durability: Durability, settings: Settings) -> Result<Loaded, LoadError> {
    let verify = |connection: &Connection| verify_format(files, connection);
    let mut disk = Disk::open(&files.database, durability, settings.id_limits(), verify)?;
    let identity = StoreIdentity::read(disk.connection())?;
    let totals = *disk.totals();
    let seq = |n: i64| Seq(u64::try_from(n).unwrap_or_default());
    let last_reading = ClockReading::read(disk.connection())?;
    let clock = StoreClock::begin(settings.clock, last_reading);
    let seqs = (seq(totals.newest), seq(totals.forgotten));
    let mut index = IndexBuilder::new(settings, clock.clone(), &identity.secret, seqs);
    index.lost_through(read_loss(disk.connection())?);
    index.reserve_ids(disk.count_ids()?);
    disk.read_ids(clock.now(), |id, seq, until| index.restore_id(id, seq, until))?;
    disk.read_floors(|address, floor| index.restore_floor(&address, floor))?;
    let sessions = read_directory(disk.connection(), |session, registration| {
        index.restore_registration(session, registration);
        Ok(())
    })?;
    if sessions != totals.sessions {
        let text = format!("table `directory` ({sessions} rows, {} were counted)", totals.sessions);
        return Err(ReadError::Damaged(text).into());
    }
    let path = files.database.clone();
    let structure = std::thread::spawn(move || check_structure(&path, STRUCTURE_CHECK));
    let (seen, index) = load_messages(disk.connection(), index, settings.shares)?;
    totals.verify(&seen)?;
    structure.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok(Loaded { disk, index, clock, identity })
}

/// Whether it is a store, and of a format that this version reads.
pub(super) fn verify_format(files: &Files, connection: &Connection) -> Result<(), LoadError> {
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, found) = (number("application_id")?, number("user_version")?);
    if application != APPLICATION && number("schema_version")? > 0 && StoreIdentity::read(connection).is_err()
    {
        return Err(LoadError::Open(OpenError::NotOurs { path: files.database.clone() }));
    }
    if application == APPLICATION && found > FORMAT && StoreIdentity::read(connection).is_ok() {
        return Err(LoadError::Open(OpenError::Newer { dir: files.dir.clone(), found, known: FORMAT }));
    }
    Ok(())
}

/// One thread reads and verifies the messages, another one builds the index.
fn load_messages(
    connection: &Connection,
    mut index: IndexBuilder,
    shares: bool,
) -> Result<(StoreTotals, IndexBuilder), ReadError> {
    const CHUNK: usize = 2048;
    let (to_builder, from_reader) = mpsc::sync_channel::<Vec<(Address, RestoredMessage)>>(4);
    std::thread::scope(|scope| {
        let builder = scope.spawn(move || {
            for (address, message) in from_reader.into_iter().flatten() {
                index.restore(&address, message);
            }
            index
        });
        let mut chunk = Vec::with_capacity(CHUNK);
        let seen = scan(connection, |row| {
            chunk.push(restored(row, shares)?);
            if chunk.len() == CHUNK {
                // Fails only if the builder panicked, which `join` reports.
                _ = to_builder.send(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK)));
            }
            Ok(())
        });
        _ = to_builder.send(chunk);
        drop(to_builder);
        let index = builder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        seen.map(|seen| (seen, index))
    })
}

fn restored(row: &MessageRow<'_>, shares: bool) -> Result<(Address, RestoredMessage), ReadError> {
    let names = row.address.len() + row.sender.map_or(0, str::len);
    let message = RestoredMessage {
        seq: Seq(from_sql_int(row.seq)),
        prev: Seq(from_sql_int(row.prev)),
        expires_at: from_sql_int(row.expires_at),
        bytes: stored_cost(row.payload.len(), names),
        receipt: row.receipt(),
        payer: if shares { row.payer() } else { None },
    };
    Ok((row.address()?, message))
}

/// SQLite's own check of the file's structure, free pages included; as much of it as fits into the time.
fn check_structure(path: &Path, time: Duration) -> Result<(), ReadError> {
    let mut connection = open::open_to_read(path)?;
    let end = Instant::now() + time;
    connection.progress_handler(1_000, Some(move || Instant::now() > end))?;
    match quick_check(&connection) {
        Err(ReadError::Sqlite(rusqlite::Error::SqliteFailure(failure, _)))
            if failure.code == rusqlite::ErrorCode::OperationInterrupted =>
        {
            Ok(())
        }
        checked => checked,
    }
}

/// SQLite's check of the file's structure.
pub(super) fn quick_check(connection: &Connection) -> Result<(), ReadError> {
    match connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))? {
        found if found == "ok" => Ok(()),
        found => Err(ReadError::Damaged(format!("the structure of the file ({found})"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::fixture::{commit, open as open_store, settings};

    /// Changes the file of a store that nothing uses, and loads it.
    fn load_changed(sql: &str) -> Result<Loaded, LoadError> {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open_store(dir.path()).unwrap();
        commit(&mut opened, 3, &[]);
        opened.disk.connection().execute_batch(sql).unwrap();
        drop(opened);
        load(&Files::of(dir.path()), Durability::Fsync, settings())
    }

    fn damage(sql: &str) -> String {
        match load_changed(sql) {
            Err(LoadError::Read(error)) if error.is_damage() => error.to_string(),
            other => panic!("{sql}: {other:?}"),
        }
    }

    #[test]
    fn an_intact_store_is_loaded_as_it_is() {
        let loaded = load_changed("").unwrap();
        assert_eq!(loaded.disk.totals().messages, 3);
        assert_eq!(loaded.index.newest().0, u64::try_from(loaded.disk.totals().newest).unwrap());
    }

    #[test]
    fn damage_to_each_table_is_noticed() {
        assert!(damage("UPDATE message SET payload = '1'").contains("message"));
        assert_eq!(damage("UPDATE state SET sum = 1"), "the row of table `state` is damaged");
        assert_eq!(damage("UPDATE store SET origin = 1"), "the row of table `store` is damaged");
        assert_eq!(damage("INSERT INTO ids VALUES (1, 2, x'00', 3)"), "row 1 of table `ids` is damaged");
        assert_eq!(damage("INSERT INTO floors VALUES (1, x'00', 3)"), "row 1 of table `floors` is damaged");
        assert_eq!(
            damage("INSERT INTO directory VALUES ('a', NULL, 2, 3)"),
            "a row of table `directory` is damaged"
        );
    }

    #[test]
    fn lost_rows_are_noticed_by_their_number() {
        let text = damage("DELETE FROM message WHERE seq IN (SELECT max(seq) FROM message)");
        assert_eq!(text, "table `message` (2 rows, 3 were counted) is damaged");
        assert!(damage("DELETE FROM state").contains("no rows"), "a missing row is damage");
        assert!(damage("DROP TABLE directory").contains("directory"), "a missing table is damage");
    }

    #[test]
    fn another_program_and_a_newer_version_are_not_damage() {
        let newer = load_changed(&format!("PRAGMA user_version = {}", FORMAT + 1));
        assert!(matches!(newer, Err(LoadError::Open(OpenError::Newer { .. }))), "{newer:?}");
        let other = load_changed("PRAGMA application_id = 7; DELETE FROM store");
        assert!(matches!(other, Err(LoadError::Open(OpenError::NotOurs { .. }))), "{other:?}");
        // With its own row it is this program's, whatever became of the header.
        load_changed("PRAGMA application_id = 7").unwrap();
    }
}
