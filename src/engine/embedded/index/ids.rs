//! The senders' ids in the index.

use crate::engine::EngineError;
use crate::engine::embedded::dedup::{DedupKey, SameContent, SendId};
use crate::engine::embedded::index::Index;
use crate::message::{Address, Seq};

/// How many ids that are over one slice of expiry forgets.
const FORGET_IDS: usize = 4096;

impl Index {
    /// The seq of the message that was sent with this id before.
    ///
    /// # Errors
    /// `IdReused`: it was another message.
    pub(super) fn sent_before(
        &self,
        address: &Address,
        id: Option<SendId>,
    ) -> Result<Option<Seq>, EngineError> {
        let Some(id) = id else { return Ok(None) };
        let known = self.dedup.lock().get(id, self.clock.now());
        match known {
            // It was for an earlier owner of the mailbox, and is deleted.
            Some((seq, _)) if self.is_from_before(address, seq) => Ok(None),
            Some((_, SameContent(false))) => {
                Err(EngineError::IdReused { window: self.settings.dedup_window })
            }
            known => Ok(known.map(|(seq, _)| seq)),
        }
    }

    /// Whether a message was stored before the present owner of a mailbox had it.
    fn is_from_before(&self, address: &Address, seq: Seq) -> bool {
        self.sessions.since(address).is_some_and(|since| seq <= since)
    }

    /// Forgets ids that are over, at most [`FORGET_IDS`]. Returns whether there are more.
    pub(in crate::engine::embedded) fn forget_ids(&self) -> bool {
        self.dedup.lock().forget(self.clock.now(), FORGET_IDS)
    }

    /// How many ids are remembered.
    pub(in crate::engine::embedded) fn remembered_ids(&self) -> usize {
        self.dedup.lock().len()
    }

    /// Looks whether ids of messages are remembered, as `look` asks.
    pub(in crate::engine::embedded) fn remembers(&self, look: impl FnOnce(&dyn Fn(DedupKey, Seq) -> bool)) {
        let dedup = self.dedup.lock();
        look(&|key, seq| dedup.remembers(key, seq));
    }
}
