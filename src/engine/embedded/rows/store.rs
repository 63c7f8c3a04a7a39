//! Tables `state` and `store`: what the whole store has, and which one it is.

use rusqlite::{Connection, params};

use crate::clock::Clock;
use crate::engine::embedded::rows::{Crc, ReadError, from_sql_int, to_sql_int};
use crate::message::{Epoch, Seq};

/// 2026-01-01T00:00:00Z in Unix milliseconds. A machine's clock that shows an earlier time was not set yet.
pub(crate) const CLOCK_WAS_SET: u64 = 1_767_225_600_000;

/// The row of `state`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StoreTotals {
    pub(crate) commits: i64,
    /// Registered sessions.
    pub(crate) sessions: i64,
    pub(crate) messages: i64,
    pub(crate) sum: i64,
    pub(crate) newest: i64,
    pub(crate) forgotten: i64,
}

impl StoreTotals {
    /// Counts a stored message.
    pub(crate) fn add(&mut self, seq: i64) {
        self.messages += 1;
        self.sum = self.sum.wrapping_add(splitmix64(seq));
    }

    /// Counts a deleted message.
    pub(crate) fn remove(&mut self, seq: i64) {
        self.messages -= 1;
        self.sum = self.sum.wrapping_sub(splitmix64(seq));
    }

    /// Compares with the messages that were seen.
    ///
    /// # Errors
    /// Messages are missing, or there are others.
    pub(crate) fn verify(&self, seen: &Self) -> Result<(), ReadError> {
        if (self.messages, self.sum) == (seen.messages, seen.sum) {
            return Ok(());
        }
        let (seen, counted) = (seen.messages, self.messages);
        Err(ReadError::Damaged(format!("table `message` ({seen} rows, {counted} were counted)")))
    }

    pub(crate) fn crc(&self) -> Crc {
        Crc::default()
            .int(self.commits)
            .int(self.sessions)
            .int(self.messages)
            .int(self.sum)
            .int(self.newest)
            .int(self.forgotten)
    }

    pub(crate) fn read(connection: &Connection) -> Result<Self, ReadError> {
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
        state.crc().verify(crc, || "the row of table `state`".to_owned())?;
        Ok(state)
    }

    pub(crate) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        let Self { commits, sessions, messages, sum, newest, forgotten } = self;
        let crc = self.crc().value();
        connection
            .prepare_cached("REPLACE INTO state VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
            .execute(params![commits, sessions, messages, sum, newest, forgotten, crc])?;
        Ok(())
    }
}

/// The row of `store`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreIdentity {
    pub(crate) epoch: Epoch,
    pub(crate) origin: Seq,
    pub(crate) secret: [u8; 16],
    /// A number of the file that this was written into, which its copies do not have; in the column `inode`.
    pub(crate) file: u64,
}

impl StoreIdentity {
    /// A new store's identity, in a new epoch, in the file with this number.
    pub(crate) fn new(origin: Seq, file: u64) -> Self {
        Self { epoch: random_epoch(), origin, secret: random_secret(), file }
    }

    pub(crate) fn crc(&self) -> Crc {
        Crc::default()
            .text(Some(self.epoch.as_str()))
            .int(to_sql_int(self.origin.0))
            .bytes(&self.secret)
            .int(to_sql_int(self.file))
    }

    pub(crate) fn read(connection: &Connection) -> Result<Self, ReadError> {
        let sql = "SELECT epoch, origin, secret, inode, crc FROM store WHERE one = 1";
        let (identity, crc) = connection.query_row(sql, [], |row| {
            let identity = Self {
                epoch: Epoch::new(row.get_ref(0)?.as_str()?),
                origin: Seq(from_sql_int(row.get(1)?)),
                secret: row.get(2)?,
                file: from_sql_int(row.get(3)?),
            };
            Ok((identity, row.get(4)?))
        })?;
        identity.crc().verify(crc, || "the row of table `store`".to_owned())?;
        Ok(identity)
    }

    pub(crate) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        let crc = self.crc().value();
        connection.execute(
            "REPLACE INTO store VALUES (1, ?1, ?2, ?3, ?4, ?5)",
            params![self.epoch.as_str(), to_sql_int(self.origin.0), self.secret, to_sql_int(self.file), crc],
        )?;
        Ok(())
    }
}

/// Spreads a seq over 64 bits, so that sums of them tell sets apart (the finalizer of `splitmix64`).
pub(crate) fn splitmix64(seq: i64) -> i64 {
    let mut bits = from_sql_int(seq).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    to_sql_int(bits ^ (bits >> 31))
}

/// Twelve random hexadecimal digits.
pub(crate) fn random_epoch() -> Epoch {
    let bits = getrandom::u64().expect("the operating system gives random numbers");
    Epoch::new(&format!("{:012x}", bits >> 16))
}

/// The key of the hashes of the senders' ids.
pub(crate) fn random_secret() -> [u8; 16] {
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).expect("the operating system gives random numbers");
    secret
}

/// Where the seqs of a new store begin: above all seqs that an earlier store in its place can have given.
///
/// So an old cursor or ack that comes without its epoch is below everything, and has no effect.
pub(crate) fn first_seq(clock: Clock) -> Seq {
    let seconds = clock.now().saturating_sub(CLOCK_WAS_SET) / 1000;
    Seq(seconds << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::disk::open::SCHEMA;

    fn store() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        connection
    }

    #[test]
    fn totals_tell_sets_of_messages_apart() {
        let sum = |seqs: &[i64]| {
            let mut totals = StoreTotals::default();
            seqs.iter().for_each(|seq| totals.add(*seq));
            totals
        };
        assert!(sum(&[1, 2, 9]).verify(&sum(&[9, 1, 2])).is_ok(), "in any order");
        assert!(sum(&[1, 4]).verify(&sum(&[2, 3])).is_err(), "the same number and plain sum");
        let mut totals = sum(&[1, 2, 3]);
        totals.remove(2);
        assert!(totals.verify(&sum(&[1, 3])).is_ok());
    }

    #[test]
    fn rows_are_read_back_and_damage_is_noticed() {
        let connection = store();
        let identity = StoreIdentity::new(Seq(7), 42);
        identity.write(&connection).unwrap();
        let totals = StoreTotals { commits: 1, sessions: 2, messages: 3, sum: 4, newest: 5, forgotten: 6 };
        totals.write(&connection).unwrap();
        assert_eq!(StoreIdentity::read(&connection).unwrap(), identity);
        assert_eq!(StoreTotals::read(&connection).unwrap(), totals);
        connection.execute_batch("UPDATE store SET origin = 8; UPDATE state SET sum = 8").unwrap();
        assert!(StoreIdentity::read(&connection).unwrap_err().is_damage());
        assert!(StoreTotals::read(&connection).unwrap_err().is_damage());
    }

    #[test]
    fn epochs_differ() {
        let (a, b) = (StoreIdentity::new(Seq(1), 1), StoreIdentity::new(Seq(1), 1));
        assert!(a.epoch != b.epoch && a.secret != b.secret && a.epoch.as_str().len() == 12);
    }
}
