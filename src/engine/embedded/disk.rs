//! The store's file: an SQLite database in WAL mode, written by one connection.
//!
//! # Format 1
//! Messages are keyed by their store-wide seq, so that appends go to the right edge of one B-tree and the
//! deletions of what is read soon hit the same pages; what waits where is known by the index, in memory.
//!
//! | table | holds |
//! |---|---|
//! | `message` | one row for each stored message, with a CRC-32 over all of it |
//! | `ids` | the senders' ids of one commit: 16 bytes of keyed hash and 8 of seq for each |
//! | `floors` | the mailboxes and histories emptied by one commit, and how far they had got |
//! | `directory` | one row for each registered session |
//! | `state` | one row, changed by every commit: how many messages there are, and a sum of their seqs |
//! | `store` | one row: epoch, first seq, the secret of the ids, the file's inode |
//!
//! SQLite has no checksums of its own: a damaged row fails its CRC, and a lost one is missing from the sums.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, params};

use crate::engine::Registration;
use crate::engine::embedded::dedup::DedupKey;
use crate::engine::embedded::index::{EMPTY_LOGS, Floor, Pending, Waiter};
use crate::engine::embedded::rows::{
    self, COLUMNS, Crc, MessageRow, ReadError, StoreIdentity, StoreTotals, address_text, from_sql_int,
    parse_address, to_sql_int, write_registration,
};
use crate::engine::embedded::storage::Durability;
use crate::message::{Address, Publication, SenderName, Seq, SessionId};

/// The format this version reads and writes.
pub(super) const FORMAT: i64 = 1;

/// "x0ms", so that `file` and SQLite's tools know whose it is.
pub(super) const APPLICATION: i64 = 0x7830_6d73;

/// SQLite's page size here, in bytes.
const PAGE: u32 = 4096;

/// The write-ahead log is copied into the database when it has this many pages: rarely enough that fewer than
/// one commit in a hundred waits for it.
const WAL_PAGES: u32 = 4000;

/// How long the write-ahead log is made at the start, in bytes: it does not grow afterwards. So commits do not
/// wait for the file system's journal, acknowledgements still find room on a full disk, and a log that was cut
/// short is noticed.
pub(super) const WAL_BYTES: u64 = 32 + (WAL_PAGES as u64 + 200) * (24 + PAGE as u64);

/// Free space below which nothing is appended, in bytes: as much as the log can make the database grow, and some.
const HEADROOM: u64 = WAL_BYTES + (4 << 20);

/// Emptied addresses remembered on the disk.
const FLOORS: usize = EMPTY_LOGS;

/// Free pages kept for what comes next; what is beyond is given back to the file system.
const SLACK_PAGES: i64 = 2048;

const SCHEMA: &str = "
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

/// What is committed together.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) appends: Vec<Pending>,
    pub(super) gone: Vec<Seq>,
    pub(super) floors: Vec<(Address, Floor)>,
    pub(super) registrations: Vec<(SessionId, Option<Registration>)>,
    /// Who waits for those.
    pub(super) waiters: Vec<Waiter>,
    /// The newest seq given so far.
    pub(super) newest: Seq,
    pub(super) forgotten: Seq,
    /// Unix milliseconds.
    pub(super) now: u64,
    /// Until when its ids are remembered, in Unix milliseconds.
    pub(super) until: u64,
}

/// One row of `ids` or `floors`.
#[derive(Debug, Clone, Copy)]
struct Batch {
    n: i64,
    /// How many ids or floors it has.
    count: usize,
    /// Until when ids are remembered, in Unix milliseconds; the highest of the floors.
    mark: u64,
}

/// The one connection that writes.
#[derive(Debug)]
pub(super) struct Disk {
    connection: Connection,
    durability: Durability,
    path: PathBuf,
    state: StoreTotals,
    ids: BatchTable,
    most_ids: usize,
    floors: BatchTable,
}

/// The rows of a table of batches, oldest first.
#[derive(Debug, Default)]
struct BatchTable {
    rows: VecDeque<Batch>,
    /// What they hold together.
    count: usize,
}

impl BatchTable {
    fn add(&mut self, row: Batch) {
        self.count += row.count;
        self.rows.push_back(row);
    }

    fn apply(&mut self, change: &Change) {
        self.count -= self.rows.drain(..change.dropped).map(|row| row.count).sum::<usize>();
        if let Some(row) = change.added {
            self.add(row);
        }
    }
}

impl Disk {
    /// Makes a new store's file.
    pub(super) fn create(
        path: &Path,
        durability: Durability,
        identity: &StoreIdentity,
    ) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        keep_log(&connection, true)?;
        connection.pragma_update(None, "page_size", PAGE)?;
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        set_up(&connection, durability)?;
        let transaction = connection.unchecked_transaction()?;
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", FORMAT)?;
        let state = StoreTotals { newest: to_sql_int(identity.origin.0), ..StoreTotals::default() };
        state.write(&transaction)?;
        identity.write(&transaction)?;
        transaction.commit()?;
        // The file is a store by itself from here on, whatever becomes of the log.
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(Self::of(connection, path, durability, state))
    }

    /// Opens a store's file, if `verify` lets it. What is in it is to be read next, by [`super::recovery`].
    pub(super) fn open<E: From<rusqlite::Error>>(
        path: &Path,
        durability: Durability,
        verify: impl FnOnce(&Connection) -> Result<(), E>,
    ) -> Result<Self, E> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        keep_log(&connection, true)?;
        verify(&connection)?;
        set_up(&connection, durability)?;
        Ok(Self::of(connection, path, durability, StoreTotals::default()))
    }

    fn of(connection: Connection, path: &Path, durability: Durability, state: StoreTotals) -> Self {
        let path = path.to_owned();
        Self {
            connection,
            durability,
            path,
            state,
            ids: BatchTable::default(),
            most_ids: usize::MAX,
            floors: BatchTable::default(),
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn durability(&self) -> Durability {
        self.durability
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What was read at the start.
    pub(super) fn restore_state(&mut self, state: StoreTotals, most_ids: usize) {
        self.state = state;
        self.most_ids = most_ids;
    }

    /// Seqs go on above `newest`, in another epoch: nothing given so far means anything.
    pub(super) fn renew(&mut self, identity: &StoreIdentity, newest: Seq) -> rusqlite::Result<()> {
        self.state.newest = to_sql_int(newest.0);
        let transaction = self.connection.unchecked_transaction()?;
        identity.write(&transaction)?;
        self.state.write(&transaction)?;
        transaction.commit()
    }

    /// Commits a group. Afterwards it is as durable as the level says, or nothing of it is there.
    pub(super) fn write(&mut self, group: &Group) -> rusqlite::Result<()> {
        let mut state = self.state;
        state.commits += 1;
        state.newest = to_sql_int(group.newest.0);
        state.forgotten = state.forgotten.max(to_sql_int(group.forgotten.0));
        let transaction = self.connection.unchecked_transaction()?;
        for pending in &group.appends {
            state.add(to_sql_int(pending.seq.0));
        }
        insert(&transaction, &group.appends)?;
        let mut delete = transaction.prepare_cached("DELETE FROM message WHERE seq = ?1")?;
        for seq in &group.gone {
            let seq = to_sql_int(seq.0);
            if delete.execute([seq])? == 1 {
                state.remove(seq);
            }
        }
        drop(delete);
        for (session, registration) in &group.registrations {
            write_registration(&transaction, session, registration.as_ref(), &mut state)?;
        }
        let ids = self.write_ids(&transaction, group, state.commits)?;
        let floors = self.write_floors(&transaction, group, &mut state)?;
        state.write(&transaction)?;
        transaction.commit()?;
        self.state = state;
        self.ids.apply(&ids);
        self.floors.apply(&floors);
        Ok(())
    }

    fn write_ids(&self, to: &Transaction<'_>, group: &Group, n: i64) -> rusqlite::Result<Change> {
        let mut batch = Vec::new();
        for pending in &group.appends {
            if let Some(key) = pending.key {
                batch.extend_from_slice(&key.to_bytes());
                batch.extend_from_slice(&pending.seq.0.to_le_bytes());
            }
        }
        let mut change = Change { dropped: 0, added: None };
        let mut kept = self.ids.count;
        for row in &self.ids.rows {
            if row.mark > group.now && kept <= self.most_ids {
                break;
            }
            kept -= row.count;
            change.dropped += 1;
            to.prepare_cached("DELETE FROM ids WHERE n = ?1")?.execute([row.n])?;
        }
        if !batch.is_empty() {
            let until = to_sql_int(group.until);
            let crc = Crc::default().int(n).int(until).bytes(&batch).end();
            to.prepare_cached("INSERT INTO ids VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![n, until, batch, crc])?;
            change.added = Some(Batch { n, count: batch.len() / ID_BYTES, mark: group.until });
        }
        Ok(change)
    }

    fn write_floors(
        &self,
        to: &Transaction<'_>,
        group: &Group,
        state: &mut StoreTotals,
    ) -> rusqlite::Result<Change> {
        let mut change = Change { dropped: 0, added: None };
        if group.floors.is_empty() {
            return Ok(change);
        }
        let n = state.commits;
        let mut batch = Vec::new();
        let mut highest = Seq::START;
        for (address, Floor { floor, expired }) in &group.floors {
            let text = address_text(address);
            let length = u16::try_from(text.len()).expect("a name has at most 256 bytes");
            batch.extend_from_slice(&length.to_le_bytes());
            batch.extend_from_slice(text.as_bytes());
            batch.extend_from_slice(&floor.0.to_le_bytes());
            batch.extend_from_slice(&expired.0.to_le_bytes());
            highest = highest.max(*floor).max(*expired);
        }
        let mut kept = group.floors.len() + self.floors.count;
        for row in &self.floors.rows {
            if kept <= FLOORS {
                break;
            }
            kept -= row.count;
            change.dropped += 1;
            state.forgotten = state.forgotten.max(to_sql_int(row.mark));
            to.prepare_cached("DELETE FROM floors WHERE n = ?1")?.execute([row.n])?;
        }
        let crc = Crc::default().int(n).bytes(&batch).end();
        to.prepare_cached("INSERT INTO floors VALUES (?1, ?2, ?3)")?.execute(params![n, batch, crc])?;
        change.added = Some(Batch { n, count: group.floors.len(), mark: highest.0 });
        Ok(change)
    }

    /// Whether what is appended next certainly finds room, with everything that is in the log by then.
    ///
    /// When the disk is really full, the log cannot be copied into the database, and then not even deletions
    /// can be written, which would make room.
    pub(super) fn has_room(&self) -> bool {
        let free = rustix::fs::statvfs(&self.path).map_or(u64::MAX, |disk| disk.f_bavail * disk.f_frsize);
        if free >= HEADROOM {
            return true;
        }
        let pages = self.connection.pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0));
        pages.is_ok_and(|pages| free + from_sql_int(pages) * u64::from(PAGE) >= HEADROOM)
    }

    /// Gives back to the file system what is free beyond some slack, a slice at a time. Answers whether there
    /// is more.
    pub(super) fn shrink(&self, pages: i64) -> rusqlite::Result<bool> {
        let free: i64 = self.connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        let slice = pages.min(free - SLACK_PAGES);
        if slice <= 0 {
            return Ok(false);
        }
        // Each step of this statement frees one page.
        let mut statement = self.connection.prepare(&format!("PRAGMA incremental_vacuum({slice})"))?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        drop(rows);
        drop(statement);
        let left: i64 = self.connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        // A file that was made anew by other tools cannot give anything back.
        let more = left > SLACK_PAGES && left < free;
        if !more {
            // The file gets shorter when the log is copied into it.
            self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        }
        Ok(more)
    }

    /// Copies the write-ahead log into the database file and empties it.
    pub(super) fn copy_log(&self) -> rusqlite::Result<()> {
        self.checkpoint("TRUNCATE")
    }

    /// Copies the write-ahead log into the database file; the next commit begins it anew, as long as it is.
    pub(super) fn restart_log(&self) -> rusqlite::Result<()> {
        self.checkpoint("RESTART")
    }

    fn checkpoint(&self, how: &str) -> rusqlite::Result<()> {
        let sql = format!("PRAGMA wal_checkpoint({how})");
        let busy = self.connection.query_row(&sql, [], |row| row.get::<_, i64>(0))?;
        match busy {
            0 => Ok(()),
            _ => Err(rusqlite::Error::InvalidParameterName("somebody else reads the log".to_owned())),
        }
    }

    /// Brings everything into the database file and closes it, so that no write-ahead log is left.
    pub(super) fn close(self) -> rusqlite::Result<()> {
        keep_log(&self.connection, false)?;
        self.connection.close().map_err(|(_, error)| error)
    }

    /// How many ids are remembered.
    pub(super) fn count_ids(&self) -> rusqlite::Result<usize> {
        let sql = "SELECT coalesce(sum(length(batch)), 0) FROM ids";
        let bytes: i64 = self.connection.query_row(sql, [], |row| row.get(0))?;
        Ok(usize::try_from(bytes).unwrap_or_default() / ID_BYTES)
    }

    /// Reads the senders' ids.
    pub(super) fn read_ids(
        &mut self,
        now: u64,
        mut each: impl FnMut(DedupKey, Seq, u64),
    ) -> Result<(), ReadError> {
        let mut statement = self.connection.prepare("SELECT n, until, batch, crc FROM ids ORDER BY n")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (n, until) = (row.get::<_, i64>(0)?, row.get::<_, i64>(1)?);
            let damaged = || format!("row {n} of table `ids`");
            let batch = row.get_ref(2)?.as_blob().map_err(|_| ReadError::Damaged(damaged()))?;
            Crc::default().int(n).int(until).bytes(batch).is(row.get(3)?, damaged)?;
            let until = from_sql_int(until);
            self.ids.add(Batch { n, count: batch.len() / ID_BYTES, mark: until });
            if until <= now {
                continue;
            }
            for id in batch.chunks_exact(ID_BYTES) {
                let (key, seq) = id.split_at(16);
                let key = DedupKey::from_bytes(key.try_into().expect("16 bytes"));
                each(key, Seq(u64::from_le_bytes(seq.try_into().expect("8 bytes"))), until);
            }
        }
        Ok(())
    }

    /// Reads the floors of emptied addresses, oldest first.
    pub(super) fn read_floors(&mut self, mut each: impl FnMut(Address, Floor)) -> Result<(), ReadError> {
        let mut statement = self.connection.prepare("SELECT n, batch, crc FROM floors ORDER BY n")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let n: i64 = row.get(0)?;
            let damaged = || format!("row {n} of table `floors`");
            let batch = row.get_ref(1)?.as_blob().map_err(|_| ReadError::Damaged(damaged()))?;
            Crc::default().int(n).bytes(batch).is(row.get(2)?, damaged)?;
            let mut rest = batch;
            let (mut count, mut highest) = (0, Seq::START);
            while !rest.is_empty() {
                let (address, floor) = split_floor(&mut rest).ok_or_else(|| ReadError::Damaged(damaged()))?;
                highest = highest.max(floor.floor).max(floor.expired);
                count += 1;
                each(address, floor);
            }
            self.floors.add(Batch { n, count, mark: highest.0 });
        }
        Ok(())
    }
}

/// Bytes of one id in table `ids`.
const ID_BYTES: usize = 24;

fn split_floor(rest: &mut &[u8]) -> Option<(Address, Floor)> {
    let mut take = |count: usize| -> Option<&[u8]> {
        let (taken, left) = rest.split_at_checked(count)?;
        *rest = left;
        Some(taken)
    };
    let length = u16::from_le_bytes(take(2)?.try_into().ok()?);
    let address = parse_address(std::str::from_utf8(take(length.into())?).ok()?)?;
    let floor = Seq(u64::from_le_bytes(take(8)?.try_into().ok()?));
    let expired = Seq(u64::from_le_bytes(take(8)?.try_into().ok()?));
    Some((address, Floor { floor, expired }))
}

/// What a commit changes in a list of rows.
struct Change {
    dropped: usize,
    added: Option<Batch>,
}

fn insert(to: &Transaction<'_>, appends: &[Pending]) -> rusqlite::Result<()> {
    let mut statement = to.prepare_cached(&format!(
        "INSERT INTO message ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
    ))?;
    for pending in appends {
        let publication = &pending.publication;
        let receipt = pending.receipt.as_ref().map(|(session, id)| rows::receipt_text(session, id));
        let row = MessageRow {
            seq: to_sql_int(pending.seq.0),
            address: &address_text(&pending.address),
            prev: to_sql_int(pending.prev.0),
            expires_at: to_sql_int(pending.expires_at),
            ts: to_sql_int(pending.ts),
            kind: rows::kind_number(publication.kind()),
            sender: publication.from().map(SenderName::as_str),
            receipt: receipt.as_deref(),
            payload: &publication.stored_payload(),
        };
        row.insert(&mut statement)?;
    }
    Ok(())
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

/// Whether the write-ahead log stays as it is when the connection is closed, as a killed process leaves it. Only
/// [`Disk::close`] ends a store in order.
fn keep_log(connection: &Connection, keep: bool) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep).map(|_| ())
}

/// Opens a store's file for reading only.
pub(super) fn open_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "cache_size", -512)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(connection)
}

/// Opens a store's file for reading only, as if there were no log beside it, and writes nothing beside it.
pub(super) fn open_alone(path: &Path) -> rusqlite::Result<Connection> {
    let path = path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(format!("file:{path}?immutable=1"), flags)
}

/// Reads some messages, each by itself; `None` for those that are not there.
pub(super) fn fetch(
    connection: &Connection,
    seqs: &[Seq],
) -> Result<Vec<Result<Option<Publication>, ReadError>>, ReadError> {
    // One transaction: SQLite takes its locks once.
    let transaction = connection.unchecked_transaction()?;
    let sql = format!("SELECT {COLUMNS} FROM message WHERE seq = ?1");
    let mut statement = transaction.prepare_cached(&sql)?;
    let mut one = |seq: &Seq| -> Result<Option<Publication>, ReadError> {
        let mut rows = statement.query([to_sql_int(seq.0)])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        MessageRow::of(row)?.publication().map(Some)
    };
    Ok(seqs.iter().map(&mut one).collect())
}
