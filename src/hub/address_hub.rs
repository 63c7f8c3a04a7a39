//! The hub of one address.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use tokio::sync::broadcast::error::TryRecvError;

use crate::hub::outlets::Outlets;
use crate::hub::reader::AttachedReader;
use crate::hub::readers::HubReaders;
use crate::hub::ring::Ring;
use crate::hub::{EndReason, HubEvent};
use crate::message::Seq;
use crate::sync::{lock, read, write};

/// The live side of one address.
#[derive(Debug)]
pub(super) struct Hub {
    /// Protects the list of readers. Held for a few instructions, never across an await.
    pub(super) readers: Mutex<HubReaders>,
    /// The last events, until all readers have them.
    ring: RwLock<Ring>,
    /// How many events were sent. Changed under the lock of `ring`.
    sent: AtomicU64,
    /// How many readers do not have all events. Changed under the lock of `ring`.
    behind: AtomicUsize,
    /// A copy of `HubReaders::acked`: a reader that moves on locks the list only if more is acknowledged.
    pub(super) acked: AtomicU64,
    /// Set when the address ends.
    pub(super) ended: OnceLock<EndReason>,
    /// Made by the first reader that lends its output.
    pub(super) outlets: OnceLock<Box<Outlets>>,
}

impl Hub {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            readers: Mutex::default(),
            ring: RwLock::new(Ring::new(slots)),
            sent: AtomicU64::new(0),
            behind: AtomicUsize::new(0),
            acked: AtomicU64::new(0),
            ended: OnceLock::new(),
            outlets: OnceLock::new(),
        }
    }

    /// Adds an event, and counts it.
    pub(super) fn add(&self, event: HubEvent) {
        let mut ring = write(&self.ring);
        ring.push(event);
        self.behind.store(ring.readers(), Ordering::SeqCst);
        self.sent.store(ring.sent(), Ordering::SeqCst);
    }

    /// How many events were sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// Adds a reader of what is sent from now on. Answers how many events were sent before.
    pub(super) fn join(&self) -> u64 {
        write(&self.ring).join()
    }

    /// Removes a reader, which had so many events.
    pub(super) fn leave(&self, at: u64) {
        let mut ring = write(&self.ring);
        ring.leave();
        if at < ring.sent() {
            self.behind.fetch_sub(1, Ordering::SeqCst);
        }
        self.forget(&mut ring);
    }

    /// The event after the first `at` ones.
    ///
    /// # Errors
    /// Nothing is there, or so many events are lost.
    pub(super) fn get(&self, at: u64) -> Result<HubEvent, TryRecvError> {
        let ring = read(&self.ring);
        let Some(event) = ring.get(at) else {
            let lost = ring.first().saturating_sub(at);
            return Err(if lost > 0 { TryRecvError::Lagged(lost) } else { TryRecvError::Empty });
        };
        let event = event.clone();
        // With the last event, this reader has all of them.
        let all_have_all = at + 1 == ring.sent() && self.behind.fetch_sub(1, Ordering::SeqCst) == 1;
        drop(ring);
        if all_have_all {
            self.forget(&mut write(&self.ring));
        }
        Ok(event)
    }

    /// The events after the first `at` ones, as far as they are held, and how many came before these. Ends with the first one
    /// that is not `taken`.
    pub(super) fn events_after(
        &self,
        at: u64,
        mut taken: impl FnMut(&HubEvent) -> bool,
    ) -> (u64, Vec<HubEvent>) {
        let ring = read(&self.ring);
        let from = at.clamp(ring.first(), ring.sent());
        let events = (from..).map_while(|at| ring.get(at)).take_while(|event| taken(event)).cloned();
        (from, events.collect())
    }

    /// Notes that so many readers were moved on, and have the first `to` events now.
    pub(super) fn moved(&self, readers: usize, to: u64) {
        let mut ring = write(&self.ring);
        // If more was sent meanwhile, they are behind again.
        if ring.sent() == to {
            self.behind.fetch_sub(readers, Ordering::SeqCst);
            self.forget(&mut ring);
        }
    }

    /// Drops the events if all readers have all of them.
    fn forget(&self, ring: &mut Ring) {
        if self.behind.load(Ordering::SeqCst) == 0 {
            ring.forget();
        }
    }

    /// A reader leaves the list of those that a deletion waits for, and that are woken.
    pub(super) fn detach(&self, readers: &mut HubReaders, place: usize) {
        if readers.detach(place).is_some_and(|reader| reader.lends())
            && let Some(outlets) = self.outlets.get()
        {
            outlets.remove();
        }
    }

    /// A reader lends the output of its connection for what is sent here.
    pub(super) fn lend(&self, reader: &AttachedReader) {
        if self.outlets.get().is_none()
            && let Some(outlets) = Outlets::new()
        {
            _ = self.outlets.set(outlets);
        }
        if let Some(outlets) = self.outlets.get() {
            outlets.add();
            reader.note_lent();
        }
    }

    /// Tells the readers that the epoch of the store is another one now. What was acknowledged is forgotten.
    pub(super) fn change_epoch(self: &Arc<Self>) {
        let mut readers = lock(&self.readers);
        (readers.acked, readers.trimmed, readers.released) = (Seq::START, Seq::START, Seq::START);
        self.acked.store(Seq::START.0, Ordering::SeqCst);
        drop(readers);
        self.send(HubEvent::EpochChanged);
    }

    #[cfg(test)]
    pub(super) fn held_events(&self) -> u64 {
        let ring = read(&self.ring);
        ring.sent() - ring.first()
    }
}
