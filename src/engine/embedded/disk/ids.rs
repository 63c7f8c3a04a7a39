//! Table `ids`: each row holds the ids of one commit.

use rusqlite::{Connection, Transaction, params};

use crate::engine::IdLimits;
use crate::engine::embedded::dedup::{AuthorKey, ContentHash, DedupKey, SendId};
use crate::engine::embedded::disk::batches::{BatchChange, BatchRow, BatchTable};
use crate::engine::embedded::index::Pending;
use crate::engine::embedded::rows::{Crc, ReadError, from_sql_int, to_sql_int};
use crate::message::Seq;

/// Bytes of one id: its hash, its seq, the hash of its content and that of its author.
const ID_BYTES: usize = 36;

/// How many rows one commit looks through at most for ids that are forgotten.
const CLEANED_ROWS: usize = 256;

/// How many ids one commit looks through for that: twice as many as it adds, and these.
const CLEANED_IDS: usize = 64;

/// An id as it is stored.
type StoredId = [u8; ID_BYTES];

fn encode(id: SendId, seq: Seq) -> StoredId {
    let mut bytes = [0; ID_BYTES];
    bytes[..16].copy_from_slice(&id.key.to_bytes());
    bytes[16..24].copy_from_slice(&seq.0.to_le_bytes());
    bytes[24..32].copy_from_slice(&id.content.to_bytes());
    bytes[32..].copy_from_slice(&id.author.to_bytes());
    bytes
}

fn decode(bytes: &StoredId) -> Option<(SendId, Seq)> {
    let (key, rest) = bytes.split_first_chunk()?;
    let (seq, rest) = rest.split_first_chunk()?;
    let (content, rest) = rest.split_first_chunk()?;
    let id = SendId {
        key: DedupKey::from_bytes(*key),
        content: ContentHash::from_bytes(*content),
        author: AuthorKey::from_bytes(*rest.first_chunk()?),
    };
    Some((id, Seq(u64::from_le_bytes(*seq))))
}

fn decode_all(batch: &[u8]) -> impl Iterator<Item = (SendId, Seq)> {
    batch.as_chunks().0.iter().filter_map(decode)
}

/// A row whose forgotten ids are removed.
#[derive(Debug)]
pub(crate) struct IdRow {
    n: i64,
    until: i64,
    ids: Vec<(SendId, Seq)>,
}

impl IdRow {
    /// Keeps the ids for which this is true.
    pub(crate) fn retain(&mut self, is_remembered: impl Fn(DedupKey, Seq) -> bool) {
        self.ids.retain(|(id, seq)| is_remembered(id.key, *seq));
    }

    fn write(&self, to: &Transaction<'_>) -> rusqlite::Result<()> {
        if self.ids.is_empty() {
            to.prepare_cached("DELETE FROM ids WHERE n = ?1")?.execute([self.n])?;
            return Ok(());
        }
        let batch = self.ids.iter().map(|(id, seq)| encode(*id, *seq)).collect::<Vec<_>>().concat();
        let crc = id_row_crc(self.n, self.until, &batch).value();
        to.prepare_cached("UPDATE ids SET batch = ?2, crc = ?3 WHERE n = ?1")?
            .execute(params![self.n, batch, crc])?;
        Ok(())
    }
}

/// Table `ids`: the senders' ids of the last minutes.
#[derive(Debug)]
pub(super) struct IdTable {
    table: BatchTable,
    limits: IdLimits,
    /// The row that was looked through last for ids that are forgotten.
    cleaned: i64,
}

impl IdTable {
    /// Nothing is read yet.
    pub(super) fn new(limits: IdLimits) -> Self {
        Self { table: BatchTable::default(), limits, cleaned: i64::MIN }
    }

    /// Writes the ids of these appends, which are forgotten at `until`, as row `n`, and the rows that were cleaned; drops the
    /// rows that are forgotten `now`, and the oldest beyond the hard limit.
    pub(super) fn write(
        &self,
        to: &Transaction<'_>,
        (appends, cleaned): (&[Pending], &[IdRow]),
        n: i64,
        (now, until): (u64, u64),
    ) -> rusqlite::Result<BatchChange> {
        let ids = appends.iter().filter_map(|pending| Some(encode(pending.send_id?, pending.seq)));
        let batch = ids.collect::<Vec<_>>().concat();
        let mut change = BatchChange::default();
        let mut kept = self.table.count;
        for row in &self.table.rows {
            if row.mark > now && kept <= self.most() {
                break;
            }
            kept -= row.count;
            change.dropped += 1;
            to.prepare_cached("DELETE FROM ids WHERE n = ?1")?.execute([row.n])?;
        }
        for row in cleaned {
            row.write(to)?;
            change.reduced.push((row.n, row.ids.len()));
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
        if let Some((n, _)) = change.reduced.last() {
            self.cleaned = *n;
        }
    }

    /// Ids on the disk: as many as are remembered at most, and those that are forgotten and not removed yet.
    fn most(&self) -> usize {
        self.limits.hard + self.limits.all
    }

    /// Rows to look through for ids that are forgotten, if there are many: so many are remembered, and the next commit adds
    /// so many.
    pub(super) fn rows_to_clean(
        &self,
        from: &Connection,
        remembered: usize,
        added: usize,
    ) -> Result<Vec<IdRow>, ReadError> {
        let mut cleaned = Vec::new();
        if self.table.count.saturating_sub(remembered) <= self.limits.all / 2 {
            return Ok(cleaned);
        }
        let start = self.table.rows.partition_point(|row| row.n <= self.cleaned);
        let rows = self.table.rows.range(start..).chain(self.table.rows.range(..start));
        let mut ids = 0;
        for row in rows.filter(|row| row.count > 0).take(CLEANED_ROWS) {
            if ids > 2 * added + CLEANED_IDS {
                break;
            }
            ids += row.count;
            let mut statement = from.prepare_cached("SELECT n, until, batch, crc FROM ids WHERE n = ?1")?;
            let mut rows = statement.query([row.n])?;
            if let Some(row) = rows.next()? {
                let (n, until, batch) = verified(row)?;
                cleaned.push(IdRow { n, until, ids: decode_all(batch).collect() });
            }
        }
        Ok(cleaned)
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
            if until > now {
                decode_all(batch).for_each(|(id, seq)| each(id, seq, until));
            }
            Ok(())
        })
    }

    /// Gives the ids of an older format what they lack, as unknown: format 1 has hash and seq, format 2 also the content.
    pub(super) fn convert(store: &Connection, format: i64) -> Result<(), ReadError> {
        let author = AuthorKey::UNKNOWN.to_bytes();
        let (id_bytes, unknown) = match format {
            1 => (24, [&ContentHash::UNKNOWN.to_bytes()[..], &author].concat()),
            _ => (32, author.to_vec()),
        };
        let mut update = store.prepare("UPDATE ids SET batch = ?2, crc = ?3 WHERE n = ?1")?;
        read_id_rows(store, |n, until, batch| {
            let converted: Vec<u8> =
                batch.chunks_exact(id_bytes).flat_map(|id| [id, &unknown].concat()).collect();
            let crc = id_row_crc(n, until, &converted);
            update.execute(params![n, converted, crc.value()])?;
            Ok(())
        })
    }
}

fn id_row_crc(n: i64, until: i64, batch: &[u8]) -> Crc {
    Crc::default().int(n).int(until).bytes(batch)
}

/// Number, time and ids of a row.
fn verified<'a>(row: &'a rusqlite::Row<'_>) -> Result<(i64, i64, &'a [u8]), ReadError> {
    let (n, until) = (row.get::<_, i64>(0)?, row.get::<_, i64>(1)?);
    let damaged = || format!("row {n} of table `ids`");
    let batch = row.get_ref(2)?.as_blob().map_err(|_| ReadError::Damaged(damaged()))?;
    id_row_crc(n, until, batch).verify(row.get(3)?, damaged)?;
    Ok((n, until, batch))
}

/// Reads the rows of table `ids`, oldest first: number, time and ids.
fn read_id_rows(
    from: &Connection,
    mut each: impl FnMut(i64, i64, &[u8]) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let mut statement = from.prepare("SELECT n, until, batch, crc FROM ids ORDER BY n")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (n, until, batch) = verified(row)?;
        each(n, until, batch)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::disk::open::SCHEMA;

    fn limits(all: usize) -> IdLimits {
        IdLimits { all, of_author: all / 2, hard: 4 * all }
    }

    fn store() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        connection
    }

    fn append(seq: u64) -> Pending {
        let (content, author) = (ContentHash::from_bytes([7; 8]), AuthorKey::from_bytes([5; 4]));
        let key = DedupKey::from_bytes([u8::try_from(seq).unwrap(); 16]);
        Pending { send_id: Some(SendId { key, content, author }), ..Pending::sample(Seq(seq)) }
    }

    fn write_ids(ids: &mut IdTable, to: &Connection, seqs: &[u64], n: i64, times: (u64, u64)) {
        let appends: Vec<Pending> = seqs.iter().copied().map(append).collect();
        let transaction = to.unchecked_transaction().unwrap();
        let change = ids.write(&transaction, (&appends, &[]), n, times).unwrap();
        transaction.commit().unwrap();
        ids.apply(&change);
    }

    fn read_ids(from: &Connection, now: u64) -> Vec<u64> {
        let mut seqs = Vec::new();
        IdTable::new(limits(9)).read(from, now, |_, seq, _| seqs.push(seq.0)).unwrap();
        seqs
    }

    #[test]
    fn ids_are_kept_for_their_time_and_up_to_their_number() {
        let connection = store();
        let mut ids = IdTable::new(IdLimits { hard: 2, ..limits(1) });
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
    fn ids_that_are_forgotten_are_removed_from_their_rows() {
        let connection = store();
        let mut ids = IdTable::new(limits(4));
        write_ids(&mut ids, &connection, &[1, 2], 1, (0, 10));
        write_ids(&mut ids, &connection, &[3, 4, 5], 2, (0, 10));
        write_ids(&mut ids, &connection, &[6], 3, (0, 10));
        assert!(ids.rows_to_clean(&connection, 4, 1).unwrap().is_empty(), "few are forgotten");
        let mut rows = ids.rows_to_clean(&connection, 3, 1).unwrap();
        rows.iter_mut().for_each(|row| row.retain(|_, seq| [1, 6].contains(&seq.0)));
        let transaction = connection.unchecked_transaction().unwrap();
        let change = ids.write(&transaction, (&[], &rows), 4, (0, 10)).unwrap();
        transaction.commit().unwrap();
        ids.apply(&change);
        assert_eq!((read_ids(&connection, 0), ids.table.count, ids.cleaned), (vec![1, 6], 2, 3));
        // It begins anew at the first row.
        let rows = ids.rows_to_clean(&connection, 0, 1).unwrap();
        assert!(rows.is_empty(), "two are not many");
        write_ids(&mut ids, &connection, &[7], 5, (0, 10));
        ids.cleaned = 5;
        let rows = ids.rows_to_clean(&connection, 0, 1).unwrap();
        assert_eq!(rows.iter().map(|row| row.n).collect::<Vec<_>>(), [1, 3, 5]);
        write_ids(&mut ids, &connection, &[], 6, (10, 20));
        assert_eq!((IdTable::count(&connection).unwrap(), ids.table.count), (0, 0));
    }

    #[test]
    fn ids_of_older_formats_have_no_author() {
        for (format, bytes) in [(1, 24), (2, 32)] {
            let connection = store();
            let whole = encode(append(1).send_id.unwrap(), Seq(1));
            let batch = [&whole[..bytes], &whole[..bytes]].concat();
            let crc = id_row_crc(1, 10, &batch).value();
            connection.execute("INSERT INTO ids VALUES (1, 10, ?1, ?2)", params![batch, crc]).unwrap();
            IdTable::convert(&connection, format).unwrap();
            let mut found = Vec::new();
            IdTable::new(limits(9)).read(&connection, 0, |id, seq, _| found.push((id, seq))).unwrap();
            let content = if format == 1 { ContentHash::UNKNOWN } else { ContentHash::from_bytes([7; 8]) };
            let id = SendId { author: AuthorKey::UNKNOWN, content, ..append(1).send_id.unwrap() };
            assert_eq!(found, [(id, Seq(1)), (id, Seq(1))]);
        }
    }

    #[test]
    fn damage_to_a_row_is_noticed() {
        let connection = store();
        write_ids(&mut IdTable::new(limits(3)), &connection, &[1], 1, (0, 10));
        connection.execute_batch("UPDATE ids SET until = 11").unwrap();
        assert!(IdTable::new(limits(3)).read(&connection, 0, |_, _, _| {}).unwrap_err().is_damage());
    }
}
