//! How long something takes: how often it took how long, in classes.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of the classes, in nanoseconds. What takes longer is in one more class.
const NANOS: [u64; 18] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

/// The same in seconds.
const BOUNDS: [f64; NANOS.len()] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.25, 0.5, 1.0, 2.5, 10.0,
];

/// How many classes there are.
pub(super) const CLASSES: usize = NANOS.len() + 1;

/// In which class a time is.
pub(super) fn class(nanos: u64) -> usize {
    NANOS.partition_point(|bound| *bound < nanos)
}

/// A time in nanoseconds.
pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How often something took how long.
#[derive(Debug)]
pub(crate) struct Histogram {
    pub(super) classes: [AtomicU64; CLASSES],
    /// The sum of all times, in nanoseconds.
    pub(super) nanos: AtomicU64,
}

impl Histogram {
    pub(crate) const fn new() -> Self {
        Self { classes: [const { AtomicU64::new(0) }; CLASSES], nanos: AtomicU64::new(0) }
    }

    /// Counts what took this long. For what is rare: each call writes cache lines that other threads write too.
    pub(crate) fn observe(&self, time: Duration) {
        let nanos = nanos(time);
        self.classes[class(nanos)].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            classes: array::from_fn(|at| self.classes[at].load(Ordering::Relaxed)),
            nanos: self.nanos.load(Ordering::Relaxed),
        }
    }
}

/// What a histogram has counted at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    classes: [u64; CLASSES],
    nanos: u64,
}

impl Snapshot {
    /// What both have counted together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            classes: array::from_fn(|at| self.classes[at] + other.classes[at]),
            nanos: self.nanos.wrapping_add(other.nanos),
        }
    }

    /// How often it was counted in each class, and in which one: its upper bound in seconds.
    pub(crate) fn buckets(&self) -> Vec<(f64, u64)> {
        BOUNDS.into_iter().chain([f64::INFINITY]).zip(self.classes).collect()
    }

    /// How often it was counted.
    pub(crate) fn count(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// The sum of all times, in seconds.
    pub(crate) fn sum(&self) -> f64 {
        Duration::from_nanos(self.nanos).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_the_same_in_both_units_and_grow() {
        for (nanos, seconds) in NANOS.into_iter().zip(BOUNDS) {
            assert!((Duration::from_nanos(nanos).as_secs_f64() - seconds).abs() < 1e-12, "{seconds}");
        }
        assert!(NANOS.is_sorted());
    }

    #[test]
    fn a_time_is_in_the_first_class_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::new();
        for micros in [0, 10, 11, 20_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let snapshot = histogram.snapshot();
        let found: Vec<_> = snapshot.buckets().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(found, [(0.000_01, 2), (0.000_025, 1), (f64::INFINITY, 1)]);
        assert_eq!((snapshot.count(), snapshot.sum()), (4, 20.000_021));
        assert_eq!(snapshot.and(snapshot).count(), 8);
    }
}
