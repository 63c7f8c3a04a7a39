//! The rows of the store, each with its checksum.

use rusqlite::{Connection, Row, params};
use serde_json::value::RawValue;

use crate::engine::{Registration, RegistrationSource};
use crate::message::{
    Address, Epoch, Kind, Message, MessageId, Publication, SenderName, Seq, SessionId, TopicName, UserId,
};

/// Seqs stay below 2^53 on the wire and fit SQLite's integers.
#[allow(clippy::cast_possible_wrap)]
pub(super) fn to_sql_int(n: u64) -> i64 {
    n as i64
}

#[allow(clippy::cast_sign_loss)]
pub(super) fn from_sql_int(n: i64) -> u64 {
    n as u64
}

/// What is wrong with a row.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("{0} is damaged")]
    Damaged(String),
}

/// A CRC-32 over fields of known types.
#[derive(Default)]
pub(super) struct Crc(crc32fast::Hasher);

impl Crc {
    pub(super) fn int(mut self, n: i64) -> Self {
        self.0.update(&n.to_le_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(&bytes.len().to_le_bytes());
        self.0.update(bytes);
        self
    }

    pub(super) fn text(self, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.int(1).bytes(text.as_bytes()),
            None => self.int(0),
        }
    }

    pub(super) fn is(self, expected: i64, what: impl FnOnce() -> String) -> Result<(), ReadError> {
        if self.end() == expected { Ok(()) } else { Err(ReadError::Damaged(what())) }
    }

    pub(super) fn end(self) -> i64 {
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

/// Who gets a receipt, and for which id. Names hold no line breaks.
pub(super) fn receipt_text(session: &SessionId, id: &MessageId) -> String {
    format!("{session}\n{id}")
}

/// One row of `message`, its checksum verified.
#[derive(Debug, Clone, Copy)]
pub(super) struct MessageRow<'a> {
    pub(super) seq: i64,
    pub(super) address: &'a str,
    pub(super) prev: i64,
    pub(super) expires_at: i64,
    pub(super) ts: i64,
    pub(super) kind: i64,
    pub(super) sender: Option<&'a str>,
    pub(super) receipt: Option<&'a str>,
    pub(super) payload: &'a str,
}

pub(super) const COLUMNS: &str = "seq, address, prev, ends, ts, kind, sender, receipt, payload, crc";

impl<'a> MessageRow<'a> {
    pub(super) fn crc(&self) -> Crc {
        Crc::default()
            .int(self.seq)
            .text(Some(self.address))
            .int(self.prev)
            .int(self.expires_at)
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
            expires_at: int(3)?,
            ts: int(4)?,
            kind: int(5)?,
            sender: maybe(6)?,
            receipt: maybe(7)?,
            payload: text(8)?,
        };
        read.crc().is(int(9)?, || format!("message {seq}"))?;
        Ok(read)
    }

    pub(super) fn insert(&self, statement: &mut rusqlite::CachedStatement<'_>) -> rusqlite::Result<bool> {
        let Self { seq, address, prev, expires_at, ts, kind, sender, receipt, payload } = self;
        let crc = self.crc().end();
        Ok(statement
            .execute(params![seq, address, prev, expires_at, ts, kind, sender, receipt, payload, crc])?
            == 1)
    }

    pub(super) fn address(&self) -> Result<Address, ReadError> {
        parse_address(self.address).ok_or_else(|| self.damaged())
    }

    /// Who wants to know what becomes of it, and its name there. Without a session of its own in a store of
    /// version 0.1, where it is the sender's.
    pub(super) fn receipt(&self) -> Option<(SessionId, MessageId)> {
        let receipt = self.receipt?;
        let (session, id) = receipt.split_once('\n').or_else(|| Some((self.sender?, receipt)))?;
        Some((SessionId::new(session).ok()?, MessageId::new(id).ok()?))
    }

    pub(super) fn damaged(&self) -> ReadError {
        ReadError::Damaged(format!("message {}", self.seq))
    }

    pub(super) fn publication(&self) -> Result<Publication, ReadError> {
        let kind = match self.kind {
            0 => Kind::Message,
            1 => Kind::Receipt,
            _ => return Err(self.damaged()),
        };
        let from = self.sender.map(SenderName::new).transpose().map_err(|_| self.damaged())?;
        let payload = RawValue::from_string(self.payload.to_owned()).map_err(|_| self.damaged())?;
        let message = Message { kind, from, payload, ts: from_sql_int(self.ts) };
        Ok(Publication::encode(&self.address()?, Some(Seq(from_sql_int(self.seq))), &message))
    }
}

/// The row of `state`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct StoreTotals {
    pub(super) commits: i64,
    /// Registered sessions.
    pub(super) sessions: i64,
    pub(super) messages: i64,
    pub(super) sum: i64,
    pub(super) newest: i64,
    pub(super) forgotten: i64,
}

impl StoreTotals {
    /// A message comes.
    pub(super) fn add(&mut self, seq: i64) {
        self.messages += 1;
        self.sum = self.sum.wrapping_add(splitmix64(seq));
    }

    /// A message goes.
    pub(super) fn remove(&mut self, seq: i64) {
        self.messages -= 1;
        self.sum = self.sum.wrapping_sub(splitmix64(seq));
    }

    /// Whether these are the messages that were counted.
    pub(super) fn agrees(&self, seen: &Self) -> bool {
        (self.messages, self.sum) == (seen.messages, seen.sum)
    }

    pub(super) fn crc(&self) -> Crc {
        Crc::default()
            .int(self.commits)
            .int(self.sessions)
            .int(self.messages)
            .int(self.sum)
            .int(self.newest)
            .int(self.forgotten)
    }

    pub(super) fn read(connection: &Connection) -> Result<Self, ReadError> {
        let sql = "SELECT commits, sessions, messages, sum, newest, forgotten, crc FROM state WHERE one = 1";
        let (state, crc) = connection.query_row(sql, [], |row| {
            let state = Self {
                commits: row.get(0)?,
                sessions: row.get(1)?,
                messages: row.get(2)?,
                sum: row.get(3)?,
                newest: row.get(4)?,
                forgotten: row.get(5)?,
            };
            Ok((state, row.get(6)?))
        })?;
        state.crc().is(crc, || "the row of table `state`".to_owned())?;
        Ok(state)
    }

    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        let Self { commits, sessions, messages, sum, newest, forgotten } = self;
        let crc = self.crc().end();
        connection
            .prepare_cached("REPLACE INTO state VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
            .execute(params![commits, sessions, messages, sum, newest, forgotten, crc])?;
        Ok(())
    }
}

/// Spreads a seq over 64 bits, so that sums of them tell sets apart (the finalizer of `splitmix64`).
pub(super) fn splitmix64(seq: i64) -> i64 {
    let mut bits = from_sql_int(seq).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    to_sql_int(bits ^ (bits >> 31))
}

/// The row of `store`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoreIdentity {
    pub(super) epoch: Epoch,
    pub(super) origin: Seq,
    pub(super) secret: [u8; 16],
    /// Of the file this was written into: a copy of it has another one.
    pub(super) inode: u64,
}

impl StoreIdentity {
    pub(super) fn crc(&self) -> Crc {
        Crc::default()
            .text(Some(self.epoch.as_str()))
            .int(to_sql_int(self.origin.0))
            .bytes(&self.secret)
            .int(to_sql_int(self.inode))
    }

    pub(super) fn read(connection: &Connection) -> Result<Self, ReadError> {
        let sql = "SELECT epoch, origin, secret, inode, crc FROM store WHERE one = 1";
        let (identity, crc) = connection.query_row(sql, [], |row| {
            let identity = Self {
                epoch: Epoch::new(row.get_ref(0)?.as_str()?),
                origin: Seq(from_sql_int(row.get(1)?)),
                secret: row.get(2)?,
                inode: from_sql_int(row.get(3)?),
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
            params![self.epoch.as_str(), to_sql_int(self.origin.0), self.secret, to_sql_int(self.inode), crc],
        )?;
        Ok(())
    }
}

pub(super) fn registration_crc(session: &str, user: Option<&str>, ends: i64) -> Crc {
    Crc::default().text(Some(session)).text(user).int(ends)
}

/// Stores a registration, or that there is none any more.
pub(super) fn write_registration(
    to: &Connection,
    session: &SessionId,
    registration: Option<&Registration>,
    state: &mut StoreTotals,
) -> rusqlite::Result<()> {
    let gone = to.prepare_cached("DELETE FROM directory WHERE session = ?1")?.execute([session.as_str()])?;
    state.sessions -= i64::from(gone > 0);
    let Some(Registration { user, expires_at, source }) = registration else { return Ok(()) };
    // Who it belongs to, and on whose word; nothing of a session that was ended.
    let user = user.as_ref().map_or("", UserId::as_str);
    let user = match source {
        RegistrationSource::Backend { until } => Some(format!("b{until}/{user}")),
        RegistrationSource::Token => Some(format!("t/{user}")),
        RegistrationSource::Revoked => None,
    };
    let (session, user, ends) = (session.as_str(), user.as_deref(), to_sql_int(*expires_at));
    let crc = registration_crc(session, user, ends).end();
    to.prepare_cached("INSERT INTO directory VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![session, user, ends, crc])?;
    state.sessions += 1;
    Ok(())
}

/// Reads the registered sessions; answers how many there are.
pub(super) fn read_directory(
    from: &Connection,
    mut each: impl FnMut(&SessionId, Registration) -> Result<(), ReadError>,
) -> Result<i64, ReadError> {
    let mut statement = from.prepare("SELECT session, user, ends, crc FROM directory")?;
    let mut rows = statement.query([])?;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        let damaged = || ReadError::Damaged("a row of table `directory`".to_owned());
        let session = row.get_ref(0)?.as_str().map_err(|_| damaged())?;
        let user = row.get_ref(1)?.as_str_or_null().map_err(|_| damaged())?;
        let ends = row.get_ref(2)?.as_i64().map_err(|_| damaged())?;
        registration_crc(session, user, ends).is(row.get(3)?, || "a row of table `directory`".to_owned())?;
        let (source, user) = match user.map(|user| user.split_once('/')) {
            None => (RegistrationSource::Revoked, ""),
            Some(Some(("t", user))) => (RegistrationSource::Token, user),
            Some(Some((word, user))) => {
                let until = word.strip_prefix('b').and_then(|until| until.parse().ok());
                (RegistrationSource::Backend { until: until.ok_or_else(damaged)? }, user)
            }
            Some(None) => return Err(damaged()),
        };
        let user = Some(user).filter(|user| !user.is_empty()).map(UserId::new).transpose();
        let user = user.map_err(|_| damaged())?;
        let session = SessionId::new(session).map_err(|_| damaged())?;
        each(&session, Registration { user, expires_at: from_sql_int(ends), source })?;
        count += 1;
    }
    Ok(count)
}

/// Copies one intact message into another store's file; answers whether it was not there yet.
pub(super) fn copy(row: &MessageRow<'_>, to: &Connection) -> rusqlite::Result<bool> {
    let mut statement = to.prepare_cached(&format!(
        "INSERT OR IGNORE INTO message ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
    ))?;
    row.insert(&mut statement)
}

/// All messages from one end.
pub(super) fn scan_sql(backwards: bool) -> String {
    let order = if backwards { "DESC" } else { "ASC" };
    format!("SELECT {COLUMNS} FROM message ORDER BY seq {order}")
}

/// Whether this says that the file is damaged, and not that it cannot be read now.
pub(super) fn is_damage(error: &ReadError) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, Unknown};
    match error {
        ReadError::Damaged(_) => true,
        ReadError::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) => {
            // The last one is what cannot be prepared any more: the schema is damaged.
            matches!(failure.code, DatabaseCorrupt | NotADatabase | Unknown)
        }
        ReadError::Sqlite(
            rusqlite::Error::QueryReturnedNoRows
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
            | rusqlite::Error::SqlInputError { .. },
        ) => true,
        ReadError::Sqlite(_) => false,
    }
}

/// What kind a stored message is, as a number that never changes.
pub(super) fn kind_number(kind: Kind) -> i64 {
    match kind {
        Kind::Message => 0,
        Kind::Receipt => 1,
    }
}
