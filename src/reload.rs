//! Files that are read again when they change.

use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Why a key, a certificate or its file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SetupError(pub String);

/// Interval at which the files are checked for changes.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a file must hold nothing until that is believed. A file that is being written may be empty for a moment.
pub(crate) const EMPTY_FOR: Duration = Duration::from_secs(5);

/// What was read from files.
#[derive(Debug)]
pub(crate) enum Loaded<T, E> {
    /// It is used at once.
    Complete(T),
    /// A file is valid and holds nothing, as the error says. At the start that is an error. Later it is used once the
    /// files have stayed unchanged for [`EMPTY_FOR`].
    Emptied(T, E),
}

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

/// Most bytes of a file that is read as a whole. Keys, tokens and certificates are far smaller.
const MAX_FILE: u64 = 1 << 20;

/// Reads a file of keys, tokens or certificates.
///
/// # Errors
/// It cannot be read, or it has more than 1 MiB and may have no end, as a device has none.
pub(crate) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, "is larger than 1 MiB")),
        false => Ok(bytes),
    }
}

/// Reads a file of text, as [`read_file`] does.
///
/// # Errors
/// As [`read_file`], or it is not UTF-8.
pub(crate) fn read_text_file(path: &Path) -> io::Result<String> {
    let invalid = |_| io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8");
    String::from_utf8(read_file(path)?).map_err(invalid)
}

/// The size, the time and the inode of a file. The inode changes when a link gets another target, as links to
/// certificates do.
type Stamp = Option<(u64, Option<SystemTime>, u64)>;

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|data| (data.len(), data.modified().ok(), data.ino()))
}

/// Whether there is something else than a file. At the start a pipe is fine, as of `<(command)` in a shell.
fn is_no_file(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|data| !data.is_file())
}

/// Files, what they held when they were last read, and how they are read.
struct WatchedFiles<T, F> {
    /// What the files hold, for the log.
    what: &'static str,
    paths: Vec<PathBuf>,
    stamps: Vec<Stamp>,
    /// What emptied files held, and since when.
    emptied: Option<(Instant, T)>,
    load: F,
}

impl<T, F> WatchedFiles<T, F> {
    /// Reads the files if they have changed. `None` if they have not, or cannot be used; the log says why.
    fn reload<E: std::fmt::Display>(&mut self, now: Instant) -> Option<T>
    where
        F: Fn(&[PathBuf]) -> Result<Loaded<T, E>, E>,
    {
        let stamps: Vec<Stamp> = self.paths.iter().map(|path| stamp(path)).collect();
        if stamps == self.stamps {
            return self.take_emptied(now);
        }
        (self.stamps, self.emptied) = (stamps, None);
        let what = self.what;
        if let Some(path) = self.paths.iter().find(|path| is_no_file(path)) {
            // To open a pipe waits for its writer: nothing would be read again.
            let error = format_args!("{} is not a regular file", path.display());
            tracing::error!(what, %error, "cannot be read again; the previous ones stay in use");
            return None;
        }
        match (self.load)(&self.paths) {
            Ok(Loaded::Complete(value)) => {
                tracing::info!(what, "read again");
                return Some(value);
            }
            Ok(Loaded::Emptied(value, error)) => {
                let seconds = EMPTY_FOR.as_secs();
                tracing::warn!(what, %error, seconds, "emptied; the previous ones stay in use for a moment");
                self.emptied = Some((now, value));
            }
            Err(error) => {
                tracing::error!(what, %error, "cannot be read again; the previous ones stay in use")
            }
        }
        None
    }

    /// What the emptied files hold, once they have stayed so.
    fn take_emptied(&mut self, now: Instant) -> Option<T> {
        let (_, value) = self.emptied.take_if(|(since, _)| now >= *since + EMPTY_FOR)?;
        tracing::warn!(what = self.what, "a file has stayed empty; what it held is not in use any more");
        Some(value)
    }
}

/// Reads files, and reads them again whenever one of them has changed. If that fails, the previous value stays. Call it
/// within a tokio runtime.
///
/// # Errors
/// The error of `load`, or that of an empty file, the first time.
pub(crate) fn watch_files<T: Send + Sync + 'static, E: std::fmt::Display + Send + 'static>(
    what: &'static str,
    paths: Vec<PathBuf>,
    load: impl Fn(&[PathBuf]) -> Result<Loaded<T, E>, E> + Send + 'static,
) -> Result<Current<T>, E> {
    // Before reading: a change during it is noticed afterwards.
    let stamps = paths.iter().map(|path| stamp(path)).collect();
    let value = match load(&paths)? {
        Loaded::Complete(value) => value,
        Loaded::Emptied(_, error) => return Err(error),
    };
    let sender = watch::Sender::new(Arc::new(value));
    let current = Current(sender.subscribe());
    if !paths.is_empty() {
        tokio::spawn(keep_reloading(WatchedFiles { what, paths, stamps, emptied: None, load }, sender));
    }
    Ok(current)
}

/// Runs until the last reader is dropped.
async fn keep_reloading<T, E, F>(mut files: WatchedFiles<T, F>, sender: watch::Sender<Arc<T>>)
where
    T: Send + Sync + 'static,
    E: std::fmt::Display + Send + 'static,
    F: Fn(&[PathBuf]) -> Result<Loaded<T, E>, E> + Send + 'static,
{
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !sender.is_closed() {
        let now = ticks.tick().await;
        // The disk may be slow.
        let reloading = tokio::task::spawn_blocking(move || {
            let loaded = catch_unwind(AssertUnwindSafe(|| files.reload(now))).unwrap_or_else(|_| {
                tracing::error!(what = files.what, "reading has panicked; the previous ones stay in use");
                None
            });
            (files, loaded)
        });
        match reloading.await {
            Ok((returned, loaded)) => {
                files = returned;
                if let Some(value) = loaded {
                    sender.send_replace(Arc::new(value));
                }
            }
            // The runtime ends.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_refused() {
        for path in ["/dev/zero", "/dev/urandom"] {
            assert_eq!(read_file(Path::new(path)).unwrap_err().kind(), io::ErrorKind::FileTooLarge, "{path}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for (size, is_read) in [(0, true), (1 << 20, true), ((1 << 20) + 1, false)] {
            std::fs::write(&path, vec![b'x'; size]).unwrap();
            assert_eq!(read_text_file(&path).is_ok(), is_read, "{size}");
        }
        std::fs::write(&path, [0xff]).unwrap();
        assert!(read_text_file(&path).unwrap_err().to_string().contains("is not UTF-8"));
    }

    type Load = fn(&[PathBuf]) -> Result<Loaded<u32, String>, String>;
    type Watched = WatchedFiles<u32, Load>;

    fn number(paths: &[PathBuf]) -> Result<Loaded<u32, String>, String> {
        let text = std::fs::read_to_string(&paths[0]).map_err(|error| error.to_string())?;
        if text.is_empty() {
            return Ok(Loaded::Emptied(0, "holds no number".to_owned()));
        }
        text.parse().map(Loaded::Complete).map_err(|_| format!("{text} is no number"))
    }

    /// A file with this content, and what reads it.
    fn watched(content: &str) -> (tempfile::TempDir, Watched) {
        let dir = tempfile::tempdir().unwrap();
        let paths = vec![dir.path().join("file")];
        std::fs::write(&paths[0], content).unwrap();
        let stamps = vec![stamp(&paths[0])];
        (dir, WatchedFiles { what: "the number", paths, stamps, emptied: None, load: number })
    }

    fn reload(files: &mut Watched) -> Option<u32> {
        files.reload(Instant::now())
    }

    #[test]
    fn a_pipe_in_place_of_a_file_does_not_stop_the_watch() {
        let (dir, mut files) = watched("7");
        std::fs::remove_file(&files.paths[0]).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&files.paths[0]).status().unwrap();
        assert!(made.success());
        assert_eq!(reload(&mut files), None, "it returns");
        std::fs::remove_file(&files.paths[0]).unwrap();
        std::fs::write(dir.path().join("file"), "12").unwrap();
        assert_eq!(reload(&mut files), Some(12));
    }

    #[test]
    fn an_emptied_file_is_believed_once_it_has_stayed_so() {
        let (_dir, mut files) = watched("7");
        let begin = Instant::now();
        std::fs::write(&files.paths[0], "").unwrap();
        assert_eq!(files.reload(begin), None);
        assert_eq!(files.reload(begin + EMPTY_FOR / 2), None);
        assert_eq!(files.reload(begin + EMPTY_FOR), Some(0));
        assert_eq!(files.reload(begin + EMPTY_FOR * 3), None, "once");
    }

    #[test]
    fn an_emptied_file_that_is_written_or_removed_is_not_believed() {
        for removed in [false, true] {
            let (_dir, mut files) = watched("7");
            let begin = Instant::now();
            std::fs::write(&files.paths[0], "").unwrap();
            assert_eq!(files.reload(begin), None);
            match removed {
                true => std::fs::remove_file(&files.paths[0]).unwrap(),
                false => std::fs::write(&files.paths[0], "12").unwrap(),
            }
            assert_eq!(files.reload(begin + EMPTY_FOR), if removed { None } else { Some(12) });
            assert_eq!(files.reload(begin + EMPTY_FOR * 3), None);
        }
    }

    #[test]
    fn an_unchanged_file_is_not_read_again() {
        let (_dir, mut files) = watched("7");
        assert_eq!(reload(&mut files), None);
    }

    #[test]
    fn a_changed_file_is_read_once() {
        let (_dir, mut files) = watched("7");
        std::fs::write(&files.paths[0], "12").unwrap();
        assert_eq!(reload(&mut files), Some(12));
        assert_eq!(reload(&mut files), None);
    }

    #[test]
    fn another_file_of_the_same_size_and_time_is_noticed() {
        let (dir, mut files) = watched("7");
        let other = dir.path().join("other");
        std::fs::write(&other, "8").unwrap();
        let time = std::fs::metadata(&files.paths[0]).unwrap().modified().unwrap();
        std::fs::File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
        std::fs::rename(&other, &files.paths[0]).unwrap();
        assert_eq!(reload(&mut files), Some(8));
    }

    #[test]
    fn a_file_that_cannot_be_used_gives_nothing_until_it_changes() {
        let (_dir, mut files) = watched("7");
        std::fs::write(&files.paths[0], "seven").unwrap();
        assert_eq!(reload(&mut files), None);
        std::fs::remove_file(&files.paths[0]).unwrap();
        assert_eq!(reload(&mut files), None);
        std::fs::write(&files.paths[0], "9").unwrap();
        assert_eq!(reload(&mut files), Some(9));
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
        std::fs::write(&path, "").unwrap();
        assert_eq!(watch_files("the number", vec![path], number).unwrap_err(), "holds no number");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_while_reading_does_not_end_the_reading() {
        let (_dir, files) = watched("7");
        let path = files.paths[0].clone();
        let (panics, mut panicked) = tokio::sync::mpsc::unbounded_channel();
        let load = move |paths: &[PathBuf]| {
            let loaded = number(paths)?;
            if matches!(loaded, Loaded::Complete(13)) {
                _ = panics.send(());
                panic!("this panic is part of the test");
            }
            Ok(loaded)
        };
        let mut current = watch_files("the number", files.paths, load).unwrap();
        std::fs::write(&path, "13").unwrap();
        panicked.recv().await.unwrap();
        std::fs::write(&path, "140").unwrap();
        current.0.changed().await.unwrap();
        assert_eq!(*current.get(), 140);
    }
}
