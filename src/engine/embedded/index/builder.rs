//! Builds the index at the start, from what is on the disk.

use std::sync::atomic::Ordering;

use crate::engine::Registration;
use crate::engine::Settings;
use crate::engine::embedded::dedup::SendId;
use crate::engine::embedded::index::address_log::LogEntry;
use crate::engine::embedded::index::pending_writes::Floor;
use crate::engine::embedded::index::shards::ShardGuard;
use crate::engine::embedded::index::{FollowUp, Index};
use crate::engine::embedded::store_clock::StoreClock;
use crate::message::{Address, MessageId, Outcome, SenderName, Seq, SessionId};

/// A message that was read back from the disk.
#[derive(Debug, Clone)]
pub(crate) struct RestoredMessage {
    pub(crate) seq: Seq,
    pub(crate) prev: Seq,
    /// In the store's time.
    pub(crate) expires_at: u64,
    /// What it counts against the bounds.
    pub(crate) bytes: usize,
    /// The mailbox that gets a receipt, and the sender's id for the message.
    pub(crate) receipt: Option<(Address, MessageId)>,
    /// The author that pays for it.
    pub(crate) payer: Option<SenderName>,
}

/// An index that is being built. Ids, registrations and floors come first, then messages in seq order.
#[derive(Debug)]
pub(crate) struct IndexBuilder {
    index: Index,
    /// Messages that had left before a crash, and what became of them: their receipts may not have been stored.
    unsent_receipts: Vec<(Seq, Outcome)>,
}

impl IndexBuilder {
    /// Nothing is restored yet. Seqs up to the first one were given, and logs up to the second one were forgotten.
    pub(crate) fn new(settings: Settings, clock: StoreClock, secret: &[u8; 16], seqs: (Seq, Seq)) -> Self {
        let index = Index::with((settings, clock), secret, seqs, true);
        Self { index, unsent_receipts: Vec::new() }
    }

    /// Messages up to here may be missing.
    pub(crate) fn lost_through(&mut self, through: Seq) {
        self.index.lost = through;
    }

    /// This many ids are going to be restored.
    pub(crate) fn reserve_ids(&mut self, ids: usize) {
        self.index.dedup.lock().reserve(ids);
    }

    pub(crate) fn restore_id(&mut self, id: SendId, seq: Seq, until: u64) {
        self.index.dedup.lock().restore(id, seq, until);
    }

    pub(crate) fn restore_registration(&mut self, session: &SessionId, registration: Registration) {
        let since = registration.since;
        if since > Seq::START {
            let address = Address::Session(session.clone());
            self.shard(&address).logs.restore_end(&address, since);
            self.resume_after(self.newest().max(since));
        }
        self.index.sessions.set(session, Some(registration));
    }

    pub(crate) fn restore_floor(&mut self, address: &Address, floor: Floor) {
        self.shard(address).logs.restore_floor(address, floor);
        // The floor of a mailbox that was ended can be above every seq that was committed by then.
        self.resume_after(self.newest().max(floor.floor));
    }

    pub(crate) fn restore(&mut self, address: &Address, message: RestoredMessage) {
        let RestoredMessage { seq, prev, expires_at, bytes, receipt, payer } = message;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let payer = self.index.totals.add(bytes as usize, payer.as_ref());
        let entry = LogEntry::new(seq, expires_at, bytes).paid_by(payer);
        let is_waiting = self.shard(address).logs.restore(address, entry, prev);
        if !is_waiting {
            self.index.totals.release(bytes as usize, payer);
        }
        // An earlier owner of the session that sent it gets no receipt any more.
        let receipt = receipt.filter(|(mailbox, _)| seq > self.since(mailbox));
        match receipt {
            Some((mailbox, id)) => {
                self.index.receipts.reserve(seq, mailbox, id);
                if is_waiting {
                    self.shard(address).logs.restore_receipt(address);
                } else {
                    self.unsent_receipts.push((seq, self.outcome_below_floor(address, seq)));
                }
            }
            None if !is_waiting => _ = self.shard(address).backing.delete([seq].into_iter()),
            None => {}
        }
    }

    fn shard(&self, address: &Address) -> ShardGuard<'_> {
        self.index.shards.lock(address).expect("nothing has panicked while the index is built")
    }

    /// Since when a mailbox has its owner.
    fn since(&self, mailbox: &Address) -> Seq {
        self.index.sessions.since(mailbox).unwrap_or_default()
    }

    /// What became of a message below the floor: it was acknowledged, unless its session was ended or has another owner.
    fn outcome_below_floor(&self, address: &Address, seq: Seq) -> Outcome {
        if seq <= self.since(address) { Outcome::Expired } else { Outcome::Acknowledged }
    }

    /// The newest seq given so far.
    pub(crate) fn newest(&self) -> Seq {
        self.index.newest()
    }

    /// The next seq is above `newest`.
    pub(crate) fn resume_after(&mut self, newest: Seq) {
        let Index { newest: given, committed, settled, .. } = &self.index;
        for seq in [&**given, &**committed, settled] {
            seq.store(newest.0, Ordering::Release);
        }
    }

    /// Everything is restored: derives the rest and appends the receipts that a crash may have kept back.
    pub(crate) fn finish(self) -> Index {
        let Self { index, unsent_receipts } = self;
        for mut shard in index.shards.each() {
            shard.logs.restored();
        }
        let mut follow = FollowUp::default();
        for (seq, outcome) in unsent_receipts {
            index.emit_receipt(seq, outcome, &mut follow);
        }
        index
    }
}
