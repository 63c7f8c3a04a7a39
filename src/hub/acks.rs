//! Acknowledgements: how far they go, and what may be deleted.

use std::sync::atomic::Ordering;

use crate::hub::{Hubs, ReaderHandle};
use crate::message::{Address, Seq};
use crate::sync::lock;

impl Hubs {
    /// Notes an acknowledgement. Answers up to where the engine may delete now.
    #[must_use]
    pub fn acknowledge(&self, address: &Address, seq: Seq) -> Option<Seq> {
        let hubs = self.hubs.of(address);
        hubs.get(address).map_or(Some(seq), |hub| hub.acknowledge(seq))
    }

    /// The highest acknowledgement, if a slower reader keeps something from being deleted that it covers.
    #[must_use]
    pub fn held(&self, address: &Address) -> Option<Seq> {
        let hubs = self.hubs.of(address);
        let readers = lock(&hubs.get(address)?.readers);
        (readers.acked > readers.trimmed).then_some(readers.acked)
    }

    /// Deletes up to `through`, whoever still needs it. Answers up to where the engine may delete now.
    #[must_use]
    pub fn release(&self, address: &Address, through: Seq) -> Option<Seq> {
        let hubs = self.hubs.of(address);
        let mut readers = lock(&hubs.get(address)?.readers);
        let through = through.min(readers.acked);
        (through > readers.trimmed).then(|| {
            (readers.trimmed, readers.released) = (through, through);
            through
        })
    }

    /// The highest acknowledgement that the hub knows. The engine may still hold what a slower reader needs.
    #[must_use]
    pub fn acknowledged(&self, address: &Address) -> Seq {
        self.hubs.of(address).get(address).map_or(Seq::START, |hub| Seq(hub.acked.load(Ordering::SeqCst)))
    }
}

impl ReaderHandle {
    /// Notes an acknowledgement of this reader's address. Answers up to where the engine may delete now; `None` after the end of
    /// the address.
    #[must_use]
    pub(crate) fn acknowledge(&self, seq: Seq) -> Option<Seq> {
        if self.ended().is_some() { None } else { self.hub.acknowledge(seq) }
    }
}
