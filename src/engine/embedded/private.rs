//! Files and directories of a store that only this account may use, whatever the umask.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// The rights of everybody but the owner.
const OTHERS: u32 = 0o077;

/// How a file of a store is opened to be written: no symbolic link is followed, and a new file is private.
pub(super) fn options() -> OpenOptions {
    let mut options = File::options();
    options.write(true).mode(FILE_MODE).custom_flags(libc::O_NOFOLLOW);
    options
}

/// Makes an empty file in the place of what is there.
pub(super) fn create(path: &Path) -> io::Result<File> {
    remove(path)?;
    let file = options().create_new(true).open(path)?;
    // The umask can have taken rights of the owner.
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    Ok(file)
}

/// Makes a directory, which must not be there yet.
pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(DIR_MODE).create(path)
}

/// Takes the rights of everybody else from a file or directory. Returns whether there were any.
///
/// # Errors
/// It is a symbolic link, or cannot be opened. Where a file system keeps no modes, nothing changes and that is no error.
pub(super) fn narrow(path: &Path) -> io::Result<bool> {
    // Not blocking: it may be a pipe.
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    let was_wide = metadata.mode() & OTHERS != 0;
    if was_wide {
        let mode = if metadata.is_dir() { DIR_MODE } else { FILE_MODE };
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(was_wide)
}

/// Whether others have rights on this file or directory.
pub(super) fn is_wide(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.mode() & OTHERS != 0)
}

/// Removes a file, or the symbolic link in its place, if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_new_file_replaces_a_link_and_never_follows_it() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, path) = (dir.path().join("victim"), dir.path().join("new"));
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, &path).unwrap();
        assert!(options().append(true).open(&path).is_err());
        assert!(narrow(&path).is_err());
        create(&path).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert!(!is_wide(&path));
    }

    #[test]
    fn narrowing_leaves_the_rights_of_the_owner() {
        let dir = tempfile::tempdir().unwrap();
        let (file, inner) = (dir.path().join("file"), dir.path().join("inner"));
        fs::write(&file, "").unwrap();
        create_dir(&inner).unwrap();
        assert!(create_dir(&inner).is_err(), "it is there");
        for (path, wide, narrowed) in [(&file, 0o664, FILE_MODE), (&inner, 0o2775, DIR_MODE)] {
            fs::set_permissions(path, Permissions::from_mode(wide)).unwrap();
            assert!(is_wide(path) && narrow(path).unwrap());
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, narrowed);
            assert!(!narrow(path).unwrap());
        }
    }

    #[test]
    fn removing_what_is_not_there_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        remove(&dir.path().join("none")).unwrap();
        assert!(remove(dir.path()).is_err(), "a directory is no file");
    }
}
