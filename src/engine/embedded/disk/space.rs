//! Space on the disk: whether there is enough, and giving back what is free.

use std::path::Path;

use rusqlite::Connection;

use crate::engine::embedded::disk::open::{PAGE, WAL_BYTES};
use crate::engine::embedded::rows::from_sql_int;

/// Free space below which nothing is appended, in bytes: the log can make the database grow by its own length.
const HEADROOM: u64 = WAL_BYTES + (4 << 20);

/// Free pages kept for new messages. Further ones are given back to the file system.
const SLACK_PAGES: i64 = 2048;

/// Whether the next appends certainly find room, with everything that is in the log by then.
///
/// On a full disk the log cannot be copied into the database. Then not even deletions can be written, which would make
/// room.
pub(super) fn has_room(connection: &Connection, path: &Path) -> bool {
    let free = rustix::fs::statvfs(path).map_or(u64::MAX, |disk| disk.f_bavail * disk.f_frsize);
    free >= HEADROOM
        || free_pages(connection).is_ok_and(|pages| free + from_sql_int(pages) * u64::from(PAGE) >= HEADROOM)
}

fn free_pages(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "freelist_count", |row| row.get(0))
}

/// Gives free pages beyond some slack back to the file system, at most `pages`. Returns whether there are more.
pub(super) fn shrink(connection: &Connection, pages: i64) -> rusqlite::Result<bool> {
    let free = free_pages(connection)?;
    let slice = pages.min(free - SLACK_PAGES);
    if slice <= 0 {
        return Ok(false);
    }
    // Each step of this statement frees one page.
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({slice})"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    drop(rows);
    drop(statement);
    let left = free_pages(connection)?;
    // A file that other tools have made anew cannot give anything back.
    let more = left > SLACK_PAGES && left < free;
    if !more {
        // The file gets shorter when the log is copied into it.
        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
    }
    Ok(more)
}

/// Copies the write-ahead log into the database file. `mode` says what becomes of the log: SQLite's `TRUNCATE` empties
/// it, `RESTART` lets the next commit begin it anew.
pub(super) fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<()> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    match connection.query_row(&sql, [], |row| row.get::<_, i64>(0))? {
        0 => Ok(()),
        _ => Err(rusqlite::Error::InvalidParameterName("another connection reads the log".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::disk::open;
    use crate::engine::embedded::rows::store::StoreIdentity;
    use crate::engine::embedded::storage::Durability;
    use crate::message::Seq;

    #[test]
    fn free_pages_beyond_the_slack_are_given_back_in_slices() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let identity = StoreIdentity::new(Seq(1), 1);
        let (connection, _) = open::create(&path, Durability::Os, &identity).unwrap();
        assert!(!shrink(&connection, 64).unwrap(), "nothing is free");
        let filled = "INSERT INTO floors SELECT value, zeroblob(4000), 0 FROM generate";
        let with = "WITH RECURSIVE generate(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM generate WHERE value < 2400)";
        connection.execute_batch(&format!("{with} {filled}; DELETE FROM floors")).unwrap();
        let free = free_pages(&connection).unwrap();
        assert!(free > SLACK_PAGES + 300, "{free}");
        assert!(shrink(&connection, 64).unwrap());
        assert_eq!(free_pages(&connection).unwrap(), free - 64);
        assert!(!shrink(&connection, 1 << 20).unwrap());
        assert_eq!(free_pages(&connection).unwrap(), SLACK_PAGES);
        checkpoint(&connection, "TRUNCATE").unwrap();
        let pages = std::fs::metadata(&path).unwrap().len() / u64::from(PAGE);
        assert!(pages < from_sql_int(free), "the file is shorter: {pages} pages");
    }

    #[test]
    fn another_reader_keeps_the_log_from_being_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let (connection, totals) =
            open::create(&path, Durability::Os, &StoreIdentity::new(Seq(1), 1)).unwrap();
        connection.busy_timeout(std::time::Duration::ZERO).unwrap();
        let reader = open::open_to_read(&path).unwrap();
        let reading = reader.unchecked_transaction().unwrap();
        reading.query_row("SELECT commits FROM state", [], |row| row.get::<_, i64>(0)).unwrap();
        totals.write(&connection).unwrap();
        assert!(checkpoint(&connection, "TRUNCATE").is_err());
        drop(reading);
        checkpoint(&connection, "TRUNCATE").unwrap();
    }
}
