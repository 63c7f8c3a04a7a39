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
use crate::engine::embedded::files::{Files, sync_dir, try_read};
use crate::engine::embedded::index::{Index, IndexBuilder};
use crate::engine::embedded::load::{LoadError, Loaded, load};
use crate::engine::embedded::place;
use crate::engine::embedded::private::{self, remove};
use crate::engine::embedded::rows::store::{StoreIdentity, first_seq, random_epoch};
use crate::engine::embedded::running::begin;
use crate::engine::embedded::salvage::{salvage, switch_to_salvaged};
use crate::engine::embedded::storage::{Durability, OpenError};
use crate::engine::embedded::store_clock::StoreClock;
use crate::message::Seq;

/// The seqs of a new epoch are this far above those of the old one.
const EPOCH_STEP: u64 = 1 << 32;

/// An opened store.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) disk: Disk,
    pub(super) index: Index,
    pub(super) clock: StoreClock,
    pub(super) identity: StoreIdentity,
    pub(super) files: Files,
    /// Keeps other processes out.
    pub(super) lock: File,
}

/// Opens the store in a directory, or makes one there.
pub(super) fn open(dir: &Path, durability: Durability, settings: Settings) -> Result<Opened, OpenError> {
    let files = Files::of(&place::prepare(dir)?);
    place::secure_lock(&files)?;
    let lock = files.lock()?;
    if place::secure(&files)? {
        // Others may have it open still, and hold up the log with it.
        remove(&files.shm).map_err(|error| files.io("remove", &files.shm, error))?;
    }
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
    let Loaded { disk, index, clock, identity } = match (files.database.exists(), format) {
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
    if format != Some(FORMAT) {
        files.mark()?;
    }
    begin(&files, &disk, durability, clock.reading());
    Ok(Opened { disk, index: index.finish(), clock, identity, files, lock })
}

/// Whether the making of this store was interrupted before its first commit.
fn is_unfinished(files: &Files) -> bool {
    let tables = |connection: Connection| {
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
    };
    open_to_read(&files.database).and_then(tables).is_ok_and(|tables| tables == 0)
}

fn create(files: &Files, durability: Durability, settings: Settings) -> Result<Loaded, OpenError> {
    // The file comes first, since its number is a part of the identity that goes into it.
    private::create(&files.database).map_err(|error| files.io("make", &files.database, error))?;
    let identity = StoreIdentity::new(first_seq(settings.clock), files.id()?.number());
    let disk = Disk::create(&files.database, durability, &identity, settings.id_limits());
    let disk = disk.map_err(|error| files.sqlite(error))?;
    sync_dir(&files.dir).map_err(|error| files.io("sync", &files.dir, error))?;
    let clock = StoreClock::begin(settings.clock, None);
    let seqs = (identity.origin, Seq::START);
    let index = IndexBuilder::new(settings, clock.clone(), &identity.secret, seqs);
    Ok(Loaded { disk, index, clock, identity })
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
                try_read(&files.database).map_err(|error| files.io("read", &files.database, error))?;
                lost = Some(lost.map_or_else(|| why.to_string(), |before| format!("{before}; {why}")));
            }
            other => loaded = Some(other),
        }
    }
    let loaded = match loaded {
        Some(loaded) => loaded,
        None => {
            let why = lost.as_deref().unwrap_or_default();
            tracing::error!(why, path = %files.database.display(), "the store is damaged; saving what is intact");
            salvage(files, findings.log_is_damaged, why)?;
            aside = Some(switch_to_salvaged(files)?);
            load(files, durability, settings)
        }
    };
    let mut loaded = loaded.map_err(|error| match error {
        LoadError::Open(error) => error,
        LoadError::Read(why) => files.unreadable(why),
    })?;
    continue_or_renew(files, settings, &mut loaded, lost, aside)?;
    Ok(loaded)
}

/// Continues above every seq that was given, in a new epoch if messages may be missing.
fn continue_or_renew(
    files: &Files,
    settings: Settings,
    loaded: &mut Loaded,
    mut lost: Option<String>,
    aside: Option<PathBuf>,
) -> Result<(), OpenError> {
    let Loaded { disk, index, identity, .. } = loaded;
    let file = files.id()?;
    let is_copy = lost.is_none() && !file.has(identity.file);
    if is_copy {
        lost = Some("the store is a copy of another one: a backup, perhaps".to_owned());
    }
    // Seqs may skip, and time moves on: none is given twice, whichever backup the store was restored from.
    index.resume_after(index.newest().max(first_seq(settings.clock)));
    let known_as = std::mem::replace(&mut identity.file, file.number());
    let Some(why) = lost else {
        // An older version stored another number.
        if known_as != identity.file
            && let Err(error) = disk.identify(identity)
        {
            tracing::warn!(%error, "the store cannot be written to now");
        }
        return Ok(());
    };
    // A seq given before may be given to another message now. A new epoch makes old cursors invalid.
    let newest = Seq(index.newest().0 + EPOCH_STEP);
    identity.epoch = random_epoch();
    disk.renew(identity, newest).map_err(|error| files.sqlite(error))?;
    index.resume_after(newest);
    index.lost_through(newest);
    if is_copy {
        let epoch = identity.epoch.as_str();
        tracing::info!(
            why,
            epoch,
            "what was sent since the copy was made may be missing: a new epoch begins"
        );
        return Ok(());
    }
    let aside = aside.map(|path| path.display().to_string());
    tracing::error!(
        why,
        epoch = identity.epoch.as_str(),
        aside,
        "stored messages may be missing: a new epoch begins"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::fixture::{aside, commit, open, settings, stored};
    use crate::engine::embedded::rows::to_sql_int;

    /// A store as a crash leaves it.
    fn crashed(dir: &Path, messages: usize) -> (Vec<Seq>, StoreIdentity) {
        let mut opened = open(dir).unwrap();
        let seqs = commit(&mut opened, messages, &[]);
        (seqs, opened.identity.clone())
    }

    #[test]
    fn a_store_continues_after_a_crash_and_above_its_seqs() {
        let dir = tempfile::tempdir().unwrap();
        let (seqs, identity) = crashed(dir.path(), 5);
        let opened = open(dir.path()).unwrap();
        assert_eq!((stored(&opened), &opened.identity), (seqs.clone(), &identity));
        assert!(opened.index.committed() >= *seqs.last().unwrap());
        assert!(aside(dir.path()).is_empty());
    }

    #[test]
    fn damaged_rows_are_left_behind_in_a_new_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let (seqs, identity) = crashed(dir.path(), 5);
        let opened = open(dir.path()).unwrap();
        opened
            .disk
            .connection()
            .execute("UPDATE message SET ts = 8 WHERE seq = ?1", [to_sql_int(seqs[2].0)])
            .unwrap();
        drop(opened);
        let opened = open(dir.path()).unwrap();
        assert_eq!(stored(&opened), [seqs[0], seqs[1], seqs[3], seqs[4]]);
        assert_ne!(opened.identity.epoch, identity.epoch);
        assert!(opened.index.committed() > Seq(seqs[4].0 + EPOCH_STEP - 1), "no seq is given twice");
        assert!(aside(dir.path())[0].join("store.db").exists(), "the damaged file is kept");
        // The damage is gone: the next start is an ordinary one.
        let epoch = opened.identity.epoch.clone();
        drop(opened);
        assert_eq!(open(dir.path()).unwrap().identity.epoch, epoch);
        assert_eq!(aside(dir.path()).len(), 1);
    }

    #[test]
    fn a_lost_row_is_noticed_by_the_sums() {
        let dir = tempfile::tempdir().unwrap();
        let (seqs, identity) = crashed(dir.path(), 3);
        let opened = open(dir.path()).unwrap();
        opened
            .disk
            .connection()
            .execute("DELETE FROM message WHERE seq = ?1", [to_sql_int(seqs[1].0)])
            .unwrap();
        drop(opened);
        let opened = open(dir.path()).unwrap();
        assert_eq!(stored(&opened), [seqs[0], seqs[2]]);
        assert_ne!(opened.identity.epoch, identity.epoch);
    }

    #[test]
    fn a_damaged_log_loses_nothing_that_the_database_has() {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open(dir.path()).unwrap();
        let mut seqs = commit(&mut opened, 5, &[]);
        opened.disk.restart_log().unwrap();
        seqs.extend(commit(&mut opened, 5, &[]));
        drop(opened);
        let files = Files::of(dir.path());
        let mut log = fs::read(&files.wal).unwrap();
        // In the first page of the second commit after the restart.
        let page = 32 + 24 + 4096;
        let last = log.iter().rposition(|byte| *byte != 0).unwrap();
        let at = (last / 2).max(page);
        log[at] ^= 1;
        fs::write(&files.wal, log).unwrap();
        let opened = open(dir.path()).unwrap();
        let found = stored(&opened);
        assert!(found.starts_with(&seqs[..5]), "{found:?}");
        assert!(found.len() < 10 && found.iter().all(|seq| seqs.contains(seq)), "{found:?}");
        assert!(aside(dir.path())[0].join("store.db-wal").exists());
    }

    #[test]
    fn an_interrupted_switch_to_the_salvaged_file_continues() {
        let dir = tempfile::tempdir().unwrap();
        let (seqs, _) = crashed(dir.path(), 3);
        let files = Files::of(dir.path());
        salvage(&files, false, "a test").unwrap();
        // The process was killed between moving the damaged files and renaming the new one.
        fs::remove_file(&files.database).unwrap();
        fs::remove_file(&files.wal).unwrap();
        let opened = open(dir.path()).unwrap();
        assert_eq!(stored(&opened), seqs);
        assert!(!files.salvaged.exists());
    }

    #[test]
    fn a_store_of_which_nothing_can_be_read_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        crashed(dir.path(), 3);
        let files = Files::of(dir.path());
        let garbage = vec![7; 100_000];
        fs::write(&files.database, &garbage).unwrap();
        remove(&files.wal).unwrap();
        remove(&files.running).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Damaged { .. })));
        assert_eq!(fs::read(&files.database).unwrap(), garbage);
        assert!(!files.salvaged.exists() && aside(dir.path()).is_empty());
        fs::write(&files.database, []).unwrap();
        fs::write(&files.wal, [1]).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Damaged { .. })), "an empty file is no new store");
        fs::remove_file(&files.database).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Missing { .. })));
    }

    #[test]
    fn a_store_whose_making_was_interrupted_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(dir.path());
        fs::write(&files.database, []).unwrap();
        let opened = open(dir.path()).unwrap();
        assert_eq!(stored(&opened), []);
        assert_eq!(files.format().unwrap(), Some(FORMAT));
        assert!(
            opened.index.committed() >= first_seq(settings().clock) || opened.identity.origin > Seq::START
        );
    }
}
