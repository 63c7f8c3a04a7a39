//! Limits of what is logged again and again.

use std::mem;
use std::time::{Duration, Instant};

/// Limits how often something that repeats is logged.
#[derive(Debug)]
pub(crate) struct Repeated {
    interval: Duration,
    pub(super) logged_at: Option<Instant>,
    pub(super) unlogged: u64,
}

impl Repeated {
    /// It is logged at most once in this time.
    pub(crate) const fn every(interval: Duration) -> Self {
        Self { interval, logged_at: None, unlogged: 0 }
    }

    /// If it is to be logged now: how often it was not logged since the last time.
    pub(crate) fn note(&mut self, now: Instant) -> Option<u64> {
        if self.logged_at.is_some_and(|at| now.duration_since(at) < self.interval) {
            self.unlogged += 1;
            return None;
        }
        self.logged_at = Some(now);
        Some(mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_lasts_is_logged_once_in_an_interval() {
        let interval = Duration::from_secs(10);
        let (mut repeated, begun) = (Repeated::every(interval), Instant::now());
        assert_eq!(repeated.note(begun), Some(0));
        for n in 1..=3 {
            assert_eq!(repeated.note(begun + interval.mul_f64(f64::from(n) / 4.0)), None);
        }
        assert_eq!(repeated.note(begun + interval), Some(3));
    }
}
