//! The hub of one address.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::hub::outlets::Outlets;
use crate::hub::reader::AttachedReader;
use crate::hub::readers::HubReaders;
use crate::hub::timing::Timed;
use crate::hub::{EndReason, HubEvent};
use crate::message::Seq;
use crate::sync::lock;

/// The live side of one address.
#[derive(Debug)]
pub(super) struct Hub {
    /// Protects the list of readers and the channel. Held for a few instructions, and while a message is written to the
    /// connections of a few readers: see [`crate::hub::direct`]. Never across an await.
    pub(super) readers: Mutex<HubReaders>,
    /// How many events were sent. Changed under the lock of `readers`, when the event is in the channel.
    pub(super) sent: AtomicU64,
    /// How long one of them takes to its readers.
    pub(super) timed: Timed,
    /// How many events the channel holds.
    pub(super) slots: usize,
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
            sent: AtomicU64::new(0),
            timed: Timed::default(),
            slots,
            acked: AtomicU64::new(0),
            ended: OnceLock::new(),
            outlets: OnceLock::new(),
        }
    }

    /// How many events were sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
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

    /// Notes an acknowledgement. Answers up to where the engine may delete now.
    pub(super) fn acknowledge(&self, seq: Seq) -> Option<Seq> {
        let mut readers = lock(&self.readers);
        readers.acked = readers.acked.max(seq);
        self.acked.store(readers.acked.0, Ordering::SeqCst);
        readers.trimmable()
    }

    /// Tells the readers that the epoch of the store is another one now. What was acknowledged is forgotten.
    pub(super) fn change_epoch(self: &Arc<Self>) {
        let mut readers = lock(&self.readers);
        (readers.acked, readers.trimmed, readers.released) = (Seq::START, Seq::START, Seq::START);
        self.acked.store(Seq::START.0, Ordering::SeqCst);
        drop(readers);
        self.send(HubEvent::EpochChanged);
    }
}
