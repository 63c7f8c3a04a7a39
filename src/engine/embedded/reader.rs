//! Reads message bodies that are not in memory from the disk, off the runtime's threads.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::embedded::disk::open::open_to_read;
use crate::engine::embedded::rows::ReadError;
use crate::engine::embedded::rows::message::fetch;
use crate::message::{Publication, Seq};
use crate::sync::lock;

/// Reads at the same time. Each may hold a batch and a connection's cache.
const AT_ONCE: usize = 4;

/// The messages that were asked for, in that order; `None` for those that are missing or damaged.
type Found = Vec<Option<Arc<Publication>>>;

/// The disk cannot be read now, for this reason. Nothing is known to be lost.
#[derive(Debug)]
pub(super) struct TransientRead(pub(super) String);

/// Connections that only read. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ReadPool {
    path: Arc<PathBuf>,
    /// The connections that are not in use. A push or a pop is one step, so poison is ignored.
    idle: Arc<Mutex<Vec<Connection>>>,
    /// Whether reading happens on the caller's thread.
    inline: bool,
    /// Bounds threads and connections. A read waits for a permit.
    permits: Arc<Semaphore>,
}

impl ReadPool {
    /// Reads from this file, on the caller's thread if `inline`.
    pub(super) fn of(path: &Path, inline: bool) -> Self {
        Self {
            inline,
            path: Arc::new(path.to_owned()),
            idle: Arc::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Opens all connections now, so that a shortage of descriptors later stops no read.
    ///
    /// # Errors
    /// Those that are missing are opened by the reads that need them.
    pub(super) fn open_ahead(&self) -> rusqlite::Result<()> {
        for _ in 0..AT_ONCE {
            let connection = open_to_read(&self.path)?;
            // The first read opens the log.
            connection.query_row("SELECT commits FROM state", [], |_| Ok(()))?;
            lock(&self.idle).push(connection);
        }
        Ok(())
    }

    /// Reads these messages.
    ///
    /// # Cancel safety
    /// A task waits for the permit and always continues: a future that is not polled delays no other read.
    pub(super) async fn fetch(&self, seqs: Vec<Seq>) -> Result<Found, TransientRead> {
        if self.inline {
            return self.read(&seqs);
        }
        let readers = self.clone();
        let read = AbortOnDropHandle::new(tokio::spawn(async move {
            let permit = Arc::clone(&readers.permits).acquire_owned().await;
            tokio::task::spawn_blocking(move || {
                let _permit = permit;
                readers.read(&seqs)
            })
            .await
        }));
        match read.await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) | Err(error) => Err(TransientRead(error.to_string())),
        }
    }

    fn read(&self, seqs: &[Seq]) -> Result<Found, TransientRead> {
        let connection = lock(&self.idle).pop().map_or_else(|| open_to_read(&self.path), Ok);
        let read = connection.map_err(ReadError::from).and_then(|connection| {
            let found = fetch(&connection, seqs);
            // Also after an error: there may be no descriptor for another one.
            lock(&self.idle).push(connection);
            found?.into_iter().map(whole).collect()
        });
        read.map_err(|error| TransientRead(error.to_string()))
    }

    /// Closes the connections that are not in use.
    pub(super) fn close(&self) {
        lock(&self.idle).clear();
    }
}

fn whole(found: Result<Option<Publication>, ReadError>) -> Result<Option<Arc<Publication>>, ReadError> {
    match found {
        Ok(found) => Ok(found.map(Arc::new)),
        Err(error) if error.is_damage() => {
            tracing::error!(%error, "a stored message is damaged; its readers are told of a gap");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::files::Files;
    use crate::engine::embedded::fixture::{commit, open};
    use crate::engine::embedded::rows::to_sql_int;

    #[tokio::test]
    async fn messages_are_fetched_in_the_asked_order_and_damaged_ones_are_missing() {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open(dir.path()).unwrap();
        let seqs = commit(&mut opened, 3, &[]);
        let connection = opened.disk.connection();
        connection.execute("UPDATE message SET ts = 8 WHERE seq = ?1", [to_sql_int(seqs[1].0)]).unwrap();
        for inline in [true, false] {
            let pool = ReadPool::of(&Files::of(dir.path()).database, inline);
            for _ in 0..2 {
                let asked = vec![seqs[2], seqs[1], Seq(1), seqs[0]];
                let found = pool.fetch(asked).await.unwrap();
                let found: Vec<_> =
                    found.iter().map(|found| found.as_ref().and_then(|found| found.seq())).collect();
                assert_eq!(found, [Some(seqs[2]), None, None, Some(seqs[0])]);
            }
            assert_eq!(lock(&pool.idle).len(), 1, "the connection is used again");
            pool.close();
            assert_eq!(lock(&pool.idle).len(), 0);
        }
    }

    #[tokio::test]
    async fn connections_are_opened_ahead_and_used() {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open(dir.path()).unwrap();
        let seqs = commit(&mut opened, 1, &[]);
        let pool = ReadPool::of(&Files::of(dir.path()).database, false);
        pool.open_ahead().unwrap();
        assert_eq!(lock(&pool.idle).len(), AT_ONCE);
        let found = pool.fetch(seqs.clone()).await.unwrap();
        assert_eq!(found[0].as_ref().unwrap().seq(), Some(seqs[0]));
        assert_eq!(lock(&pool.idle).len(), AT_ONCE);
    }

    #[tokio::test]
    async fn a_disk_that_cannot_be_read_now_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let pool = ReadPool::of(&dir.path().join("none"), true);
        assert!(pool.fetch(vec![Seq(1)]).await.is_err());
    }
}
