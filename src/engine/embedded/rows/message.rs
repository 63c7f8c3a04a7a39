//! Table `message`: one row for each stored message.

use rusqlite::{CachedStatement, Connection, Row, ToSql};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::engine::embedded::rows::store::StoreTotals;
use crate::engine::embedded::rows::{Crc, ReadError, from_sql_int, parse_address, to_sql_int};
use crate::message::{
    Address, BackendName, Kind, Message, MessageId, Publication, SenderName, Seq, SessionId,
};

const COLUMNS: &str = "seq, address, prev, ends, ts, kind, sender, receipt, payload, crc";
const COLUMN_COUNT: usize = 10;

/// One row of `message`, its checksum verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MessageRow<'a> {
    pub(crate) seq: i64,
    pub(crate) address: &'a str,
    pub(crate) prev: i64,
    pub(crate) expires_at: i64,
    pub(crate) ts: i64,
    pub(crate) kind: i64,
    pub(crate) sender: Option<&'a str>,
    pub(crate) receipt: Option<&'a str>,
    pub(crate) payload: &'a str,
}

impl<'a> MessageRow<'a> {
    fn crc(&self) -> Crc {
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

    fn of(row: &'a Row<'_>) -> Result<Self, ReadError> {
        let seq = row.get_ref(0)?.as_i64().map_err(rusqlite::Error::from)?;
        let damaged = || ReadError::Damaged(format!("message {seq}"));
        let int = |column: usize| row.get_ref(column)?.as_i64().map_err(|_| damaged());
        let text = |column: usize| row.get_ref(column)?.as_str().map_err(|_| damaged());
        let optional = |column: usize| row.get_ref(column)?.as_str_or_null().map_err(|_| damaged());
        let read = Self {
            seq,
            address: text(1)?,
            prev: int(2)?,
            expires_at: int(3)?,
            ts: int(4)?,
            kind: int(5)?,
            sender: optional(6)?,
            receipt: optional(7)?,
            payload: text(8)?,
        };
        read.crc().verify(int(9)?, || format!("message {seq}"))?;
        Ok(read)
    }

    /// Stores the row, by an [`insertion`] of one. Returns false if there is one with this seq.
    pub(crate) fn insert(&self, statement: &mut CachedStatement<'_>) -> rusqlite::Result<bool> {
        self.bind(statement, 0)?;
        Ok(statement.raw_execute()? == 1)
    }

    /// Makes this the row number `at`, from 0, of an [`insertion`].
    pub(crate) fn bind(&self, statement: &mut CachedStatement<'_>, at: usize) -> rusqlite::Result<()> {
        let Self { seq, address, prev, expires_at, ts, kind, sender, receipt, payload } = self;
        let crc = self.crc().value();
        let row: [&dyn ToSql; COLUMN_COUNT] =
            [seq, address, prev, expires_at, ts, kind, sender, receipt, payload, &crc];
        let first = COLUMN_COUNT * at + 1;
        row.into_iter().zip(first..).try_for_each(|(value, at)| statement.raw_bind_parameter(at, value))
    }

    pub(crate) fn address(&self) -> Result<Address, ReadError> {
        parse_address(self.address).ok_or_else(|| self.damaged())
    }

    /// The mailbox that gets a receipt for it, and the id that its sender gave it.
    pub(crate) fn receipt(&self) -> Option<(Address, MessageId)> {
        let (name, id) = self.receipt?.split_once('\n')?;
        let mailbox = match name.strip_prefix(BACKEND) {
            Some(name) => Address::Backend(BackendName::new(name).ok()?),
            None => Address::Session(SessionId::new(name).ok()?),
        };
        Some((mailbox, MessageId::new(id).ok()?))
    }

    /// The author that pays for it: clients do, backends do not.
    pub(crate) fn payer(&self) -> Option<SenderName> {
        match kind_of(self.kind)? {
            Kind::Receipt => None,
            kind if kind.is_from_backend() => None,
            _ => SenderName::new(self.sender?).ok(),
        }
    }

    fn damaged(&self) -> ReadError {
        ReadError::Damaged(format!("message {}", self.seq))
    }

    /// The message as its sender sent it.
    pub(crate) fn message(&self) -> Result<Message, ReadError> {
        let kind = kind_of(self.kind).ok_or_else(|| self.damaged())?;
        let from = self.sender.map(SenderName::new).transpose().map_err(|_| self.damaged())?;
        let (payload, reference) = match kind {
            Kind::Message | Kind::FromBackend | Kind::Receipt | Kind::Presence => {
                (RawValue::from_string(self.payload.to_owned()).map_err(|_| self.damaged())?, None)
            }
            Kind::Request { .. } | Kind::Reply { .. } => {
                let Referring { reference, payload } =
                    serde_json::from_str(self.payload).map_err(|_| self.damaged())?;
                (payload.to_owned(), Some(reference))
            }
        };
        Ok(Message { kind, from, payload, ts: from_sql_int(self.ts), reference })
    }

    fn publication(&self) -> Result<Publication, ReadError> {
        let message = self.message()?;
        Ok(Publication::encode(&self.address()?, Some(Seq(from_sql_int(self.seq))), &message))
    }
}

/// What is stored as the payload of a request or a reply.
#[derive(Deserialize)]
struct Referring<'a> {
    /// The `reply_to` of a request, the `id` of a reply.
    #[serde(alias = "reply_to", alias = "id")]
    reference: Box<str>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// What kind a stored message is, as a number that never changes.
pub(crate) fn kind_number(kind: Kind) -> i64 {
    match kind {
        Kind::Message => 0,
        Kind::Receipt => 1,
        Kind::FromBackend => 2,
        Kind::Request { backend: false } => 3,
        Kind::Request { backend: true } => 4,
        Kind::Reply { backend: false } => 5,
        Kind::Reply { backend: true } => 6,
        // Never stored, and not read.
        Kind::Presence => 7,
    }
}

/// The inverse of [`kind_number`].
fn kind_of(number: i64) -> Option<Kind> {
    match number {
        0 => Some(Kind::Message),
        1 => Some(Kind::Receipt),
        2 => Some(Kind::FromBackend),
        3 => Some(Kind::Request { backend: false }),
        4 => Some(Kind::Request { backend: true }),
        5 => Some(Kind::Reply { backend: false }),
        6 => Some(Kind::Reply { backend: true }),
        _ => None,
    }
}

/// What the name of a backend begins with where that of a session can stand. Names hold no control characters.
const BACKEND: char = '\t';

/// The mailbox that gets a receipt, and the sender's id for the message. Topics send nothing.
pub(crate) fn receipt_text(mailbox: &Address, id: &MessageId) -> Option<String> {
    match mailbox {
        Address::Session(session) => Some(format!("{session}\n{id}")),
        Address::Backend(backend) => Some(format!("{BACKEND}{backend}\n{id}")),
        Address::Topic(_) => None,
    }
}

/// Inserts a row that must not be there yet.
pub(crate) const INSERT: &str = "INSERT";
/// Inserts a row, unless there is one with its seq.
pub(crate) const INSERT_IF_ABSENT: &str = "INSERT OR IGNORE";

/// Prepares the insertion of so many messages at once: [`INSERT`] or [`INSERT_IF_ABSENT`].
pub(crate) fn insertion<'a>(
    to: &'a Connection,
    insert: &str,
    rows: usize,
) -> rusqlite::Result<CachedStatement<'a>> {
    let row = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    to.prepare_cached(&format!("{insert} INTO message ({COLUMNS}) VALUES {}", vec![row; rows].join(", ")))
}

/// Reads all messages in seq order. Returns their number and sum.
///
/// # Errors
/// The first row that cannot be read, and what `each` returns.
pub(crate) fn scan(
    connection: &Connection,
    mut each: impl FnMut(&MessageRow<'_>) -> Result<(), ReadError>,
) -> Result<StoreTotals, ReadError> {
    let mut seen = StoreTotals::default();
    let mut statement = connection.prepare(&format!("SELECT {COLUMNS} FROM message ORDER BY seq"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let row = MessageRow::of(row)?;
        each(&row)?;
        seen.add(row.seq);
    }
    Ok(seen)
}

/// Reads the intact messages of a damaged file, as far as they can be reached from one end. Rows may repeat.
///
/// # Errors
/// What ended the reading before the other end, and what `each` returns.
pub(crate) fn scan_intact<E: From<ReadError>>(
    connection: &Connection,
    backwards: bool,
    mut each: impl FnMut(&MessageRow<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let order = if backwards { "DESC" } else { "ASC" };
    let sql = format!("SELECT {COLUMNS} FROM message ORDER BY seq {order}");
    let mut statement = connection.prepare(&sql).map_err(ReadError::from)?;
    let mut rows = statement.query([]).map_err(ReadError::from)?;
    while let Some(row) = rows.next().map_err(ReadError::from)? {
        match MessageRow::of(row) {
            Ok(row) if row.address().is_ok() => each(&row)?,
            Ok(_) | Err(ReadError::Damaged(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads some messages, each by itself; `None` for those that are not there.
pub(crate) fn fetch(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::disk::open::SCHEMA;

    fn row(seq: i64) -> MessageRow<'static> {
        MessageRow {
            seq,
            address: "s/A",
            prev: seq - 1,
            expires_at: 99,
            ts: 7,
            kind: 0,
            sender: Some("B"),
            receipt: Some("B\nc-1"),
            payload: "{\"a\":1}",
        }
    }

    fn store(seqs: &[i64]) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        let mut statement = insertion(&connection, INSERT, 1).unwrap();
        for seq in seqs {
            assert!(row(*seq).insert(&mut statement).unwrap());
        }
        drop(statement);
        connection
    }

    #[test]
    fn a_row_is_read_back_with_its_receipt() {
        let connection = store(&[1, 2]);
        assert!(
            !row(2).insert(&mut insertion(&connection, INSERT_IF_ABSENT, 1).unwrap()).unwrap(),
            "it is there"
        );
        let mut seen = Vec::new();
        let totals = scan(&connection, |found| {
            assert_eq!(*found, row(found.seq));
            seen.push(found.receipt().unwrap());
            Ok(())
        });
        assert_eq!(totals.unwrap().messages, 2);
        assert_eq!(seen[0], (Address::Session(SessionId::new("B").unwrap()), MessageId::new("c-1").unwrap()));
        let found = fetch(&connection, &[Seq(2), Seq(3)]).unwrap();
        let frame = found[0].as_ref().unwrap().as_ref().unwrap().frame().as_str().to_owned();
        assert_eq!(frame, r#"{"type":"message","seq":2,"from":"B","ts":7,"payload":{"a":1}}"#);
        assert!(found[1].as_ref().unwrap().is_none());
    }

    #[test]
    fn a_receipt_for_a_backend_is_told_from_one_for_a_session() {
        let id = MessageId::new("c-1").unwrap();
        for mailbox in [
            Address::Session(SessionId::new("shop").unwrap()),
            Address::Backend(BackendName::new("shop").unwrap()),
        ] {
            let text = receipt_text(&mailbox, &id).unwrap();
            let row = MessageRow { receipt: Some(&text), ..row(1) };
            assert_eq!(row.receipt(), Some((mailbox, id.clone())));
        }
    }

    #[test]
    fn each_kind_is_read_back() {
        let (request, reply) =
            (r#"{"reply_to":"abc","payload":{"id":1}}"#, r#"{"id":"a\"b","payload":[1, 2]}"#);
        let receipt = r#"{"id":"1","state":"expired"}"#;
        for (kind, payload) in [
            (Kind::Message, receipt),
            (Kind::Receipt, receipt),
            (Kind::FromBackend, receipt),
            (Kind::Request { backend: false }, request),
            (Kind::Request { backend: true }, request),
            (Kind::Reply { backend: false }, reply),
            (Kind::Reply { backend: true }, reply),
        ] {
            let row = MessageRow { kind: kind_number(kind), payload, ..row(1) };
            let publication = row.publication().unwrap();
            assert_eq!((publication.kind(), &*publication.stored_payload()), (kind, payload));
            let pays = !kind.is_from_backend() && kind != Kind::Receipt;
            assert_eq!(row.payer().is_some(), pays, "{kind:?}");
        }
        for kind in [3, 5, 7] {
            assert!(MessageRow { kind, ..row(1) }.publication().unwrap_err().is_damage(), "{kind}");
        }
    }

    #[test]
    fn every_changed_column_is_noticed_and_passed_by() {
        for (column, value) in [
            ("address", "'s/B'"),
            ("prev", "8"),
            ("ends", "8"),
            ("ts", "8"),
            ("kind", "1"),
            ("sender", "NULL"),
            ("receipt", "'B'"),
            ("payload", "'{}'"),
            ("crc", "8"),
        ] {
            let connection = store(&[1, 2, 3]);
            connection
                .execute_batch(&format!("UPDATE message SET {column} = {value} WHERE seq = 2"))
                .unwrap();
            let error = scan(&connection, |_| Ok(())).unwrap_err();
            assert_eq!(error.to_string(), "message 2 is damaged", "{column}");
            assert!(fetch(&connection, &[Seq(2)]).unwrap()[0].is_err(), "{column}");
            for (backwards, expected) in [(false, [1, 3]), (true, [3, 1])] {
                let mut intact = Vec::new();
                let each = |row: &MessageRow<'_>| -> Result<(), ReadError> {
                    intact.push(row.seq);
                    Ok(())
                };
                scan_intact(&connection, backwards, each).unwrap();
                assert_eq!(intact, expected, "{column}");
            }
        }
    }
}
