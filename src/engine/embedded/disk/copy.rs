//! Copies of the store's file.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::engine::embedded::private;

/// Copies a database into a new file, which only this account may use, and syncs it.
pub(in crate::engine::embedded) fn copy_into(from: &Connection, path: &Path) -> rusqlite::Result<()> {
    let failed = |error: io::Error| rusqlite::Error::ToSqlConversionFailure(error.into());
    // SQLite writes into a file that is empty.
    private::create(path).map_err(failed)?;
    from.execute("VACUUM INTO ?1", [text(path).map_err(failed)?])?;
    File::open(path).and_then(|file| file.sync_all()).map_err(failed)
}

fn text(path: &Path) -> io::Result<String> {
    let path = PathBuf::from(path).into_os_string().into_string();
    path.map_err(|path| io::Error::other(format!("the name {} is not UTF-8", path.display())))
}
