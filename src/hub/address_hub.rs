//! The hub of one address.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::task::Waker;

use crate::hub::readers::HubReaders;
use crate::hub::{EndReason, HubEvent};
use crate::message::Seq;
use crate::sync::lock;

/// The live side of one address.
#[derive(Debug)]
pub(super) struct Hub {
    /// Protects the list of readers and the channel. Held for a few instructions, never across an await.
    pub(super) readers: Mutex<HubReaders>,
    /// A copy of `HubReaders::acked`: a reader that moves on locks the list only if more is acknowledged.
    pub(super) acked: AtomicU64,
    /// Set when the address ends.
    pub(super) ended: OnceLock<EndReason>,
    /// How many events were sent. Changed under the lock of `readers`, when the event is in the channel.
    sent: AtomicU64,
    /// How many events the channel holds.
    slots: usize,
}

impl Hub {
    pub(super) fn new(slots: usize) -> Self {
        let (acked, sent) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { readers: Mutex::default(), acked, ended: OnceLock::new(), sent, slots }
    }

    /// Hands an event to the readers. They are woken without the lock, since waking up many takes long.
    pub(super) fn send(&self, event: HubEvent) {
        let mut readers = lock(&self.readers);
        readers.send(event, self.slots);
        self.sent.fetch_add(1, Ordering::SeqCst);
        let mut from = 0;
        loop {
            let (wakers, next) = readers.end_waits(from);
            drop(readers);
            wakers.into_iter().flatten().for_each(Waker::wake);
            let Some(next) = next else { return };
            (from, readers) = (next, lock(&self.readers));
        }
    }

    /// How many events were sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Tells the readers that the epoch of the store is another one now. What was acknowledged is forgotten.
    pub(super) fn change_epoch(&self) {
        let mut readers = lock(&self.readers);
        (readers.acked, readers.trimmed, readers.released) = (Seq::START, Seq::START, Seq::START);
        self.acked.store(Seq::START.0, Ordering::SeqCst);
        drop(readers);
        self.send(HubEvent::EpochChanged);
    }
}
