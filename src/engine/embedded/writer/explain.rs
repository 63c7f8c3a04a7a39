//! SQLite's errors in words that help an operator.

use rusqlite::ErrorCode;

/// The reason when the disk is full.
pub(super) const NO_SPACE: &str = "no space is left on the disk of --data-dir";

/// Says what an error of SQLite means for the store.
pub(super) fn explain(error: &rusqlite::Error) -> String {
    let rusqlite::Error::SqliteFailure(failure, _) = error else { return error.to_string() };
    match failure.code {
        // SQLite reports this if its shared memory, a file beside the log, finds no room.
        _ if failure.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE => NO_SPACE.to_owned(),
        ErrorCode::DiskFull => NO_SPACE.to_owned(),
        ErrorCode::ReadOnly => "the disk of --data-dir is read-only".to_owned(),
        ErrorCode::SystemIoFailure => {
            format!("the disk of --data-dir does not take or give data ({})", failure.extended_code)
        }
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
            "the store in --data-dir is damaged; the next start recovers what is intact".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Whether an error of SQLite says that the store is damaged.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::ffi;

    #[test]
    fn each_reason_names_what_the_operator_can_do() {
        for (code, expected) in [
            (ffi::SQLITE_FULL, NO_SPACE),
            (ffi::SQLITE_IOERR_SHMSIZE, NO_SPACE),
            (ffi::SQLITE_READONLY, "read-only"),
            (ffi::SQLITE_IOERR_WRITE, "does not take or give data (778)"),
            (ffi::SQLITE_CORRUPT, "the next start"),
            (ffi::SQLITE_NOTADB, "the next start"),
        ] {
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            assert!(explain(&error).contains(expected), "{code}: {}", explain(&error));
            assert_eq!(is_damage(&error), expected == "the next start", "{code}");
        }
    }
}
