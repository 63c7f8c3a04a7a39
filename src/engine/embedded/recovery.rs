//! Opening a store: what is there, whether all of it is there, and what to do if not.
//!
//! Everything stored is read once at the start, which builds the index and verifies every checksum. What is
//! damaged is kept aside, what is intact goes on in a new epoch, and the log says what is missing. A store of
//! which nothing can be read is not opened at all: it must not look like an empty one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::engine::Settings;
use crate::engine::embedded::disk::{self, APPLICATION, Disk, FORMAT};
use crate::engine::embedded::files::{Files, MARKER, Running, begin, boot, remove, sync_dir};
use crate::engine::embedded::index::{Index, IndexBuilder, RestoredMessage, stored_cost};
use crate::engine::embedded::rows::{self, MessageRow, ReadError, StoreIdentity, StoreTotals};
use crate::engine::embedded::salvage::{make_aside, prefer_database_alone, salvage, switch_to_new};
use crate::engine::embedded::storage::{Durability, OpenError};
use crate::engine::embedded::wal::{self, Wal};
use crate::engine::embedded::{first_seq, random_epoch, random_secret};
use crate::message::{Address, Seq};

/// How long SQLite's own look at the file's structure may take at the start, beside the reading of everything.
const STRUCTURE_CHECK: Duration = Duration::from_millis(250);

/// A new epoch's seqs are above whatever the old one can have given.
const EPOCH_STEP: u64 = 1 << 32;

/// An opened store.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) disk: Disk,
    pub(super) index: Index,
    pub(super) identity: StoreIdentity,
    pub(super) files: Files,
    /// Keeps other processes out.
    pub(super) lock: File,
}

/// Opens the store in a directory, or makes one there.
pub(super) fn open(dir: &Path, durability: Durability, settings: Settings) -> Result<Opened, OpenError> {
    let files = Files::of(dir);
    let made = !dir.exists();
    fs::create_dir_all(dir).map_err(|error| files.io("make the directory", dir, error))?;
    if made && let Some(parent) = dir.canonicalize().ok().as_deref().and_then(Path::parent) {
        sync_dir(parent).map_err(|error| files.io("sync", parent, error))?;
    }
    let lock = files.lock()?;
    _ = remove(&files.reserve);
    let format = files.format()?;
    if let Some(found) = format
        && found > FORMAT
    {
        return Err(OpenError::Newer { dir: dir.to_owned(), found, known: FORMAT });
    }
    if files.salvaged.exists() {
        let aside = switch_to_new(&files)?;
        tracing::error!(aside = %aside.display(), "an interrupted recovery goes on; the damaged files were put aside");
    }
    let (disk, index, identity) = match (files.database.exists(), format) {
        (false, None) if !files.wal.exists() => create(&files, durability, settings)?,
        (false, _) => return Err(OpenError::Missing { path: files.database }),
        (true, None) if is_unfinished(&files) => {
            for path in [&files.database, &files.wal, &files.shm] {
                remove(path).map_err(|error| files.io("remove", path, error))?;
            }
            create(&files, durability, settings)?
        }
        (true, _) => reopen(&files, durability, settings)?,
    };
    if format.is_none() {
        files.write(&files.marker, &format!("{MARKER} {FORMAT}\n"))?;
    }
    begin(&files, &disk, durability);
    Ok(Opened { disk, index, identity, files, lock })
}

/// Whether the making of this store was interrupted before its first commit.
fn is_unfinished(files: &Files) -> bool {
    let tables = |connection: Connection| {
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
    };
    disk::open_to_read(&files.database).and_then(tables).is_ok_and(|tables| tables == 0)
}

fn create(
    files: &Files,
    durability: Durability,
    settings: Settings,
) -> Result<(Disk, Index, StoreIdentity), OpenError> {
    let sqlite = |error| OpenError::Sqlite { path: files.database.clone(), error };
    // The file first, since its inode is part of what goes into it.
    File::create(&files.database).map_err(|error| files.io("make", &files.database, error))?;
    let (epoch, secret) = (random_epoch(), random_secret());
    let identity = StoreIdentity { epoch, origin: first_seq(settings.clock), secret, inode: inode(files)? };
    let mut disk = Disk::create(&files.database, durability, &identity).map_err(sqlite)?;
    sync_dir(&files.dir).map_err(|error| files.io("sync", &files.dir, error))?;
    let index = IndexBuilder::new(settings, &identity.secret, identity.origin, Seq::START).finish();
    let state = StoreTotals::read(disk.connection()).map_err(|error| damaged(files, &error))?;
    disk.restore_state(state, settings.dedup_ids);
    Ok((disk, index, identity))
}

fn inode(files: &Files) -> Result<u64, OpenError> {
    let metadata = fs::metadata(&files.database);
    metadata.map(|data| data.ino()).map_err(|error| files.io("look at", &files.database, error))
}

pub(super) fn damaged(files: &Files, why: &dyn std::fmt::Display) -> OpenError {
    OpenError::Damaged { path: files.database.clone(), why: why.to_string() }
}

/// What the way the last process ended says about the store.
#[derive(Debug, Default)]
pub(super) struct CrashFindings {
    /// What confirmed messages may be missing for.
    pub(super) lost: Option<String>,
    /// Whether what is left of the log is to be kept for who wants to look at it.
    keep_log: bool,
    /// Whether the last process did not end in order.
    pub(super) crashed: bool,
}

/// Looks at what is there before SQLite touches it.
pub(super) fn inspect_after_crash(files: &Files) -> Result<CrashFindings, OpenError> {
    let wal = wal::inspect(&files.wal).map_err(|error| files.io("read", &files.wal, error))?;
    let running = match fs::read(&files.running) {
        Ok(bytes) => Some(serde_json::from_slice::<Running>(&bytes).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(files.io("read", &files.running, error)),
    };
    let length = fs::metadata(&files.wal).map_or(0, |data| data.len());
    let rebooted = running.as_ref().is_some_and(|running| running.boot != boot());
    let crashed = running.is_some();
    let mut keep_log = false;
    let lost = match (&running, wal) {
        // A stop of the machine leaves an unfinished write in any order.
        (Some(running), Wal::Damaged { confirmed: false, .. })
            if rebooted && running.durability == Durability::Fsync.name() && length >= running.wal =>
        {
            tracing::warn!("the last write was not finished; it was never confirmed and is cut off");
            None
        }
        (_, Wal::Damaged { at, .. }) => {
            keep_log = true;
            Some(format!("store.db-wal is damaged at byte {at}"))
        }
        (Some(running), _) if length < running.wal && length == 0 => {
            Some("store.db-wal is missing".to_owned())
        }
        (Some(running), _) if length < running.wal => {
            keep_log = true;
            Some(format!("store.db-wal was cut short: {length} bytes of at least {}", running.wal))
        }
        (Some(running), _) if running.durability == Durability::Os.name() && rebooted => Some(
            "the machine stopped while the level was `os`, which keeps nothing safe from that".to_owned(),
        ),
        (_, Wal::Torn { pages }) => {
            tracing::warn!(pages, "the last write was not finished; it was never confirmed and is cut off");
            None
        }
        _ => None,
    };
    if lost.is_none() && crashed {
        tracing::info!("the last process did not end in order; the store is recovered");
    }
    Ok(CrashFindings { lost, keep_log, crashed })
}

fn reopen(
    files: &Files,
    durability: Durability,
    settings: Settings,
) -> Result<(Disk, Index, StoreIdentity), OpenError> {
    let sqlite = |error| OpenError::Sqlite { path: files.database.clone(), error };
    let CrashFindings { mut lost, keep_log, .. } = inspect_after_crash(files)?;
    let empty = |path: &Path| fs::metadata(path).map_or(true, |data| data.len() == 0);
    if empty(&files.database) && !empty(&files.wal) {
        // SQLite would take the file for a new one, and remove the log.
        return Err(damaged(files, &"it is empty"));
    }
    let mut aside = None;
    if keep_log {
        // SQLite is going to write over it.
        let dir = make_aside(files)?;
        match fs::copy(&files.wal, dir.join("store.db-wal")) {
            Ok(_) => aside = Some(dir),
            Err(error) => tracing::warn!(%error, "no copy of the damaged store.db-wal is kept"),
        }
        prefer_database_alone(files)?;
    }
    let read = || {
        let mut disk =
            Disk::open(&files.database, durability, |connection| verify_format(files, connection))?;
        let (index, identity) = load(&mut disk, files, settings)?;
        Ok((disk, index, identity))
    };
    let mut loaded = read();
    if let Err(LoadError::Read(why)) = &loaded
        && rows::is_damage(why)
    {
        let why = lost.take().map_or_else(|| why.to_string(), |before| format!("{before}; {why}"));
        tracing::error!(why, path = %files.database.display(), "the store is damaged; saving what is intact");
        let saved = salvage(files, durability, &why)?;
        let to = switch_to_new(files)?;
        tracing::error!(
            saved = saved.messages,
            missing = saved.missing,
            aside = %to.display(),
            "the damaged files were put aside"
        );
        lost = Some(why);
        aside = Some(to);
        loaded = read();
    }
    let (mut disk, mut index, mut identity) = match loaded {
        Ok(loaded) => loaded,
        Err(LoadError::Open(error)) => return Err(error),
        Err(LoadError::Read(ReadError::Sqlite(error)) | LoadError::Write(error)) => {
            return Err(sqlite(error));
        }
        Err(LoadError::Read(why)) => return Err(damaged(files, &why)),
    };
    let inode = inode(files)?;
    if lost.is_none() && identity.inode != inode {
        lost = Some("the store is a copy of another one: a backup, perhaps".to_owned());
    }
    // Seqs may skip, and time goes on: none is given twice, from whatever backup this store was brought back.
    index.resume_after(index.newest().max(first_seq(settings.clock)));
    if let Some(why) = lost {
        // What was given before may be given to something else now: cursors must not be taken for ours.
        let newest = Seq(index.newest().0 + EPOCH_STEP);
        identity = StoreIdentity { epoch: random_epoch(), inode, ..identity };
        disk.renew(&identity, newest).map_err(sqlite)?;
        index.resume_after(newest);
        let aside = aside.map(|path| path.display().to_string());
        tracing::error!(
            why,
            epoch = identity.epoch.as_str(),
            aside,
            "stored messages may be missing: a new epoch begins"
        );
    }
    Ok((disk, index.finish(), identity))
}

/// Why a store could not be loaded, or saved.
pub(super) enum LoadError {
    Read(ReadError),
    Write(rusqlite::Error),
    Open(OpenError),
}

impl From<ReadError> for LoadError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<rusqlite::Error> for LoadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Read(error.into())
    }
}

fn verify_format(files: &Files, connection: &Connection) -> Result<(), LoadError> {
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, found) = (number("application_id")?, number("user_version")?);
    if application != APPLICATION && number("schema_version")? > 0 && StoreIdentity::read(connection).is_err()
    {
        return Err(LoadError::Open(OpenError::NotOurs { path: files.database.clone() }));
    }
    if application == APPLICATION && found > FORMAT && StoreIdentity::read(connection).is_ok() {
        return Err(LoadError::Open(OpenError::Newer { dir: files.dir.clone(), found, known: FORMAT }));
    }
    Ok(())
}

/// Reads everything, verifies it, and builds the index.
fn load(
    disk: &mut Disk,
    files: &Files,
    settings: Settings,
) -> Result<(IndexBuilder, StoreIdentity), LoadError> {
    let identity = StoreIdentity::read(disk.connection())?;
    let state = StoreTotals::read(disk.connection())?;
    let newest = Seq(u64::try_from(state.newest).unwrap_or_default());
    let forgotten = Seq(u64::try_from(state.forgotten).unwrap_or_default());
    let mut index = IndexBuilder::new(settings, &identity.secret, newest, forgotten);
    disk.restore_state(state, settings.dedup_ids);
    index.reserve_ids(disk.count_ids()?);
    disk.read_ids(settings.clock.now(), |key, seq, until| index.restore_id(key, seq, until))?;
    disk.read_floors(|address, floor| index.restore_floor(&address, floor))?;
    let sessions = rows::read_directory(disk.connection(), |session, registration| {
        index.restore_registration(session, registration);
        Ok(())
    })?;
    if sessions != state.sessions {
        let text = format!("table `directory` ({sessions} rows, {} were counted)", state.sessions);
        return Err(LoadError::Read(ReadError::Damaged(text)));
    }
    let structure = files.database.clone();
    let structure = std::thread::spawn(move || check_structure(&structure, STRUCTURE_CHECK));
    let (seen, index) = load_messages(disk.connection(), index)?;
    if !state.agrees(&seen) {
        let missing = state.messages - seen.messages;
        return Err(LoadError::Read(ReadError::Damaged(format!(
            "table `message` ({} rows, {missing} fewer than were counted)",
            seen.messages
        ))));
    }
    let structure = structure.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    structure.map_err(LoadError::Read)?;
    Ok((index, identity))
}

type LoadedRow = (Address, RestoredMessage);

/// One thread reads and verifies, another one builds the index.
fn load_messages(
    connection: &Connection,
    mut index: IndexBuilder,
) -> Result<(StoreTotals, IndexBuilder), ReadError> {
    const CHUNK: usize = 2048;
    let (to_builder, from_reader) = mpsc::sync_channel::<Vec<LoadedRow>>(4);
    std::thread::scope(|scope| {
        let builder = scope.spawn(move || {
            for chunk in from_reader {
                for (address, message) in chunk {
                    index.restore(&address, message);
                }
            }
            index
        });
        let mut chunk = Vec::with_capacity(CHUNK);
        let seen = scan(connection, false, |row| {
            chunk.push(loaded_row(row)?);
            if chunk.len() == CHUNK {
                // Fails only if the builder panicked, which is noticed below.
                _ = to_builder.send(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK)));
            }
            Ok(())
        });
        _ = to_builder.send(chunk);
        drop(to_builder);
        let index = builder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        seen.map(|seen| (seen, index))
    })
}

fn loaded_row(row: &MessageRow<'_>) -> Result<LoadedRow, ReadError> {
    let unsigned = |n: i64| u64::try_from(n).unwrap_or_default();
    let names = row.address.len() + row.sender.map_or(0, str::len);
    let stored = RestoredMessage {
        seq: Seq(unsigned(row.seq)),
        prev: Seq(unsigned(row.prev)),
        expires_at: unsigned(row.expires_at),
        bytes: stored_cost(row.payload.len(), names),
        receipt: row.receipt(),
    };
    Ok((row.address()?, stored))
}

/// Reads all messages from one end; answers what was seen.
pub(super) fn scan(
    connection: &Connection,
    backwards: bool,
    mut each: impl FnMut(&MessageRow<'_>) -> Result<(), ReadError>,
) -> Result<StoreTotals, ReadError> {
    let mut seen = StoreTotals::default();
    let mut statement = connection.prepare(&rows::scan_sql(backwards))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let row = MessageRow::of(row)?;
        each(&row)?;
        seen.add(row.seq);
    }
    Ok(seen)
}

/// SQLite's own check of the file's structure, free pages included; as much of it as fits into the time.
pub(super) fn check_structure(path: &Path, time: Duration) -> Result<(), ReadError> {
    let mut connection = disk::open_to_read(path)?;
    let end = Instant::now() + time;
    connection.progress_handler(1_000, Some(move || Instant::now() > end))?;
    let found = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match found {
        Ok(found) if found == "ok" => Ok(()),
        Ok(found) => Err(ReadError::Damaged(format!("the structure of the file ({found})"))),
        Err(rusqlite::Error::SqliteFailure(failure, _))
            if failure.code == rusqlite::ErrorCode::OperationInterrupted =>
        {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
