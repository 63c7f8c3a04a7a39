//! Making and opening the store's file: its format, and SQLite's settings.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::engine::embedded::rows::clock::CLOCK_TABLE;
use crate::engine::embedded::rows::loss::LOSS_TABLE;
use crate::engine::embedded::rows::store::{StoreIdentity, StoreTotals};
use crate::engine::embedded::rows::to_sql_int;
use crate::engine::embedded::storage::Durability;

/// The format that this version writes. It reads older ones too.
pub(crate) const FORMAT: i64 = 3;

/// "x0ms": tells `file` and SQLite's tools what the file is.
pub(crate) const APPLICATION: i64 = 0x7830_6d73;

/// SQLite's page size here, in bytes.
pub(crate) const PAGE: u32 = 4096;

/// The write-ahead log is copied into the database when it has this many pages. So fewer than one commit in a hundred
/// waits for that.
const WAL_PAGES: u32 = 4000;

/// The length of the write-ahead log, in bytes. It is made at the start and does not grow afterwards.
///
/// So commits do not wait for the file system's journal, acknowledgements find room on a full disk, and a log that was
/// cut short is noticed.
pub(crate) const WAL_BYTES: u64 = 32 + (WAL_PAGES as u64 + 200) * (24 + PAGE as u64);

/// The tables. Their names and columns are part of the format.
pub(crate) const SCHEMA: &str = "
CREATE TABLE message (
    seq INTEGER PRIMARY KEY,
    address TEXT NOT NULL,
    prev INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    ts INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    sender TEXT,
    receipt TEXT,
    payload TEXT NOT NULL,
    crc INTEGER NOT NULL
) STRICT;
CREATE TABLE ids (n INTEGER PRIMARY KEY, until INTEGER NOT NULL, batch BLOB NOT NULL, crc INTEGER NOT NULL) STRICT;
CREATE TABLE floors (n INTEGER PRIMARY KEY, batch BLOB NOT NULL, crc INTEGER NOT NULL) STRICT;
CREATE TABLE directory (
    session TEXT PRIMARY KEY,
    user TEXT,
    ends INTEGER NOT NULL,
    crc INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    commits INTEGER NOT NULL,
    sessions INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    sum INTEGER NOT NULL,
    newest INTEGER NOT NULL,
    forgotten INTEGER NOT NULL,
    crc INTEGER NOT NULL
) STRICT;
CREATE TABLE store (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch TEXT NOT NULL,
    origin INTEGER NOT NULL,
    secret BLOB NOT NULL,
    inode INTEGER NOT NULL,
    crc INTEGER NOT NULL
) STRICT;
";

/// Makes a new store's file. Returns its connection and what it counts.
pub(crate) fn create(
    path: &Path,
    durability: Durability,
    identity: &StoreIdentity,
) -> rusqlite::Result<(Connection, StoreTotals)> {
    let connection = Connection::open(path)?;
    keep_log(&connection, true)?;
    prepare(&connection)?;
    set_up(&connection, durability)?;
    let totals = StoreTotals { newest: to_sql_int(identity.origin.0), ..StoreTotals::default() };
    fill(&connection, identity, |_| Ok::<_, rusqlite::Error>(totals))?;
    // From here on the file is a store without its log.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok((connection, totals))
}

/// Makes a store's file with what `copy` puts into it, without a log. `copy` returns what the file counts then.
pub(crate) fn create_copy<E: From<rusqlite::Error>>(
    path: &Path,
    identity: &StoreIdentity,
    copy: impl FnOnce(&Connection) -> Result<StoreTotals, E>,
) -> Result<StoreTotals, E> {
    let connection = Connection::open(path)?;
    // A copy that is not finished is made anew: it needs no journal.
    connection.pragma_update_and_check(None, "journal_mode", "OFF", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    prepare(&connection)?;
    let totals = fill(&connection, identity, copy)?;
    connection.close().map_err(|(_, error)| error)?;
    Ok(totals)
}

/// Sets what can only be set before the first table is made.
fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "page_size", PAGE)?;
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")
}

/// Makes the tables and fills them, in one transaction.
fn fill<E: From<rusqlite::Error>>(
    connection: &Connection,
    identity: &StoreIdentity,
    fill: impl FnOnce(&Connection) -> Result<StoreTotals, E>,
) -> Result<StoreTotals, E> {
    let transaction = connection.unchecked_transaction()?;
    transaction.execute_batch(SCHEMA)?;
    transaction.execute_batch(CLOCK_TABLE)?;
    transaction.execute_batch(LOSS_TABLE)?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    identity.write(&transaction)?;
    let totals = fill(&transaction)?;
    totals.write(&transaction)?;
    transaction.commit()?;
    Ok(totals)
}

/// Opens a store's file for writing, if `verify` accepts it.
pub(crate) fn open_to_write<E: From<rusqlite::Error>>(
    path: &Path,
    durability: Durability,
    verify: impl FnOnce(&Connection) -> Result<(), E>,
) -> Result<Connection, E> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    keep_log(&connection, true)?;
    verify(&connection)?;
    set_up(&connection, durability)?;
    Ok(connection)
}

fn set_up(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    let synchronous = match durability {
        Durability::Fsync => "FULL",
        Durability::Os => "NORMAL",
    };
    let mode =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    if mode != "wal" {
        // A file system without shared memory, perhaps.
        return Err(rusqlite::Error::InvalidParameterName(format!("journal mode {mode} instead of wal")));
    }
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", WAL_PAGES, |row| row.get::<_, i64>(0))?;
    // What a large commit made it grow is given back, and no more.
    let limit = to_sql_int(WAL_BYTES);
    connection.pragma_update_and_check(None, "journal_size_limit", limit, |row| row.get::<_, i64>(0))?;
    // Damage shows itself as an error here, not later.
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "cache_size", -4096)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

/// Whether the write-ahead log stays as it is when the connection is closed, as after the end of a killed process.
pub(crate) fn keep_log(connection: &Connection, keep: bool) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep).map(|_| ())
}

/// Opens a store's file for reading only.
pub(crate) fn open_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "cache_size", -512)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(connection)
}

/// Opens a store's file for reading only, as if there were no log beside it, and writes nothing beside it.
pub(crate) fn open_alone(path: &Path) -> rusqlite::Result<Connection> {
    let path = path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(format!("file:{path}?immutable=1"), flags)
}
