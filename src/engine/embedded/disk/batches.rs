//! Tables `ids` and `floors`: each row holds what one commit added, and leaves as a whole.

use std::collections::VecDeque;

use rusqlite::{Connection, Transaction, params};

use crate::engine::embedded::dedup::{ContentHash, DedupKey, SendId};
use crate::engine::embedded::index::{EMPTY_LOGS, Floor, Pending};
use crate::engine::embedded::rows::{Crc, ReadError, address_text, from_sql_int, parse_address, to_sql_int};
use crate::message::{Address, Seq};

/// Emptied addresses remembered on the disk.
const MAX_FLOORS: usize = EMPTY_LOGS;

/// Bytes of one id in table `ids`: its hash, its seq and the hash of its content.
const ID_BYTES: usize = 32;

/// Bytes of one id in format 1: its hash and its seq.
const FORMAT_1_ID_BYTES: usize = 24;

/// One row of `ids` or `floors`.
#[derive(Debug, Clone, Copy)]
struct BatchRow {
    n: i64,
    /// How many ids or floors it has.
    count: usize,
    /// For ids: when they are forgotten, in Unix milliseconds. For floors: the highest seq among them.
    mark: u64,
}

/// What a commit changes in a table of batches. Applied once the commit has succeeded.
#[derive(Debug)]
pub(super) struct BatchChange {
    dropped: usize,
    added: Option<BatchRow>,
}

/// The rows of a table of batches, oldest first.
#[derive(Debug, Default)]
struct BatchTable {
    rows: VecDeque<BatchRow>,
    /// What they hold together.
    count: usize,
}

impl BatchTable {
    fn add(&mut self, row: BatchRow) {
        self.count += row.count;
        self.rows.push_back(row);
    }

    fn apply(&mut self, change: &BatchChange) {
        self.count -= self.rows.drain(..change.dropped).map(|row| row.count).sum::<usize>();
        if let Some(row) = change.added {
            self.add(row);
        }
    }
}

/// Table `ids`: the senders' ids of the last minutes.
#[derive(Debug)]
pub(super) struct IdTable {
    table: BatchTable,
    max_ids: usize,
}

impl IdTable {
    /// Nothing is read yet. At most `max_ids` are kept; the oldest are dropped first.
    pub(super) fn new(max_ids: usize) -> Self {
        Self { table: BatchTable::default(), max_ids }
    }

    /// Writes the ids of these appends, which are forgotten at `until`, as row `n`; drops those that are forgotten `now`.
    pub(super) fn write(
        &self,
        to: &Transaction<'_>,
        appends: &[Pending],
        n: i64,
        (now, until): (u64, u64),
    ) -> rusqlite::Result<BatchChange> {
        let mut batch = Vec::new();
        for pending in appends {
            if let Some(SendId { key, content }) = pending.send_id {
                batch.extend_from_slice(&key.to_bytes());
                batch.extend_from_slice(&pending.seq.0.to_le_bytes());
                batch.extend_from_slice(&content.to_bytes());
            }
        }
        let mut change = BatchChange { dropped: 0, added: None };
        let mut kept = self.table.count;
        for row in &self.table.rows {
            if row.mark > now && kept <= self.max_ids {
                break;
            }
            kept -= row.count;
            change.dropped += 1;
            to.prepare_cached("DELETE FROM ids WHERE n = ?1")?.execute([row.n])?;
        }
        if !batch.is_empty() {
            let mark = to_sql_int(until);
            let crc = id_row_crc(n, mark, &batch).value();
            to.prepare_cached("INSERT INTO ids VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![n, mark, batch, crc])?;
            change.added = Some(BatchRow { n, count: batch.len() / ID_BYTES, mark: until });
        }
        Ok(change)
    }

    pub(super) fn apply(&mut self, change: &BatchChange) {
        self.table.apply(change);
    }

    /// How many ids are stored.
    pub(super) fn count(from: &Connection) -> rusqlite::Result<usize> {
        let sql = "SELECT coalesce(sum(length(batch)), 0) FROM ids";
        let bytes: i64 = from.query_row(sql, [], |row| row.get(0))?;
        Ok(usize::try_from(bytes).unwrap_or_default() / ID_BYTES)
    }

    /// Reads the ids that are remembered `now`, with their seqs and until when.
    pub(super) fn read(
        &mut self,
        from: &Connection,
        now: u64,
        mut each: impl FnMut(SendId, Seq, u64),
    ) -> Result<(), ReadError> {
        read_id_rows(from, |n, until, batch| {
            let until = from_sql_int(until);
            self.table.add(BatchRow { n, count: batch.len() / ID_BYTES, mark: until });
            if until <= now {
                return Ok(());
            }
            for (key, rest) in batch.chunks_exact(ID_BYTES).filter_map(<[u8]>::split_first_chunk) {
                let Some((seq, content)) = rest.split_first_chunk() else { continue };
                let content = content.try_into().map_or(ContentHash::UNKNOWN, ContentHash::from_bytes);
                let id = SendId { key: DedupKey::from_bytes(*key), content };
                each(id, Seq(u64::from_le_bytes(*seq)), until);
            }
            Ok(())
        })
    }

    /// Gives the ids of format 1, which have no hash of their content, an unknown one.
    pub(super) fn convert_format_1(store: &Connection) -> Result<(), ReadError> {
        let mut update = store.prepare("UPDATE ids SET batch = ?2, crc = ?3 WHERE n = ?1")?;
        read_id_rows(store, |n, until, batch| {
            let converted: Vec<u8> = batch
                .chunks_exact(FORMAT_1_ID_BYTES)
                .flat_map(|id| [id, &ContentHash::UNKNOWN.to_bytes()].concat())
                .collect();
            let crc = id_row_crc(n, until, &converted);
            update.execute(params![n, converted, crc.value()])?;
            Ok(())
        })
    }
}

fn id_row_crc(n: i64, until: i64, batch: &[u8]) -> Crc {
    Crc::default().int(n).int(until).bytes(batch)
}

/// Reads the rows of table `ids`, oldest first: number, time and ids.
fn read_id_rows(
    from: &Connection,
    mut each: impl FnMut(i64, i64, &[u8]) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let mut statement = from.prepare("SELECT n, until, batch, crc FROM ids ORDER BY n")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (n, until) = (row.get::<_, i64>(0)?, row.get::<_, i64>(1)?);
        let damaged = || format!("row {n} of table `ids`");
        let batch = row.get_ref(2)?.as_blob().map_err(|_| ReadError::Damaged(damaged()))?;
        id_row_crc(n, until, batch).verify(row.get(3)?, damaged)?;
        each(n, until, batch)?;
    }
    Ok(())
}

/// Table `floors`: how far emptied mailboxes and histories had got.
#[derive(Debug, Default)]
pub(super) struct FloorTable(BatchTable);

impl FloorTable {
    /// Writes floors as row `n` and drops the oldest ones beyond the bound. Returns the highest seq that those covered.
    pub(super) fn write(
        &self,
        to: &Transaction<'_>,
        floors: &[(Address, Floor)],
        n: i64,
    ) -> rusqlite::Result<(BatchChange, Seq)> {
        let mut change = BatchChange { dropped: 0, added: None };
        let mut forgotten = Seq::START;
        if floors.is_empty() {
            return Ok((change, forgotten));
        }
        let mut kept = floors.len() + self.0.count;
        for row in &self.0.rows {
            if kept <= MAX_FLOORS {
                break;
            }
            kept -= row.count;
            change.dropped += 1;
            forgotten = forgotten.max(Seq(row.mark));
            to.prepare_cached("DELETE FROM floors WHERE n = ?1")?.execute([row.n])?;
        }
        let (batch, highest) = encode_floors(floors);
        let crc = Crc::default().int(n).bytes(&batch).value();
        to.prepare_cached("INSERT INTO floors VALUES (?1, ?2, ?3)")?.execute(params![n, batch, crc])?;
        change.added = Some(BatchRow { n, count: floors.len(), mark: highest.0 });
        Ok((change, forgotten))
    }

    pub(super) fn apply(&mut self, change: &BatchChange) {
        self.0.apply(change);
    }

    /// Reads the floors of emptied addresses, oldest first.
    pub(super) fn read(
        &mut self,
        from: &Connection,
        mut each: impl FnMut(Address, Floor),
    ) -> Result<(), ReadError> {
        let mut statement = from.prepare("SELECT n, batch, crc FROM floors ORDER BY n")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let n: i64 = row.get(0)?;
            let damaged = || format!("row {n} of table `floors`");
            let batch = row.get_ref(1)?.as_blob().map_err(|_| ReadError::Damaged(damaged()))?;
            Crc::default().int(n).bytes(batch).verify(row.get(2)?, damaged)?;
            let mut rest = batch;
            let (mut count, mut highest) = (0, Seq::START);
            while !rest.is_empty() {
                let (address, floor) = split_floor(&mut rest).ok_or_else(|| ReadError::Damaged(damaged()))?;
                highest = highest.max(floor.floor).max(floor.expired);
                count += 1;
                each(address, floor);
            }
            self.0.add(BatchRow { n, count, mark: highest.0 });
        }
        Ok(())
    }
}

/// The floors of one row, and the highest seq among them.
fn encode_floors(floors: &[(Address, Floor)]) -> (Vec<u8>, Seq) {
    let mut batch = Vec::new();
    let mut highest = Seq::START;
    for (address, Floor { floor, expired }) in floors {
        let text = address_text(address);
        let length = u16::try_from(text.len()).expect("a name has at most 256 bytes");
        batch.extend_from_slice(&length.to_le_bytes());
        batch.extend_from_slice(text.as_bytes());
        batch.extend_from_slice(&floor.0.to_le_bytes());
        batch.extend_from_slice(&expired.0.to_le_bytes());
        highest = highest.max(*floor).max(*expired);
    }
    (batch, highest)
}

/// Takes one floor from the start of a row.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::disk::open::SCHEMA;
    use crate::engine::embedded::index::PayerId;
    use crate::message::{Message, MessageId, Outcome, Publication, SessionId};

    fn store() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        connection
    }

    fn mailbox(name: &str) -> Address {
        Address::Session(SessionId::new(name).unwrap())
    }

    fn append(seq: u64) -> Pending {
        let address = mailbox("A");
        let message = Message::receipt(&MessageId::new("1").unwrap(), Outcome::Expired, 1);
        let publication = Publication::encode(&address, Some(Seq(seq)), &message).into();
        let key = DedupKey::from_bytes([u8::try_from(seq).unwrap(); 16]);
        let send_id = Some(SendId { key, content: ContentHash::from_bytes([7; 8]) });
        let (prev, expires_at, ts) = (Seq::START, 9, 1);
        Pending {
            seq: Seq(seq),
            prev,
            expires_at,
            ts,
            address,
            publication,
            send_id,
            receipt: None,
            waiter: None,
            payer: PayerId::NONE,
        }
    }

    fn write_ids(ids: &mut IdTable, to: &Connection, seqs: &[u64], n: i64, times: (u64, u64)) {
        let appends: Vec<Pending> = seqs.iter().copied().map(append).collect();
        let transaction = to.unchecked_transaction().unwrap();
        let change = ids.write(&transaction, &appends, n, times).unwrap();
        transaction.commit().unwrap();
        ids.apply(&change);
    }

    fn read_ids(from: &Connection, now: u64) -> Vec<u64> {
        let mut seqs = Vec::new();
        IdTable::new(9).read(from, now, |_, seq, _| seqs.push(seq.0)).unwrap();
        seqs
    }

    #[test]
    fn ids_are_kept_for_their_time_and_up_to_their_number() {
        let connection = store();
        let mut ids = IdTable::new(3);
        write_ids(&mut ids, &connection, &[1, 2], 1, (0, 10));
        write_ids(&mut ids, &connection, &[3, 4], 2, (5, 15));
        assert_eq!(read_ids(&connection, 5), [1, 2, 3, 4]);
        assert_eq!(read_ids(&connection, 10), [3, 4], "the first row is over");
        write_ids(&mut ids, &connection, &[], 3, (6, 16));
        assert_eq!((read_ids(&connection, 6), ids.table.count), (vec![3, 4], 2), "there were too many");
        write_ids(&mut ids, &connection, &[], 4, (15, 25));
        assert_eq!((IdTable::count(&connection).unwrap(), ids.table.rows.len()), (0, 0));
    }

    #[test]
    fn floors_are_read_back_and_the_oldest_are_dropped() {
        let connection = store();
        let mut floors = FloorTable::default();
        let mut write = |n: i64, batch: &[(Address, Floor)]| {
            let transaction = connection.unchecked_transaction().unwrap();
            let (change, forgotten) = floors.write(&transaction, batch, n).unwrap();
            transaction.commit().unwrap();
            floors.apply(&change);
            forgotten
        };
        let floor = |floor, expired| Floor { floor: Seq(floor), expired: Seq(expired) };
        assert_eq!(write(1, &[(mailbox("a"), floor(1, 9)), (mailbox("b"), floor(2, 0))]), Seq::START);
        let mut found = Vec::new();
        FloorTable::default().read(&connection, |address, floor| found.push((address, floor))).unwrap();
        assert_eq!(found, [(mailbox("a"), floor(1, 9)), (mailbox("b"), floor(2, 0))]);
        let many: Vec<_> = (0..MAX_FLOORS).map(|n| (mailbox(&n.to_string()), floor(3, 0))).collect();
        assert_eq!(write(2, &many), Seq(9), "the first row is forgotten");
        let mut read = FloorTable::default();
        read.read(&connection, |_, _| {}).unwrap();
        assert_eq!((read.0.count, read.0.rows.len()), (MAX_FLOORS, 1));
    }

    #[test]
    fn damage_to_a_batch_is_noticed() {
        let connection = store();
        write_ids(&mut IdTable::new(3), &connection, &[1], 1, (0, 10));
        let transaction = connection.unchecked_transaction().unwrap();
        let floor = Floor { floor: Seq(1), expired: Seq(0) };
        FloorTable::default().write(&transaction, &[(mailbox("a"), floor)], 1).unwrap();
        transaction.commit().unwrap();
        connection.execute_batch("UPDATE ids SET until = 11; UPDATE floors SET n = 2").unwrap();
        assert!(IdTable::new(3).read(&connection, 0, |_, _, _| {}).unwrap_err().is_damage());
        assert!(FloorTable::default().read(&connection, |_, _| {}).unwrap_err().is_damage());
    }

    #[test]
    fn a_row_that_was_cut_has_no_floor_at_its_end() {
        let (bytes, highest) = encode_floors(&[(mailbox("a"), Floor { floor: Seq(5), expired: Seq(7) })]);
        assert_eq!(highest, Seq(7));
        for length in 0..bytes.len() {
            assert_eq!(split_floor(&mut &bytes[..length]), None);
        }
        assert!(split_floor(&mut &bytes[..]).is_some());
    }
}
