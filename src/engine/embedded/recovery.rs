//! Opens a store: finds what is there, whether all of it is there, and what to do if not.
//!
//! Everything stored is read once at the start, which builds the index and verifies every checksum. If a store is
//! damaged, its intact rows go into a new file, a new epoch begins, the damaged files are kept aside, and the log says
//! what is missing. A store of which nothing can be read is not opened: it must not look like an empty one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::engine::Settings;
use crate::engine::embedded::crash::inspect_after_crash;
use crate::engine::embedded::disk::Disk;
use crate::engine::embedded::disk::open::{FORMAT, open_to_read};
use crate::engine::embedded::files::{Files, remove, sync_dir};
use crate::engine::embedded::index::{Index, IndexBuilder};
use crate::engine::embedded::load::{LoadError, Loaded, load};
use crate::engine::embedded::rows::store::{StoreIdentity, first_seq, random_epoch};
use crate::engine::embedded::running::begin;
use crate::engine::embedded::salvage::{salvage, switch_to_salvaged};
use crate::engine::embedded::storage::{Durability, OpenError};
use crate::message::Seq;

/// The seqs of a new epoch are this far above those of the old one.
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
    make_directory(&files)?;
    let lock = files.lock()?;
    _ = remove(&files.reserve);
    let format = files.format()?;
    if let Some(found) = format
        && found > FORMAT
    {
        return Err(OpenError::Newer { dir: dir.to_owned(), found, known: FORMAT });
    }
    if files.salvaged.exists() {
        let aside = switch_to_salvaged(&files)?;
        tracing::error!(aside = %aside.display(), "an interrupted recovery continues; the damaged files were put aside");
    }
    let Loaded { disk, index, identity } = match (files.database.exists(), format) {
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
        files.mark()?;
    }
    begin(&files, &disk, durability);
    Ok(Opened { disk, index: index.finish(), identity, files, lock })
}

fn make_directory(files: &Files) -> Result<(), OpenError> {
    let dir = &files.dir;
    let made = !dir.exists();
    fs::create_dir_all(dir).map_err(|error| files.io("make the directory", dir, error))?;
    if made && let Some(parent) = dir.canonicalize().ok().as_deref().and_then(Path::parent) {
        sync_dir(parent).map_err(|error| files.io("sync", parent, error))?;
    }
    Ok(())
}

/// Whether the making of this store was interrupted before its first commit.
fn is_unfinished(files: &Files) -> bool {
    let tables = |connection: Connection| {
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
    };
    open_to_read(&files.database).and_then(tables).is_ok_and(|tables| tables == 0)
}

fn create(files: &Files, durability: Durability, settings: Settings) -> Result<Loaded, OpenError> {
    // The file comes first, since its inode is a part of the identity that goes into it.
    File::create(&files.database).map_err(|error| files.io("make", &files.database, error))?;
    let identity = StoreIdentity::new(first_seq(settings.clock), files.inode()?);
    let disk = Disk::create(&files.database, durability, &identity, settings.dedup_ids);
    let disk = disk.map_err(|error| files.sqlite(error))?;
    sync_dir(&files.dir).map_err(|error| files.io("sync", &files.dir, error))?;
    let index = IndexBuilder::new(settings, &identity.secret, identity.origin, Seq::START);
    Ok(Loaded { disk, index, identity })
}

fn reopen(files: &Files, durability: Durability, settings: Settings) -> Result<Loaded, OpenError> {
    let findings = inspect_after_crash(files)?;
    let has_bytes = |path: &Path| fs::metadata(path).is_ok_and(|data| data.len() > 0);
    if !has_bytes(&files.database) && has_bytes(&files.wal) {
        // SQLite would take the file for a new one, and remove the log.
        return Err(files.damaged(&"it is empty"));
    }
    if findings.crashed && findings.lost.is_none() {
        tracing::info!("the last process did not end in order; the store is recovered");
    }
    let mut aside = None;
    let mut lost = findings.lost;
    let mut loaded = None;
    if !findings.log_is_damaged {
        match load(files, durability, settings) {
            Err(LoadError::Read(why)) if why.is_damage() => {
                lost = Some(lost.map_or_else(|| why.to_string(), |before| format!("{before}; {why}")));
            }
            other => loaded = Some(other),
        }
    }
    let loaded = match loaded {
        Some(loaded) => loaded,
        None => {
            aside = Some(replace_damaged(files, durability, lost.as_deref().unwrap_or_default())?);
            load(files, durability, settings)
        }
    };
    let mut loaded = loaded.map_err(|error| match error {
        LoadError::Open(error) => error,
        LoadError::Read(why) if why.is_damage() => files.damaged(&why),
        LoadError::Read(why) => files.unreadable(why),
    })?;
    continue_or_renew(files, settings, &mut loaded, lost, aside)?;
    Ok(loaded)
}

/// Saves what is intact into a new file and puts that in place. Returns where the damaged files are.
fn replace_damaged(files: &Files, durability: Durability, why: &str) -> Result<PathBuf, OpenError> {
    tracing::error!(why, path = %files.database.display(), "the store is damaged; saving what is intact");
    let saved = salvage(files, durability, why)?;
    let aside = switch_to_salvaged(files)?;
    tracing::error!(
        saved = saved.messages,
        missing = saved.missing,
        aside = %aside.display(),
        "the damaged files were put aside"
    );
    Ok(aside)
}

/// Continues above every seq that was given, in a new epoch if messages may be missing.
fn continue_or_renew(
    files: &Files,
    settings: Settings,
    loaded: &mut Loaded,
    mut lost: Option<String>,
    aside: Option<PathBuf>,
) -> Result<(), OpenError> {
    let Loaded { disk, index, identity } = loaded;
    let inode = files.inode()?;
    if lost.is_none() && identity.inode != inode {
        lost = Some("the store is a copy of another one: a backup, perhaps".to_owned());
    }
    // Seqs may skip, and time moves on: none is given twice, whichever backup the store was restored from.
    index.resume_after(index.newest().max(first_seq(settings.clock)));
    let Some(why) = lost else { return Ok(()) };
    // A seq given before may be given to another message now. A new epoch makes old cursors invalid.
    let newest = Seq(index.newest().0 + EPOCH_STEP);
    (identity.epoch, identity.inode) = (random_epoch(), inode);
    disk.renew(identity, newest).map_err(|error| files.sqlite(error))?;
    index.resume_after(newest);
    let aside = aside.map(|path| path.display().to_string());
    tracing::error!(
        why,
        epoch = identity.epoch.as_str(),
        aside,
        "stored messages may be missing: a new epoch begins"
    );
    Ok(())
}
