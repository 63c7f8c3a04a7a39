//! Has NATS tell when messages expire whose senders get a receipt.
//!
//! Their order does not matter, and one that is stored again replaces itself. So a repeated move stores all of them again: one of
//! them may have come due meanwhile, and then comes due once more. That finds nothing to do if the receipt is stored.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::engine::nats::error::AskError;
use crate::engine::nats::link::Link;
use crate::engine::nats::migration::copying::{PATIENCE, PAUSE};
use crate::engine::nats::migration::error::MigrateError;
use crate::engine::nats::scheduling::Schedule;

/// How many are on their way at the same time.
const WINDOW: usize = 256;

/// The stream of schedules.
#[derive(Debug)]
pub(super) struct Schedules<'a> {
    pub(super) link: &'a Link,
    pub(super) stream: &'a str,
    /// Counts what is stored, in all streams.
    pub(super) done: &'a AtomicU64,
}

impl Schedules<'_> {
    /// Stores all of these, and answers how many there were.
    ///
    /// # Errors
    /// [`MigrateError::Refused`], [`MigrateError::Stalled`].
    pub(super) async fn fill(&self, items: mpsc::Receiver<Schedule>) -> Result<u64, MigrateError> {
        let items = stream::unfold(items, async |mut items| items.recv().await.map(|item| (item, items)));
        let stored = items.map(|item| self.store(item)).buffer_unordered(WINDOW);
        stored.try_fold(0, async |count, ()| Ok(count + 1)).await
    }

    async fn store(&self, Schedule { subject, headers, body }: Schedule) -> Result<(), MigrateError> {
        let (begun, stream) = (Instant::now(), self.stream.to_owned());
        loop {
            match self.link.store(&subject, headers.clone(), body.clone()).await {
                Ok(_) => {
                    self.done.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Err(AskError::Refused { text, .. }) => {
                    return Err(MigrateError::Refused { stream, reason: text.to_string() });
                }
                Err(error) if begun.elapsed() > PATIENCE => {
                    let (seconds, reason) = (PATIENCE.as_secs(), error.reason().to_string());
                    return Err(MigrateError::Stalled { stream, seconds, reason });
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}
