//! Tells a file from a copy of it, and from another file in its place.
//!
//! The time at which a file was made stays the same when it is moved within its file system or mounted elsewhere, and
//! every copy has its own. The inode does so as well, but not everywhere: overlays, FUSE and network file systems
//! may number files anew with each mount. So the inode is used only where the time is not known.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

/// Tells a file from its copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    /// When it was made, in Unix nanoseconds, if the file system knows.
    born: Option<u64>,
    inode: u64,
}

impl FileId {
    pub(super) fn of(data: &Metadata) -> Self {
        let born = data.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        // SQLite's integers have 63 bits. A file system that does not know may say 0.
        let born = born.and_then(|born| i64::try_from(born.as_nanos()).ok()).filter(|born| *born > 0);
        Self { born: born.map(i64::unsigned_abs), inode: data.ino() }
    }

    /// What is stored in the file: a number that its copies do not have.
    pub(super) fn number(self) -> u64 {
        self.born.unwrap_or(self.inode)
    }

    /// Whether this number was stored in this file. Older versions stored the inode.
    pub(super) fn has(self, number: u64) -> bool {
        self.born == Some(number) || self.inode == number
    }

    /// Whether this is the file that was seen before.
    pub(super) fn is(self, before: Self) -> bool {
        match (self.born, before.born) {
            (Some(born), Some(before)) => born == before,
            _ => self.inode == before.inode,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(born: Option<u64>, inode: u64) -> FileId {
        FileId { born, inode }
    }

    #[test]
    fn a_file_is_known_by_the_time_it_was_made_and_else_by_its_inode() {
        let before = file(Some(7), 1);
        assert!(file(Some(7), 2).is(before) && !file(Some(8), 1).is(before));
        assert!(file(None, 1).is(before) && !file(None, 2).is(before));
        assert!(file(Some(7), 2).has(before.number()) && !file(Some(8), 2).has(before.number()));
        assert!(file(Some(8), 1).has(file(None, 1).number()), "an older version stored the inode");
        assert!(!file(None, 1).has(before.number()));
    }

    #[test]
    fn a_copy_is_another_file_and_a_moved_file_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let id = |name: &str| FileId::of(&std::fs::metadata(path(name)).unwrap());
        std::fs::write(path("a"), "1").unwrap();
        let before = id("a");
        // The kernel's times have a coarse unit. A store takes longer to be made than that.
        let is_later = |name: &str| {
            std::fs::write(path(name), "").unwrap();
            id(name).born != before.born || before.born.is_none()
        };
        assert!((0..).map(|n| n.to_string()).any(|name| is_later(&name)));
        std::fs::copy(path("a"), path("copy")).unwrap();
        assert!(!id("copy").is(before) && !id("copy").has(before.number()));
        std::fs::create_dir(path("other")).unwrap();
        std::fs::rename(path("a"), path("other/b")).unwrap();
        assert!(id("other/b").is(before) && id("other/b").has(before.number()));
    }
}
