//! Reads of what is in memory.

use crate::engine::{Batch, Embedded};
use crate::message::{Address, Seq};

impl Embedded {
    /// See [`crate::engine::Engine::read_at_hand`].
    #[must_use]
    pub fn read_at_hand(&self, address: &Address, after: Seq, limit: usize) -> Option<Batch> {
        let mut plan = self.shared.index.read(address, after, limit)?;
        if !plan.on_disk().is_empty() || plan.reserve(self.shared.hubs.budget(), None).is_err() {
            return None;
        }
        // Nothing is fetched, so nothing can be missing.
        plan.into_batch(after, Vec::new(), |_| false)
    }
}
