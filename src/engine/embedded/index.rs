//! What waits where: everything the engine knows without reading the disk.
//!
//! One structure for every level. At level `memory` the messages themselves are in it; at the others it holds
//! about 24 bytes for each message, and who reads fetches the rest from the disk.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::millis;
use crate::engine::embedded::dedup::{Dedup, DedupHasher, DedupKey};
use crate::engine::embedded::directory::{Directory, Handles};
use crate::engine::{
    Append, EngineError, Position, Register, RegisterError, Registration, RegistrationSource, Settings,
};
use crate::hub::Hubs;
use crate::message::{
    Address, Gap, GapReason, Handle, Item, Message, MessageId, Outcome, Publication, Seq, SessionId, UserId,
};
use crate::sync::shrink;

mod address_log;
mod expiry;
mod restore;
mod sessions;

use address_log::{AddressLog, LogEntry};
use expiry::EXPIRY_SLICE;
pub(super) use restore::RestoredMessage;

/// What a stored message costs besides its frame: places in tables, reference counts. Bytes.
const OVERHEAD: usize = 256;

/// How many empty logs are remembered, so that returning readers are told exactly what they missed.
pub(super) const EMPTY_LOGS: usize = 65_536;

/// A read is complete once it has this many bytes.
const READ_BYTES: usize = 1 << 20;

/// Publications kept in memory for readers that are a little behind, in bytes and in number.
const RECENT_BYTES: usize = 8 << 20;
const RECENT_MESSAGES: usize = 16_384;

pub(super) type Waiter = oneshot::Sender<Result<Seq, EngineError>>;

/// A message that has its place, and is not committed yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) seq: Seq,
    /// The seq before it in its mailbox or history, also if that is gone by now.
    pub(super) prev: Seq,
    pub(super) expires_at: u64,
    pub(super) ts: u64,
    pub(super) address: Address,
    pub(super) publication: Arc<Publication>,
    pub(super) key: Option<DedupKey>,
    /// Who wants to know what becomes of it, and under which id.
    pub(super) receipt: Option<(SessionId, MessageId)>,
    /// Who waits for it; nobody for a receipt, which must not get lost.
    pub(super) waiter: Option<Waiter>,
}

/// Where an append was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Appended {
    New(Seq),
    /// The same message was appended before.
    Known(Seq),
}

/// What an emptied log leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Floor {
    pub(super) floor: Seq,
    pub(super) expired: Seq,
}

/// What is gone from the index and not yet from the disk, and what else a commit takes along.
#[derive(Debug, Default)]
pub(super) struct PendingDeletes {
    /// Messages, each with the seq of the receipt that must be stored no later.
    pub(super) messages: Vec<(Seq, Seq)>,
    pub(super) floors: HashMap<Address, Floor>,
    /// Registrations that changed: what they are now, or that they are no more.
    pub(super) registrations: HashMap<SessionId, Option<Registration>>,
    /// Who waits for those to be stored.
    pub(super) waiters: Vec<Waiter>,
}

impl PendingDeletes {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.floors.is_empty() && self.registrations.is_empty()
    }
}

/// What a read found: messages that are at hand, and seqs of those that are on the disk.
#[derive(Debug, Default)]
pub(super) struct ReadPlan {
    pub(super) slots: Vec<ReadSlot>,
    pub(super) cursor: Seq,
    pub(super) more: bool,
}

#[derive(Debug)]
pub(super) enum ReadSlot {
    Ready(Item),
    OnDisk(Seq),
}

#[derive(Debug)]
pub(super) struct Index {
    settings: Settings,
    keys: DedupHasher,
    handles: Handles,
    /// Whether committed messages are on a disk, or only here.
    on_disk: bool,
    /// The newest seq given.
    newest: Seq,
    /// Up to here everything is committed or refused; what is above cannot be seen.
    committed: Seq,
    logs: HashMap<Address, AddressLog>,
    /// The stored messages themselves, at level `memory`.
    publications: HashMap<Seq, Arc<Publication>>,
    /// When each log loses its next message at the earliest, in Unix milliseconds.
    by_expiry: BTreeSet<(u64, Address)>,
    /// Empty logs, longest empty first; an entry may be out of date.
    empty: VecDeque<Address>,
    /// No log that was forgotten reached beyond this.
    forgotten: Seq,
    dedup: Dedup,
    bytes: usize,
    messages: usize,
    /// Who gets the receipt of a stored message, by its seq.
    receipts: HashMap<Seq, (SessionId, MessageId)>,
    /// How many receipts each session is going to get: they have their room in its mailbox.
    reserved_receipts: HashMap<SessionId, usize>,
    /// What expired between two stored messages: the seq of the later one and the highest that is gone.
    holes: HashMap<Seq, Seq>,
    /// Appended, not committed, in order. Bounded by `Settings::queue`.
    queue: VecDeque<Pending>,
    queued_bytes: usize,
    /// Who sent the same again before it was committed.
    repeats: Vec<(Seq, Waiter)>,
    gone: PendingDeletes,
    directory: Directory,
    /// The newest committed publications, oldest first.
    recent: VecDeque<Arc<Publication>>,
    recent_bytes: usize,
    /// Found gone at the start, with receipts that may not have been stored.
    unsent_receipts: Vec<(Seq, Outcome)>,
    /// Messages dropped because their time was over, that [`Self::take_expired`] has not told yet.
    expired: usize,
}

/// When a message expires_at that is kept that long, in Unix milliseconds; times fit SQLite's integers.
fn end_of(now: u64, age: Duration) -> u64 {
    now.saturating_add(millis(age)).min(i64::MAX.unsigned_abs())
}

fn cost(publication: &Publication) -> usize {
    publication.frame().as_str().len() + OVERHEAD
}

/// What one stored message read back at the start costs: its payload and names, and the rest of its frame.
pub(super) fn cost_of(payload: usize, names: usize) -> usize {
    payload + names + 64 + OVERHEAD
}

impl Index {
    /// An empty index. Its first seq is the one after `newest`.
    pub(super) fn new(settings: Settings, secret: &[u8; 16], newest: Seq, on_disk: bool) -> Self {
        let handles = Handles::new(secret);
        Self {
            settings,
            keys: DedupHasher::new(secret),
            handles: handles.clone(),
            on_disk,
            newest,
            committed: newest,
            logs: HashMap::new(),
            publications: HashMap::new(),
            by_expiry: BTreeSet::new(),
            empty: VecDeque::new(),
            forgotten: Seq::START,
            dedup: Dedup::new(millis(settings.dedup_window), settings.dedup_ids),
            bytes: 0,
            messages: 0,
            receipts: HashMap::new(),
            reserved_receipts: HashMap::new(),
            holes: HashMap::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            repeats: Vec::new(),
            gone: PendingDeletes::default(),
            directory: Directory::new(handles),
            recent: VecDeque::new(),
            recent_bytes: 0,
            unsent_receipts: Vec::new(),
            expired: 0,
        }
    }

    /// When something expires_at that is kept that long from now on, in Unix milliseconds.
    pub(super) fn end_of(&self, age: Duration) -> u64 {
        end_of(self.settings.clock.now(), age)
    }

    /// Gives a message its place, if there is room for it.
    pub(super) fn append(&mut self, append: Append, waiter: Option<Waiter>) -> Result<Appended, EngineError> {
        let Settings { mailbox, history, queue, clock, .. } = self.settings;
        let now = clock.now();
        let Append { address, message, author, id, ttl, receipt } = append;
        let key = id.as_ref().map(|id| self.keys.key(&address, &author, &message, id));
        if let Some(seq) = key.and_then(|key| self.dedup.get(key, now)) {
            if seq > self.committed
                && let Some(waiter) = waiter
            {
                self.repeats.push((seq, waiter));
            }
            return Ok(Appended::Known(seq));
        }
        if self.queue.len() >= queue.messages || self.queued_bytes >= queue.bytes {
            let (messages, bytes) = (self.queue.len(), self.queued_bytes);
            return Err(EngineError::Overloaded { messages, bytes, bounds: queue });
        }
        let is_topic = matches!(address, Address::Topic(_));
        let bounds = if is_topic { history } else { mailbox };
        let age = match ttl {
            Some(ttl) if is_topic => ttl.min(bounds.age),
            Some(ttl) => ttl,
            None => bounds.age,
        };
        let wants = if receipt { author.session().cloned().zip(id) } else { None };
        let to = wants.as_ref().map(|(from, _)| from);
        let mut seq = Seq(self.newest.0 + 1);
        let mut publication = Publication::encode(&address, Some(seq), &message);
        if self.has_room(&address, cost(&publication), to).is_err() {
            // What has outlived its time must not stand in the way of what comes.
            while self.expire_slice() >= EXPIRY_SLICE {}
            // Receipts of what expired have taken seqs.
            seq = Seq(self.newest.0 + 1);
            publication = Publication::encode(&address, Some(seq), &message);
            self.has_room(&address, cost(&publication), to)?;
        }
        let publication = Arc::new(publication);
        if let Some((from, id)) = wants.clone() {
            *self.reserved_receipts.entry(from.clone()).or_default() += 1;
            self.receipts.insert(seq, (from, id));
        }
        if let Some(key) = key {
            self.dedup.remember(key, seq, now);
        }
        let receipt = wants;
        let (expires_at, ts) = (end_of(now, age), message.ts);
        self.place(Pending {
            seq,
            prev: Seq::START,
            expires_at,
            ts,
            address,
            publication,
            key,
            receipt,
            waiter,
        });
        Ok(Appended::New(seq))
    }

    /// Puts a message with a new seq onto its log and into the queue.
    fn place(&mut self, mut pending: Pending) {
        let Pending { seq, expires_at, ref publication, .. } = pending;
        debug_assert!(seq > self.newest, "a seq is given once");
        self.newest = seq;
        let cost = cost(publication);
        let forgotten = self.forgotten;
        let log = match self.logs.entry(pending.address.clone()) {
            MapEntry::Occupied(log) => log.into_mut(),
            MapEntry::Vacant(place) => place.insert(AddressLog::after_forgotten(forgotten)),
        };
        pending.prev = log.last();
        let hole = log.expired_since_last();
        if hole > Seq::START {
            self.holes.insert(seq, hole);
        }
        if !self.on_disk {
            self.publications.insert(seq, Arc::clone(publication));
        }
        let (bytes, receipt) = (u32::try_from(cost).unwrap_or(u32::MAX), pending.receipt.is_some());
        let hole = hole > Seq::START;
        log.entries.push_back(LogEntry { seq, expires_at, bytes, receipt, hole });
        log.bytes += cost;
        if expires_at < log.earliest_expiry {
            self.by_expiry.remove(&(log.earliest_expiry, pending.address.clone()));
            self.by_expiry.insert((expires_at, pending.address.clone()));
            log.earliest_expiry = expires_at;
        }
        self.bytes += cost;
        self.messages += 1;
        self.queued_bytes += cost;
        self.queue.push_back(pending);
    }

    fn has_room(
        &self,
        address: &Address,
        cost: usize,
        receipt: Option<&SessionId>,
    ) -> Result<(), EngineError> {
        let Settings { mailbox: bounds, history, total_bytes, .. } = self.settings;
        if self.bytes + cost > total_bytes {
            return Err(EngineError::StoreFull { limit: total_bytes });
        }
        let Address::Session(session) = address else {
            // A history makes room by itself, for what fits into it at all.
            return match cost > history.bytes {
                true => Err(EngineError::HistoryTooSmall { size: cost, limit: history.bytes }),
                false => Ok(()),
            };
        };
        let (messages, bytes) = self.held(session);
        if messages >= bounds.messages || bytes + cost > bounds.bytes {
            return Err(EngineError::MailboxFull { messages, bytes, bounds });
        }
        if let Some(from) = receipt {
            let own = usize::from(from == session);
            let (messages, _) = self.held(from);
            if messages + own >= bounds.messages {
                return Err(EngineError::NoRoomForReceipt { messages, limit: bounds.messages });
            }
        }
        Ok(())
    }

    /// What a mailbox holds, the room for receipts included.
    fn held(&self, session: &SessionId) -> (usize, usize) {
        let address = Address::Session(session.clone());
        let (messages, bytes) = self.logs.get(&address).map_or((0, 0), |s| (s.entries.len(), s.bytes));
        (messages + self.reserved_receipts.get(session).copied().unwrap_or_default(), bytes)
    }

    /// Takes what is to be committed next: some messages, in order.
    pub(super) fn take(&mut self, most: usize, most_bytes: usize) -> Vec<Pending> {
        let mut bytes = 0;
        let mut end = 0;
        for pending in self.queue.iter().take(most) {
            if bytes > most_bytes {
                break;
            }
            bytes += cost(&pending.publication);
            end += 1;
        }
        self.queued_bytes -= bytes;
        let taken = self.queue.drain(..end).collect();
        if self.queue.is_empty() && self.queue.capacity() > 1024 {
            self.queue.shrink_to(256);
        }
        taken
    }

    /// Takes what is to be deleted from the disk, and the floors to be noted there.
    pub(super) fn take_gone(&mut self) -> PendingDeletes {
        std::mem::take(&mut self.gone)
    }

    /// These messages are durable: they can be seen now. Answers who sent one of them again meanwhile.
    pub(super) fn commit(&mut self, group: &[Pending]) -> Vec<(Seq, Waiter)> {
        let Some(last) = group.last() else { return Vec::new() };
        self.committed = last.seq;
        for pending in group {
            if self.on_disk {
                self.recent_bytes += cost(&pending.publication);
                self.recent.push_back(Arc::clone(&pending.publication));
            }
            let log = self.logs.get_mut(&pending.address).expect("what is queued is on its log");
            log.position.newest = log.position.newest.max(pending.seq);
            if pending.seq <= log.position.floor {
                // Its session was ended while it was being written.
                self.drop_ended(&pending.address);
            } else if matches!(pending.address, Address::Topic(_)) {
                self.make_room(&pending.address);
            }
        }
        while self.recent.len() > RECENT_MESSAGES || self.recent_bytes > RECENT_BYTES {
            let Some(oldest) = self.recent.pop_front() else { break };
            self.recent_bytes -= cost(&oldest);
        }
        self.repeats.extract_if(.., |(seq, _)| *seq <= last.seq).collect()
    }

    /// Drops the oldest messages of a history that are beyond its bounds.
    fn make_room(&mut self, address: &Address) {
        let bounds = self.settings.history;
        let Some(log) = self.logs.get_mut(address) else { return };
        let mut committed = log.committed(self.committed);
        let mut dropped = Vec::new();
        while committed > bounds.messages || (committed > 1 && log.bytes > bounds.bytes) {
            let Some(oldest) = log.entries.pop_front() else { break };
            log.bytes -= oldest.bytes as usize;
            log.position.floor = oldest.seq;
            committed -= 1;
            dropped.push(oldest);
        }
        for entry in &dropped {
            self.drop_entry(entry, Outcome::Expired);
        }
        self.list_if_empty(address);
    }

    /// These messages could not be stored, nor can what waits behind them: takes them back, except receipts,
    /// which wait for better times. Answers who is to be told.
    pub(super) fn refuse(&mut self, group: Vec<Pending>) -> Vec<Waiter> {
        let mut kept = VecDeque::new();
        let mut told = Vec::new();
        let mut refused = group;
        refused.extend(self.queue.drain(..));
        self.queued_bytes = 0;
        for pending in refused {
            let Some(waiter) = pending.waiter else {
                self.queued_bytes += cost(&pending.publication);
                kept.push_back(pending);
                continue;
            };
            told.push(waiter);
            if let Some(key) = pending.key {
                self.dedup.revoke(key);
            }
            let log = self.logs.get_mut(&pending.address).expect("what is queued is on its log");
            let at = log.entries.partition_point(|entry| entry.seq < pending.seq);
            let entry = log.entries.remove(at).expect("what is queued is on its log");
            log.bytes -= entry.bytes as usize;
            self.bytes -= entry.bytes as usize;
            self.messages -= 1;
            let hole = if entry.hole { self.holes.remove(&entry.seq) } else { None };
            if let (Some(hole), Some(next)) = (hole, log.entries.get_mut(at)) {
                next.hole = true;
                self.holes.insert(next.seq, hole);
            }
            if entry.receipt
                && let Some((from, _)) = self.receipts.remove(&entry.seq)
            {
                self.release(&from);
            }
            self.list_if_empty(&pending.address);
        }
        for pending in &mut kept {
            let log = &self.logs[&pending.address];
            let at = log.entries.partition_point(|entry| entry.seq < pending.seq);
            let Position { floor, expired, newest } = log.position;
            let before = at.checked_sub(1).map_or(Seq::START, |at| log.entries[at].seq);
            pending.prev = before.max(floor).max(expired).max(newest);
        }
        // Everything else is refused by now: what is above can be seen.
        let seen = kept.front().map_or(self.newest, |first| Seq(first.seq.0 - 1));
        self.committed = self.committed.max(seen);
        self.queue = kept;
        told.extend(self.repeats.drain(..).map(|(_, waiter)| waiter));
        told
    }

    /// Nothing is going to be committed any more: answers everybody who waits for it.
    pub(super) fn give_up(&mut self) -> Vec<Waiter> {
        let repeats = self.repeats.drain(..).map(|(_, waiter)| waiter);
        let registered = self.gone.waiters.drain(..);
        self.queue.drain(..).filter_map(|pending| pending.waiter).chain(repeats).chain(registered).collect()
    }

    fn release(&mut self, from: &SessionId) {
        if let MapEntry::Occupied(mut reserved_receipts) = self.reserved_receipts.entry(from.clone()) {
            *reserved_receipts.get_mut() -= 1;
            if *reserved_receipts.get() == 0 {
                reserved_receipts.remove();
            }
        }
    }

    /// A message has left for good: appends the receipt that its sender asked for. Returns the seq of the receipt.
    fn emit_receipt(&mut self, seq: Seq, state: Outcome) -> Seq {
        let Some((from, id)) = self.receipts.remove(&seq) else { return Seq::START };
        self.release(&from);
        let now = self.settings.clock.now();
        if self.directory.is_revoked(&from, now) {
            return Seq::START;
        }
        let message = Message::receipt(&id, state, now);
        let address = Address::Session(from);
        let seq = Seq(self.newest.0 + 1);
        let publication = Arc::new(Publication::encode(&address, Some(seq), &message));
        let expires_at = end_of(now, self.settings.mailbox.age);
        self.place(Pending {
            seq,
            prev: Seq::START,
            expires_at,
            ts: now,
            address,
            publication,
            key: None,
            receipt: None,
            waiter: None,
        });
        seq
    }

    /// See [`crate::engine::Engine::read`].
    pub(super) fn read(&self, address: &Address, after: Seq, limit: usize) -> ReadPlan {
        let now = self.settings.clock.now();
        let mut plan = ReadPlan { cursor: after, ..ReadPlan::default() };
        let Some(log) = self.logs.get(address) else {
            plan.skip(self.forgotten, GapReason::Acknowledged);
            return plan;
        };
        let dropped = match address {
            Address::Session(_) => GapReason::Acknowledged,
            Address::Topic(_) => GapReason::Expired,
        };
        // What comes first is told first.
        let Position { floor, expired, .. } = log.position;
        let first = log.entries.front().map_or(Seq(u64::MAX), |first| first.seq);
        if expired < floor && expired < first {
            plan.skip(expired, GapReason::Expired);
        }
        plan.skip(floor, dropped);
        let mut expired = Seq::START;
        let mut bytes = 0;
        let from = log.entries.partition_point(|entry| entry.seq <= plan.cursor);
        for entry in log.entries.range(from..log.committed(self.committed).max(from)) {
            if entry.hole {
                expired = expired.max(self.holes.get(&entry.seq).copied().unwrap_or_default());
            }
            if entry.expires_at <= now {
                expired = entry.seq;
                continue;
            }
            if plan.slots.len() >= limit || bytes >= READ_BYTES {
                plan.more = true;
                return plan;
            }
            plan.skip(expired, GapReason::Expired);
            bytes += entry.bytes as usize;
            let at_hand = self.publications.get(&entry.seq).or_else(|| self.recent(entry.seq));
            plan.slots.push(match at_hand {
                Some(publication) => ReadSlot::Ready(Item::Message(Arc::clone(publication))),
                None => ReadSlot::OnDisk(entry.seq),
            });
            plan.cursor = entry.seq;
        }
        plan.skip(expired.max(log.expired_since_last()), GapReason::Expired);
        plan
    }

    fn recent(&self, seq: Seq) -> Option<&Arc<Publication>> {
        let at = self.recent.binary_search_by_key(&Some(seq), |publication| publication.seq()).ok()?;
        self.recent.get(at)
    }

    /// Whether a message is still there.
    pub(super) fn holds(&self, address: &Address, seq: Seq) -> bool {
        let log = self.logs.get(address);
        log.is_some_and(|log| log.entries.binary_search_by_key(&seq, |entry| entry.seq).is_ok())
    }

    /// See [`crate::engine::Engine::trim`].
    pub(super) fn trim(&mut self, address: &Address, through: Seq) {
        let through = through.min(self.committed);
        let Some(log) = self.logs.get_mut(address) else { return };
        let before = log.position.floor;
        log.position.floor = before.max(through);
        let end = log.entries.partition_point(|entry| entry.seq <= through);
        if end == 0 {
            if log.entries.is_empty() && log.position.floor > before {
                self.note_floor(address);
            }
            return;
        }
        let trimmed: Vec<LogEntry> = log.entries.drain(..end).collect();
        log.bytes -= trimmed.iter().map(|entry| entry.bytes as usize).sum::<usize>();
        for entry in trimmed {
            self.drop_entry(&entry, Outcome::Acknowledged);
        }
        self.list_if_empty(address);
    }

    /// What is to be done for every message that leaves.
    fn drop_entry(&mut self, entry: &LogEntry, state: Outcome) {
        self.bytes -= entry.bytes as usize;
        self.messages -= 1;
        if !self.on_disk {
            self.publications.remove(&entry.seq);
        }
        if entry.hole {
            self.holes.remove(&entry.seq);
        }
        let after = if entry.receipt { self.emit_receipt(entry.seq, state) } else { Seq::START };
        if self.on_disk {
            self.gone.messages.push((entry.seq, after));
        }
    }

    fn note_floor(&mut self, address: &Address) {
        if self.on_disk
            && let Some(log) = self.logs.get(address)
            // What was never stored leaves nothing behind.
            && log.position.newest > Seq::START
        {
            let Position { floor, expired, .. } = log.position;
            self.gone.floors.insert(address.clone(), Floor { floor, expired });
            if self.gone.floors.len() > EMPTY_LOGS {
                // The disk has taken nothing for long.
                let highest = self.gone.floors.drain().map(|(_, floor)| floor.floor.max(floor.expired)).max();
                self.forgotten = self.forgotten.max(highest.unwrap_or_default());
            }
        }
    }

    fn list_if_empty(&mut self, address: &Address) {
        let Some(log) = self.logs.get_mut(address) else { return };
        if !log.entries.is_empty() {
            return;
        }
        if log.earliest_expiry < u64::MAX {
            self.by_expiry.remove(&(log.earliest_expiry, address.clone()));
            log.earliest_expiry = u64::MAX;
        }
        log.entries = VecDeque::new();
        if !log.listed {
            log.listed = true;
            self.empty.push_back(address.clone());
        }
        self.note_floor(address);
    }

    /// Forgets the longest empty logs beyond `keep`, except those that someone reads.
    ///
    /// Looks at a few only, however many there are: whoever acknowledges pays for it, and holds the lock.
    pub(super) fn forget_empty(&mut self, hubs: &Hubs, keep: usize, most_looks: usize) {
        for _ in 0..self.empty.len().saturating_sub(keep).min(most_looks) {
            let Some(address) = self.empty.pop_front() else { return };
            let Some(log) = self.logs.get_mut(&address) else { continue };
            if !log.entries.is_empty() {
                log.listed = false;
            } else if hubs.is_read(&address) {
                self.empty.push_back(address);
            } else {
                self.forgotten = self.forgotten.max(log.position.floor).max(log.position.expired);
                self.logs.remove(&address);
            }
        }
        shrink(&mut self.logs);
        shrink(&mut self.publications);
    }

    /// See [`crate::engine::Engine::position`].
    pub(super) fn position(&self, address: &Address) -> Position {
        match (self.logs.get(address), address) {
            (Some(log), _) => log.position,
            (None, Address::Session(_)) => Position::default(),
            // A cursor to come back with: what is published from here on is above it.
            (None, Address::Topic(_)) => {
                Position { floor: self.forgotten, newest: self.committed, ..Position::default() }
            }
        }
    }

    /// The newest seq anyone can have seen.
    pub(super) fn committed(&self) -> Seq {
        self.committed
    }

    pub(super) fn newest(&self) -> Seq {
        self.newest
    }

    pub(super) fn forgotten(&self) -> Seq {
        self.forgotten
    }

    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn gone(&mut self) -> &mut PendingDeletes {
        &mut self.gone
    }

    #[cfg(test)]
    pub(super) fn logs(&self) -> usize {
        self.logs.len()
    }
}

impl ReadPlan {
    /// Moves on to `to`, and says so unless the reader is new: one without a cursor misses nothing.
    fn skip(&mut self, to: Seq, reason: GapReason) {
        if to > self.cursor {
            if self.cursor > Seq::START {
                self.slots.push(ReadSlot::Ready(Item::Gap(Gap { from: self.cursor, to, reason })));
            }
            self.cursor = to;
        }
    }
}
