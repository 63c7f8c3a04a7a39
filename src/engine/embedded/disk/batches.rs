//! Table `floors`, and what it and table `ids` share: each row holds what one commit added.

use std::collections::VecDeque;

use rusqlite::{Connection, Transaction, params};

use crate::engine::embedded::index::{EMPTY_LOGS, Floor};
use crate::engine::embedded::rows::{Crc, ReadError, address_text, parse_address};
use crate::message::{Address, Seq};

/// Emptied addresses remembered on the disk.
const MAX_FLOORS: usize = EMPTY_LOGS;

/// One row of `ids` or `floors`.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchRow {
    pub(super) n: i64,
    /// How many ids or floors it has.
    pub(super) count: usize,
    /// For ids: when they are forgotten, in Unix milliseconds. For floors: the highest seq among them.
    pub(super) mark: u64,
}

/// What a commit changes in a table of batches. Applied once the commit has succeeded.
#[derive(Debug, Default)]
pub(super) struct BatchChange {
    pub(super) dropped: usize,
    /// Rows that hold less now, and how much.
    pub(super) reduced: Vec<(i64, usize)>,
    pub(super) added: Option<BatchRow>,
}

/// The rows of a table of batches, oldest first.
#[derive(Debug, Default)]
pub(super) struct BatchTable {
    pub(super) rows: VecDeque<BatchRow>,
    /// What they hold together.
    pub(super) count: usize,
}

impl BatchTable {
    pub(super) fn add(&mut self, row: BatchRow) {
        self.count += row.count;
        self.rows.push_back(row);
    }

    pub(super) fn apply(&mut self, change: &BatchChange) {
        self.count -= self.rows.drain(..change.dropped).map(|row| row.count).sum::<usize>();
        for (n, count) in &change.reduced {
            if let Ok(at) = self.rows.binary_search_by_key(n, |row| row.n) {
                self.count = self.count - self.rows[at].count + count;
                self.rows[at].count = *count;
            }
        }
        if let Some(row) = change.added {
            self.add(row);
        }
    }
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
        let mut change = BatchChange::default();
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
    use crate::message::SessionId;

    fn store() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        connection
    }

    fn mailbox(name: &str) -> Address {
        Address::Session(SessionId::new(name).unwrap())
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
        let transaction = connection.unchecked_transaction().unwrap();
        let floor = Floor { floor: Seq(1), expired: Seq(0) };
        FloorTable::default().write(&transaction, &[(mailbox("a"), floor)], 1).unwrap();
        transaction.commit().unwrap();
        connection.execute_batch("UPDATE floors SET n = 2").unwrap();
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
