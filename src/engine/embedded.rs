//! The engine of one machine, at level `memory`: a map of shelves behind one lock.
//!
//! Committing is inserting under the lock, so a [`Commit`] is ready at once and publishing under the same
//! lock keeps the commit order. Nothing here awaits.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::clock::millis;
use crate::engine::{Append, Batch, Bounds, Commit, Engine, EngineError, Position, Settings};
use crate::hub::{Hubs, lock};
use crate::message::{Address, Epoch, Gap, GapReason, Item, Message, MessageId, Publication, Seq};

/// What a stored message costs besides its frame: map nodes, reference counts, the expiry entry. Bytes.
const OVERHEAD: usize = 256;

/// How many empty shelves are remembered, so that returning readers are told exactly what they missed.
const EMPTY_SHELVES: usize = 65_536;

/// How many messages one slice of expiry drops while it holds the lock.
const EXPIRY_SLICE: usize = 512;

/// 2026-01-01T00:00:00Z in Unix milliseconds.
const SEQ_EPOCH: u64 = 1_767_225_600_000;

/// Stores messages in this process; cheap to clone.
#[derive(Debug, Clone)]
pub struct Embedded {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    hubs: Hubs,
    epoch: Epoch,
    /// Where the seqs of this epoch begin.
    origin: Seq,
    /// A copy of the newest seq, readable without the lock.
    newest: AtomicU64,
    /// Protects everything stored. Held for one append, one read or one slice of expiry; never across an
    /// await. The hubs' lock is taken inside it, never the other way round.
    store: Mutex<Store>,
}

#[derive(Debug)]
struct Store {
    newest: Seq,
    shelves: HashMap<Address, Shelf>,
    /// When each stored message ends, in Unix milliseconds.
    ends: BTreeMap<(u64, Seq), Address>,
    /// Empty shelves, longest empty first; an entry may be out of date.
    empty: VecDeque<Address>,
    /// No shelf that was forgotten reached beyond this.
    forgotten: Seq,
    dedup: Dedup,
    bytes: usize,
    /// Messages dropped because their time was over, that [`Engine::expire`] has not answered for yet.
    unreported: usize,
}

/// The stored messages of one address.
#[derive(Debug, Default)]
struct Shelf {
    entries: BTreeMap<Seq, Entry>,
    bytes: usize,
    position: Position,
    /// Whether `Store::empty` lists it.
    listed: bool,
}

#[derive(Debug)]
struct Entry {
    publication: Arc<Publication>,
    ends: u64,
    /// The highest seq that expired between the entry before and this one.
    expired_before: Seq,
}

fn cost(publication: &Publication) -> usize {
    publication.frame().as_str().len() + OVERHEAD
}

impl Store {
    fn append(&mut self, inner: &Inner, append: Append) -> Result<Seq, EngineError> {
        let Settings { mailbox, history, total_bytes, clock, .. } = inner.settings;
        let now = clock.now();
        let Append { address, message, id, ttl } = append;
        let key = id.map(|id| self.dedup.key(&address, &message, &id));
        if let Some(seq) = key.and_then(|key| self.dedup.get(key, now)) {
            return Ok(seq);
        }
        let is_topic = matches!(address, Address::Topic(_));
        let bounds = if is_topic { history } else { mailbox };
        let age = match ttl {
            Some(ttl) if is_topic => ttl.min(bounds.age),
            Some(ttl) => ttl,
            None => bounds.age,
        };
        let seq = Seq(self.newest.0 + 1);
        let publication = Arc::new(Publication::encode(&address, Some(seq), &message));
        let cost = cost(&publication);
        if self.has_room(&address, cost, bounds, total_bytes).is_err() {
            // What has outlived its time must not stand in the way of what comes.
            while self.expire_slice(now) == EXPIRY_SLICE {}
            self.has_room(&address, cost, bounds, total_bytes)?;
        }
        self.newest = seq;
        inner.newest.store(seq.0, Ordering::Release);
        let forgotten = self.forgotten;
        let shelf = match self.shelves.entry(address.clone()) {
            MapEntry::Occupied(shelf) => shelf.into_mut(),
            MapEntry::Vacant(place) => place.insert(Shelf::after_forgotten(forgotten)),
        };
        let ends = now.saturating_add(millis(age));
        self.ends.insert((ends, seq), address.clone());
        let expired_before = shelf.position.expired_since_last(&shelf.entries);
        shelf.entries.insert(seq, Entry { publication: Arc::clone(&publication), ends, expired_before });
        shelf.bytes += cost;
        shelf.position.newest = seq;
        self.bytes += cost;
        if is_topic {
            while shelf.entries.len() > bounds.messages || shelf.bytes > bounds.bytes {
                let Some((oldest, entry)) = shelf.entries.pop_first() else { break };
                let freed = self::cost(&entry.publication);
                shelf.bytes -= freed;
                shelf.position.floor = oldest;
                self.bytes -= freed;
                self.ends.remove(&(entry.ends, oldest));
            }
        }
        if let Some(key) = key {
            self.dedup.remember(key, seq, now);
        }
        inner.hubs.publish(&address, &publication);
        Ok(seq)
    }

    fn has_room(
        &self,
        address: &Address,
        cost: usize,
        bounds: Bounds,
        total_bytes: usize,
    ) -> Result<(), EngineError> {
        if self.bytes + cost > total_bytes {
            return Err(EngineError::StoreFull { limit: total_bytes });
        }
        let (messages, bytes) = match (address, self.shelves.get(address)) {
            (Address::Session(_), Some(shelf)) => (shelf.entries.len(), shelf.bytes),
            // A history makes room by itself.
            _ => (0, 0),
        };
        if messages >= bounds.messages || bytes + cost > bounds.bytes {
            return Err(EngineError::MailboxFull { messages, bytes, bounds });
        }
        Ok(())
    }

    fn read(&self, address: &Address, after: Seq, limit: usize, now: u64) -> Batch {
        let mut batch = Batch { cursor: after, ..Batch::default() };
        let Some(shelf) = self.shelves.get(address) else {
            batch.skip(self.forgotten, GapReason::Acknowledged);
            return batch;
        };
        let dropped = match address {
            Address::Session(_) => GapReason::Acknowledged,
            Address::Topic(_) => GapReason::Expired,
        };
        batch.skip(shelf.position.floor, dropped);
        let mut expired = Seq::START;
        for (seq, entry) in shelf.entries.range((Bound::Excluded(batch.cursor), Bound::Unbounded)) {
            expired = expired.max(entry.expired_before);
            if entry.ends <= now {
                expired = *seq;
                continue;
            }
            if batch.items.len() >= limit {
                batch.more = true;
                return batch;
            }
            batch.skip(expired, GapReason::Expired);
            batch.items.push(Item::Message(Arc::clone(&entry.publication)));
            batch.cursor = *seq;
        }
        batch.skip(expired.max(shelf.position.expired_since_last(&shelf.entries)), GapReason::Expired);
        batch
    }

    fn trim(&mut self, address: &Address, through: Seq) {
        let Some(shelf) = self.shelves.get_mut(address) else { return };
        shelf.position.floor = shelf.position.floor.max(through.min(self.newest));
        while let Some(first) = shelf.entries.first_entry() {
            if *first.key() > through {
                break;
            }
            let (seq, entry) = first.remove_entry();
            let freed = cost(&entry.publication);
            shelf.bytes -= freed;
            self.bytes -= freed;
            self.ends.remove(&(entry.ends, seq));
        }
        self.list_if_empty(address);
    }

    /// Drops at most [`EXPIRY_SLICE`] messages whose time is over, and answers how many.
    fn expire_slice(&mut self, now: u64) -> usize {
        for dropped in 0..EXPIRY_SLICE {
            let Some(first) = self.ends.first_entry() else { return dropped };
            if first.key().0 > now {
                return dropped;
            }
            let ((_, seq), address) = first.remove_entry();
            let shelf = self.shelves.get_mut(&address).expect("every end belongs to a stored message");
            let entry = shelf.entries.remove(&seq).expect("every end belongs to a stored message");
            shelf.position.expired = shelf.position.expired.max(seq);
            if let Some((_, next)) = shelf.entries.range_mut((Bound::Excluded(seq), Bound::Unbounded)).next()
            {
                next.expired_before = next.expired_before.max(seq);
            }
            let freed = cost(&entry.publication);
            shelf.bytes -= freed;
            self.bytes -= freed;
            self.unreported += 1;
            self.list_if_empty(&address);
        }
        EXPIRY_SLICE
    }

    fn list_if_empty(&mut self, address: &Address) {
        if let Some(shelf) = self.shelves.get_mut(address)
            && shelf.entries.is_empty()
            && !shelf.listed
        {
            shelf.listed = true;
            self.empty.push_back(address.clone());
        }
    }

    /// Forgets the longest empty shelves beyond the limit, except those that someone reads.
    ///
    /// Looks at a few only, however many there are: whoever acknowledges pays for it, and holds the lock.
    fn forget_empty(&mut self, hubs: &Hubs, keep: usize, most_looks: usize) {
        for _ in 0..self.empty.len().saturating_sub(keep).min(most_looks) {
            let Some(address) = self.empty.pop_front() else { return };
            let Some(shelf) = self.shelves.get_mut(&address) else { continue };
            if !shelf.entries.is_empty() {
                shelf.listed = false;
            } else if hubs.is_read(&address) {
                self.empty.push_back(address);
            } else {
                self.forgotten = self.forgotten.max(shelf.position.floor).max(shelf.position.expired);
                self.shelves.remove(&address);
            }
        }
    }
}

impl Batch {
    /// Moves on to `to`, and says so unless the reader is new: one without a cursor misses nothing.
    fn skip(&mut self, to: Seq, reason: GapReason) {
        if to > self.cursor {
            if self.cursor > Seq::START {
                self.items.push(Item::Gap(Gap { from: self.cursor, to, reason }));
            }
            self.cursor = to;
        }
    }
}

impl Shelf {
    /// A new shelf may be an old one that was forgotten while it was empty.
    fn after_forgotten(forgotten: Seq) -> Self {
        Self { position: Position { floor: forgotten, ..Position::default() }, ..Self::default() }
    }
}

impl Position {
    /// The highest seq that expired after the last message still there.
    fn expired_since_last(&self, entries: &BTreeMap<Seq, Entry>) -> Seq {
        match entries.last_key_value() {
            Some((last, _)) if *last > self.expired => Seq::START,
            _ => self.expired,
        }
    }
}

/// The senders' ids of the last minutes, as two independently keyed 64-bit hashes.
#[derive(Debug)]
struct Dedup {
    hashers: [RandomState; 2],
    seqs: HashMap<[u64; 2], Seq>,
    /// Oldest first, with the time it is forgotten.
    order: VecDeque<(u64, [u64; 2])>,
    window: u64,
    most: usize,
}

impl Dedup {
    fn key(&self, address: &Address, message: &Message, id: &MessageId) -> [u64; 2] {
        // Senders without a name cannot be told apart, but their retries have the same payload.
        let sender = match &message.from {
            Some(from) => Ok(from),
            None => Err(message.payload.get()),
        };
        [0, 1].map(|at: usize| self.hashers[at].hash_one((address, sender, id)))
    }

    fn forget(&mut self, now: u64) {
        while let Some((until, oldest)) = self.order.front()
            && (*until <= now || self.order.len() > self.most)
        {
            self.seqs.remove(oldest);
            self.order.pop_front();
        }
    }

    fn get(&mut self, key: [u64; 2], now: u64) -> Option<Seq> {
        self.forget(now);
        self.seqs.get(&key).copied()
    }

    fn remember(&mut self, key: [u64; 2], seq: Seq, now: u64) {
        self.seqs.insert(key, seq);
        self.order.push_back((now + self.window, key));
    }
}

/// Twelve random hexadecimal digits.
fn random_epoch() -> Epoch {
    let bits = getrandom::u64().expect("the operating system gives random numbers");
    Epoch::new(&format!("{:012x}", bits >> 16))
}

impl Embedded {
    /// An empty store with a new epoch.
    #[must_use]
    pub fn new(settings: Settings, hubs: Hubs) -> Self {
        // A store in memory forgets its seqs with the process. Starting above whatever an earlier process can
        // have given makes an old cursor or ack, sent without its epoch, harmless: it is below everything.
        let seconds = settings.clock.now().saturating_sub(SEQ_EPOCH) / 1000;
        let newest = Seq(seconds << 16);
        let store = Store {
            newest,
            shelves: HashMap::new(),
            ends: BTreeMap::new(),
            empty: VecDeque::new(),
            forgotten: Seq::START,
            dedup: Dedup {
                hashers: [RandomState::new(), RandomState::new()],
                seqs: HashMap::new(),
                order: VecDeque::new(),
                window: millis(settings.dedup_window),
                most: settings.dedup_ids,
            },
            bytes: 0,
            unreported: 0,
        };
        let inner = Inner {
            settings,
            hubs,
            epoch: random_epoch(),
            origin: newest,
            newest: AtomicU64::new(newest.0),
            store: Mutex::new(store),
        };
        Self { inner: Arc::new(inner) }
    }

    /// See [`Engine::append`].
    pub fn append(&self, append: Append) -> Commit {
        Commit::done(lock(&self.inner.store).append(&self.inner, append))
    }

    /// See [`Engine::pass`].
    pub fn pass(&self, address: &Address, message: &Message) {
        Engine::publish_volatile(&self.inner.hubs, address, message);
    }

    /// See [`Engine::read`].
    #[must_use]
    pub fn read(&self, address: &Address, after: Seq, limit: usize) -> Batch {
        let now = self.inner.settings.clock.now();
        lock(&self.inner.store).read(address, after, limit, now)
    }

    /// See [`Engine::trim`].
    pub fn trim(&self, address: &Address, through: Seq) {
        let mut store = lock(&self.inner.store);
        store.trim(address, through);
        store.forget_empty(&self.inner.hubs, EMPTY_SHELVES, 4);
    }

    /// See [`Engine::position`].
    #[must_use]
    pub fn position(&self, address: &Address) -> Position {
        let store = lock(&self.inner.store);
        match (store.shelves.get(address), address) {
            (Some(shelf), _) => shelf.position,
            (None, Address::Session(_)) => Position::default(),
            // A cursor to come back with: what is published from here on is above it.
            (None, Address::Topic(_)) => {
                Position { floor: store.forgotten, newest: store.newest, ..Position::default() }
            }
        }
    }

    /// See [`Engine::newest`].
    #[must_use]
    pub fn newest(&self) -> Seq {
        Seq(self.inner.newest.load(Ordering::Acquire))
    }

    /// See [`Engine::origin`].
    #[must_use]
    pub fn origin(&self) -> Seq {
        self.inner.origin
    }

    /// See [`Engine::epoch`].
    #[must_use]
    pub fn epoch(&self) -> &Epoch {
        &self.inner.epoch
    }

    /// See [`Engine::durability`].
    #[must_use]
    pub fn durability(&self) -> &'static str {
        "memory"
    }

    /// See [`Engine::expire`].
    #[must_use]
    pub fn expire(&self) -> usize {
        let now = self.inner.settings.clock.now();
        let mut store = lock(&self.inner.store);
        store.dedup.forget(now);
        store.forget_empty(&self.inner.hubs, EMPTY_SHELVES, EXPIRY_SLICE);
        store.expire_slice(now);
        std::mem::take(&mut store.unreported)
    }

    /// Forgets all empty shelves now, as if many others had become empty since.
    #[cfg(test)]
    pub(crate) fn forget_empty(&self) {
        lock(&self.inner.store).forget_empty(&self.inner.hubs, 0, usize::MAX);
    }

    /// How many addresses cost memory.
    #[cfg(test)]
    pub(crate) fn shelves(&self) -> usize {
        lock(&self.inner.store).shelves.len()
    }
}
