//! The index: everything the engine knows without reading the disk.
//!
//! One structure for every level. At level `memory` the messages themselves are in it. At the other levels it holds
//! 24 bytes for each message, and readers fetch the rest from the disk.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::millis;
use crate::engine::embedded::dedup::{Dedup, SendId};
use crate::engine::embedded::store_clock::StoreClock;
use crate::engine::handles::Handles;
use crate::engine::registrations::{RegistrationChange, RegistrationTable};
use crate::engine::{
    EngineError, Position, Register, RegisterError, Registration, RegistrationSource, Settings,
};
use crate::hub::{EndReason, Hubs};
use crate::message::{Address, Draft, Message, Outcome, Publication, SenderName, Seq, SessionId};

mod address_log;
mod backing;
mod builder;
mod changes;
mod commit;
mod expiry;
mod fullness;
mod ids;
mod logs;
mod outcome;
mod payers;
mod pending_writes;
mod prepared;
mod queue;
mod read_plan;
mod receipts;
mod recent;
mod refuse;
mod room;
mod tallies;
#[cfg(test)]
mod tests;

use address_log::LogEntry;
use backing::Backing;
use changes::{Changes, StagedChange};
use fullness::Fullness;
use logs::AddressLogs;
use queue::{CommitQueue, cost, frame_cost};
use read_plan::ReadRequest;
use receipts::ReceiptLedger;
use room::Room;

pub(super) use builder::{IndexBuilder, RestoredMessage};
pub(super) use changes::{PlannedChange, RegisterWaiter};
pub(super) use outcome::{Appended, Published};
pub(super) use payers::PayerId;
pub(super) use pending_writes::{Floor, PendingDelete, PendingWrites};
pub(super) use prepared::PreparedAppend;

use pending_writes::MAX_FLOORS;
pub(super) use queue::{Pending, Waiter, stored_cost};
pub(super) use read_plan::ReadPlan;

/// How many empty logs are remembered: as many as there are floors on the disk.
pub(super) const EMPTY_LOGS: usize = MAX_FLOORS;

/// How many messages one slice of expiry removes while it holds the lock, and the rest of one address more.
const EXPIRY_SLICE: usize = 512;

/// How often it is looked whether something of a former owner is left.
const FORMER_RECHECK: Duration = Duration::from_secs(60);

/// Everything the engine knows without reading the disk.
#[derive(Debug)]
pub(super) struct Index {
    settings: Settings,
    clock: StoreClock,
    handles: Handles,
    /// The newest seq given.
    newest: Seq,
    /// Up to here everything is committed or refused. What is above cannot be seen.
    committed: Seq,
    /// Up to here messages may be missing, without a trace of them; [`Seq::START`] if none are.
    lost: Seq,
    logs: AddressLogs,
    queue: CommitQueue,
    dedup: Dedup,
    receipts: ReceiptLedger,
    backing: Backing,
    sessions: RegistrationTable,
    changes: Changes,
    /// Messages that expired and were not reported yet.
    expired: usize,
    fullness: Fullness,
}

/// When something that is kept this long from `now` on expires. Fits SQLite's integers.
fn expiry(now: u64, age: Duration) -> u64 {
    now.saturating_add(millis(age)).min(i64::MAX.unsigned_abs())
}

impl Index {
    /// An empty index. Its first seq is the one after `newest`.
    pub(super) fn in_memory(settings: Settings, clock: StoreClock, secret: &[u8; 16], newest: Seq) -> Self {
        Self::with((settings, clock), secret, (newest, Seq::START), Backing::memory())
    }

    fn with(
        (settings, clock): (Settings, StoreClock),
        secret: &[u8; 16],
        (newest, forgotten): (Seq, Seq),
        backing: Backing,
    ) -> Self {
        let handles = Handles::new(secret);
        Self {
            handles: handles.clone(),
            newest,
            committed: newest,
            lost: Seq::START,
            logs: AddressLogs::new(forgotten, settings.tallied()),
            queue: CommitQueue::new(settings.queue),
            dedup: Dedup::new(millis(settings.dedup_window), settings.id_limits()),
            receipts: ReceiptLedger::default(),
            backing,
            sessions: RegistrationTable::new(handles),
            changes: Changes::default(),
            expired: 0,
            fullness: Fullness::default(),
            clock,
            settings,
        }
    }

    /// When something that is kept this long from now on expires.
    pub(super) fn expiry(&self, age: Duration) -> u64 {
        expiry(self.clock.now(), age)
    }

    /// Whether an append is refused or known before it is looked at: the queue has no room for its author, or it is a
    /// repeat.
    pub(super) fn refuses(
        &mut self,
        address: &Address,
        id: Option<SendId>,
        payer: Option<&SenderName>,
        size: usize,
    ) -> Option<EngineError> {
        match self.sent_before(address, id) {
            Ok(Some(_)) => None,
            Ok(None) => self.check_queue(payer, size).err(),
            Err(refused) => Some(refused),
        }
    }

    /// Whether the queue has room for another message of this author, of so many bytes.
    fn check_queue(&mut self, payer: Option<&SenderName>, size: usize) -> Result<(), EngineError> {
        self.queue.check_room(self.payer(payer), size).inspect_err(|refused| self.fullness.note(refused))
    }

    /// What refuses messages because it is full.
    pub(super) fn failing(&mut self) -> Vec<Arc<str>> {
        let stored = (self.logs.bytes(), self.settings.total_bytes);
        self.fullness.failing(stored, self.queue.is_half_full())
    }

    /// The author that pays for a message. [`PayerId::NONE`] if it has no messages yet.
    fn payer(&self, name: Option<&SenderName>) -> Option<PayerId> {
        name.map(|name| self.logs.payers().find(name))
    }

    /// Gives a message its seq, if there is room for it.
    pub(super) fn append(
        &mut self,
        append: PreparedAppend,
        waiter: Option<Waiter>,
    ) -> Result<Appended, EngineError> {
        let now = self.clock.now();
        if let Some(seq) = self.sent_before(&append.address, append.send_id)? {
            if let Some(waiter) = waiter
                && seq > self.committed
            {
                self.queue.push_repeat(seq, waiter);
            }
            return Ok(Appended::Known(seq));
        }
        let PreparedAppend { address, draft, send_id, ttl, ts, receipt, payer, user, since } = append;
        self.check_queue(payer.as_ref(), draft.len_with(self.next()))?;
        if let Some(session) = address.session()
            && self.sessions.has_expired(session, now)
        {
            // What comes from here on is not for its former owner.
            self.expire_registration(session, now, |_| true);
        }
        if !self.sessions.is_for(&address, (user.as_ref(), since), now) {
            return Err(EngineError::AnotherUser);
        }
        self.make_room(&address, &draft, receipt.as_ref().map(|(mailbox, _)| mailbox), payer.as_ref())
            .inspect_err(|refused| self.fullness.note(refused))?;
        let payer = self.logs.enter(payer.as_ref());
        let seq = self.next();
        if let Some((mailbox, id)) = receipt.clone() {
            self.receipts.reserve(seq, mailbox, id);
        }
        if let Some(id) = send_id {
            self.dedup.remember(id, seq, now);
        }
        let expires_at = expiry(now, self.room().age(&address, ttl));
        let (prev, publication) = (Seq::START, Arc::new(draft.seal(seq)));
        self.place(Pending {
            seq,
            prev,
            expires_at,
            ts,
            address,
            publication,
            send_id,
            receipt,
            waiter,
            payer,
        });
        Ok(Appended::New(seq))
    }

    /// The next seq.
    fn next(&self) -> Seq {
        Seq(self.newest.0 + 1)
    }

    /// Checks that there is room for a message. If there is none, removes expired messages first: those of the mailboxes
    /// that have to take something, and one slice of all others.
    fn make_room(
        &mut self,
        address: &Address,
        draft: &Draft,
        receipt_for: Option<&Address>,
        payer: Option<&SenderName>,
    ) -> Result<(), EngineError> {
        let check = |index: &Self| {
            let cost = frame_cost(draft.len_with(index.next()));
            index.room().check(address, cost, receipt_for, index.payer(payer))
        };
        if check(self).is_ok() {
            return Ok(());
        }
        let now = self.clock.now();
        self.expire_at(address, now);
        if let Some(mailbox) = receipt_for {
            self.expire_at(mailbox, now);
        }
        self.expire_messages(now);
        // Receipts of expired messages have taken seqs.
        check(self)
    }

    fn room(&self) -> Room<'_> {
        Room { settings: &self.settings, logs: &self.logs, receipts: &self.receipts }
    }

    /// Puts a message with a new seq into the log of its address and into the queue.
    fn place(&mut self, mut pending: Pending) {
        let Pending { seq, expires_at, payer, ref publication, .. } = pending;
        debug_assert!(seq > self.newest, "a seq is given once");
        self.newest = seq;
        self.backing.append(seq, publication);
        let bytes = u32::try_from(cost(publication)).unwrap_or(u32::MAX);
        let entry = LogEntry::new(seq, expires_at, bytes).paid_by(payer);
        let entry = entry.with_receipt(pending.receipt.is_some());
        pending.prev = self.logs.push(&pending.address, entry);
        self.queue.push(pending);
    }

    /// Takes messages to commit next, in order.
    pub(super) fn take(&mut self, messages: usize, bytes: usize) -> Vec<Pending> {
        self.queue.take(messages, bytes)
    }

    /// A message has left for good: appends the receipt that its sender asked for. Returns the receipt's seq.
    fn emit_receipt(&mut self, seq: Seq, outcome: Outcome) -> Seq {
        let Some((address, id)) = self.receipts.take(seq) else { return Seq::START };
        let now = self.clock.now();
        if address.session().is_some_and(|session| self.sessions.is_revoked(session, now)) {
            return Seq::START;
        }
        let ts = self.clock.wall();
        let message = Message::receipt(&id, outcome, ts);
        let seq = self.next();
        if let Some(session) = address.session()
            && let Some(former) = self.sessions.raise_former(session, seq)
        {
            self.backing.note_registration(session, Some(former.clone()));
        }
        let publication = Arc::new(Publication::encode(&address, Some(seq), &message));
        let expires_at = expiry(now, self.settings.mailbox.age);
        let (prev, send_id, receipt, waiter) = (Seq::START, None, None, None);
        let payer = PayerId::NONE;
        self.place(Pending {
            seq,
            prev,
            expires_at,
            ts,
            address,
            publication,
            send_id,
            receipt,
            waiter,
            payer,
        });
        seq
    }

    /// See [`crate::engine::Engine::read`].
    pub(super) fn read(&self, address: &Address, after: Seq, limit: usize) -> ReadPlan {
        let (committed, now) = (self.committed, self.clock.now());
        let request = ReadRequest { address, after, limit, committed, now, lost: self.lost };
        match self.logs.get(address) {
            Some(log) => ReadPlan::of(log, self.logs.holes(), &request, |seq| self.backing.get(seq)),
            None => ReadPlan::nothing(&request, self.logs.forgotten()),
        }
    }

    /// Whether a message is still there.
    pub(super) fn holds(&self, address: &Address, seq: Seq) -> bool {
        self.logs.get(address).is_some_and(|log| log.holds(seq))
    }

    /// See [`crate::engine::Engine::trim`].
    pub(super) fn trim(&mut self, address: &Address, through: Seq) {
        let through = through.min(self.committed);
        let Some(removed) = self.logs.trim(address, through) else { return };
        self.drop_entries(address, &removed, Outcome::Acknowledged);
    }

    /// See [`crate::engine::Engine::held_too_long`].
    pub(super) fn held_too_long(&self, address: &Address, acknowledged: Seq) -> Seq {
        self.logs.get(address).map_or(Seq::START, |log| log.beyond(acknowledged, self.settings.held()))
    }

    /// Messages have left the log of an address: emits their receipts and deletes their bodies.
    fn drop_entries(&mut self, address: &Address, entries: &[LogEntry], outcome: Outcome) {
        for entry in entries {
            let receipt = if entry.receipt() { self.emit_receipt(entry.seq, outcome) } else { Seq::START };
            self.backing.delete(entry.seq, receipt);
        }
        self.note_floor_if_empty(address);
    }

    fn note_floor_if_empty(&mut self, address: &Address) {
        if self.logs.list_if_empty(address) {
            self.note_floor(address);
        }
    }

    /// The next commit writes the floor of this address, if there is a disk.
    fn note_floor(&mut self, address: &Address) {
        if self.backing.writes().is_some()
            && let Some(floor) = self.logs.floor(address)
            && let Some(covered) = self.backing.note_floor(address, floor)
        {
            self.logs.forget_through(covered);
        }
    }

    /// Forgets empty logs beyond `keep`; see [`AddressLogs::forget_empty`].
    pub(super) fn forget_empty(&mut self, hubs: &Hubs, keep: usize, most_looks: usize) {
        self.logs.forget_empty(keep, most_looks, |address| hubs.is_read(address));
        self.backing.shrink();
    }

    /// Removes at most [`EXPIRY_SLICE`] expired messages, the rest of the last mailbox, and as many registrations.
    ///
    /// Returns how many of both.
    pub(super) fn expire_slice(&mut self, hubs: &Hubs) -> usize {
        let now = self.clock.now();
        let messages = self.expire_messages(now);
        let mut registrations = 0;
        while registrations < EXPIRY_SLICE {
            let Some(session) = self.sessions.ended(now) else { break };
            self.expire_registration(&session, now, |address| hubs.is_read(address));
            registrations += 1;
        }
        self.sessions.shrink();
        messages + registrations
    }

    /// Removes at most [`EXPIRY_SLICE`] expired messages, and the rest of the last mailbox. Returns how many it has looked for.
    fn expire_messages(&mut self, now: u64) -> usize {
        let mut messages = 0;
        while messages < EXPIRY_SLICE {
            let Some((address, expired)) = self.logs.expire_next(now, self.committed) else { break };
            // A look at a log counts, too: it may have become empty since.
            messages += expired.len().max(1);
            self.drop_expired(&address, &expired);
        }
        messages
    }

    /// Removes what has expired at an address.
    fn expire_at(&mut self, address: &Address, now: u64) {
        let expired = self.logs.expire(address, now, self.committed);
        self.drop_expired(address, &expired);
    }

    fn drop_expired(&mut self, address: &Address, expired: &[LogEntry]) {
        if !expired.is_empty() {
            self.expired += expired.len();
            self.drop_entries(address, expired, Outcome::Expired);
            self.note_floor(address);
        }
    }

    /// A registration has expired, or it is time to look again at what was left of it.
    fn expire_registration(&mut self, session: &SessionId, now: u64, is_read: impl Fn(&Address) -> bool) {
        let left = self.left_of(session, now, is_read);
        let was_former = |known: &Registration| matches!(known.source, RegistrationSource::Former { .. });
        // To look again is not worth a write.
        match left.is_some() && self.sessions.entry(session).is_some_and(was_former) {
            true => self.sessions.set(session, left),
            false => self.set_registration(session, left),
        }
    }

    /// What is left of a registration that ends: its owner, if something is for that owner alone. Readers count, since
    /// they end when another owner comes.
    fn left_of(
        &self,
        session: &SessionId,
        now: u64,
        is_read: impl Fn(&Address) -> bool,
    ) -> Option<Registration> {
        let known = self.sessions.entry(session)?;
        let address = Address::Session(session.clone());
        let is_left = self.logs.get(&address).is_some_and(|log| !log.is_empty())
            || self.receipts.knows(&address)
            || is_read(&address);
        is_left.then(|| known.clone().into_former(self.newest, expiry(now, FORMER_RECHECK)))
    }

    /// How many messages expired since the last call.
    pub(super) fn take_expired(&mut self) -> usize {
        std::mem::take(&mut self.expired)
    }

    /// What a registration changes.
    fn plan(&self, register: &Register, hubs: &Hubs) -> Result<Option<RegistrationChange>, RegisterError> {
        let (limit, now) = (self.settings.sessions_per_user, self.clock.now());
        let is_connected = |session: &SessionId| hubs.is_read(&Address::Session(session.clone()));
        let mut change = self.sessions.plan(register, (now, self.newest), limit, is_connected)?;
        if let Some(RegistrationChange { gives_way: Some((other, left)), .. }) = &mut change {
            *left = self.left_of(other, now, |_| false);
        }
        Ok(change)
    }

    /// Registers a session. Returns whether that changes anything.
    pub(super) fn register(&mut self, register: &Register, hubs: &Hubs) -> Result<bool, RegisterError> {
        if self.changes.is_promised_to_other(&register.session, register.user.as_ref()) {
            return Err(RegisterError::Taken);
        }
        let change = self.plan(register, hubs)?;
        let Some(RegistrationChange { registration, gives_way, takes_over }) = change else {
            return Ok(false);
        };
        if let Some((other, left)) = gives_way {
            self.set_registration(&other, left);
        }
        self.set_registration(&register.session, Some(registration));
        if let Some(through) = takes_over {
            self.take_over(&register.session, through, hubs);
        }
        Ok(true)
    }

    /// Another user has a session now. What was for the former owner up to `through` is deleted, and the readers end.
    fn take_over(&mut self, session: &SessionId, through: Seq, hubs: &Hubs) {
        let address = Address::Session(session.clone());
        self.receipts.void(&address, through);
        if self.logs.end(&address, through) {
            self.expired += self.remove_ended(&address);
            self.note_floor(&address);
        }
        hubs.end(&address, EndReason::OwnerChanged);
    }

    fn set_registration(&mut self, session: &SessionId, to: Option<Registration>) {
        self.sessions.set(session, to.clone());
        self.backing.note_registration(session, to);
    }

    /// Ends a session: its registration and its mailbox. No token brings it back before `revoked_for` is over, nor before
    /// its registration and all tokens that are known would have ended.
    pub(super) fn end(&mut self, session: &SessionId, revoked_for: Duration) {
        self.set_registration(session, self.revoked(session, revoked_for));
        self.end_mailbox(session);
    }

    /// What becomes of the registration of a session that ends.
    fn revoked(&self, session: &SessionId, revoked_for: Duration) -> Option<Registration> {
        let now = self.clock.now();
        let known = self.sessions.entry(session);
        let registered_until = self.sessions.get(session, now).map_or(0, |known| known.expires_at);
        let tokens_until = known.map_or(0, |known| known.tokens_until);
        let expires_at = registered_until.max(tokens_until).max(expiry(now, revoked_for));
        let (source, since) = (RegistrationSource::Revoked, self.newest);
        let revoked = Registration { user: None, expires_at, source, tokens_until, since };
        (!revoked_for.is_zero()).then_some(revoked)
    }

    fn end_mailbox(&mut self, session: &SessionId) {
        let address = Address::Session(session.clone());
        self.receipts.void(&address, self.newest);
        if self.logs.end(&address, self.newest) {
            self.remove_ended(&address);
            self.note_floor(&address);
        }
    }

    /// Registers a session with the next commit.
    ///
    /// # Errors
    /// It is refused by what is known now. Later the waiter is told.
    pub(super) fn stage_registration(
        &mut self,
        register: &Register,
        hubs: &Hubs,
        waiter: RegisterWaiter,
    ) -> Result<(), RegisterError> {
        if !self.changes.has(&register.session) {
            self.plan(register, hubs)?;
        }
        self.changes.stage(StagedChange::Register(register.clone(), waiter));
        Ok(())
    }

    /// Ends a session with the next commit; see [`Self::end`].
    pub(super) fn stage_end(&mut self, session: &SessionId, revoked_for: Duration, waiter: Waiter) {
        self.changes.stage(StagedChange::End(session.clone(), revoked_for, waiter));
    }

    /// Takes registrations and ends to commit next, with messages up to `through`. Those that are refused are told.
    pub(super) fn begin_changes(&mut self, hubs: &Hubs, through: Seq) -> Vec<PlannedChange> {
        let mut planned = Vec::new();
        while let Some(change) = self.changes.next() {
            if let Some(change) = self.plan_change(change, hubs, through) {
                self.changes.begin(&change);
                planned.push(change);
            }
        }
        planned
    }

    fn plan_change(&self, change: StagedChange, hubs: &Hubs, through: Seq) -> Option<PlannedChange> {
        match change {
            StagedChange::Register(register, waiter) => {
                let refused = match self.plan(&register, hubs) {
                    Ok(Some(change)) => {
                        let session = register.session;
                        return Some(PlannedChange::Register { session, change, waiter });
                    }
                    Ok(None) => Ok(self.committed),
                    Err(refused) => Err(refused),
                };
                _ = waiter.send(refused);
                None
            }
            StagedChange::End(session, revoked_for, waiter) => {
                let log = self.logs.get(&Address::Session(session.clone()));
                let floor =
                    log.map(|log| Floor { floor: log.last().min(through), expired: log.position().expired });
                let revoked = self.revoked(&session, revoked_for);
                Some(PlannedChange::End { session, revoked, floor, waiter })
            }
        }
    }

    /// These changes are stored: they become visible.
    pub(super) fn apply_changes(&mut self, changes: &[PlannedChange], hubs: &Hubs) {
        for change in changes {
            for (session, to) in change.registrations() {
                self.sessions.set(session, to.cloned());
                // What was noted meanwhile is older now.
                if let Some(writes) = self.backing.writes_mut() {
                    writes.registrations.remove(session);
                }
            }
            match change {
                PlannedChange::Register { session, change, .. } => {
                    if let Some(through) = change.takes_over {
                        self.take_over(session, through, hubs);
                    }
                }
                PlannedChange::End { session, .. } => self.end_mailbox(session),
            }
        }
    }

    /// The changes that were taken are stored, or have failed.
    pub(super) fn changes_done(&mut self) {
        self.changes.done();
    }

    /// Removes what is committed below the floor of an ended address. Returns how many messages.
    fn remove_ended(&mut self, address: &Address) -> usize {
        let removed = self.logs.remove_ended(address, self.committed);
        self.drop_entries(address, &removed, Outcome::Expired);
        removed.len()
    }

    /// The registered sessions.
    pub(super) fn sessions(&self) -> &RegistrationTable {
        &self.sessions
    }

    pub(super) fn handles(&self) -> &Handles {
        &self.handles
    }

    /// How many messages wait in a mailbox.
    pub(super) fn waiting(&self, mailbox: &Address) -> usize {
        let log = self.logs.get(mailbox);
        log.map_or(0, |log| log.committed(self.committed))
    }

    /// See [`crate::engine::Engine::position`].
    pub(super) fn position(&self, address: &Address) -> Position {
        let position = self.logs.position(address, self.committed);
        Position { expired: position.expired.max(self.lost), ..position }
    }

    /// The newest seq anyone can have seen.
    pub(super) fn committed(&self) -> Seq {
        self.committed
    }

    /// Logs up to here may have been forgotten.
    pub(super) fn forgotten(&self) -> Seq {
        self.logs.forgotten()
    }

    /// How many messages wait to be committed.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether messages should not wait in the queue for others.
    pub(super) fn queue_is_half_full(&self) -> bool {
        self.queue.is_half_full()
    }

    /// Whether the queue has no room for some author.
    pub(super) fn queue_may_refuse(&self) -> bool {
        self.queue.may_refuse()
    }

    /// How much is to be written that somebody waits for, receipts included.
    pub(super) fn awaited(&self) -> usize {
        self.queued() + self.changes.len() + self.backing.writes().map_or(0, |writes| writes.waiters.len())
    }

    /// Whether anything but messages is to be written.
    pub(super) fn has_writes(&self) -> bool {
        self.backing.writes().is_some_and(|writes| !writes.is_empty())
    }

    /// What is to be written besides messages; `None` at level `memory`.
    pub(super) fn writes(&mut self) -> Option<&mut PendingWrites> {
        self.backing.writes_mut()
    }

    /// How many addresses cost memory.
    #[cfg(test)]
    pub(super) fn logs(&self) -> usize {
        self.logs.len()
    }
}
