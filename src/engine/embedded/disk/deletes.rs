//! Deletions of messages.
//!
//! Messages that were stored one after the other leave together, most of them. One statement deletes such a run: it walks
//! over the rows, where a statement for each row would search for it.

use rusqlite::Transaction;

use crate::engine::embedded::rows::store::StoreTotals;
use crate::engine::embedded::rows::to_sql_int;
use crate::message::Seq;

/// How messages are deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deletion {
    /// In runs. Fails with `StatementChangedRows` if one of the messages is not there.
    InRuns,
    /// One by one. Those that are not there are passed over.
    OneByOne,
}

/// Deletes these messages, which are in seq order.
pub(super) fn delete(
    from: &Transaction<'_>,
    seqs: &[Seq],
    how: Deletion,
    totals: &mut StoreTotals,
) -> rusqlite::Result<()> {
    let mut statement = from.prepare_cached("DELETE FROM message WHERE seq BETWEEN ?1 AND ?2")?;
    for run in seqs.chunk_by(|seq, next| how == Deletion::InRuns && next.0 == seq.0 + 1) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let deleted = statement.execute([to_sql_int(first.0), to_sql_int(last.0)])?;
        match (how, deleted == run.len()) {
            (_, true) => run.iter().for_each(|seq| totals.remove(to_sql_int(seq.0))),
            (Deletion::InRuns, false) => return Err(rusqlite::Error::StatementChangedRows(deleted)),
            (Deletion::OneByOne, false) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, params};

    use super::*;
    use crate::engine::embedded::disk::open::SCHEMA;

    const ROW: &str = "INSERT INTO message VALUES (?1, 's/A', 0, 9, 1, 0, NULL, NULL, '1', 0)";

    fn store(rows: &[u64]) -> (Connection, StoreTotals) {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        let mut totals = StoreTotals::default();
        for seq in rows {
            connection.execute(ROW, params![to_sql_int(*seq)]).unwrap();
            totals.add(to_sql_int(*seq));
        }
        (connection, totals)
    }

    fn left(connection: &Connection) -> (Vec<i64>, StoreTotals) {
        let mut statement = connection.prepare("SELECT seq FROM message ORDER BY seq").unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        let rows: Vec<i64> = rows.map(|row| row.unwrap()).collect();
        let mut totals = StoreTotals::default();
        rows.iter().for_each(|seq| totals.add(*seq));
        (rows, totals)
    }

    fn delete_from(connection: &Connection, seqs: &[u64], how: Deletion, totals: &mut StoreTotals) -> bool {
        let seqs: Vec<Seq> = seqs.iter().copied().map(Seq).collect();
        let transaction = connection.unchecked_transaction().unwrap();
        let deleted = delete(&transaction, &seqs, how, totals);
        deleted.and_then(|()| transaction.commit()).is_ok()
    }

    #[test]
    fn runs_and_single_messages_are_deleted_and_no_others() {
        for how in [Deletion::InRuns, Deletion::OneByOne] {
            for (seqs, rows) in [
                (&[][..], &[1, 2, 3, 5, 6, 8][..]),
                (&[2], &[1, 3, 5, 6, 8]),
                (&[1, 2, 3], &[5, 6, 8]),
                (&[2, 3, 5, 8], &[1, 6]),
                (&[1, 2, 3, 5, 6, 8], &[]),
            ] {
                let (connection, mut totals) = store(&[1, 2, 3, 5, 6, 8]);
                assert!(delete_from(&connection, seqs, how, &mut totals));
                assert_eq!(left(&connection), (rows.to_vec(), totals), "{seqs:?}");
            }
        }
    }

    #[test]
    fn a_message_that_is_not_there_is_noticed_and_passed_over_one_by_one() {
        let (connection, before) = store(&[1, 2, 4]);
        assert!(!delete_from(&connection, &[1, 2, 3, 4], Deletion::InRuns, &mut before.clone()));
        assert_eq!(left(&connection), (vec![1, 2, 4], before), "nothing is deleted");
        let mut totals = before;
        assert!(delete_from(&connection, &[1, 2, 3, 4], Deletion::OneByOne, &mut totals));
        assert_eq!(left(&connection), (vec![], totals));
    }
}
