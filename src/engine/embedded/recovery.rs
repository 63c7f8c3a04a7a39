//! Opening a store: what is there, whether all of it is there, and what to do if not.
//!
//! Everything stored is read once at the start, which builds the index and verifies every checksum. What is
//! damaged is kept aside, what is intact goes on in a new epoch, and the log says what is missing. A store of
//! which nothing can be read is not opened at all: it must not look like an empty one.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};

use crate::engine::embedded::disk::{
    self, APPLICATION, Disk, FORMAT, Identity, MessageRow, ReadError, State, WAL_BYTES,
};
use crate::engine::embedded::index::{Index, Stored, cost_of};
use crate::engine::embedded::wal::{self, Wal};
use crate::engine::embedded::{first_seq, random_epoch};
use crate::engine::{Durability, OpenError, Settings};
use crate::message::{Address, MessageId, Seq, SessionId};

/// How long SQLite's own look at the file's structure may take at the start, beside the reading of everything.
const STRUCTURE_CHECK: Duration = Duration::from_millis(400);

/// A new epoch's seqs are above whatever the old one can have given.
const EPOCH_STEP: u64 = 1 << 32;

/// The files of a store.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) dir: PathBuf,
    pub(super) database: PathBuf,
    pub(super) wal: PathBuf,
    pub(super) shm: PathBuf,
    /// Says that this is a store, and of which format. Written last when a store is made.
    pub(super) marker: PathBuf,
    /// Held locked by the process that uses the store.
    pub(super) lock: PathBuf,
    /// Exists while a process uses the store: found at the start, that process did not end in order.
    pub(super) running: PathBuf,
}

impl Files {
    pub(super) fn of(dir: &Path) -> Self {
        let file = |name: &str| dir.join(name);
        Self {
            dir: dir.to_owned(),
            database: file("store.db"),
            wal: file("store.db-wal"),
            shm: file("store.db-shm"),
            marker: file("format"),
            lock: file("lock"),
            running: file("running"),
        }
    }

    /// Takes the store for this process.
    pub(super) fn lock(&self) -> Result<File, OpenError> {
        let file = File::options().create(true).truncate(false).write(true).open(&self.lock);
        let file = file.map_err(|error| self.io("open", &self.lock, error))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse { dir: self.dir.clone() }),
            Err(TryLockError::Error(error)) => Err(self.io("lock", &self.lock, error)),
        }
    }

    fn io(&self, what: &'static str, path: &Path, error: io::Error) -> OpenError {
        OpenError::Io { what, path: path.to_owned(), error }
    }

    /// Writes a small file that is there as a whole or not at all.
    fn write(&self, path: &Path, text: &str) -> Result<(), OpenError> {
        let new = path.with_extension("new");
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, path)
        });
        written.and_then(|()| sync_dir(&self.dir)).map_err(|error| self.io("write", path, error))
    }

    /// The format that the marker names, if there is one.
    fn format(&self) -> Result<Option<i64>, OpenError> {
        let text = match fs::read_to_string(&self.marker) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // Not text: damaged. The database has the number too.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(Some(FORMAT)),
            Err(error) => return Err(self.io("read", &self.marker, error)),
        };
        let number = text.trim().strip_prefix(MARKER).and_then(|number| number.trim().parse().ok());
        Ok(Some(number.unwrap_or(FORMAT)))
    }
}

const MARKER: &str = "x0-msg-server store, format";

/// What the file `running` holds.
#[derive(Debug, Serialize, Deserialize, Default)]
struct Running {
    /// How long the write-ahead log was made, in bytes.
    wal: u64,
    /// The level that was in force.
    durability: String,
    /// Which start of the machine it was.
    boot: String,
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// An opened store.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) disk: Disk,
    pub(super) index: Index,
    pub(super) identity: Identity,
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
    let format = files.format()?;
    if let Some(found) = format
        && found > FORMAT
    {
        return Err(OpenError::Newer { dir: dir.to_owned(), found, known: FORMAT });
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
    begin(&files, &disk, durability)?;
    Ok(Opened { disk, index, identity, files, lock })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether the making of this store was interrupted before its first commit.
fn is_unfinished(files: &Files) -> bool {
    let tables = |connection: Connection| {
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
    };
    Connection::open(&files.database).and_then(tables).is_ok_and(|tables| tables == 0)
}

fn create(
    files: &Files,
    durability: Durability,
    settings: Settings,
) -> Result<(Disk, Index, Identity), OpenError> {
    let sqlite = |error| OpenError::Sqlite { path: files.database.clone(), error };
    // The file first, since its inode is part of what goes into it.
    File::create(&files.database).map_err(|error| files.io("make", &files.database, error))?;
    let mut secret = [0; 16];
    getrandom::fill(&mut secret)
        .map_err(|error| files.io("get random numbers for", &files.dir, error.into()))?;
    let identity =
        Identity { epoch: random_epoch(), origin: first_seq(settings.clock), secret, inode: inode(files)? };
    let mut disk = Disk::create(&files.database, durability, &identity).map_err(sqlite)?;
    sync_dir(&files.dir).map_err(|error| files.io("sync", &files.dir, error))?;
    let index = Index::new(settings, &identity.secret, identity.origin, true);
    let state = State::read(disk.connection()).map_err(|error| damaged(files, &error))?;
    disk.restore_state(state, settings.dedup_ids);
    Ok((disk, index, identity))
}

fn inode(files: &Files) -> Result<u64, OpenError> {
    let metadata = fs::metadata(&files.database);
    metadata.map(|data| data.ino()).map_err(|error| files.io("look at", &files.database, error))
}

fn damaged(files: &Files, why: &dyn std::fmt::Display) -> OpenError {
    OpenError::Damaged { path: files.database.clone(), why: why.to_string() }
}

/// What the way the last process ended says about the store.
#[derive(Debug, Default)]
struct Suspicion {
    /// What confirmed messages may be missing for.
    lost: Option<String>,
}

/// Looks at what is there before SQLite touches it.
fn suspect(files: &Files) -> Result<Suspicion, OpenError> {
    let wal = wal::inspect(&files.wal).map_err(|error| files.io("read", &files.wal, error))?;
    let running = match fs::read(&files.running) {
        Ok(bytes) => Some(serde_json::from_slice::<Running>(&bytes).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(files.io("read", &files.running, error)),
    };
    let length = fs::metadata(&files.wal).map_or(0, |data| data.len());
    let lost = match (&running, wal) {
        (_, Wal::Damaged { at }) => Some(format!("store.db-wal is damaged at byte {at}")),
        (Some(running), _) if length < running.wal && length == 0 => {
            Some("store.db-wal is missing".to_owned())
        }
        (Some(running), _) if length < running.wal => {
            Some(format!("store.db-wal was cut short: {length} bytes of at least {}", running.wal))
        }
        (Some(running), _) if running.durability == Durability::Os.name() && running.boot != boot() => Some(
            "the machine stopped while the level was `os`, which keeps nothing safe from that".to_owned(),
        ),
        (_, Wal::Torn { pages }) => {
            tracing::warn!(pages, "the last write was not finished; it was never confirmed and is cut off");
            None
        }
        _ => None,
    };
    if lost.is_none() && running.is_some() {
        tracing::info!("the last process did not end in order; the store is recovered");
    }
    Ok(Suspicion { lost })
}

fn reopen(
    files: &Files,
    durability: Durability,
    settings: Settings,
) -> Result<(Disk, Index, Identity), OpenError> {
    let sqlite = |error| OpenError::Sqlite { path: files.database.clone(), error };
    let Suspicion { mut lost } = suspect(files)?;
    let mut aside = None;
    if lost.is_some() && files.wal.exists() {
        // SQLite is going to write over it.
        aside = Some(put_aside(files, &[&files.wal], false)?);
        prefer_database_alone(files)?;
    }
    let mut loaded = verify_format(files).and_then(|()| {
        Disk::open(&files.database, durability).map_err(ReadError::from).map_err(Trouble::Read).and_then(
            |mut disk| load(&mut disk, files, settings).map(|(index, identity)| (disk, index, identity)),
        )
    });
    if let Err(Trouble::Read(why)) = &loaded
        && is_damage(why)
    {
        tracing::error!(%why, path = %files.database.display(), "the store is damaged; saving what is intact");
        lost = Some(why.to_string());
        let to = put_aside(files, &[], true)?;
        let saved = salvage(files, &to, durability)?;
        tracing::error!(
            saved = saved.messages,
            missing = saved.missing,
            aside = %to.display(),
            "the damaged files were put aside"
        );
        aside = Some(to);
        loaded =
            Disk::open(&files.database, durability).map_err(ReadError::from).map_err(Trouble::Read).and_then(
                |mut disk| load(&mut disk, files, settings).map(|(index, identity)| (disk, index, identity)),
            );
    }
    let (mut disk, mut index, mut identity) = match loaded {
        Ok(loaded) => loaded,
        Err(Trouble::Open(error)) => return Err(error),
        Err(Trouble::Read(ReadError::Sqlite(error))) => return Err(sqlite(error)),
        Err(Trouble::Read(why)) => return Err(damaged(files, &why)),
    };
    let inode = inode(files)?;
    if lost.is_none() && identity.inode != inode {
        lost = Some("the store is a copy of another one: a backup, perhaps".to_owned());
    }
    if let Some(why) = lost {
        // What was given before may be given to something else now: cursors must not be taken for ours.
        let newest = Seq(index.newest().0 + EPOCH_STEP);
        identity = Identity { epoch: random_epoch(), inode, ..identity };
        disk.renew(&identity, newest).map_err(sqlite)?;
        index.go_on_after(newest);
        let aside = aside.map(|path| path.display().to_string());
        tracing::error!(
            why,
            epoch = identity.epoch.as_str(),
            aside,
            "stored messages may be missing: a new epoch begins"
        );
    }
    Ok((disk, index, identity))
}

/// Why a store could not be loaded.
enum Trouble {
    Read(ReadError),
    Open(OpenError),
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Read(error.into())
    }
}

/// Whether this says that the file is damaged, and not that it cannot be read now.
fn is_damage(error: &ReadError) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error {
        ReadError::Damaged(_) => true,
        ReadError::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) => {
            matches!(failure.code, DatabaseCorrupt | NotADatabase)
                // What cannot be prepared or found any more: the schema is damaged.
                || failure.code == rusqlite::ErrorCode::Unknown
        }
        ReadError::Sqlite(
            rusqlite::Error::QueryReturnedNoRows
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
            | rusqlite::Error::SqlInputError { .. },
        ) => true,
        ReadError::Sqlite(_) => false,
    }
}

fn verify_format(files: &Files) -> Result<(), Trouble> {
    let connection = Connection::open_with_flags(&files.database, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, found) = (number("application_id")?, number("user_version")?);
    if application != APPLICATION && number("schema_version")? > 0 && Identity::read(&connection).is_err() {
        return Err(Trouble::Open(OpenError::NotOurs { path: files.database.clone() }));
    }
    if application == APPLICATION && found > FORMAT && Identity::read(&connection).is_ok() {
        return Err(Trouble::Open(OpenError::Newer { dir: files.dir.clone(), found, known: FORMAT }));
    }
    Ok(())
}

/// Reads everything, verifies it, and builds the index.
fn load(disk: &mut Disk, files: &Files, settings: Settings) -> Result<(Index, Identity), Trouble> {
    let identity = Identity::read(disk.connection())?;
    let state = State::read(disk.connection())?;
    let newest = Seq(u64::try_from(state.newest).unwrap_or_default());
    let mut index = Index::new(settings, &identity.secret, newest, true);
    index.restore_forgotten(Seq(u64::try_from(state.forgotten).unwrap_or_default()));
    disk.restore_state(state, settings.dedup_ids);
    disk.read_ids(settings.clock.now(), |key, seq, until| index.restore_id(key, seq, until))?;
    disk.read_floors(|address, floor| index.restore_floor(&address, floor))?;
    let structure = files.database.clone();
    let structure = std::thread::spawn(move || check_structure(&structure, STRUCTURE_CHECK));
    let (seen, index) = load_messages(disk.connection(), index)?;
    if !state.agrees(&seen) {
        let missing = state.messages - seen.messages;
        return Err(Trouble::Read(ReadError::Damaged(format!(
            "table `message` ({} rows, {missing} fewer than were counted)",
            seen.messages
        ))));
    }
    let structure = structure.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    structure.map_err(Trouble::Read)?;
    Ok((index, identity))
}

type LoadedRow = (Address, Stored, Option<(SessionId, MessageId)>);

/// One thread reads and verifies, another one builds the index.
fn load_messages(connection: &Connection, mut index: Index) -> Result<(State, Index), ReadError> {
    const CHUNK: usize = 2048;
    let (to_builder, from_reader) = mpsc::sync_channel::<Vec<LoadedRow>>(4);
    std::thread::scope(|scope| {
        let builder = scope.spawn(move || {
            for chunk in from_reader {
                for (address, stored, receipt) in chunk {
                    index.restore(&address, stored);
                    if let Some((from, id)) = receipt {
                        index.restore_receipt(&address, from, id);
                    }
                }
            }
            index.restored();
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
    let nat = |n: i64| u64::try_from(n).unwrap_or_default();
    let names = row.address.len() + row.sender.map_or(0, str::len);
    let stored = Stored {
        seq: Seq(nat(row.seq)),
        prev: Seq(nat(row.prev)),
        ends: nat(row.ends),
        bytes: cost_of(row.payload.len(), names),
    };
    let receipt = row
        .sender
        .zip(row.receipt)
        .and_then(|(sender, id)| Some((SessionId::new(sender).ok()?, MessageId::new(id).ok()?)));
    Ok((row.address()?, stored, receipt))
}

/// Reads all messages from one end; answers what was seen.
pub(super) fn scan(
    connection: &Connection,
    backwards: bool,
    mut each: impl FnMut(&MessageRow<'_>) -> Result<(), ReadError>,
) -> Result<State, ReadError> {
    let mut seen = State::default();
    let mut statement = connection.prepare(&disk::scan_sql(backwards))?;
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

/// Copies (or moves all of) the store's files into a directory of their own.
fn put_aside(files: &Files, copied: &[&Path], all: bool) -> Result<PathBuf, OpenError> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let dir = files.dir.join(format!("damaged-{}", now.as_millis()));
    fs::create_dir_all(&dir).map_err(|error| files.io("make the directory", &dir, error))?;
    let moved = if all { vec![files.database.as_path(), &files.wal, &files.shm] } else { Vec::new() };
    for path in moved {
        let to = dir.join(path.file_name().unwrap_or_default());
        match fs::rename(path, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(files.io("move", path, error));
            }
            _ => {}
        }
    }
    for path in copied {
        let to = dir.join(path.file_name().unwrap_or_default());
        fs::copy(path, &to).map_err(|error| files.io("copy", path, error))?;
    }
    sync_dir(&files.dir).map_err(|error| files.io("sync", &files.dir, error))?;
    Ok(dir)
}

/// A log that is damaged in its middle may lie over a database that already has all of it. Then the database
/// alone is newer than the database with what can be read of the log.
fn prefer_database_alone(files: &Files) -> Result<(), OpenError> {
    let commits = |connection: rusqlite::Result<Connection>| -> Result<i64, ReadError> {
        let connection = connection?;
        let state = State::read(&connection)?;
        let seen = scan(&connection, false, |_| Ok(()))?;
        if state.agrees(&seen) { Ok(state.commits) } else { Err(ReadError::Damaged("sums".to_owned())) }
    };
    let uri = format!("file:{}?immutable=1", uri_path(&files.database));
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let Ok(alone) = commits(Connection::open_with_flags(uri, flags)) else { return Ok(()) };
    // On a copy, so that nothing of the log is brought into the database yet.
    let with_log = {
        let dir = files.dir.join("trial");
        let trial = Files::of(&dir);
        let made = fs::create_dir_all(&dir)
            .and_then(|()| fs::copy(&files.database, &trial.database))
            .and_then(|_| fs::copy(&files.wal, &trial.wal));
        let found = made.is_ok().then(|| commits(Connection::open(&trial.database)));
        fs::remove_dir_all(&dir).map_err(|error| files.io("remove", &dir, error))?;
        found
    };
    if !matches!(with_log, Some(Ok(with_log)) if with_log >= alone) && with_log.is_some() {
        for path in [&files.wal, &files.shm] {
            remove(path).map_err(|error| files.io("remove", path, error))?;
        }
    }
    Ok(())
}

/// A path as it stands in a `file:` URI.
pub(super) fn uri_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.replace('%', "%25").replace('?', "%3f").replace('#', "%23")
}

struct Saved {
    messages: i64,
    /// Fewer than were counted, where the count can still be read.
    missing: Option<i64>,
}

/// Makes a new store of what is intact in a damaged one.
fn salvage(files: &Files, from: &Path, durability: Durability) -> Result<Saved, OpenError> {
    let sqlite = |error| OpenError::Sqlite { path: files.database.clone(), error };
    let old = Files::of(from);
    let back = |error: &dyn std::fmt::Display| {
        // Nothing was saved: the files go back, so that the next start sees the same.
        for (from, to) in [(&old.database, &files.database), (&old.wal, &files.wal), (&old.shm, &files.shm)] {
            _ = remove(to);
            _ = fs::rename(from, to);
        }
        _ = fs::remove_dir(from);
        damaged(files, error)
    };
    let source = Connection::open(&old.database).map_err(|error| back(&error))?;
    let identity = Identity::read(&source);
    let state = State::read(&source);
    File::create(&files.database).map_err(|error| files.io("make", &files.database, error))?;
    let mut secret = [0; 16];
    getrandom::fill(&mut secret)
        .map_err(|error| files.io("get random numbers for", &files.dir, error.into()))?;
    let identity =
        identity.unwrap_or_else(|_| Identity { epoch: random_epoch(), origin: Seq(0), secret, inode: 0 });
    let disk = Disk::create(&files.database, durability, &identity).map_err(sqlite)?;
    let transaction = disk.connection().unchecked_transaction().map_err(sqlite)?;
    let mut saved = State::default();
    let mut highest = 0;
    // What cannot be reached from one end may be from the other.
    let mut last_from_start = i64::MIN;
    for backwards in [false, true] {
        loop {
            let mut stopped_at = None;
            let result = rows_between(&source, backwards, last_from_start, |row| {
                stopped_at = Some(row.seq);
                if row.address().is_ok() {
                    disk::copy(row, &transaction)?;
                    saved.add(row.seq);
                    highest = highest.max(row.seq);
                }
                Ok(())
            });
            if !backwards && let Some(seq) = stopped_at {
                last_from_start = seq;
            }
            match result {
                // A row whose checksum is wrong is passed by; what follows it can be read.
                Err(ReadError::Damaged(_)) if !backwards => match next_seq(&source, last_from_start) {
                    Some(damaged) => last_from_start = damaged,
                    None => break,
                },
                _ => break,
            }
        }
    }
    if saved.messages == 0 && state.as_ref().map_or(true, |state| state.messages > 0) {
        drop(transaction);
        _ = disk.close();
        return Err(back(&"nothing of it can be read"));
    }
    saved.newest = highest.max(state.as_ref().map_or(0, |state| state.newest));
    saved.forgotten = saved.newest;
    disk::write_state(&saved, &transaction).map_err(sqlite)?;
    transaction.commit().map_err(sqlite)?;
    disk.close().map_err(sqlite)?;
    let missing = state.ok().map(|state| state.messages - saved.messages);
    Ok(Saved { messages: saved.messages, missing })
}

/// Reads the messages after `after`, from one end; damaged rows end it.
fn rows_between(
    connection: &Connection,
    backwards: bool,
    after: i64,
    mut each: impl FnMut(&MessageRow<'_>) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let sql = disk::scan_sql(backwards).replace("ORDER", "WHERE seq > ?1 ORDER");
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([after])?;
    while let Some(row) = rows.next()? {
        each(&MessageRow::of(row)?)?;
    }
    Ok(())
}

fn next_seq(connection: &Connection, after: i64) -> Option<i64> {
    let sql = "SELECT seq FROM message WHERE seq > ?1 ORDER BY seq LIMIT 1";
    connection.query_row(sql, [after], |row| row.get(0)).ok()
}

/// Makes the log as long as it is going to be, and notes that the store is in use.
fn begin(files: &Files, disk: &Disk, durability: Durability) -> Result<(), OpenError> {
    // The first commit makes the log.
    let made = disk.connection().execute_batch("BEGIN IMMEDIATE; UPDATE state SET crc = crc; COMMIT");
    if let Err(error) = made {
        tracing::warn!(%error, "the store cannot be written to now; it is going to be tried again");
    }
    let length = match lengthen(&files.wal) {
        Ok(()) => WAL_BYTES,
        Err(error) => {
            tracing::warn!(%error, path = %files.wal.display(), "no room to prepare the write-ahead log");
            0
        }
    };
    let running = Running { wal: length, durability: durability.name().to_owned(), boot: boot() };
    let text = serde_json::to_string(&running).expect("strings and numbers always encode");
    if let Err(error) = files.write(&files.running, &text) {
        // Without it, a cut log is not noticed: a lesser evil than not to start on a full disk.
        tracing::warn!(%error, "this run cannot be noted");
    }
    Ok(())
}

fn lengthen(wal: &Path) -> io::Result<()> {
    let mut file = File::options().append(true).open(wal)?;
    let length = file.metadata()?.len();
    let zeros = vec![0; 1 << 18];
    let mut missing = WAL_BYTES.saturating_sub(length);
    while missing > 0 {
        let slice = usize::try_from(missing).unwrap_or(usize::MAX).min(zeros.len());
        if let Err(error) = file.write_all(&zeros[..slice]) {
            file.set_len(length)?;
            return Err(error);
        }
        missing -= slice as u64;
    }
    file.sync_all()
}

/// Notes that the store was left in order.
pub(super) fn end(files: &Files) -> io::Result<()> {
    remove(&files.running)?;
    sync_dir(&files.dir)
}
