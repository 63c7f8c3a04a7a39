//! The machine's clocks, in one place, so that tests can let hours pass in no time.

#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// A clock that nobody sets. It counts while the machine sleeps.
#[cfg(any(target_os = "linux", target_os = "android"))]
const STEADY: ClockId = ClockId::Boottime;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const STEADY: ClockId = ClockId::Monotonic;

/// Where times come from.
#[derive(Debug, Clone, Copy)]
pub enum Clock {
    /// The machine's clocks.
    Wall,
    /// A start time that moves on with tokio's (possibly paused) clock.
    Virtual {
        /// Unix milliseconds at `since`.
        start: u64,
        /// When `start` was.
        since: Instant,
    },
    /// Clocks that move only when a test moves them.
    #[cfg(test)]
    Manual(&'static ManualTime),
}

/// The times of a manual clock, in milliseconds.
#[cfg(test)]
#[derive(Debug)]
pub struct ManualTime {
    /// Unix time.
    wall: AtomicU64,
    steady: AtomicU64,
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
        let time = ManualTime { wall: Self::Wall.now().into(), steady: AtomicU64::new(1_000_000) };
        Self::Manual(Box::leak(Box::new(time)))
    }

    #[cfg(test)]
    fn time(self) -> &'static ManualTime {
        let Self::Manual(time) = self else { panic!("only a manual clock is moved") };
        time
    }

    /// Time passes on a manual clock.
    #[cfg(test)]
    pub(crate) fn advance(self, by: Duration) {
        self.time().wall.fetch_add(millis(by), Ordering::SeqCst);
        self.time().steady.fetch_add(millis(by), Ordering::SeqCst);
    }

    /// Sets the time of day of a manual clock, in Unix milliseconds. No time passes.
    #[cfg(test)]
    pub(crate) fn set(self, now: u64) {
        self.time().wall.store(now, Ordering::SeqCst);
    }

    /// The time of day, in Unix milliseconds. The machine's may be set at any moment, forward or back.
    #[must_use]
    pub fn now(&self) -> u64 {
        match self {
            Self::Wall => millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
            Self::Virtual { start, since } => start + millis(since.elapsed()),
            #[cfg(test)]
            Self::Manual(time) => time.wall.load(Ordering::SeqCst),
        }
    }

    /// Milliseconds since some moment before this process began. Nobody sets this clock, and it never goes back.
    #[must_use]
    pub fn steady(&self) -> u64 {
        match self {
            Self::Wall => {
                let now = clock_gettime(STEADY);
                let part = u32::try_from(now.tv_nsec).unwrap_or_default();
                millis(Duration::new(u64::try_from(now.tv_sec).unwrap_or_default(), part))
            }
            Self::Virtual { since, .. } => millis(since.elapsed()),
            #[cfg(test)]
            Self::Manual(time) => time.steady.load(Ordering::SeqCst),
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
        let steady = clock.steady();
        clock.set(7);
        assert_eq!((clock.now(), clock.steady()), (7, steady));
    }

    #[test]
    fn the_steady_clock_of_the_machine_never_goes_back() {
        let readings: Vec<u64> = (0..1000).map(|_| Clock::Wall.steady()).collect();
        assert!(readings[0] > 0 && readings.is_sorted());
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
