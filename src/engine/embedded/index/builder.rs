//! Builds the index at the start, from what is on the disk.

use crate::engine::Registration;
use crate::engine::Settings;
use crate::engine::embedded::dedup::SendId;
use crate::engine::embedded::index::Index;
use crate::engine::embedded::index::address_log::LogEntry;
use crate::engine::embedded::index::backing::Backing;
use crate::engine::embedded::index::pending_writes::Floor;
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
        let index = Index::with((settings, clock), secret, seqs, Backing::disk());
        Self { index, unsent_receipts: Vec::new() }
    }

    /// Messages up to here may be missing.
    pub(crate) fn lost_through(&mut self, through: Seq) {
        self.index.lost = through;
    }

    /// This many ids are going to be restored.
    pub(crate) fn reserve_ids(&mut self, ids: usize) {
        self.index.dedup.reserve(ids);
    }

    pub(crate) fn restore_id(&mut self, id: SendId, seq: Seq, until: u64) {
        self.index.dedup.restore(id, seq, until);
    }

    pub(crate) fn restore_registration(&mut self, session: &SessionId, registration: Registration) {
        let since = registration.since;
        if since > Seq::START {
            self.index.logs.restore_end(&Address::Session(session.clone()), since);
            self.resume_after(self.index.newest.max(since));
        }
        self.index.sessions.set(session, Some(registration));
    }

    pub(crate) fn restore_floor(&mut self, address: &Address, floor: Floor) {
        self.index.logs.restore_floor(address, floor);
        // The floor of a mailbox that was ended can be above every seq that was committed by then.
        self.resume_after(self.index.newest.max(floor.floor));
    }

    pub(crate) fn restore(&mut self, address: &Address, message: RestoredMessage) {
        let RestoredMessage { seq, prev, expires_at, bytes, receipt, payer } = message;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let payer = self.index.logs.enter(payer.as_ref());
        let entry = LogEntry::new(seq, expires_at, bytes).paid_by(payer);
        let is_waiting = self.index.logs.restore(address, entry, prev);
        if !is_waiting {
            self.index.logs.leave(payer);
        }
        // An earlier owner of the session that sent it gets no receipt any more.
        let receipt = receipt.filter(|(mailbox, _)| seq > self.since(mailbox));
        match receipt {
            Some((mailbox, id)) => {
                self.index.receipts.reserve(seq, mailbox, id);
                if is_waiting {
                    self.index.logs.restore_receipt(address);
                } else {
                    self.unsent_receipts.push((seq, self.outcome_below_floor(address, seq)));
                }
            }
            None if !is_waiting => self.index.backing.delete(seq, Seq::START),
            None => {}
        }
    }

    /// Since when a mailbox has its owner. That of a backend has one owner for ever.
    fn since(&self, mailbox: &Address) -> Seq {
        let known = mailbox.session().and_then(|session| self.index.sessions.entry(session));
        known.map_or(Seq::START, |known| known.since)
    }

    /// What became of a message below the floor: it was acknowledged, unless its session was ended or has another owner.
    fn outcome_below_floor(&self, address: &Address, seq: Seq) -> Outcome {
        if seq <= self.since(address) { Outcome::Expired } else { Outcome::Acknowledged }
    }

    /// The newest seq given so far.
    pub(crate) fn newest(&self) -> Seq {
        self.index.newest
    }

    /// The next seq is above `newest`.
    pub(crate) fn resume_after(&mut self, newest: Seq) {
        self.index.newest = newest;
        self.index.committed = newest;
    }

    /// Everything is restored: derives the rest and appends the receipts that a crash may have kept back.
    pub(crate) fn finish(self) -> Index {
        let Self { mut index, unsent_receipts } = self;
        index.logs.restored();
        for (seq, outcome) in unsent_receipts {
            let receipt = index.emit_receipt(seq, outcome);
            index.backing.delete(seq, receipt);
        }
        index
    }
}
