//! Table `loss`: up to where confirmed messages may be missing. Older versions did not write it.

use rusqlite::{Connection, OptionalExtension, params};

use crate::engine::embedded::rows::{Crc, ReadError, from_sql_int, to_sql_int};
use crate::message::Seq;

/// The table. It has no row unless something was lost.
pub(crate) const LOSS_TABLE: &str = "
CREATE TABLE IF NOT EXISTS loss (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    through INTEGER NOT NULL,
    crc INTEGER NOT NULL
) STRICT;
";

/// Up to where messages may be missing; [`Seq::START`] if none are.
pub(crate) fn read_loss(from: &Connection) -> Result<Seq, ReadError> {
    if !from.table_exists(None, "loss")? {
        return Ok(Seq::START);
    }
    let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get(1)?));
    let found = from.query_row("SELECT through, crc FROM loss WHERE one = 1", [], row).optional()?;
    let Some((through, crc)) = found else { return Ok(Seq::START) };
    Crc::default().int(through).verify(crc, || "the row of table `loss`".to_owned())?;
    Ok(Seq(from_sql_int(through)))
}

pub(crate) fn write_loss(to: &Connection, through: Seq) -> rusqlite::Result<()> {
    let through = to_sql_int(through.0);
    let crc = Crc::default().int(through).value();
    to.execute("REPLACE INTO loss VALUES (1, ?1, ?2)", params![through, crc])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_read_back_and_damage_is_noticed() {
        let connection = Connection::open_in_memory().unwrap();
        assert_eq!(read_loss(&connection).unwrap(), Seq::START, "a store of an older version");
        connection.execute_batch(LOSS_TABLE).unwrap();
        assert_eq!(read_loss(&connection).unwrap(), Seq::START);
        for through in [7, 9] {
            write_loss(&connection, Seq(through)).unwrap();
            assert_eq!(read_loss(&connection).unwrap(), Seq(through));
        }
        connection.execute_batch("UPDATE loss SET through = 8").unwrap();
        assert!(read_loss(&connection).unwrap_err().is_damage());
    }
}
