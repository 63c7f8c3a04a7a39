//! The store's file: an SQLite database in WAL mode, written by one connection.
//!
//! # Format 3
//! Messages are keyed by their seq, which is unique in the store. So appends go to the right edge of one B-tree, and
//! deletions of messages that are read soon hit the same pages. The index in memory knows the messages of an address.
//!
//! | table | holds |
//! |---|---|
//! | `message` | one row for each stored message, with a CRC-32 over all of it |
//! | `ids` | the senders' ids of one commit: 16 bytes of keyed hash, 8 of seq, 8 of content hash and 4 of author hash for each |
//! | `floors` | the mailboxes and histories emptied by one commit, and how far they had got |
//! | `directory` | one row for each registered session |
//! | `state` | one row, changed by every commit: how many messages there are, and a sum of their seqs |
//! | `clock` | one row: what the machine's clock and the store's showed at the last use |
//! | `loss` | one row, if anything was lost: up to which seq messages may be missing |
//! | `store` | one row: epoch, first seq, the secret of the ids, a number of the file (`file_id.rs`) |
//!
//! A store of an older format is converted when it is opened for writing. Ids of format 2 have no author, those of format 1
//! no content hash either; registrations of format 1 know no former owner.
//!
//! A damaged row fails its checksum. A lost row is missing from the sums in `state`.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rusqlite::{CachedStatement, Connection, Transaction};

use crate::engine::embedded::dedup::SendId;
use crate::engine::embedded::index::{Floor, Pending, PlannedChange, Waiter};
use crate::engine::embedded::rows::clock::{CLOCK_TABLE, ClockReading};
use crate::engine::embedded::rows::loss::{LOSS_TABLE, write_loss};
use crate::engine::embedded::rows::message::{self, INSERT, MessageRow};
use crate::engine::embedded::rows::registration::write_registration;
use crate::engine::embedded::rows::store::{StoreIdentity, StoreTotals};
use crate::engine::embedded::rows::{ReadError, address_text, to_sql_int};
use crate::engine::embedded::storage::Durability;
use crate::engine::{IdLimits, Registration};
use crate::message::{Address, SenderName, Seq, SessionId};
use crate::metrics;

mod batches;
pub(super) mod copy;
mod deletes;
mod ids;
pub(super) mod open;
mod space;

use batches::FloorTable;
use copy::copy_into;
use deletes::{Deletion, delete};
pub(super) use ids::IdRow;
use ids::IdTable;

/// What is committed together.
#[derive(Debug)]
pub(super) struct CommitGroup {
    pub(super) appends: Vec<Pending>,
    /// Messages to delete.
    pub(super) deletes: Vec<Seq>,
    pub(super) floors: Vec<(Address, Floor)>,
    pub(super) registrations: Vec<(SessionId, Option<Registration>)>,
    /// Told when the registrations are stored.
    pub(super) waiters: Vec<Waiter>,
    /// What becomes visible with this commit.
    pub(super) changes: Vec<PlannedChange>,
    /// The newest seq given so far.
    pub(super) newest: Seq,
    /// Logs up to here may have been forgotten.
    pub(super) forgotten: Seq,
    /// In the store's time.
    pub(super) now: u64,
    /// Until when its ids are remembered, in the store's time.
    pub(super) until: u64,
    /// How many ids are remembered in memory.
    pub(super) remembered: usize,
    /// Rows of ids without those that are forgotten.
    pub(super) cleaned: Vec<IdRow>,
    /// What the clocks show, if that is to be written.
    pub(super) clock: Option<ClockReading>,
}

impl CommitGroup {
    /// All floors to write. Those of the changes come last, since they are higher.
    fn all_floors(&self) -> Cow<'_, [(Address, Floor)]> {
        let raised: Vec<_> = self.changes.iter().filter_map(PlannedChange::floor).collect();
        match raised.is_empty() {
            true => Cow::Borrowed(&self.floors),
            false => Cow::Owned([self.floors.clone(), raised].concat()),
        }
    }

    /// Whether it needs room on the disk that it does not make itself.
    pub(super) fn grows(&self) -> bool {
        self.appends.iter().any(|pending| pending.waiter.is_some())
            || self.registrations.iter().any(|(_, to)| is_new(to))
            || self.changes.iter().any(PlannedChange::registers)
    }

    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.appends.is_empty()
            && self.deletes.is_empty()
            && self.floors.is_empty()
            && self.registrations.is_empty()
            && self.changes.is_empty()
            && self.clock.is_none()
    }
}

/// Whether this change stores a registration, and not that one ended.
pub(super) fn is_new(to: &Option<Registration>) -> bool {
    to.as_ref().is_some_and(Registration::registers)
}

/// The one connection that writes.
#[derive(Debug)]
pub(super) struct Disk {
    connection: Connection,
    durability: Durability,
    path: PathBuf,
    totals: StoreTotals,
    ids: IdTable,
    floors: FloorTable,
}

/// Reads the floors of emptied addresses, oldest first, for whoever does not write.
#[cfg(feature = "nats")]
pub(super) fn all_floors(from: &Connection, each: impl FnMut(Address, Floor)) -> Result<(), ReadError> {
    FloorTable::default().read(from, each)
}

/// Reads the senders' ids that are remembered `now`, for whoever does not write.
#[cfg(feature = "nats")]
pub(super) fn all_ids(
    from: &Connection,
    now: u64,
    each: impl FnMut(SendId, Seq, u64),
) -> Result<(), ReadError> {
    // They are limited by what is written.
    IdTable::new(IdLimits { all: usize::MAX, of_author: usize::MAX, hard: 0 }).read(from, now, each)
}

impl Disk {
    /// Makes a new store's file.
    pub(super) fn create(
        path: &Path,
        durability: Durability,
        identity: &StoreIdentity,
        id_limits: IdLimits,
    ) -> rusqlite::Result<Self> {
        let (connection, totals) = open::create(path, durability, identity)?;
        Ok(Self::of(connection, path, durability, totals, id_limits))
    }

    /// Opens a store's file, if `verify` accepts it. Its ids and floors must be read before the first commit.
    pub(super) fn open<E: From<ReadError> + From<rusqlite::Error>>(
        path: &Path,
        durability: Durability,
        id_limits: IdLimits,
        verify: impl FnOnce(&Connection) -> Result<(), E>,
    ) -> Result<Self, E> {
        let connection = open::open_to_write(path, durability, verify)?;
        convert(&connection, path)?;
        let totals = StoreTotals::read(&connection)?;
        Ok(Self::of(connection, path, durability, totals, id_limits))
    }

    fn of(
        connection: Connection,
        path: &Path,
        durability: Durability,
        totals: StoreTotals,
        id_limits: IdLimits,
    ) -> Self {
        let (ids, floors) = (IdTable::new(id_limits), FloorTable::default());
        Self { connection, durability, path: path.to_owned(), totals, ids, floors }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn durability(&self) -> Durability {
        self.durability
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the store counts.
    pub(super) fn totals(&self) -> &StoreTotals {
        &self.totals
    }

    /// Writes which store this is.
    pub(super) fn identify(&self, identity: &StoreIdentity) -> rusqlite::Result<()> {
        identity.write(&self.connection)
    }

    /// Begins another epoch, whose seqs are above `newest`. Messages up to there may be missing.
    pub(super) fn renew(&mut self, identity: &StoreIdentity, newest: Seq) -> rusqlite::Result<()> {
        self.totals.newest = to_sql_int(newest.0);
        let transaction = self.connection.unchecked_transaction()?;
        identity.write(&transaction)?;
        write_loss(&transaction, newest)?;
        self.totals.write(&transaction)?;
        transaction.commit()
    }

    /// How many ids are stored.
    pub(super) fn count_ids(&self) -> rusqlite::Result<usize> {
        IdTable::count(&self.connection)
    }

    /// Reads the senders' ids that are remembered `now`.
    pub(super) fn read_ids(&mut self, now: u64, each: impl FnMut(SendId, Seq, u64)) -> Result<(), ReadError> {
        self.ids.read(&self.connection, now, each)
    }

    /// Rows that hold ids which are forgotten, if there are many of those.
    pub(super) fn rows_to_clean(&self, group: &CommitGroup) -> Result<Vec<IdRow>, ReadError> {
        self.ids.rows_to_clean(&self.connection, group.remembered, group.appends.len())
    }

    /// Reads the floors of emptied addresses, oldest first.
    pub(super) fn read_floors(&mut self, each: impl FnMut(Address, Floor)) -> Result<(), ReadError> {
        self.floors.read(&self.connection, each)
    }

    /// Commits a group. Afterwards it is as durable as the level says, or nothing of it is there.
    pub(super) fn write(&mut self, group: &CommitGroup) -> rusqlite::Result<()> {
        match self.try_write(group, Deletion::InRuns) {
            Err(rusqlite::Error::StatementChangedRows(_)) => self.try_write(group, Deletion::OneByOne),
            written => written,
        }
    }

    fn try_write(&mut self, group: &CommitGroup, deletion: Deletion) -> rusqlite::Result<()> {
        let mut totals = self.totals;
        totals.commits += 1;
        totals.newest = to_sql_int(group.newest.0);
        totals.forgotten = totals.forgotten.max(to_sql_int(group.forgotten.0));
        let transaction = self.connection.unchecked_transaction()?;
        insert(&transaction, &group.appends, &mut totals)?;
        delete(&transaction, &group.deletes, deletion, &mut totals)?;
        for (session, registration) in &group.registrations {
            write_registration(&transaction, session, registration.as_ref(), &mut totals)?;
        }
        for (session, registration) in group.changes.iter().flat_map(PlannedChange::registrations) {
            write_registration(&transaction, session, registration, &mut totals)?;
        }
        let ids = (&group.appends[..], &group.cleaned[..]);
        let ids = self.ids.write(&transaction, ids, totals.commits, (group.now, group.until))?;
        let (floors, forgotten) = self.floors.write(&transaction, &group.all_floors(), totals.commits)?;
        totals.forgotten = totals.forgotten.max(to_sql_int(forgotten.0));
        if let Some(reading) = group.clock {
            reading.write(&transaction)?;
        }
        totals.write(&transaction)?;
        let begun = Instant::now();
        transaction.commit()?;
        metrics::SYNC.observe(begun.elapsed());
        self.totals = totals;
        self.ids.apply(&ids);
        self.floors.apply(&floors);
        Ok(())
    }

    /// Whether the next appends certainly find room on the disk.
    pub(super) fn has_room(&self) -> bool {
        space::has_room(&self.connection, &self.path)
    }

    /// Gives back free space, at most `pages`. Returns whether there is more.
    pub(super) fn shrink(&self, pages: i64) -> rusqlite::Result<bool> {
        space::shrink(&self.connection, pages)
    }

    /// Copies the write-ahead log into the database file. The next commit begins it anew, at its full length.
    pub(super) fn restart_log(&self) -> rusqlite::Result<()> {
        space::checkpoint(&self.connection, "RESTART")
    }

    /// Brings everything into the database file and closes it, so that no write-ahead log is left.
    pub(super) fn close(self, last: ClockReading) -> rusqlite::Result<()> {
        last.write(&self.connection)?;
        open::keep_log(&self.connection, false)?;
        self.connection.close().map_err(|(_, error)| error)
    }
}

/// Brings a store of an older format to this one, in one transaction. Tables that older versions do without are made. A copy of the
/// store is made before: older versions can go on with that only.
fn convert(store: &Connection, path: &Path) -> Result<(), ReadError> {
    store.execute_batch(CLOCK_TABLE)?;
    store.execute_batch(LOSS_TABLE)?;
    let found: i64 = store.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if !(1..open::FORMAT).contains(&found) {
        return Ok(());
    }
    let copy = path.with_extension(format!("format-{found}.db"));
    if let Err(error) = copy_into(store, &copy) {
        tracing::error!(%error, copy = %copy.display(), "the store cannot be copied before it is converted to another format");
        return Err(error.into());
    }
    tracing::info!(copy = %copy.display(), "the store was copied before it is converted to another format");
    let transaction = store.unchecked_transaction()?;
    // Format 3 also has requests, replies and mailboxes of backends, which older versions take for damage.
    IdTable::convert(&transaction, found)?;
    transaction.pragma_update(None, "user_version", open::FORMAT)?;
    transaction.commit()?;
    tracing::info!(from = found, to = open::FORMAT, "the store was converted to another format");
    Ok(())
}

/// How many messages one statement inserts: each run of a statement has a price of its own.
const INSERTED_TOGETHER: [usize; 2] = [16, 1];

fn insert(to: &Transaction<'_>, appends: &[Pending], totals: &mut StoreTotals) -> rusqlite::Result<()> {
    let mut rest = appends;
    for rows in INSERTED_TOGETHER {
        let groups = rest.chunks_exact(rows);
        rest = groups.remainder();
        if groups.len() == 0 {
            continue;
        }
        let mut statement = message::insertion(to, INSERT, rows)?;
        for group in groups {
            for (at, pending) in group.iter().enumerate() {
                bind(&mut statement, at, pending)?;
                totals.add(to_sql_int(pending.seq.0));
            }
            statement.raw_execute()?;
        }
    }
    Ok(())
}

/// Makes a message the row number `at` of an insertion.
fn bind(statement: &mut CachedStatement<'_>, at: usize, pending: &Pending) -> rusqlite::Result<()> {
    let publication = &pending.publication;
    let receipt = pending.receipt.as_ref().and_then(|(mailbox, id)| message::receipt_text(mailbox, id));
    let row = MessageRow {
        seq: to_sql_int(pending.seq.0),
        address: &address_text(&pending.address),
        prev: to_sql_int(pending.prev.0),
        expires_at: to_sql_int(pending.expires_at),
        ts: to_sql_int(pending.ts),
        kind: message::kind_number(publication.kind()),
        sender: publication.from().map(SenderName::as_str),
        receipt: receipt.as_deref(),
        payload: &publication.stored_payload(),
    };
    row.bind(statement, at)
}
