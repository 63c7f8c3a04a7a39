//! Sends an event to the readers of a hub.
//!
//! To wake up a task for each reader costs as much as the write that follows. So where many readers lend their output, one task
//! writes for all connections that rest. It wakes up only the others.

use std::sync::Arc;
use std::task::Waker;

use tokio::task::yield_now;

use crate::hub::HubEvent;
use crate::hub::address_hub::Hub;
use crate::hub::batch::Batch;
use crate::hub::outlets::Outlets;
use crate::sync::lock;

impl Hub {
    /// Hands an event to the readers.
    pub(super) fn send(self: &Arc<Self>, event: HubEvent) {
        self.add(event);
        match self.outlets.get() {
            Some(outlets) if outlets.are_many() => {
                if outlets.begin() {
                    outlets.runtime.spawn(run(Arc::clone(self)));
                }
            }
            _ => self.wake_readers(),
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

/// Writes what was sent until nothing is left.
async fn run(hub: Arc<Hub>) {
    let Some(outlets) = hub.outlets.get() else { return };
    loop {
        offer(&hub, outlets).await;
        outlets.end();
        if hub.sent() == outlets.offered() || !outlets.begin() {
            return;
        }
    }
}

/// Offers a batch to all readers.
async fn offer(hub: &Hub, outlets: &Outlets) {
    let mut batch = Batch::after(outlets.offered(), hub);
    outlets.set_offered(batch.end());
    let (mut moved, mut from) = (0, Some(0));
    while let Some(place) = from {
        {
            let readers;
            (readers, from) = lock(&hub.readers).some_from(place);
            moved += readers.iter().flatten().filter(|reader| batch.offer(reader)).count();
        }
        // Others run meanwhile, and the system is asked for new events.
        yield_now().await;
    }
    hub.moved(moved, batch.end());
}

#[cfg(test)]
mod tests;
