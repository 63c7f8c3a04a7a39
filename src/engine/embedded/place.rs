//! Where a store is: in `--data-dir` itself, or in a private directory inside it.
//!
//! A store is in a directory that belongs to this account and that others have no rights on. `--data-dir` is narrowed to
//! that if it belongs to this account and is for the store only. In any other (a volume of root with a group, `/tmp`),
//! the store is in a directory of its own inside it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::engine::embedded::files::{Files, sync_dir};
use crate::engine::embedded::private::{self, remove};
use crate::engine::embedded::storage::OpenError;

/// The directory inside one that is not for the store only.
const INNER: &str = "x0-msg-store";

/// How the directories begin that keep the files of damaged stores.
pub(super) const ASIDE: &str = "damaged-";

/// What else a directory may hold that is for the store only: what an interrupted start left, and a file system's own.
const OTHER_NAMES: [&str; 5] = [INNER, "format.new", "running.new", "store.building", "lost+found"];

/// Files can be created and removed by others, but not those of this account, as in `/tmp`.
const STICKY: u32 = 0o1000;

/// Finds the store of a `--data-dir`, and changes nothing.
pub(super) fn find(dir: &Path) -> PathBuf {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let inner = dir.join(INNER);
    if holds_store(&inner) { inner } else { dir }
}

/// Makes the directory of the store private, and makes it first if there is none. Returns its real path.
pub(super) fn prepare(dir: &Path) -> Result<PathBuf, OpenError> {
    let dir = make(dir)?;
    let account = rustix::process::geteuid().as_raw();
    let inner = dir.join(INNER);
    if holds_store(&inner) {
        verify_dir(&inner, account)?;
        narrow(&inner)?;
        return Ok(inner);
    }
    let found = fs::metadata(&dir).map_err(failed("look at", &dir))?;
    if found.uid() == account && found.mode() & STICKY == 0 && is_for_store(&dir)? {
        narrow(&dir)?;
        return Ok(dir);
    }
    make_inner(&dir, &inner, account)?;
    Ok(inner)
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |error| OpenError::Io { what, path: path.to_owned(), error }
}

/// Makes a directory if it is not there. Returns its path without symbolic links.
fn make(dir: &Path) -> Result<PathBuf, OpenError> {
    let made = !dir.exists();
    if made {
        let parent = dir.parent().unwrap_or(dir);
        fs::create_dir_all(parent).map_err(failed("make the directory", parent))?;
        private::create_dir(dir).map_err(failed("make the directory", dir))?;
    }
    let dir = dir.canonicalize().map_err(failed("find", dir))?;
    if made && let Some(parent) = dir.parent() {
        sync_dir(parent).map_err(failed("sync", parent))?;
    }
    Ok(dir)
}

/// Whether there is a store in a directory.
fn holds_store(dir: &Path) -> bool {
    let files = Files::of(dir);
    [&files.database, &files.salvaged].into_iter().any(|path| fs::symlink_metadata(path).is_ok())
}

/// Whether a directory holds a store, or nothing but what can belong to one.
fn is_for_store(dir: &Path) -> Result<bool, OpenError> {
    if holds_store(dir) {
        return Ok(true);
    }
    let files = Files::of(dir);
    for entry in fs::read_dir(dir).map_err(failed("look into", dir))? {
        let path = entry.map_err(failed("look into", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_known =
            files.all().contains(&&path) || OTHER_NAMES.contains(&&*name) || name.starts_with(ASIDE);
        if !is_known {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_dir_of(path: &Path, account: u32) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == account)
}

fn verify_dir(path: &Path, account: u32) -> Result<(), OpenError> {
    match is_dir_of(path, account) {
        true => Ok(()),
        false => Err(not_private(path, "it is no directory of this account")),
    }
}

fn narrow(dir: &Path) -> Result<(), OpenError> {
    if !private::narrow(dir).map_err(failed("narrow", dir))? {
        return Ok(());
    }
    match private::is_wide(dir) {
        false if !holds_store(dir) => {
            tracing::info!(path = %dir.display(), "the directory of the store is its owner's only now");
        }
        false => tracing::warn!(
            path = %dir.display(),
            "other accounts had rights on the directory of the store; now it is its owner's only"
        ),
        true => tracing::error!(
            path = %dir.display(),
            "this file system keeps no modes: other accounts may read the store; choose another --data-dir"
        ),
    }
    Ok(())
}

/// Makes the inner directory and moves what an earlier version has stored beside it.
fn make_inner(dir: &Path, inner: &Path, account: u32) -> Result<(), OpenError> {
    // A store of another account stays as it is.
    verify(&Files::of(dir).database, account)?;
    match private::create_dir(inner) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(failed("make the directory", inner))?,
    }
    verify_dir(inner, account)?;
    narrow(inner)?;
    move_store(dir, inner, account)?;
    sync_dir(dir).map_err(failed("sync", dir))?;
    tracing::info!(
        path = %inner.display(),
        "--data-dir is shared or belongs to another account: the store is in a private directory inside it"
    );
    Ok(())
}

fn not_private(path: &Path, why: &'static str) -> OpenError {
    OpenError::NotPrivate { path: path.to_owned(), why }
}

/// Moves a store of an earlier version into the inner directory. What was interrupted here continues here: the database
/// comes last.
fn move_store(dir: &Path, inner: &Path, account: u32) -> Result<(), OpenError> {
    if !holds_store(dir) {
        return Ok(());
    }
    let (old, new) = (Files::of(dir), Files::of(inner));
    secure_lock(&old)?;
    let _lock = old.lock()?;
    for path in [&old.shm, &old.reserve] {
        remove(path).map_err(failed("remove", path))?;
    }
    let moves = [
        (&old.wal, &new.wal),
        (&old.journal, &new.journal),
        (&old.marker, &new.marker),
        (&old.running, &new.running),
        (&old.salvaged, &new.salvaged),
        (&old.database, &new.database),
    ];
    for (from, to) in moves {
        if verify(from, account)? {
            fs::rename(from, to).map_err(failed("move", from))?;
        }
    }
    remove(&old.lock).map_err(failed("remove", &old.lock))?;
    sync_dir(inner).map_err(failed("sync", inner))
}

/// Whether a file is there. It must be a file of this account, and no link.
fn verify(path: &Path, account: u32) -> Result<bool, OpenError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => Err(not_private(path, "it is a symbolic link")),
        Ok(found) if !found.is_file() => Err(not_private(path, "it is no file")),
        Ok(found) if found.uid() != account => Err(not_private(path, "it belongs to another account")),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("look at", path)(error)),
    }
}

/// Removes a lock file that is not this account's, and one that another account could lock.
pub(super) fn secure_lock(files: &Files) -> Result<(), OpenError> {
    let account = rustix::process::geteuid().as_raw();
    if verify_or_remove(files, &files.lock, account)? && is_held_by_others(&files.lock, account) {
        tracing::warn!(path = %files.lock.display(), "another account held the lock of the store; a new one is made");
        remove(&files.lock).map_err(failed("remove", &files.lock))?;
    }
    Ok(())
}

/// Makes the files of a locked store private. Returns whether others had rights on one of them.
pub(super) fn secure(files: &Files) -> Result<bool, OpenError> {
    let account = rustix::process::geteuid().as_raw();
    let mut was_wide = false;
    for path in files.all() {
        if verify_or_remove(files, path, account)? {
            was_wide |= private::narrow(path).map_err(failed("narrow", path))?;
        }
    }
    narrow_asides(&files.dir, account)?;
    Ok(was_wide)
}

/// Whether a file is there. One that is not this account's is removed if it can be made again, and refused otherwise.
fn verify_or_remove(files: &Files, path: &Path, account: u32) -> Result<bool, OpenError> {
    match verify(path, account) {
        Err(OpenError::NotPrivate { .. }) if files.can_be_made_again(path) => {
            remove(path).map_err(failed("remove", path))?;
            Ok(false)
        }
        verified => verified,
    }
}

/// Makes the directories of damaged stores private, with what is in them.
fn narrow_asides(dir: &Path, account: u32) -> Result<(), OpenError> {
    let inside = |dir: &Path| fs::read_dir(dir).map_err(failed("look into", dir));
    for entry in inside(dir)? {
        let aside = entry.map_err(failed("look into", dir))?.path();
        let name = aside.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(ASIDE) || !is_dir_of(&aside, account) {
            continue;
        }
        private::narrow(&aside).map_err(failed("narrow", &aside))?;
        for entry in inside(&aside)? {
            let path = entry.map_err(failed("look into", &aside))?.path();
            if verify(&path, account).is_ok_and(|is_there| is_there) {
                private::narrow(&path).map_err(failed("narrow", &path))?;
            }
        }
    }
    Ok(())
}

/// Whether only other accounts hold this lock file. They could lock it if they had rights on it.
fn is_held_by_others(lock: &Path, account: u32) -> bool {
    let Ok(found) = fs::symlink_metadata(lock) else { return false };
    if !private::is_wide(lock) {
        return false;
    }
    // One reading may lack a line while other locks come and go.
    let read = |_| holders(&fs::read_to_string("/proc/locks").unwrap_or_default(), found.ino());
    let holders: Vec<u32> = (0..3).flat_map(read).collect();
    // The lock of a process that is not seen, or that is root's, counts.
    let is_other = |pid: &u32| {
        fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| ![0, account].contains(&process.uid()))
    };
    !holders.is_empty() && holders.iter().all(is_other)
}

/// The processes that hold a `flock` on the file with this inode, by what `/proc/locks` says.
fn holders(locks: &str, inode: u64) -> Vec<u32> {
    let holder = |line: &str| {
        // `1: FLOCK  ADVISORY  WRITE 812 08:02:1311 0 EOF`
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, file, ..] = fields[..] else { return None };
        (file.rsplit(':').next()?.parse() == Ok(inode)).then(|| pid.parse().ok())?
    };
    locks.lines().filter_map(holder).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn dir_with_mode(parent: &Path, mode: u32) -> PathBuf {
        let dir = parent.join("data");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
        dir
    }

    #[test]
    fn a_directory_is_made_private_and_found_behind_a_link() {
        let outer = tempfile::tempdir().unwrap();
        let real = outer.path().canonicalize().unwrap().join("a/b");
        assert_eq!(prepare(&real).unwrap(), real);
        assert_eq!(mode(&real), 0o700);
        let link = outer.path().join("link");
        symlink(&real, &link).unwrap();
        assert_eq!((prepare(&link).unwrap(), find(&link)), (real.clone(), real));
    }

    #[test]
    fn a_directory_of_this_account_is_narrowed() {
        let outer = tempfile::tempdir().unwrap();
        let dir = dir_with_mode(outer.path(), 0o775);
        fs::create_dir(dir.join("lost+found")).unwrap();
        assert_eq!(prepare(&dir).unwrap(), dir.canonicalize().unwrap());
        assert_eq!(mode(&dir), 0o700);
    }

    #[test]
    fn a_directory_with_other_things_in_it_keeps_its_mode() {
        let outer = tempfile::tempdir().unwrap();
        let dir = dir_with_mode(outer.path(), 0o755);
        fs::write(dir.join("letter.txt"), "").unwrap();
        let store = prepare(&dir).unwrap();
        assert_eq!(store, dir.canonicalize().unwrap().join(INNER));
        assert_eq!((mode(&dir), mode(&store)), (0o755, 0o700));
    }

    #[test]
    fn a_store_in_a_shared_directory_moves_into_a_private_one() {
        let outer = tempfile::tempdir().unwrap();
        let dir = dir_with_mode(outer.path(), 0o1777);
        let old = Files::of(&dir);
        for path in [&old.database, &old.wal, &old.marker] {
            fs::write(path, "x").unwrap();
        }
        let store = prepare(&dir).unwrap();
        let new = Files::of(&store);
        assert_eq!((mode(&dir), mode(&store)), (0o1777, 0o700));
        assert!(new.database.exists() && new.wal.exists() && new.marker.exists());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing is left behind");
        assert_eq!((prepare(&dir).unwrap(), find(&dir)), (store.clone(), store));
    }

    #[test]
    fn links_in_the_place_of_stored_data_are_refused_and_other_links_are_removed() {
        let outer = tempfile::tempdir().unwrap();
        let victim = outer.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        fs::set_permissions(&victim, Permissions::from_mode(0o644)).unwrap();
        let files = Files::of(&dir_with_mode(outer.path(), 0o700));
        for path in files.all() {
            symlink(&victim, path).unwrap();
            let secured = secure_lock(&files).and_then(|()| secure(&files));
            match files.can_be_made_again(path) {
                true => assert!(!secured.unwrap() && fs::symlink_metadata(path).is_err()),
                false => {
                    let error = secured.unwrap_err().to_string();
                    assert!(error.contains("symbolic link") && error.contains("--data-dir"), "{error}");
                    remove(path).unwrap();
                }
            }
        }
        assert_eq!((fs::read_to_string(&victim).unwrap().as_str(), mode(&victim)), ("precious", 0o644));
    }

    #[test]
    fn files_and_damaged_stores_are_narrowed() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(dir.path());
        let aside = dir.path().join("damaged-7");
        fs::create_dir(&aside).unwrap();
        let damaged = aside.join("store.db");
        for path in [&files.database, &files.wal, &files.lock, &damaged] {
            fs::write(path, "x").unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        }
        fs::set_permissions(&aside, Permissions::from_mode(0o755)).unwrap();
        assert!(secure(&files).unwrap());
        for path in [&files.database, &files.wal, &files.lock, &damaged] {
            assert_eq!(mode(path), 0o600, "{}", path.display());
        }
        assert_eq!(mode(&aside), 0o700);
        assert!(!secure(&files).unwrap());
    }

    #[test]
    fn the_holders_of_a_lock_are_those_of_its_inode() {
        let locks = "1: FLOCK  ADVISORY  WRITE 812 08:02:1311 0 EOF\n\
                     2: POSIX  ADVISORY  READ 813 08:02:1311 0 0\n\
                     3: FLOCK  ADVISORY  READ 814 08:02:1311 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 815 08:02:1311 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 816 08:02:13 0 EOF\nnonsense";
        assert_eq!(holders(locks, 1311), [812, 814]);
        assert!(holders("", 1311).is_empty());
    }
}
