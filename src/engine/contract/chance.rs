//! Seeded random decisions and delays.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;

use crate::sync::lock;

/// Decides what is late, lost or behind. Clones share one sequence of random numbers.
#[derive(Debug, Clone)]
pub(super) struct Chance(Arc<Mutex<Rng>>);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Rng::with_seed(seed))))
    }

    /// A number below `end`.
    pub(super) fn up_to(&self, end: u64) -> u64 {
        lock(&self.0).u64(..end)
    }

    /// Waits not at all, for other tasks, or for a millisecond or two.
    pub(super) async fn delay(&self) {
        match self.up_to(8) {
            0..4 => {}
            4 | 5 => tokio::task::yield_now().await,
            n => tokio::time::sleep(Duration::from_millis(n - 5)).await,
        }
    }
}
