//! Reads message bodies that are not in memory from the disk, off the runtime's threads.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::engine::embedded::disk::open::open_to_read;
use crate::engine::embedded::files::try_read;
use crate::engine::embedded::rows::ReadError;
use crate::engine::embedded::rows::message::fetch;
use crate::message::{Publication, Seq};
use crate::sync::lock;

/// Reads at the same time. Each may hold a batch and a connection's cache.
const AT_ONCE: usize = 4;

/// The messages that were asked for, in that order; `None` for those that are missing or damaged.
type Found = Vec<Option<Publication>>;

/// How long one read may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a read that failed is repeated to find out when it works again.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The disk cannot be read now, for this reason. Nothing is known to be lost.
#[derive(Debug)]
pub(super) struct TransientRead(pub(super) Arc<str>);

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
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Why reads fail. Each change is one step, so poison is ignored.
    failing: Mutex<Option<Arc<str>>>,
    closed: AtomicBool,
}

impl ReadPool {
    /// Reads from this file, on the caller's thread if `inline`.
    pub(super) fn of(path: &Path, inline: bool) -> Self {
        Self {
            inline,
            path: Arc::new(path.to_owned()),
            idle: Arc::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            state: Arc::default(),
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
            let read = self.read(&seqs);
            *lock(&self.state.failing) = read.as_ref().err().map(|TransientRead(reason)| told(reason));
            return read;
        }
        let read = self.read_in_time(seqs.clone()).await;
        if let Err(TransientRead(reason)) = &read {
            self.note_failure(seqs, reason);
        }
        read
    }

    /// Reads on a thread of its own. A disk that does not answer keeps its thread and its permit, and is not waited for.
    async fn read_in_time(&self, seqs: Vec<Seq>) -> Result<Found, TransientRead> {
        let readers = self.clone();
        let read = AbortOnDropHandle::new(tokio::spawn(async move {
            let permit = Arc::clone(&readers.permits).acquire_owned().await;
            let reading = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                readers.read(&seqs)
            });
            timeout(READ_TIMEOUT, reading).await
        }));
        match read.await {
            Ok(Ok(Ok(found))) => found,
            Ok(Err(_)) => Err(TransientRead("the disk of --data-dir does not answer".into())),
            Ok(Ok(Err(error))) | Err(error) => Err(transient(error)),
        }
    }

    /// What is said of reads that fail, if they do.
    pub(super) fn failing(&self) -> Option<Arc<str>> {
        lock(&self.state.failing).clone()
    }

    /// Says that reads fail, and repeats this one until it works.
    fn note_failure(&self, seqs: Vec<Seq>, reason: &Arc<str>) {
        let mut failing = lock(&self.state.failing);
        if failing.replace(told(reason)).is_some() {
            return;
        }
        drop(failing);
        tracing::error!(%reason, "stored messages cannot be read now; trying again");
        let readers = self.clone();
        tokio::spawn(async move {
            while !readers.state.closed.load(Ordering::Relaxed) {
                sleep(PROBE_INTERVAL).await;
                if readers.read_in_time(seqs.clone()).await.is_ok() {
                    tracing::info!("stored messages can be read again");
                    break;
                }
            }
            *lock(&readers.state.failing) = None;
        });
    }

    fn read(&self, seqs: &[Seq]) -> Result<Found, TransientRead> {
        let connection = lock(&self.idle).pop().map_or_else(|| open_to_read(&self.path), Ok);
        let found = connection.map_err(ReadError::from).and_then(|connection| {
            let found = fetch(&connection, seqs);
            // Also after an error: there may be no descriptor for another one.
            lock(&self.idle).push(connection);
            found
        });
        found.map_err(transient)?.into_iter().map(|found| self.intact(found)).collect()
    }

    /// A message; `None` if it is missing or damaged.
    fn intact(
        &self,
        found: Result<Option<Publication>, ReadError>,
    ) -> Result<Option<Publication>, TransientRead> {
        match found {
            Ok(found) => Ok(found),
            Err(error) if error.is_damage() => {
                try_read(&self.path).map_err(transient)?;
                tracing::error!(%error, "a stored message is damaged; its readers are told of a gap");
                Ok(None)
            }
            Err(error) => Err(transient(error)),
        }
    }

    /// Closes the connections that are not in use.
    pub(super) fn close(&self) {
        self.state.closed.store(true, Ordering::Relaxed);
        lock(&self.idle).clear();
    }
}

fn told(reason: &str) -> Arc<str> {
    format!("stored messages cannot be read: {reason}").into()
}

fn transient(error: impl std::fmt::Display) -> TransientRead {
    TransientRead(error.to_string().into())
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
                    found.iter().map(|found| found.as_ref().and_then(Publication::seq)).collect();
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

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_cannot_be_read_now_loses_nothing_and_is_told_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open(dir.path()).unwrap();
        let seqs = commit(&mut opened, 1, &[]);
        let link = dir.path().join("link");
        for inline in [true, false] {
            let pool = ReadPool::of(&link, inline);
            assert!(pool.fetch(seqs.clone()).await.is_err());
            assert!(pool.failing().unwrap().contains("cannot be read"));
            std::os::unix::fs::symlink(Files::of(dir.path()).database, &link).unwrap();
            assert!(pool.fetch(seqs.clone()).await.unwrap()[0].is_some());
            // Other messages may be readable: the one that was not is tried again.
            while pool.failing().is_some() {
                sleep(PROBE_INTERVAL).await;
            }
            std::fs::remove_file(&link).unwrap();
        }
    }
}
