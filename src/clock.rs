//! The time of day, in one place, so that tests can let hours pass in no time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Where Unix milliseconds come from.
#[derive(Debug, Clone, Copy)]
pub enum Clock {
    /// The machine's wall clock.
    Wall,
    /// A start time that moves on with tokio's (possibly paused) clock.
    Virtual {
        /// Unix milliseconds at `since`.
        start: u64,
        /// When `start` was.
        since: Instant,
    },
}

impl Clock {
    /// A clock that follows tokio's time: under paused time it moves only when the test does.
    #[must_use]
    pub fn follow_tokio() -> Self {
        Self::Virtual { start: Self::Wall.now(), since: Instant::now() }
    }

    /// Now, in Unix milliseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        match self {
            Self::Wall => millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
            Self::Virtual { start, since } => start + millis(since.elapsed()),
        }
    }
}

/// A duration in whole milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
