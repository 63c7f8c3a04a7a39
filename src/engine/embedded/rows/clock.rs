//! Table `clock`: what the clocks showed when the store was used last. Older versions did not write it.

use rusqlite::{Connection, OptionalExtension, params};

use crate::engine::embedded::rows::{Crc, ReadError, from_sql_int, to_sql_int};

/// The table. A store without it is one of an older version, or new.
pub(crate) const CLOCK_TABLE: &str = "
CREATE TABLE IF NOT EXISTS clock (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    wall INTEGER NOT NULL,
    store INTEGER NOT NULL,
    crc INTEGER NOT NULL
) STRICT;
";

/// What the machine's clock and the store's showed at one moment, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClockReading {
    /// Unix time.
    pub(crate) wall: u64,
    /// The store's time.
    pub(crate) store: u64,
}

impl ClockReading {
    /// How far the machine's clock is ahead, in milliseconds.
    pub(crate) fn ahead(self) -> i64 {
        to_sql_int(self.wall).saturating_sub(to_sql_int(self.store))
    }

    fn crc(self) -> Crc {
        Crc::default().int(to_sql_int(self.wall)).int(to_sql_int(self.store))
    }

    /// The last reading. In a store of an older version the times were those of the machine's clock, and the newest
    /// message says when it was used.
    pub(crate) fn read(from: &Connection) -> Result<Option<Self>, ReadError> {
        if from.table_exists(None, "clock")? {
            let sql = "SELECT wall, store, crc FROM clock WHERE one = 1";
            let row = |row: &rusqlite::Row<'_>| {
                let reading = Self { wall: from_sql_int(row.get(0)?), store: from_sql_int(row.get(1)?) };
                Ok((reading, row.get(2)?))
            };
            if let Some((reading, crc)) = from.query_row(sql, [], row).optional()? {
                reading.crc().verify(crc, || "the row of table `clock`".to_owned())?;
                return Ok(Some(reading));
            }
        }
        let sql = "SELECT ts FROM message ORDER BY seq DESC LIMIT 1";
        let ts: Option<i64> = from.query_row(sql, [], |row| row.get(0)).optional()?;
        Ok(ts.map(from_sql_int).map(|wall| Self { wall, store: wall }))
    }

    pub(crate) fn write(self, to: &Connection) -> rusqlite::Result<()> {
        let (wall, store) = (to_sql_int(self.wall), to_sql_int(self.store));
        to.prepare_cached("REPLACE INTO clock VALUES (1, ?1, ?2, ?3)")?.execute(params![
            wall,
            store,
            self.crc().value()
        ])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::disk::open::SCHEMA;
    use crate::engine::embedded::rows::message::{INSERT, MessageRow, insertion};

    #[test]
    fn a_reading_is_read_back_and_damage_is_noticed() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        connection.execute_batch(CLOCK_TABLE).unwrap();
        assert_eq!(ClockReading::read(&connection).unwrap(), None);
        for wall in [7, 8] {
            let reading = ClockReading { wall, store: 9 };
            reading.write(&connection).unwrap();
            assert_eq!(ClockReading::read(&connection).unwrap(), Some(reading));
        }
        connection.execute_batch("UPDATE clock SET store = 10").unwrap();
        assert!(ClockReading::read(&connection).unwrap_err().is_damage());
    }

    #[test]
    fn the_newest_message_says_when_a_store_of_an_older_version_was_used() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        let (address, payload) = ("s/A", "1");
        for seq in [1, 2] {
            let (prev, expires_at, ts) = (0, 99, 70 + seq);
            let row = MessageRow {
                seq,
                address,
                prev,
                expires_at,
                ts,
                kind: 0,
                sender: None,
                receipt: None,
                payload,
            };
            row.insert(&mut insertion(&connection, INSERT, 1).unwrap()).unwrap();
        }
        assert_eq!(ClockReading::read(&connection).unwrap(), Some(ClockReading { wall: 72, store: 72 }));
    }
}
