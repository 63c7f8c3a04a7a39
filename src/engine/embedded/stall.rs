//! How long the commit that is under way has taken.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::clock::millis;

/// A commit that takes longer is told.
const LIMIT: Duration = Duration::from_secs(5);

/// Notes when a commit begins and ends.
#[derive(Debug)]
pub(super) struct CommitTimer {
    started: Instant,
    /// Milliseconds after `started`, and one; 0 while nothing is committed.
    begun: AtomicU64,
}

impl CommitTimer {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), begun: AtomicU64::new(0) }
    }

    pub(super) fn begin(&self) {
        self.begun.store(millis(self.started.elapsed()) + 1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.begun.store(0, Ordering::Relaxed);
    }

    /// How long the commit has taken, if that is too long.
    pub(super) fn stalled(&self, now: Instant) -> Option<Duration> {
        let begun = self.begun.load(Ordering::Relaxed).checked_sub(1)?;
        let taken = now.saturating_duration_since(self.started + Duration::from_millis(begun));
        (taken > LIMIT).then_some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_told_while_it_takes_too_long() {
        let timer = CommitTimer::new();
        let late = Instant::now() + 2 * LIMIT;
        assert_eq!(timer.stalled(late), None);
        timer.begin();
        assert_eq!(timer.stalled(Instant::now()), None);
        assert!(timer.stalled(late).unwrap() > LIMIT);
        timer.end();
        assert_eq!(timer.stalled(late), None);
    }
}
