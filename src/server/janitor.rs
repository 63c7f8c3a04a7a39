//! Regular cleaning: expired messages, readers that did not come back, rates that are not used.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::edge::Gateway;
use crate::transport::legacy::LegacyReceipts;
use crate::transport::poll::PollReaders;

/// Interval of the cleaning.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is cleaned.
pub(super) struct Janitor {
    pub(super) gateway: Arc<Gateway>,
    pub(super) poll_readers: PollReaders,
    pub(super) legacy_receipts: Arc<LegacyReceipts>,
}

impl Janitor {
    /// Starts a task that cleans until the guard is dropped.
    pub(super) fn start(self) -> DropGuard {
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            let mut ticks = interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                self.clean().await;
            }
        }));
        stop.drop_guard()
    }

    async fn clean(&self) {
        // First, so that its rounds are a second apart.
        run_step("presence", self.gateway.broker.tell_presence()).await;
        run_step("messages", self.gateway.broker.expire()).await;
        run_step("polls", async { drop(self.poll_readers.sweep()) }).await;
        run_step("receipts of x0 pages", async { self.legacy_receipts.sweep() }).await;
        run_step("rates", async { self.gateway.rates.sweep() }).await;
        run_step("proofs of addresses", async { self.gateway.proved_addresses.sweep() }).await;
        run_step("wrong proofs", async { self.gateway.failed_proofs.sweep() }).await;
    }
}

/// Runs one step. If it panics, only this step ends, and it runs again with the next cleaning.
async fn run_step(what: &'static str, step: impl Future<Output = ()>) {
    if AssertUnwindSafe(step).catch_unwind().await.is_err() {
        tracing::error!(what, "the cleaning has panicked; it is tried again");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_step_that_panics_ends_only_itself() {
        let steps = Cell::new(0);
        let step = async |panics: bool| {
            steps.set(steps.get() + 1);
            assert!(!panics, "this panic is part of the test");
        };
        for panics in [false, true, false] {
            run_step("steps", step(panics)).await;
        }
        assert_eq!(steps.get(), 3);
    }
}
