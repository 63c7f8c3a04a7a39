//! Where the embedded engine stores messages, and why a store cannot be opened.

use std::io;
use std::path::PathBuf;

/// Which stored messages a stop of the machine can lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// None: a message is synced to the disk before it is confirmed.
    Fsync,
    /// Those that the operating system has not written yet. The end of the process loses none.
    Os,
}

impl Durability {
    /// The name on the wire and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::Os => "os",
        }
    }
}

/// Where messages are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// In this process, for as long as it runs.
    Memory,
    /// In a directory: messages outlive the process.
    Directory(PathBuf, Durability),
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses it.
    #[error("another process uses the store in {}; stop it, or choose another --data-dir", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// A newer version wrote it.
    #[error("the store in {} has format {found}, and this version knows up to {known}; use the version that wrote it, or a newer one", dir.display())]
    Newer {
        /// The directory.
        dir: PathBuf,
        /// The format of the store.
        found: i64,
        /// The newest format that this version reads.
        known: i64,
    },
    /// The file is not a store.
    #[error("{} is not a store of this server; choose another --data-dir", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// The directory is marked as a store and the database file is missing.
    #[error("{} is missing, and there was a store here; bring it back from a backup, or remove the directory to begin anew", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// No message in it can be read.
    #[error("{} is damaged: {why}; bring it back from a backup, or move the directory away to begin anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// A server must open it first.
    #[error("the store in {} must be opened by a server first: {why}; start `x0-msg-server serve` on it, and stop it again", dir.display())]
    Unready {
        /// The directory.
        dir: PathBuf,
        /// What was found.
        why: String,
    },
    /// The directory holds no store.
    #[error("there is no store in {}", dir.display())]
    NoStore {
        /// The directory.
        dir: PathBuf,
    },
    /// There is something where a copy or a restored store is to be.
    #[error("{} holds something already; name an empty directory", dir.display())]
    Occupied {
        /// The directory.
        dir: PathBuf,
    },
    /// Another account can use it, or it leads elsewhere.
    #[error("{} cannot be used: {why}; remove it, or give it to the account of this process, or choose another --data-dir", path.display())]
    NotPrivate {
        /// The file or directory.
        path: PathBuf,
        /// What was found.
        why: &'static str,
    },
    /// The operating system reported an error.
    #[error("cannot {what} {}: {error}; check --data-dir", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// SQLite reported an error.
    #[error("cannot use {}: {error}; check --data-dir", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// The error.
        error: rusqlite::Error,
    },
}
