//! Files that are read again when they change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// Why a key, a certificate or its file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SetupError(pub String);

/// Interval at which the files are checked for changes.
const INTERVAL: Duration = Duration::from_secs(1);

/// What was last read from files.
#[derive(Debug, Clone)]
pub(crate) struct Current<T>(watch::Receiver<Arc<T>>);

impl<T> Current<T> {
    /// The current value.
    #[must_use]
    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.borrow())
    }

    /// A value that never changes.
    #[must_use]
    pub(crate) fn fixed(value: T) -> Self {
        Self(watch::Sender::new(Arc::new(value)).subscribe())
    }
}

/// The size, the time and the inode of a file. The inode changes when a link gets another target, as links to
/// certificates do.
type Stamp = Option<(u64, Option<SystemTime>, u64)>;

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|data| (data.len(), data.modified().ok(), data.ino()))
}

/// Files, what they held when they were last read, and how they are read.
struct WatchedFiles<F> {
    /// What the files hold, for the log.
    what: &'static str,
    paths: Vec<PathBuf>,
    stamps: Vec<Stamp>,
    load: F,
}

impl<F> WatchedFiles<F> {
    /// Reads the files if they have changed. `None` if they have not, or cannot be used; the log says why.
    fn reload<T, E: std::fmt::Display>(&mut self) -> Option<T>
    where
        F: Fn(&[PathBuf]) -> Result<T, E>,
    {
        let stamps: Vec<Stamp> = self.paths.iter().map(|path| stamp(path)).collect();
        if stamps == self.stamps {
            return None;
        }
        self.stamps = stamps;
        let what = self.what;
        let loaded = (self.load)(&self.paths);
        match &loaded {
            Ok(_) => tracing::info!(what, "read again"),
            Err(error) => {
                tracing::error!(what, %error, "cannot be read again; the previous ones stay in use")
            }
        }
        loaded.ok()
    }
}

/// Reads files, and reads them again whenever one of them has changed. If that fails, the previous value stays. Call it
/// within a tokio runtime.
///
/// # Errors
/// The error of `load`, the first time.
pub(crate) fn watch_files<T: Send + Sync + 'static, E: std::fmt::Display + Send + 'static>(
    what: &'static str,
    paths: Vec<PathBuf>,
    load: impl Fn(&[PathBuf]) -> Result<T, E> + Send + 'static,
) -> Result<Current<T>, E> {
    // Before reading: a change during it is noticed afterwards.
    let stamps = paths.iter().map(|path| stamp(path)).collect();
    let sender = watch::Sender::new(Arc::new(load(&paths)?));
    let current = Current(sender.subscribe());
    if !paths.is_empty() {
        tokio::spawn(keep_reloading(WatchedFiles { what, paths, stamps, load }, sender));
    }
    Ok(current)
}

/// Runs until the last reader is dropped.
async fn keep_reloading<T, E, F>(mut files: WatchedFiles<F>, sender: watch::Sender<Arc<T>>)
where
    T: Send + Sync + 'static,
    E: std::fmt::Display + Send + 'static,
    F: Fn(&[PathBuf]) -> Result<T, E> + Send + 'static,
{
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !sender.is_closed() {
        ticks.tick().await;
        // The disk may be slow.
        let reloading = tokio::task::spawn_blocking(move || {
            let loaded = files.reload();
            (files, loaded)
        });
        match reloading.await {
            Ok((returned, loaded)) => {
                files = returned;
                if let Some(value) = loaded {
                    sender.send_replace(Arc::new(value));
                }
            }
            Err(error) => return tracing::error!(%error, "files are not read again any more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Load = fn(&[PathBuf]) -> Result<u32, String>;

    fn number(paths: &[PathBuf]) -> Result<u32, String> {
        let text = std::fs::read_to_string(&paths[0]).map_err(|error| error.to_string())?;
        text.parse().map_err(|_| format!("{text} is no number"))
    }

    /// A file with this content, and what reads it.
    fn watched(content: &str) -> (tempfile::TempDir, WatchedFiles<Load>) {
        let dir = tempfile::tempdir().unwrap();
        let paths = vec![dir.path().join("file")];
        std::fs::write(&paths[0], content).unwrap();
        let stamps = vec![stamp(&paths[0])];
        (dir, WatchedFiles { what: "the number", paths, stamps, load: number })
    }

    #[test]
    fn an_unchanged_file_is_not_read_again() {
        let (_dir, mut files) = watched("7");
        assert_eq!(files.reload(), None);
    }

    #[test]
    fn a_changed_file_is_read_once() {
        let (_dir, mut files) = watched("7");
        std::fs::write(&files.paths[0], "12").unwrap();
        assert_eq!(files.reload(), Some(12));
        assert_eq!(files.reload(), None);
    }

    #[test]
    fn another_file_of_the_same_size_and_time_is_noticed() {
        let (dir, mut files) = watched("7");
        let other = dir.path().join("other");
        std::fs::write(&other, "8").unwrap();
        let time = std::fs::metadata(&files.paths[0]).unwrap().modified().unwrap();
        std::fs::File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
        std::fs::rename(&other, &files.paths[0]).unwrap();
        assert_eq!(files.reload(), Some(8));
    }

    #[test]
    fn a_file_that_cannot_be_used_gives_nothing_until_it_changes() {
        let (_dir, mut files) = watched("7");
        std::fs::write(&files.paths[0], "seven").unwrap();
        assert_eq!(files.reload(), None);
        std::fs::remove_file(&files.paths[0]).unwrap();
        assert_eq!(files.reload(), None);
        std::fs::write(&files.paths[0], "9").unwrap();
        assert_eq!(files.reload(), Some(9));
    }

    #[tokio::test(start_paused = true)]
    async fn readers_get_the_new_value() {
        let (_dir, files) = watched("7");
        let path = files.paths[0].clone();
        let mut current = watch_files("the number", files.paths, number).unwrap();
        assert_eq!(*current.get(), 7);
        std::fs::write(&path, "12").unwrap();
        current.0.changed().await.unwrap();
        assert_eq!(*current.get(), 12);
        assert_eq!(*Current::fixed(3).get(), 3);
        assert!(watch_files("the number", vec![path.join("none")], number).is_err());
    }
}
