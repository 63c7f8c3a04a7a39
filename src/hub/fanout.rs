//! Sends an event to the readers of a hub.
//!
//! To wake up a task for each reader costs as much as the write that follows. So where many readers lend their output, one task
//! writes for all connections that rest. It wakes up only the others.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use tokio::task::yield_now;

use crate::hub::HubEvent;
use crate::hub::address_hub::Hub;
use crate::hub::batch::Batch;
use crate::hub::channel::Tail;
use crate::sync::lock;

impl Hub {
    /// Hands an event to the readers.
    pub(super) fn send(self: &Arc<Self>, event: HubEvent) {
        let many = self.outlets.get().filter(|outlets| outlets.are_many());
        let mut readers = lock(&self.readers);
        let sent = self.sent();
        readers.open(self.slots, sent);
        // A task that runs has an end already.
        let tail = many.filter(|outlets| outlets.begin()).and_then(|_| readers.end(sent));
        readers.send(event);
        self.sent.store(sent + 1, Ordering::SeqCst);
        drop(readers);
        match many {
            Some(outlets) => {
                if let Some(tail) = tail {
                    outlets.runtime.spawn(run(Arc::clone(self), tail.into()));
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

/// Writes what was sent until nothing is left.
async fn run(hub: Arc<Hub>, mut tail: Tail) {
    loop {
        offer(&hub, Batch::next(&mut tail)).await;
        let readers = lock(&hub.readers);
        if hub.sent() == tail.at() {
            hub.outlets.get().into_iter().for_each(|outlets| outlets.end());
            return;
        }
        drop(readers);
    }
}

/// Offers a batch to all readers.
async fn offer(hub: &Hub, mut batch: Batch) {
    let mut from = Some(0);
    while let Some(place) = from {
        {
            let readers;
            (readers, from) = lock(&hub.readers).some_from(place);
            readers.iter().flatten().for_each(|reader| batch.offer(reader));
        }
        // Others run meanwhile, and the system is asked for new events.
        yield_now().await;
    }
}

#[cfg(test)]
mod tests;
