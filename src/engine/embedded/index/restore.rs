//! Building the index at the start, from what is on the disk.

use super::*;

/// A message read back at the start.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine::embedded) struct RestoredMessage {
    pub(in crate::engine::embedded) seq: Seq,
    pub(in crate::engine::embedded) prev: Seq,
    pub(in crate::engine::embedded) expires_at: u64,
    pub(in crate::engine::embedded) bytes: usize,
}

impl Index {
    /// What earlier processes forgot.
    pub(in crate::engine::embedded) fn restore_forgotten(&mut self, forgotten: Seq) {
        self.forgotten = forgotten;
    }

    pub(in crate::engine::embedded) fn reserve_ids(&mut self, ids: usize) {
        self.dedup.reserve(ids);
    }

    pub(in crate::engine::embedded) fn restore_id(&mut self, key: DedupKey, seq: Seq, until: u64) {
        self.dedup.restore(key, seq, until);
    }

    pub(in crate::engine::embedded) fn restore_registration(
        &mut self,
        session: &SessionId,
        registration: Registration,
    ) {
        self.directory.set(session, Some(registration));
    }

    pub(in crate::engine::embedded) fn restore_floor(&mut self, address: &Address, floor: Floor) {
        let log = self.logs.entry(address.clone()).or_insert_with(|| AddressLog::after_forgotten(Seq::START));
        let Floor { floor, expired } = floor;
        log.position = Position { floor, expired, newest: floor.max(expired) };
        // The floor of a mailbox that was ended may be above everything that was committed by then.
        self.newest = self.newest.max(floor);
        self.committed = self.newest;
    }

    /// Messages come in seq order, after all floors. Answers whether it is still waiting.
    pub(in crate::engine::embedded) fn restore(
        &mut self,
        address: &Address,
        stored: RestoredMessage,
    ) -> bool {
        let RestoredMessage { seq, prev, expires_at, bytes } = stored;
        // Only a log's first message costs a copy of its name.
        let log = match self.logs.get_mut(address) {
            Some(log) => log,
            None => {
                self.logs.entry(address.clone()).or_insert_with(|| AddressLog::after_forgotten(Seq::START))
            }
        };
        if seq <= log.position.floor {
            // Acknowledged, and a crash came before the deletion.
            self.gone.messages.push((seq, Seq::START));
            return false;
        }
        let mut hole = false;
        match log.entries.back() {
            // What was before the first one left in order; expiries have their floor.
            None => {
                if prev > log.position.expired.max(log.position.floor) {
                    log.position.floor = prev;
                }
            }
            Some(before) if prev > before.seq => {
                hole = true;
                self.holes.insert(seq, prev);
            }
            Some(_) => {}
        }
        let bytes32 = u32::try_from(bytes).unwrap_or(u32::MAX);
        if log.entries.len() == log.entries.capacity() {
            // By half instead of doubling: many small logs are what takes the memory.
            log.entries.reserve_exact((log.entries.len() / 2).max(4));
        }
        log.entries.push_back(LogEntry { seq, expires_at, bytes: bytes32, receipt: false, hole });
        log.bytes += bytes;
        log.position.newest = seq;
        log.earliest_expiry = log.earliest_expiry.min(expires_at);
        self.bytes += bytes;
        self.messages += 1;
        true
    }

    /// The message just restored has a sender who wants to know what becomes of it.
    pub(in crate::engine::embedded) fn restore_receipt(
        &mut self,
        address: &Address,
        seq: Seq,
        is_waiting: bool,
        from: SessionId,
        id: MessageId,
    ) {
        *self.reserved_receipts.entry(from.clone()).or_default() += 1;
        self.receipts.insert(seq, (from, id));
        if !is_waiting {
            // What waited for a session that was ended was not read.
            let ended = address.session().is_some_and(|session| self.is_ended(session));
            self.unsent_receipts.push((seq, if ended { Outcome::Expired } else { Outcome::Acknowledged }));
        } else if let Some(entry) = self.logs.get_mut(address).and_then(|log| log.entries.back_mut()) {
            entry.receipt = true;
        }
    }

    /// The next seq is above this one.
    pub(in crate::engine::embedded) fn go_on_after(&mut self, newest: Seq) {
        self.newest = newest;
        self.committed = newest;
    }

    /// Everything is restored: what is derived from it is built.
    pub(in crate::engine::embedded) fn restored(&mut self) {
        let mut earliest = Vec::with_capacity(self.logs.len());
        for (address, log) in &mut self.logs {
            if log.entries.is_empty() {
                log.listed = true;
                self.empty.push_back(address.clone());
            } else {
                earliest.push((log.earliest_expiry, address.clone()));
            }
        }
        self.by_expiry = earliest.into_iter().collect();
    }

    /// Sends the receipts that a crash may have kept back. After the last change of what comes next.
    pub(in crate::engine::embedded) fn emit_unsent_receipts(&mut self) {
        for (seq, state) in std::mem::take(&mut self.unsent_receipts) {
            let after = self.emit_receipt(seq, state);
            self.gone.messages.push((seq, after));
        }
    }
}
