//! Reads a whole store for another engine, and changes nothing.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;

use rusqlite::Connection;

use crate::engine::Registration;
use crate::engine::embedded::crash::inspect_after_crash;
use crate::engine::embedded::dedup::SendId;
use crate::engine::embedded::disk::open::FORMAT;
use crate::engine::embedded::disk::{all_floors, all_ids};
use crate::engine::embedded::files::Files;
use crate::engine::embedded::load::{LoadError, quick_check, verify_format};
use crate::engine::embedded::place;
use crate::engine::embedded::report::open_unchanged;
use crate::engine::embedded::rows::clock::ClockReading;
use crate::engine::embedded::rows::message::scan;
use crate::engine::embedded::rows::registration::read_directory;
use crate::engine::embedded::rows::store::{StoreIdentity, StoreTotals};
use crate::engine::embedded::rows::{ReadError, from_sql_int, parse_address, to_sql_int};
use crate::engine::embedded::storage::OpenError;
use crate::engine::embedded::store_clock::{at, shift, translated};
use crate::message::{Address, Message, MessageId, Seq, SessionId};

/// A store that no other process can use while this exists.
#[derive(Debug)]
pub(in crate::engine) struct Export {
    files: Files,
    connection: Connection,
    identity: StoreIdentity,
    totals: StoreTotals,
    last_used: Option<ClockReading>,
    /// Keeps other processes out.
    _lock: File,
}

/// Which store it is, and what state it is in. Another one has another value.
pub(in crate::engine) type Fingerprint = (String, u64);

/// A stored message. Its times are those of the machine's clock.
#[derive(Debug)]
pub(in crate::engine) struct StoredMessage {
    pub(in crate::engine) seq: Seq,
    /// The seq of the message before it in this mailbox or history.
    pub(in crate::engine) prev: Seq,
    pub(in crate::engine) address: Address,
    pub(in crate::engine) message: Message,
    pub(in crate::engine) expires_at: u64,
    /// The mailbox that gets a receipt, and the id that its owner gave the message.
    pub(in crate::engine) receipt: Option<(Address, MessageId)>,
}

/// An id of a sender, the seq of its message, and until when it is remembered.
pub(in crate::engine) type StoredId = (SendId, Seq, u64);

impl Export {
    /// Takes a store that no server uses.
    ///
    /// # Errors
    /// It is in use, or damaged, or has a format that only a server reads.
    pub(in crate::engine) fn open(dir: &Path) -> Result<Self, OpenError> {
        let files = Files::of(&place::find(dir));
        if !files.database.exists() {
            return Err(match files.marker.exists() || files.wal.exists() {
                true => OpenError::Missing { path: files.database },
                false => OpenError::NoStore { dir: dir.to_owned() },
            });
        }
        let lock = files.lock()?;
        let unready = |why: String| OpenError::Unready { dir: dir.to_owned(), why };
        let findings = inspect_after_crash(&files)?;
        if let Some(lost) = findings.lost {
            return Err(unready(lost));
        }
        if files.salvaged.exists() {
            return Err(unready("a recovery was interrupted".to_owned()));
        }
        let sqlite = |error| files.sqlite(error);
        if fs::metadata(&files.database).is_ok_and(|data| data.len() == 0) {
            // SQLite would take it for a new database.
            return Err(files.damaged(&"it is empty"));
        }
        let connection = open_unchanged(&files, false).map_err(sqlite)?;
        verify_format(&files, &connection).map_err(|error| match error {
            LoadError::Open(error) => error,
            LoadError::Read(error) => files.unreadable(error),
        })?;
        let found: i64 =
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sqlite)?;
        match found {
            FORMAT => {}
            1..FORMAT => {
                return Err(unready(format!("it has format {found}, and a server converts it to {FORMAT}")));
            }
            _ => return Err(files.damaged(&format!("its header names format {found}"))),
        }
        let read = || -> Result<_, ReadError> {
            quick_check(&connection)?;
            let totals = StoreTotals::read(&connection)?;
            Ok((StoreIdentity::read(&connection)?, totals, ClockReading::read(&connection)?))
        };
        let (identity, totals, last_used) = read().map_err(|error| files.unreadable(error))?;
        Ok(Self { connection, identity, totals, last_used, files, _lock: lock })
    }

    /// The secret from which handles and proofs are derived.
    pub(in crate::engine) fn secret(&self) -> [u8; 16] {
        self.identity.secret
    }

    /// Which store it is, and in what state: its epoch, and how many commits it has seen.
    pub(in crate::engine) fn fingerprint(&self) -> Fingerprint {
        (self.identity.epoch.as_str().to_owned(), from_sql_int(self.totals.commits))
    }

    /// The newest seq that it has given.
    pub(in crate::engine) fn newest(&self) -> Seq {
        Seq(from_sql_int(self.totals.newest))
    }

    /// How many messages it holds, whether they wait or not.
    pub(in crate::engine) fn messages(&self) -> u64 {
        from_sql_int(self.totals.messages)
    }

    /// Hands out all messages in seq order, until `each` answers false. Times are those of the machine's clock, which showed
    /// `wall` when the store's time was taken.
    ///
    /// # Errors
    /// The store is damaged, or cannot be read now.
    pub(in crate::engine) fn each_message(
        &self,
        wall: u64,
        mut each: impl FnMut(StoredMessage) -> bool,
    ) -> Result<(), OpenError> {
        let (_, ahead) = at(self.last_used, wall);
        let mut is_stopped = false;
        let seen = scan(&self.connection, |row| {
            let message = StoredMessage {
                seq: Seq(from_sql_int(row.seq)),
                prev: Seq(from_sql_int(row.prev)),
                address: row.address()?,
                message: row.message()?,
                expires_at: shift(from_sql_int(row.expires_at), ahead),
                receipt: row.receipt(),
            };
            is_stopped = !each(message);
            // The scan ends with an error only.
            if is_stopped { Err(ReadError::Damaged(String::new())) } else { Ok(()) }
        });
        if is_stopped {
            return Ok(());
        }
        seen.and_then(|seen| self.totals.verify(&seen)).map_err(|error| self.files.unreadable(error))
    }

    /// How many messages each topic has that have not expired.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(in crate::engine) fn histories(&self, wall: u64) -> Result<HashMap<Address, usize>, OpenError> {
        let (now, _) = at(self.last_used, wall);
        let read = || -> Result<_, ReadError> {
            let sql = "SELECT address, count(*) FROM message WHERE address GLOB 't/*' AND ends > ?1 GROUP BY address";
            let mut statement = self.connection.prepare(sql)?;
            let mut rows = statement.query([to_sql_int(now)])?;
            let mut found = HashMap::new();
            while let Some(row) = rows.next()? {
                let text = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
                let address = parse_address(text);
                let address = address.ok_or_else(|| ReadError::Damaged("an address".to_owned()))?;
                found.insert(address, usize::try_from(row.get::<_, i64>(1)?).unwrap_or_default());
            }
            Ok(found)
        };
        read().map_err(|error| self.files.unreadable(error))
    }

    /// Up to where emptied mailboxes and histories had got.
    ///
    /// # Errors
    /// The store is damaged, or cannot be read now.
    pub(in crate::engine) fn floors(&self) -> Result<HashMap<Address, Seq>, OpenError> {
        let mut found = HashMap::new();
        let read = all_floors(&self.connection, |address, floor| {
            found.insert(address, floor.floor);
        });
        read.map(|()| found).map_err(|error| self.files.unreadable(error))
    }

    /// All registrations, in the order of the sessions' names. Their times are those of the machine's clock.
    ///
    /// # Errors
    /// The store is damaged, or cannot be read now.
    pub(in crate::engine) fn registrations(
        &self,
        wall: u64,
    ) -> Result<Vec<(SessionId, Registration)>, OpenError> {
        let (_, ahead) = at(self.last_used, wall);
        let mut found = Vec::new();
        let read = read_directory(&self.connection, |session, registration| {
            found.push((session.clone(), translated(&registration, ahead)));
            Ok(())
        });
        let count = read.map_err(|error| self.files.unreadable(error))?;
        if count != self.totals.sessions {
            return Err(self.files.damaged(&"registrations are missing"));
        }
        found.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        Ok(found)
    }

    /// The senders' ids that are remembered. Their times are those of the machine's clock.
    ///
    /// # Errors
    /// The store is damaged, or cannot be read now.
    pub(in crate::engine) fn ids(&self, wall: u64) -> Result<Vec<StoredId>, OpenError> {
        let (now, ahead) = at(self.last_used, wall);
        let mut found = Vec::new();
        let read =
            all_ids(&self.connection, now, |id, seq, until| found.push((id, seq, shift(until, ahead))));
        read.map(|()| found).map_err(|error| self.files.unreadable(error))
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::params;

    use super::*;
    use crate::engine::embedded::fixture::{commit, open as open_store};

    const MESSAGES: usize = 5;

    /// A store with messages that no server uses, changed by these statements.
    fn store(sql: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open_store(dir.path()).unwrap();
        commit(&mut opened, MESSAGES, &[]);
        opened.disk.connection().execute_batch(sql).unwrap();
        drop(opened);
        dir
    }

    /// Reads everything. Answers how many messages were handed out, and how that ended.
    fn read_all(export: &Export) -> (usize, Result<(), OpenError>) {
        let mut count = 0;
        let mut read = || -> Result<(), OpenError> {
            drop((export.floors()?, export.ids(1)?, export.registrations(1)?, export.histories(1)?));
            export.each_message(1, |_| {
                count += 1;
                true
            })
        };
        let ended = read();
        (count, ended)
    }

    /// The error that a store changed like this ends with, and how many messages were handed out before.
    fn refused(sql: &str) -> (usize, String) {
        let dir = store(sql);
        let (count, ended) = match Export::open(dir.path()) {
            Ok(export) => read_all(&export),
            Err(error) => (0, Err(error)),
        };
        (count, ended.expect_err(sql).to_string())
    }

    #[test]
    fn a_store_is_read_as_a_whole_after_a_crash_too_and_by_one_process() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Export::open(dir.path()), Err(OpenError::NoStore { .. })));
        let mut opened = open_store(dir.path()).unwrap();
        let seqs = commit(&mut opened, MESSAGES, &[]);
        assert!(matches!(Export::open(dir.path()), Err(OpenError::InUse { .. })));
        drop(opened);
        assert!(Files::of(dir.path()).running.exists(), "it did not end in order");
        let export = Export::open(dir.path()).unwrap();
        assert!(matches!(open_store(dir.path()), Err(OpenError::InUse { .. })));
        let mut found = Vec::new();
        export
            .each_message(1, |message| {
                found.push(message.seq);
                true
            })
            .unwrap();
        assert_eq!((found, export.messages(), export.newest()), (seqs.clone(), 5, seqs[4]));
        assert_eq!(export.fingerprint().1, 5);
        let mut found = 0;
        export
            .each_message(1, |_| {
                found += 1;
                found < 2
            })
            .unwrap();
        assert_eq!(found, 2, "a reader that wants no more is no error");
    }

    #[test]
    fn damage_to_each_table_ends_the_reading_with_an_error() {
        for (sql, handed_out, text) in [
            ("UPDATE message SET payload = '1' WHERE seq = (SELECT max(seq) FROM message)", 4, "message "),
            ("DELETE FROM message WHERE seq = (SELECT min(seq) FROM message)", 4, "4 rows, 5 were counted"),
            ("UPDATE message SET seq = seq + 100 WHERE seq = (SELECT max(seq) FROM message)", 4, "message "),
            ("UPDATE state SET sum = 1", 0, "the row of table `state`"),
            ("DELETE FROM state", 0, "no rows"),
            ("UPDATE store SET secret = zeroblob(16)", 0, "the row of table `store`"),
            ("INSERT INTO ids VALUES (1, 9000000000000, x'00', 3)", 0, "row 1 of table `ids`"),
            ("INSERT INTO floors VALUES (1, x'00', 3)", 0, "row 1 of table `floors`"),
            ("INSERT INTO directory VALUES ('a', NULL, 2, 3)", 0, "a row of table `directory`"),
            ("DROP TABLE floors", 0, "floors"),
        ] {
            let (count, error) = refused(sql);
            assert_eq!(count, handed_out, "{sql}: {error}");
            assert!(error.contains(text) && error.contains("is damaged"), "{sql}: {error}");
            assert!(error.contains("bring it back from a backup"), "{sql}: {error}");
        }
    }

    #[test]
    fn registrations_that_are_missing_are_noticed_by_their_number() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open_store(dir.path()).unwrap();
        let totals = StoreTotals { sessions: 1, ..*opened.disk.totals() };
        totals.write(opened.disk.connection()).unwrap();
        drop(opened);
        let (_, ended) = read_all(&Export::open(dir.path()).unwrap());
        assert!(ended.unwrap_err().to_string().contains("registrations are missing"));
    }

    #[test]
    fn a_format_that_is_not_this_one_is_refused_with_what_to_do() {
        for (format, text) in [
            (1, "it has format 1, and a server converts it to 3; start `x0-msg-server serve` on it"),
            (2, "it has format 2, and a server converts it to 3"),
            (FORMAT + 1, "has format 4, and this version knows up to 3; use the version that wrote it"),
            (0, "its header names format 0"),
            (-1, "its header names format -1"),
        ] {
            let (count, error) = refused(&format!("PRAGMA user_version = {format}"));
            assert!(count == 0 && error.contains(text), "{error}");
        }
        let (_, error) = refused("PRAGMA application_id = 7; DELETE FROM store");
        assert!(error.contains("is not a store of this server"), "{error}");
    }

    #[test]
    fn files_that_are_missing_cut_or_left_over_are_noticed() {
        let opened = |change: &dyn Fn(&Files)| {
            let dir = store("");
            change(&Files::of(dir.path()));
            Export::open(dir.path()).map(|export| read_all(&export)).map_err(|error| error.to_string())
        };
        let cut = |path: &Path, length: u64| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(length).unwrap();
        };
        let error = opened(&|files| fs::remove_file(&files.database).unwrap()).unwrap_err();
        assert!(error.contains("store.db is missing, and there was a store here"), "{error}");
        let error = opened(&|files| cut(&files.database, 0)).unwrap_err();
        assert!(error.contains("store.db is damaged: it is empty"), "{error}");
        let error = opened(&|files| fs::remove_file(&files.wal).unwrap()).unwrap_err();
        assert!(error.contains("store.db-wal is missing; start `x0-msg-server serve` on it"), "{error}");
        let error = opened(&|files| cut(&files.wal, 9000)).unwrap_err();
        assert!(error.contains("store.db-wal was cut short: 9000 bytes of at least"), "{error}");
        let error = opened(&|files| fs::write(&files.salvaged, "x").unwrap()).unwrap_err();
        assert!(error.contains("a recovery was interrupted"), "{error}");
    }

    #[test]
    fn a_file_that_ends_early_or_holds_other_bytes_is_never_read_in_silence() {
        let dir = store("");
        drop(Export::open(dir.path()).unwrap());
        let files = Files::of(dir.path());
        // Everything is in one file.
        let whole = dir.path().join("whole.db");
        Connection::open(&files.database)
            .unwrap()
            .execute("VACUUM INTO ?1", params![whole.to_str()])
            .unwrap();
        for path in [&files.wal, &files.shm, &files.running] {
            _ = fs::remove_file(path);
        }
        let bytes = fs::read(&whole).unwrap();
        let read = |bytes: &[u8]| {
            fs::write(&files.database, bytes).unwrap();
            Export::open(dir.path()).map(|export| read_all(&export))
        };
        assert!(matches!(read(&bytes), Ok((MESSAGES, Ok(())))));
        for keep in [1, 50, 4096, bytes.len() / 2, bytes.len() - 4096] {
            let ended = read(&bytes[..keep]);
            assert!(!matches!(ended, Ok((_, Ok(())))), "{keep} of {} bytes", bytes.len());
        }
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        for round in 0..200 {
            let mut changed = bytes.clone();
            changed[random.usize(..bytes.len())] ^= 1 << random.u32(..8);
            // Bytes that nothing uses may change.
            if let Ok((count, Ok(()))) = read(&changed) {
                assert_eq!(count, MESSAGES, "seed {seed}, round {round}");
            }
        }
    }
}
