//! Whether the files of the store are still where they were opened.
//!
//! SQLite goes on writing to a file that was removed or replaced. What it stores there is gone with the process.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::engine::embedded::file_id::FileId;
use crate::engine::embedded::files::Files;

/// The database file and its log.
#[derive(Debug)]
pub(super) struct Place {
    database: PlacedFile,
    wal: PlacedFile,
}

#[derive(Debug)]
struct PlacedFile {
    path: PathBuf,
    /// Its device, and which file it is; `None` until it was seen.
    id: Option<(u64, FileId)>,
}

impl Place {
    /// Remembers which files there are now.
    pub(super) fn of(files: &Files) -> Self {
        Self { database: PlacedFile::at(&files.database), wal: PlacedFile::at(&files.wal) }
    }

    /// The file that was removed or replaced, if one was.
    pub(super) fn missing(&mut self) -> Option<&Path> {
        [&mut self.database, &mut self.wal]
            .into_iter()
            .find_map(|file| file.is_missing().then_some(&*file.path))
    }
}

impl PlacedFile {
    fn at(path: &Path) -> Self {
        let mut file = Self { path: path.to_owned(), id: None };
        _ = file.is_missing();
        file
    }

    /// A file that cannot be looked at now is not known to be missing.
    fn is_missing(&mut self) -> bool {
        match fs::metadata(&self.path) {
            Ok(data) => {
                let (device, file) = (data.dev(), FileId::of(&data));
                let (before, id) = *self.id.get_or_insert((device, file));
                device != before || !file.is(id)
            }
            Err(error) => self.id.is_some() && error.kind() == ErrorKind::NotFound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_or_replaced_file_is_missing_and_one_that_was_never_there_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(dir.path());
        fs::write(&files.database, "1").unwrap();
        let mut place = Place::of(&files);
        assert_eq!(place.missing(), None, "there is no log yet");
        fs::write(&files.wal, "2").unwrap();
        assert_eq!(place.missing(), None);
        fs::remove_file(&files.wal).unwrap();
        assert_eq!(place.missing(), Some(&*files.wal));
        fs::write(dir.path().join("other"), "3").unwrap();
        fs::rename(dir.path().join("other"), &files.database).unwrap();
        assert_eq!(place.missing(), Some(&*files.database));
    }
}
