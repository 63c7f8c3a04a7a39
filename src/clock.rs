//! The time of day, in one place, so that tests can let hours pass in no time.

#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// Unix milliseconds that move only when a test moves them.
    #[cfg(test)]
    Manual(&'static AtomicU64),
}

impl Clock {
    /// A clock that follows tokio's time: under paused time it moves only when the test does.
    #[must_use]
    pub fn follow_tokio() -> Self {
        Self::Virtual { start: Self::Wall.now(), since: Instant::now() }
    }

    /// A clock that stands still until [`Self::advance`]. Its memory is never freed.
    #[cfg(test)]
    pub(crate) fn manual() -> Self {
        Self::Manual(Box::leak(Box::new(AtomicU64::new(Self::Wall.now()))))
    }

    /// Moves a manual clock on.
    #[cfg(test)]
    pub(crate) fn advance(self, by: Duration) {
        let Self::Manual(now) = self else { panic!("only a manual clock is moved") };
        now.fetch_add(millis(by), Ordering::SeqCst);
    }

    /// Now, in Unix milliseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        match self {
            Self::Wall => millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
            Self::Virtual { start, since } => start + millis(since.elapsed()),
            #[cfg(test)]
            Self::Manual(now) => now.load(Ordering::SeqCst),
        }
    }
}

/// A duration in whole milliseconds.
#[must_use]
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_it_is_moved() {
        let clock = Clock::manual();
        let start = clock.now();
        std::thread::yield_now();
        assert_eq!(clock.now(), start);
        clock.advance(Duration::from_secs(3600));
        assert_eq!(clock.now(), start + 3_600_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_virtual_clock_follows_tokio() {
        let clock = Clock::follow_tokio();
        let start = clock.now();
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(clock.now(), start + 1500);
    }

    #[test]
    fn durations_are_cut_to_milliseconds() {
        assert_eq!(millis(Duration::from_micros(1999)), 1);
        assert_eq!(millis(Duration::MAX), u64::MAX);
    }
}
