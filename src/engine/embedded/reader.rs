//! Reads messages from the disk that are not in memory any more, off the runtime's threads.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use crate::engine::embedded::disk;
use crate::hub::lock;
use crate::message::{Publication, Seq};

/// Reads at the same time: each may hold a batch and a connection's cache.
const AT_ONCE: usize = 4;

/// What one read found: a place for each seq asked for.
type Found = Vec<Option<Arc<Publication>>>;

/// Connections that only read; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Readers {
    path: Arc<PathBuf>,
    /// Those not in use.
    idle: Arc<Mutex<Vec<Connection>>>,
    /// Bounds threads and connections. Who finds it used up waits.
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn of(path: &Path) -> Self {
        Self {
            path: Arc::new(path.to_owned()),
            idle: Arc::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Reads these messages. What is not there, or damaged, or cannot be read, is `None`.
    pub(super) async fn fetch(&self, seqs: Vec<Seq>) -> Found {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("it is never closed");
        let (path, idle, count) = (Arc::clone(&self.path), Arc::clone(&self.idle), seqs.len());
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let connection = lock(&idle).pop().map_or_else(|| disk::open_to_read(&path), Ok);
            let read = connection.and_then(|connection| {
                let found = disk::fetch(&connection, &seqs)?;
                lock(&idle).push(connection);
                Ok(found)
            });
            match read {
                Ok(found) => found.into_iter().map(whole).collect(),
                Err(error) => {
                    tracing::error!(%error, "cannot read stored messages");
                    seqs.iter().map(|_| None).collect()
                }
            }
        });
        read.await.unwrap_or_else(|_| (0..count).map(|_| None).collect())
    }

    /// Closes the connections that are not in use.
    pub(super) fn close(&self) {
        lock(&self.idle).clear();
    }
}

fn whole(found: Option<Result<Publication, disk::ReadError>>) -> Option<Arc<Publication>> {
    match found? {
        Ok(publication) => Some(Arc::new(publication)),
        Err(error) => {
            tracing::error!(%error, "a stored message is damaged; its readers are told of a gap");
            None
        }
    }
}
