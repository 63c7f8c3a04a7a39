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
//! | `state` | one row, changed by every commit: how many messages there are, and a sum of their seqs |
//! | `store` | one row: epoch, first seq, the secret of the ids, the file's inode |
//!
//! SQLite has no checksums of its own: a damaged row fails its CRC, and a lost one is missing from the sums.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, params};
use serde_json::value::RawValue;

use crate::engine::Durability;
use crate::engine::embedded::dedup::Key;
use crate::engine::embedded::index::{EMPTY_SHELVES, Floor, Pending, kind_number};
use crate::message::{Address, Epoch, Kind, Message, Publication, Seq, SessionId, TopicName};

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

/// Emptied addresses remembered on the disk.
const FLOORS: usize = EMPTY_SHELVES;

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
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    commits INTEGER NOT NULL,
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

/// Seqs stay below 2^53 on the wire and fit SQLite's integers.
#[allow(clippy::cast_possible_wrap)]
fn int(n: u64) -> i64 {
    n as i64
}

#[allow(clippy::cast_sign_loss)]
fn nat(n: i64) -> u64 {
    n as u64
}

/// What is wrong with a row.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("{0} does not match its checksum")]
    Damaged(String),
}

/// A CRC-32 over fields of known types.
#[derive(Default)]
struct Crc(crc32fast::Hasher);

impl Crc {
    fn int(mut self, n: i64) -> Self {
        self.0.update(&n.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(&bytes.len().to_le_bytes());
        self.0.update(bytes);
        self
    }

    fn text(self, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.int(1).bytes(text.as_bytes()),
            None => self.int(0),
        }
    }

    fn is(self, expected: i64, what: impl FnOnce() -> String) -> Result<(), ReadError> {
        if self.end() == expected { Ok(()) } else { Err(ReadError::Damaged(what())) }
    }

    fn end(self) -> i64 {
        i64::from(self.0.finalize())
    }
}

/// An address as it is stored.
pub(super) fn address_text(address: &Address) -> String {
    match address {
        Address::Session(name) => format!("s/{name}"),
        Address::Topic(name) => format!("t/{name}"),
    }
}

pub(super) fn parse_address(text: &str) -> Option<Address> {
    match text.split_once('/')? {
        ("s", name) => SessionId::new(name).ok().map(Address::Session),
        ("t", name) => TopicName::new(name).ok().map(Address::Topic),
        _ => None,
    }
}

/// One row of `message`, its checksum verified.
#[derive(Debug, Clone, Copy)]
pub(super) struct MessageRow<'a> {
    pub(super) seq: i64,
    pub(super) address: &'a str,
    pub(super) prev: i64,
    pub(super) ends: i64,
    pub(super) ts: i64,
    pub(super) kind: i64,
    pub(super) sender: Option<&'a str>,
    pub(super) receipt: Option<&'a str>,
    pub(super) payload: &'a str,
}

const COLUMNS: &str = "seq, address, prev, ends, ts, kind, sender, receipt, payload, crc";

impl<'a> MessageRow<'a> {
    fn crc(&self) -> Crc {
        Crc::default()
            .int(self.seq)
            .text(Some(self.address))
            .int(self.prev)
            .int(self.ends)
            .int(self.ts)
            .int(self.kind)
            .text(self.sender)
            .text(self.receipt)
            .bytes(self.payload.as_bytes())
    }

    pub(super) fn of(row: &'a Row<'_>) -> Result<Self, ReadError> {
        let seq = row.get_ref(0)?.as_i64().map_err(rusqlite::Error::from)?;
        let damaged = || ReadError::Damaged(format!("message {seq}"));
        let int = |column: usize| row.get_ref(column)?.as_i64().map_err(|_| damaged());
        let text = |column: usize| row.get_ref(column)?.as_str().map_err(|_| damaged());
        let maybe = |column: usize| row.get_ref(column)?.as_str_or_null().map_err(|_| damaged());
        let read = Self {
            seq,
            address: text(1)?,
            prev: int(2)?,
            ends: int(3)?,
            ts: int(4)?,
            kind: int(5)?,
            sender: maybe(6)?,
            receipt: maybe(7)?,
            payload: text(8)?,
        };
        read.crc().is(int(9)?, || format!("message {seq}"))?;
        Ok(read)
    }

    fn insert(&self, statement: &mut rusqlite::CachedStatement<'_>) -> rusqlite::Result<()> {
        let Self { seq, address, prev, ends, ts, kind, sender, receipt, payload } = self;
        let crc = self.crc().end();
        statement.execute(params![seq, address, prev, ends, ts, kind, sender, receipt, payload, crc])?;
        Ok(())
    }

    pub(super) fn address(&self) -> Result<Address, ReadError> {
        parse_address(self.address).ok_or_else(|| self.damaged())
    }

    fn damaged(&self) -> ReadError {
        ReadError::Damaged(format!("message {}", self.seq))
    }

    fn publication(&self) -> Result<Publication, ReadError> {
        let kind = match self.kind {
            0 => Kind::Message,
            1 => Kind::Receipt,
            _ => return Err(self.damaged()),
        };
        let from = self.sender.map(SessionId::new).transpose().map_err(|_| self.damaged())?;
        let payload = RawValue::from_string(self.payload.to_owned()).map_err(|_| self.damaged())?;
        let message = Message { kind, from, payload, ts: nat(self.ts) };
        Ok(Publication::encode(&self.address()?, Some(Seq(nat(self.seq))), &message))
    }
}

/// The row of `state`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) commits: i64,
    pub(super) messages: i64,
    pub(super) sum: i64,
    pub(super) newest: i64,
    pub(super) forgotten: i64,
}

impl State {
    /// A message comes.
    pub(super) fn add(&mut self, seq: i64) {
        self.messages += 1;
        self.sum = self.sum.wrapping_add(mix(seq));
    }

    /// A message goes.
    fn remove(&mut self, seq: i64) {
        self.messages -= 1;
        self.sum = self.sum.wrapping_sub(mix(seq));
    }

    /// Whether these are the messages that were counted.
    pub(super) fn agrees(&self, seen: &Self) -> bool {
        (self.messages, self.sum) == (seen.messages, seen.sum)
    }

    fn crc(&self) -> Crc {
        Crc::default().int(self.commits).int(self.messages).int(self.sum).int(self.newest).int(self.forgotten)
    }

    pub(super) fn read(connection: &Connection) -> Result<Self, ReadError> {
        let sql = "SELECT commits, messages, sum, newest, forgotten, crc FROM state WHERE one = 1";
        let (state, crc) = connection.query_row(sql, [], |row| {
            let state = Self {
                commits: row.get(0)?,
                messages: row.get(1)?,
                sum: row.get(2)?,
                newest: row.get(3)?,
                forgotten: row.get(4)?,
            };
            Ok((state, row.get(5)?))
        })?;
        state.crc().is(crc, || "the row of table `state`".to_owned())?;
        Ok(state)
    }

    fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        let Self { commits, messages, sum, newest, forgotten } = self;
        let crc = self.crc().end();
        connection
            .prepare_cached("REPLACE INTO state VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![commits, messages, sum, newest, forgotten, crc])?;
        Ok(())
    }
}

/// Spreads a seq over 64 bits, so that sums of them tell sets apart (the finalizer of `splitmix64`).
fn mix(seq: i64) -> i64 {
    let mut bits = nat(seq).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    int(bits ^ (bits >> 31))
}

/// The row of `store`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) epoch: Epoch,
    pub(super) origin: Seq,
    pub(super) secret: [u8; 16],
    /// Of the file this was written into: a copy of it has another one.
    pub(super) inode: u64,
}

impl Identity {
    fn crc(&self) -> Crc {
        Crc::default()
            .text(Some(self.epoch.as_str()))
            .int(int(self.origin.0))
            .bytes(&self.secret)
            .int(int(self.inode))
    }

    pub(super) fn read(connection: &Connection) -> Result<Self, ReadError> {
        let sql = "SELECT epoch, origin, secret, inode, crc FROM store WHERE one = 1";
        let (identity, crc) = connection.query_row(sql, [], |row| {
            let identity = Self {
                epoch: Epoch::new(row.get_ref(0)?.as_str()?),
                origin: Seq(nat(row.get(1)?)),
                secret: row.get(2)?,
                inode: nat(row.get(3)?),
            };
            Ok((identity, row.get(4)?))
        })?;
        identity.crc().is(crc, || "the row of table `store`".to_owned())?;
        Ok(identity)
    }

    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        let crc = self.crc().end();
        connection.execute(
            "REPLACE INTO store VALUES (1, ?1, ?2, ?3, ?4, ?5)",
            params![self.epoch.as_str(), int(self.origin.0), self.secret, int(self.inode), crc],
        )?;
        Ok(())
    }
}

/// What is committed together.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) appends: Vec<Pending>,
    pub(super) gone: Vec<(Seq, Seq)>,
    pub(super) floors: Vec<(Address, Floor)>,
    /// The newest seq given so far.
    pub(super) newest: Seq,
    pub(super) forgotten: Seq,
    /// Unix milliseconds.
    pub(super) now: u64,
    /// Until when its ids are remembered, in Unix milliseconds.
    pub(super) until: u64,
}

/// The ids of one commit, and until when they are remembered.
#[derive(Debug, Clone, Copy)]
struct IdsRow {
    n: i64,
    until: u64,
    ids: usize,
}

/// The one connection that writes.
#[derive(Debug)]
pub(super) struct Disk {
    connection: Connection,
    path: PathBuf,
    state: State,
    /// Oldest first.
    ids: VecDeque<IdsRow>,
    most_ids: usize,
    /// The row number and the number of addresses, oldest first.
    floors: VecDeque<(i64, usize, Seq)>,
}

impl Disk {
    /// Makes a new store's file.
    pub(super) fn create(path: &Path, durability: Durability, identity: &Identity) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "page_size", PAGE)?;
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        set_up(&connection, durability)?;
        let transaction = connection.unchecked_transaction()?;
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", FORMAT)?;
        let state = State { newest: int(identity.origin.0), ..State::default() };
        state.write(&transaction)?;
        identity.write(&transaction)?;
        transaction.commit()?;
        Ok(Self::of(connection, path, state))
    }

    /// Opens a store's file. What is in it is to be read next, by [`super::recovery`].
    pub(super) fn open(path: &Path, durability: Durability) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        set_up(&connection, durability)?;
        Ok(Self::of(connection, path, State::default()))
    }

    fn of(connection: Connection, path: &Path, state: State) -> Self {
        let path = path.to_owned();
        Self { connection, path, state, ids: VecDeque::new(), most_ids: usize::MAX, floors: VecDeque::new() }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What was read at the start.
    pub(super) fn restore_state(&mut self, state: State, most_ids: usize) {
        self.state = state;
        self.most_ids = most_ids;
    }

    /// Seqs go on above `newest`, in another epoch: nothing given so far means anything.
    pub(super) fn renew(&mut self, identity: &Identity, newest: Seq) -> rusqlite::Result<()> {
        self.state.newest = int(newest.0);
        let transaction = self.connection.unchecked_transaction()?;
        identity.write(&transaction)?;
        self.state.write(&transaction)?;
        transaction.commit()
    }

    /// Commits a group. Afterwards it is as durable as the level says, or nothing of it is there.
    pub(super) fn write(&mut self, group: &Group) -> rusqlite::Result<()> {
        let mut state = self.state;
        state.commits += 1;
        state.newest = int(group.newest.0);
        state.forgotten = state.forgotten.max(int(group.forgotten.0));
        let transaction = self.connection.unchecked_transaction()?;
        for pending in &group.appends {
            state.add(int(pending.seq.0));
        }
        insert(&transaction, &group.appends)?;
        let mut delete = transaction.prepare_cached("DELETE FROM message WHERE seq = ?1")?;
        for (seq, _) in &group.gone {
            let seq = int(seq.0);
            if delete.execute([seq])? == 1 {
                state.remove(seq);
            }
        }
        drop(delete);
        let ids = self.write_ids(&transaction, group, state.commits)?;
        let floors = self.write_floors(&transaction, group, &mut state)?;
        state.write(&transaction)?;
        transaction.commit()?;
        self.state = state;
        ids.apply(&mut self.ids);
        floors.apply(&mut self.floors);
        Ok(())
    }

    fn write_ids(&self, to: &Transaction<'_>, group: &Group, n: i64) -> rusqlite::Result<Change<IdsRow>> {
        let mut batch = Vec::new();
        for pending in &group.appends {
            if let Some(key) = pending.key {
                batch.extend_from_slice(&key.to_le_bytes());
                batch.extend_from_slice(&pending.seq.0.to_le_bytes());
            }
        }
        let mut change = Change { dropped: 0, added: None };
        let mut kept: usize = self.ids.iter().map(|row| row.ids).sum();
        for row in &self.ids {
            if row.until > group.now && kept <= self.most_ids {
                break;
            }
            kept -= row.ids;
            change.dropped += 1;
            to.prepare_cached("DELETE FROM ids WHERE n = ?1")?.execute([row.n])?;
        }
        if !batch.is_empty() {
            let until = int(group.until);
            let crc = Crc::default().int(n).int(until).bytes(&batch).end();
            to.prepare_cached("INSERT INTO ids VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![n, until, batch, crc])?;
            change.added = Some(IdsRow { n, until: group.until, ids: batch.len() / ID_BYTES });
        }
        Ok(change)
    }

    fn write_floors(
        &self,
        to: &Transaction<'_>,
        group: &Group,
        state: &mut State,
    ) -> rusqlite::Result<Change<(i64, usize, Seq)>> {
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
        let mut kept: usize =
            group.floors.len() + self.floors.iter().map(|(_, count, _)| count).sum::<usize>();
        for (n, count, highest) in &self.floors {
            if kept <= FLOORS {
                break;
            }
            kept -= count;
            change.dropped += 1;
            state.forgotten = state.forgotten.max(int(highest.0));
            to.prepare_cached("DELETE FROM floors WHERE n = ?1")?.execute([n])?;
        }
        let crc = Crc::default().int(n).bytes(&batch).end();
        to.prepare_cached("INSERT INTO floors VALUES (?1, ?2, ?3)")?.execute(params![n, batch, crc])?;
        change.added = Some((n, group.floors.len(), highest));
        Ok(change)
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
        Ok(free - slice > SLACK_PAGES)
    }

    /// Brings everything into the database file and closes it, so that no write-ahead log is left.
    pub(super) fn close(self) -> rusqlite::Result<()> {
        self.connection.close().map_err(|(_, error)| error)
    }

    /// Closes it as a killed process leaves it: the write-ahead log stays.
    pub(super) fn abandon(self) -> rusqlite::Result<()> {
        self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        self.close()
    }

    /// Reads the senders' ids.
    pub(super) fn read_ids(
        &mut self,
        now: u64,
        mut each: impl FnMut(Key, Seq, u64),
    ) -> Result<(), ReadError> {
        let mut statement = self.connection.prepare("SELECT n, until, batch, crc FROM ids ORDER BY n")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (n, until) = (row.get::<_, i64>(0)?, row.get::<_, i64>(1)?);
            let damaged = || format!("row {n} of table `ids`");
            let batch = row.get_ref(2)?.as_blob().map_err(|_| ReadError::Damaged(damaged()))?;
            Crc::default().int(n).int(until).bytes(batch).is(row.get(3)?, damaged)?;
            let until = nat(until);
            self.ids.push_back(IdsRow { n, until, ids: batch.len() / ID_BYTES });
            if until <= now {
                continue;
            }
            for id in batch.chunks_exact(ID_BYTES) {
                let (key, seq) = id.split_at(16);
                let key = Key::from_le_bytes(key.try_into().expect("16 bytes"));
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
            self.floors.push_back((n, count, highest));
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
struct Change<T> {
    dropped: usize,
    added: Option<T>,
}

impl<T> Change<T> {
    fn apply(self, rows: &mut VecDeque<T>) {
        rows.drain(..self.dropped);
        rows.extend(self.added);
    }
}

fn insert(to: &Transaction<'_>, appends: &[Pending]) -> rusqlite::Result<()> {
    let mut statement = to.prepare_cached(&format!(
        "INSERT INTO message ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
    ))?;
    for pending in appends {
        let publication = &pending.publication;
        let row = MessageRow {
            seq: int(pending.seq.0),
            address: &address_text(&pending.address),
            prev: int(pending.prev.0),
            ends: int(pending.ends),
            ts: int(pending.ts),
            kind: kind_number(publication.kind()),
            sender: publication.from().map(SessionId::as_str),
            receipt: pending.receipt.as_ref().map(|id| id.as_str()),
            payload: &publication.stored_payload(),
        };
        row.insert(&mut statement)?;
    }
    Ok(())
}

/// Copies one intact message into another store's file.
pub(super) fn copy(row: &MessageRow<'_>, to: &Connection) -> rusqlite::Result<()> {
    let mut statement = to.prepare_cached(&format!(
        "INSERT INTO message ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
    ))?;
    row.insert(&mut statement)
}

/// Writes `state` anew.
pub(super) fn write_state(state: &State, to: &Connection) -> rusqlite::Result<()> {
    state.write(to)
}

/// All messages from one end.
pub(super) fn scan_sql(backwards: bool) -> String {
    let order = if backwards { "DESC" } else { "ASC" };
    format!("SELECT {COLUMNS} FROM message ORDER BY seq {order}")
}

fn set_up(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    let synchronous = match durability {
        Durability::Fsync => "FULL",
        Durability::Os => "NORMAL",
    };
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", WAL_PAGES, |row| row.get::<_, i64>(0))?;
    // Damage shows itself as an error here, not later.
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "cache_size", -4096)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
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

/// Reads some messages: `None` for those that are not there.
pub(super) fn fetch(
    connection: &Connection,
    seqs: &[Seq],
) -> rusqlite::Result<Vec<Option<Result<Publication, ReadError>>>> {
    // One transaction: SQLite takes its locks once.
    let transaction = connection.unchecked_transaction()?;
    let sql = format!("SELECT {COLUMNS} FROM message WHERE seq = ?1");
    let mut statement = transaction.prepare_cached(&sql)?;
    seqs.iter()
        .map(|seq| {
            statement
                .query_row([int(seq.0)], |row| Ok(MessageRow::of(row).and_then(|row| row.publication())))
                .optional()
        })
        .collect()
}
