//! Sends an event to the readers of a hub.
//!
//! To wake up a task for each reader costs as much as the write that follows. So where many readers lend their output, one task
//! writes for all connections that rest, or a few if they are very many. It wakes up only the others. To the connections of a
//! few readers, who sends writes: see [`crate::hub::direct`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use tokio::task::yield_now;

use crate::hub::HubEvent;
use crate::hub::address_hub::Hub;
use crate::hub::batch::Batch;
use crate::hub::channel::{Numbered, Tail};
use crate::hub::direct::Direct;
use crate::hub::outlets::Outlets;
use crate::hub::readers::AT_ONCE;
use crate::hub::timing::Written;
use crate::sync::lock;

impl Hub {
    /// Hands an event to the readers.
    pub(super) fn send(self: &Arc<Self>, event: HubEvent) {
        let mut readers = lock(&self.readers);
        let sent = self.sent();
        self.timed.begin(sent, self.slots);
        // A task that runs takes everything from the channel.
        let many = self.outlets.get().filter(|outlets| outlets.are_many() || outlets.is_running());
        if many.is_none()
            && let Some(few) = readers.few()
            && let Some(mut direct) = Direct::of(&event)
            && direct.write_to_all(self, few, sent)
        {
            return self.sent.store(sent + 1, Ordering::SeqCst);
        }
        readers.open(self.slots);
        // A task that runs has an end already.
        let end = many.filter(|outlets| outlets.begin()).and_then(|_| readers.end());
        readers.send(Numbered { number: sent, event });
        self.sent.store(sent + 1, Ordering::SeqCst);
        drop(readers);
        match many {
            Some(outlets) => {
                if let Some(end) = end {
                    outlets.runtime.spawn(run(Arc::clone(self), Tail::new(end, sent)));
                }
            }
            None => self.wake_readers(),
        }
    }

    /// Wakes up the readers that wait, without a lock: to wake up many takes long.
    fn wake_readers(&self) {
        let mut from = Some(0);
        while let Some(place) = from {
            let wakers;
            (wakers, from) = lock(&self.readers).end_waits(place);
            wakers.into_iter().flatten().for_each(Waker::wake);
        }
    }
}

/// Ends the task, also after a panic. Then the next event begins another one, which wakes up who has missed something.
struct Running<'a>(&'a Outlets);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Writes what was sent until nothing is left.
async fn run(hub: Arc<Hub>, mut tail: Tail) {
    let Some(outlets) = hub.outlets.get() else { return };
    let running = Running(outlets);
    loop {
        offer(&hub, Batch::next(&mut tail), outlets).await;
        let readers = lock(&hub.readers);
        if hub.sent() == tail.at() {
            // Under the lock: what is sent next begins a task.
            return drop(running);
        }
        drop(readers);
    }
}

/// Offers a batch to all readers: in several tasks, if they are very many and there are threads for it.
async fn offer(hub: &Arc<Hub>, mut batch: Batch, outlets: &Outlets) {
    // What these need is encoded then for the other tasks too.
    if !offer_to_some(hub, &mut batch, 0) {
        return;
    }
    let next = Arc::new(AtomicUsize::new(AT_ONCE));
    let rest = |batch| offer_to_rest(Arc::clone(hub), batch, Arc::clone(&next));
    let helpers: Vec<_> =
        (0..outlets.helpers()).map(|_| outlets.runtime.spawn(rest(batch.clone()))).collect();
    rest(batch).await;
    // The next batch comes after this one.
    for helper in helpers {
        _ = helper.await;
    }
}

/// Offers a batch to some readers after the other, until `next` is behind the last one.
async fn offer_to_rest(hub: Arc<Hub>, mut batch: Batch, next: Arc<AtomicUsize>) {
    // Others run meanwhile, and the system is asked for new events.
    yield_now().await;
    while offer_to_some(&hub, &mut batch, next.fetch_add(AT_ONCE, Ordering::Relaxed)) {
        yield_now().await;
    }
}

/// Offers a batch to the readers at some places. Returns whether there are any.
fn offer_to_some(hub: &Hub, batch: &mut Batch, from: usize) -> bool {
    let readers = lock(&hub.readers).some_from(from);
    let mut written = Written::default();
    for reader in readers.iter().flatten().flatten() {
        written.add(reader.transport, batch.offer(reader));
    }
    written.count(&hub.timed, batch.range());
    readers.is_some()
}

#[cfg(test)]
pub(super) mod tests;
