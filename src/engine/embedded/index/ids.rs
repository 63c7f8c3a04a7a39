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
        &mut self,
        address: &Address,
        id: Option<SendId>,
    ) -> Result<Option<Seq>, EngineError> {
        let Some(id) = id else { return Ok(None) };
        match self.dedup.get(id, self.clock.now()) {
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
        let known = address.session().and_then(|session| self.sessions.entry(session));
        known.is_some_and(|known| seq <= known.since)
    }

    /// Forgets ids that are over, at most [`FORGET_IDS`]. Returns whether there are more.
    pub(crate) fn forget_ids(&mut self) -> bool {
        self.dedup.forget(self.clock.now(), FORGET_IDS)
    }

    /// How many ids are remembered.
    pub(crate) fn remembered_ids(&self) -> usize {
        self.dedup.len()
    }

    /// Whether this id of a message is remembered.
    pub(crate) fn remembers(&self, key: DedupKey, seq: Seq) -> bool {
        self.dedup.remembers(key, seq)
    }
}
