//! Regular cleaning: expired messages, readers that did not come back, rates that are not used.

use std::sync::Arc;
use std::time::Duration;

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
        self.gateway.broker.expire().await;
        drop(self.poll_readers.sweep());
        self.legacy_receipts.sweep();
        self.gateway.rates.sweep();
    }
}
