//! Reads a whole store for another engine, and changes nothing.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use rusqlite::Connection;

use crate::engine::Registration;
use crate::engine::embedded::crash::inspect_after_crash;
use crate::engine::embedded::dedup::SendId;
use crate::engine::embedded::disk::open::FORMAT;
use crate::engine::embedded::disk::{all_floors, all_ids};
use crate::engine::embedded::files::Files;
use crate::engine::embedded::load::quick_check;
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
        let connection = open_unchanged(&files, false).map_err(sqlite)?;
        let found: i64 =
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sqlite)?;
        if found > FORMAT {
            return Err(OpenError::Newer { dir: dir.to_owned(), found, known: FORMAT });
        }
        if found < FORMAT {
            return Err(unready(format!("it has format {found}, and a server converts it to {FORMAT}")));
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
