//! Messages come: each gets its seq, its place in the log of its address, and in the queue of the writer.

use std::convert::Infallible;
use std::sync::Arc;

use crate::engine::EngineError;
use crate::engine::embedded::dedup::SendId;
use crate::engine::embedded::index::address_log::LogEntry;
use crate::engine::embedded::index::queue::{Pending, Waiter, cost, frame_cost};
use crate::engine::embedded::index::room::{Room, age};
use crate::engine::embedded::index::shards::{Held, Shard};
use crate::engine::embedded::index::{
    Appended, FollowUp, Index, PayerId, PreparedAppend, Published, broken, expiry,
};
use crate::engine::embedded::outbox::Filled;
use crate::message::{Address, Message, Outcome, Publication, SenderName, Seq};

/// Room that was reserved for a message in the totals.
#[derive(Debug, Clone, Copy)]
struct Reserved {
    payer: PayerId,
    cost: usize,
    /// When it was reserved: one append reads the clock once.
    now: u64,
}

impl Index {
    /// Whether an append is refused or known before it is looked at: the queue has no room for its author, or it is a
    /// repeat.
    pub(in crate::engine::embedded) fn refuses(
        &self,
        address: &Address,
        id: Option<SendId>,
        payer: Option<&SenderName>,
        size: usize,
    ) -> Option<EngineError> {
        let _shard = self.shards.lock(address)?;
        match self.sent_before(address, id) {
            Ok(Some(_)) => None,
            Ok(None) => {
                let payer = payer.map(|name| self.totals.find(name));
                let intake = self.intake.lock()?;
                let refused = intake.check_open().and_then(|()| intake.queue.check_room(payer, size));
                drop(intake);
                refused.inspect_err(|refused| self.fullness.lock().note(refused)).err()
            }
            Err(refused) => Some(refused),
        }
    }

    /// Gives a message its seq, if there is room for it. Adds what is to be published to `filled`.
    ///
    /// # Errors
    /// Why it is refused.
    pub(in crate::engine::embedded) fn append(
        &self,
        append: PreparedAppend,
        waiter: Option<Waiter>,
        filled: &mut Filled,
    ) -> Result<Appended, EngineError> {
        let mut follow = FollowUp::default();
        let appended = self.try_append(append, waiter, &mut follow);
        *filled = filled.and(self.follow_up(follow));
        appended.inspect_err(|refused| self.fullness.lock().note(refused))
    }

    fn try_append(
        &self,
        append: PreparedAppend,
        waiter: Option<Waiter>,
        follow: &mut FollowUp,
    ) -> Result<Appended, EngineError> {
        let receipt_for = append.receipt.as_ref().map(|(mailbox, _)| mailbox);
        let lock = || self.shards.lock_both(&append.address, receipt_for).ok_or_else(broken);
        let mut held = lock()?;
        let mut reserved = self.reserve(&mut held, &append, follow);
        if let Err(refused) = &reserved
            && !matches!(refused, EngineError::AnotherUser | EngineError::IdReused { .. })
        {
            drop(held);
            self.make_room(&append.address, receipt_for, follow);
            held = lock()?;
            reserved = self.reserve(&mut held, &append, follow);
        }
        match reserved? {
            Ok(reserved) => self.place(held, append, waiter, reserved, follow),
            Err(seq) => self.repeat(&held.own, seq, waiter),
        }
    }

    /// Reserves room for a message. The seq that it has, if it was sent before.
    fn reserve(
        &self,
        held: &mut Held<'_>,
        append: &PreparedAppend,
        follow: &mut FollowUp,
    ) -> Result<Result<Reserved, Seq>, EngineError> {
        let PreparedAppend { address, draft, send_id, receipt, payer, user, since, .. } = append;
        if let Some(seq) = self.sent_before(address, *send_id)? {
            return Ok(Err(seq));
        }
        let now = self.clock.now();
        if let Some(session) = address.session()
            && self.sessions.has_expired(session, now)
        {
            // What comes from here on is not for its former owner.
            self.expire_registration(&held.own, session, now, |_| true, follow);
        }
        if !self.sessions.is_for(address, (user.as_ref(), *since), now) {
            return Err(EngineError::AnotherUser);
        }
        let cost = frame_cost(draft.len_with(Seq(self.newest().0 + 1)));
        let room = Room {
            settings: &self.settings,
            totals: &self.totals,
            logs: &held.own.logs,
            receiver: held.receiver(),
            receipts: &self.receipts,
        };
        let receipt_for = receipt.as_ref().map(|(mailbox, _)| mailbox);
        let payer = room.reserve(address, cost, receipt_for, payer.as_ref())?;
        Ok(Ok(Reserved { payer, cost, now }))
    }

    /// A message was sent before. Its sender waits for the first one, if that is not committed yet.
    fn repeat(&self, shard: &Shard, seq: Seq, waiter: Option<Waiter>) -> Result<Appended, EngineError> {
        let Some(waiter) = waiter.filter(|_| seq > self.committed_in(shard)) else {
            return Ok(Appended::Known(seq));
        };
        let mut intake = self.intake.lock().ok_or_else(broken)?;
        intake.check_open()?;
        intake.queue.push_repeat(seq, waiter);
        Ok(Appended::Repeat(seq))
    }

    /// Removes expired messages, since there is no room: those of the mailboxes that have to take something, and one slice of
    /// all others.
    fn make_room(&self, address: &Address, receipt_for: Option<&Address>, follow: &mut FollowUp) {
        let now = self.clock.now();
        for address in [Some(address), receipt_for].into_iter().flatten() {
            if let Some(mut shard) = self.shards.lock(address) {
                self.expire_at(&mut shard, address, now, follow);
            }
        }
        self.expire_messages(now, follow);
    }

    /// Puts a message for which room was reserved into the log of its address. At level `memory` it is committed at once.
    fn place(
        &self,
        mut held: Held<'_>,
        append: PreparedAppend,
        waiter: Option<Waiter>,
        reserved: Reserved,
        follow: &mut FollowUp,
    ) -> Result<Appended, EngineError> {
        let PreparedAppend { address, draft, send_id, ttl, ts, receipt, payer: author, .. } = append;
        let Reserved { payer, cost, now } = reserved;
        let expires_at = expiry(now, age(&self.settings, &address, ttl));
        let entry = |seq| {
            let bytes = u32::try_from(cost).unwrap_or(u32::MAX);
            LogEntry::new(seq, expires_at, bytes).paid_by(payer).with_receipt(receipt.is_some())
        };
        let shard = &mut *held.own;
        let (seq, committed) = if self.is_on_disk {
            let mut given = Seq::START;
            let pushed = shard.logs.push(&address, |prev| {
                let mut intake = self.intake.lock().ok_or_else(broken)?;
                intake.check_open()?;
                intake.queue.check_room(author.as_ref().map(|_| payer), draft.len_with(self.newest()))?;
                given = self.give_seq();
                let (receipt, publication) = (receipt.clone(), Arc::new(draft.seal(given)));
                let pending = Pending::new((given, prev), (expires_at, ts), address.clone(), publication);
                intake.queue.push(Pending { send_id, receipt, waiter, payer, ..pending });
                self.note_queue(&intake);
                follow.wakes |= intake.must_wake_writer();
                Ok(entry(given))
            });
            if let Err(refused) = pushed {
                self.totals.release(cost, payer);
                return Err(refused);
            }
            (given, None)
        } else {
            let seq = self.give_seq();
            let before = shard.logs.push_committed(&address, entry(seq));
            let publication = Arc::new(draft.seal(seq));
            shard.backing.append(seq, &publication);
            (seq, Some((publication, before)))
        };
        if let Some((mailbox, id)) = receipt {
            self.receipts.reserve(seq, mailbox, id);
        }
        if let Some(id) = send_id {
            self.dedup.lock().remember(id, seq, now);
        }
        if let Some((publication, before)) = committed {
            self.publish_at_once(shard, address, (seq, publication), before, follow);
        }
        Ok(Appended::New(seq))
    }

    /// Makes a message visible that its log has committed at once, at level `memory`.
    fn publish_at_once(
        &self,
        shard: &mut Shard,
        address: Address,
        (seq, publication): (Seq, Arc<Publication>),
        before: (Seq, Seq),
        follow: &mut FollowUp,
    ) {
        if let Some(prev) = self.make_visible(shard, &address, seq, before, follow) {
            let published = Published { address, publication, prev };
            follow.filled = follow.filled.and(self.outbox.add(published));
        }
    }

    /// A message has left for good: appends the receipt that its sender asked for, and notes that the message is to be
    /// deleted together with that.
    pub(super) fn emit_receipt(&self, left: Seq, outcome: Outcome, follow: &mut FollowUp) {
        if let Some(address) = self.receipts.receiver(left)
            && let Some(mut shard) = self.shards.lock(&address)
        {
            // Under its lock it is certain whether the session still gets it.
            let taken = self.receipts.take(left);
            let now = self.clock.now();
            let is_revoked =
                || address.session().is_some_and(|session| self.sessions.is_revoked(session, now));
            if let Some((_, id)) = taken
                && !is_revoked()
            {
                let ts = self.clock.wall();
                let message = Message::receipt(&id, outcome, ts);
                return self.place_receipt(&mut shard, address, (left, &message), follow);
            }
        }
        self.note_delete(left, Seq::START, follow);
    }

    fn place_receipt(
        &self,
        shard: &mut Shard,
        address: Address,
        (left, message): (Seq, &Message),
        follow: &mut FollowUp,
    ) {
        let expires_at = expiry(self.clock.now(), self.settings.mailbox.age);
        let ts = message.ts;
        let encode = |seq| {
            let publication = Arc::new(Publication::encode(&address, Some(seq), message));
            let cost = cost(&publication);
            self.totals.add(cost, None);
            let entry = LogEntry::new(seq, expires_at, u32::try_from(cost).unwrap_or(u32::MAX));
            (publication, entry)
        };
        if !self.is_on_disk {
            let seq = self.give_seq();
            if let Some(session) = address.session() {
                self.sessions.raise_former(session, seq);
            }
            let (publication, entry) = encode(seq);
            let before = shard.logs.push_committed(&address, entry);
            shard.backing.append(seq, &publication);
            return self.publish_at_once(shard, address, (seq, publication), before, follow);
        }
        let Some(mut intake) = self.intake.lock() else { return };
        let Ok(()) = shard.logs.push(&address, |prev| {
            let seq = self.give_seq();
            if let Some(session) = address.session()
                && let Some(former) = self.sessions.raise_former(session, seq)
            {
                intake.writes.registrations.insert(session.clone(), Some(former));
            }
            let (publication, entry) = encode(seq);
            intake.queue.push(Pending::new((seq, prev), (expires_at, ts), address.clone(), publication));
            intake.writes.note_delete(left, seq);
            Ok::<_, Infallible>(entry)
        });
        self.note_queue(&intake);
        follow.wakes |= intake.must_wake_writer();
    }

    /// A message is to be deleted from the disk, and has no receipt.
    fn note_delete(&self, seq: Seq, receipt: Seq, follow: &mut FollowUp) {
        if self.is_on_disk
            && let Some(mut intake) = self.intake.lock()
        {
            intake.writes.note_delete(seq, receipt);
            follow.wakes |= intake.must_wake_writer();
        }
    }
}
