//! What is read from files, and read again when they change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// Why keys, certificates or their files cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SetupError(pub String);

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What the files held when they were read last.
#[derive(Debug, Clone)]
pub(crate) struct Current<T>(watch::Receiver<Arc<T>>);

impl<T> Current<T> {
    /// As of now.
    #[must_use]
    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.borrow())
    }

    /// One that never changes.
    #[must_use]
    pub(crate) fn fixed(value: T) -> Self {
        Self(watch::Sender::new(Arc::new(value)).subscribe())
    }
}

/// Tells whether a file has changed: its size, its time, and which file it is (certificates are often links).
type Stamp = Option<(u64, Option<SystemTime>, u64)>;

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|data| (data.len(), data.modified().ok(), data.ino()))
}

/// Loads what these files hold, and again whenever one of them has changed. What cannot be used then is said in the
/// log, and what was there before stays. Call it within a tokio runtime, whose end ends that.
///
/// # Errors
/// What `load` says the first time.
pub(crate) fn watch_files<T: Send + Sync + 'static, E: std::fmt::Display + Send + 'static>(
    what: &'static str,
    paths: Vec<PathBuf>,
    load: impl Fn(&[PathBuf]) -> Result<T, E> + Send + Sync + 'static,
) -> Result<Current<T>, E> {
    let stamps = |paths: &[PathBuf]| -> Vec<Stamp> { paths.iter().map(|path| stamp(path)).collect() };
    let mut seen = stamps(&paths);
    let sender = watch::Sender::new(Arc::new(load(&paths)?));
    let current = Current(sender.subscribe());
    if paths.is_empty() {
        return Ok(current);
    }
    let files = Arc::new((paths, load));
    tokio::spawn(async move {
        let mut every = interval(LOOK);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !sender.is_closed() {
            every.tick().await;
            let files = Arc::clone(&files);
            let before = seen.clone();
            // A file may be on a disk that takes its time.
            let looked = tokio::task::spawn_blocking(move || {
                let (paths, load) = &*files;
                let now = stamps(paths);
                (now != before).then(|| (now, load(paths)))
            });
            match looked.await {
                Ok(Some((now, loaded))) => {
                    seen = now;
                    match loaded {
                        Ok(value) => {
                            tracing::info!(what, "read again");
                            sender.send_replace(Arc::new(value));
                        }
                        Err(error) => {
                            tracing::error!(what, %error, "cannot be read again; what was there before stays")
                        }
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::error!(what, %error, "cannot be looked at"),
            }
        }
    });
    Ok(current)
}
