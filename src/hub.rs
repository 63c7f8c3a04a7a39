//! The live side of an address on this node: a small broadcast channel that exists while someone reads.
//!
//! A hub is a doorbell that usually already holds the letter: it may drop, repeat or reorder. What a reader
//! has not got from it, it reads from the engine at its cursor. Publishing never awaits and does no work per
//! reader. A hub also knows how far each of its readers is, so that an acknowledgement by one tab does not
//! delete what a slower tab of the same session has not been handed yet.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::broadcast;

use crate::message::{Address, Publication, Seq};
use crate::sync::{lock, shrink};

mod presence;

pub use presence::{Connections, Transport};

/// What goes through a hub.
#[derive(Debug, Clone)]
pub enum HubEvent {
    /// A publication and the seq this hub was given before it.
    Publication {
        /// The seq of the stored publication before this one, [`Seq::START`] if this is the hub's first.
        prev: Seq,
        /// The publication.
        publication: Arc<Publication>,
    },
    /// The address has ended: see [`Hubs::end`].
    Ended,
}

/// The live side of one address.
#[derive(Debug)]
struct Hub {
    /// Bounded by the slots given to [`Hubs::new`]; when full the slowest reader loses and re-reads.
    tx: broadcast::Sender<HubEvent>,
    /// Protects the readers' list; held for a few instructions, never across an await.
    readers: Mutex<HubReaders>,
    /// A copy of `HubReaders::acked`, so that a reader that moves on looks at the list only when it matters.
    acked: AtomicU64,
    /// Nothing comes any more.
    ended: AtomicBool,
}

#[derive(Debug)]
struct AttachedReader {
    /// How far it has passed messages on.
    position: Arc<AtomicU64>,
    transport: Transport,
}

#[derive(Debug, Default)]
struct HubReaders {
    next_id: u64,
    /// How many handles there are, those that are being left included.
    handles: usize,
    last_published: Seq,
    /// Those who are waited for, by their ids.
    attached: HashMap<u64, AttachedReader>,
    /// The highest acknowledgement so far.
    acked: Seq,
    /// Up to where the engine was told to delete.
    trimmed: Seq,
}

impl HubReaders {
    /// Up to where nobody attached needs anything any more, if that is further than before.
    fn trimmable(&mut self) -> Option<Seq> {
        if self.acked <= self.trimmed {
            return None;
        }
        let slowest = self.attached.values().map(|reader| reader.position.load(Ordering::SeqCst)).min();
        let through = slowest.map_or(self.acked, |slowest| self.acked.min(Seq(slowest)));
        (through > self.trimmed).then(|| {
            self.trimmed = through;
            through
        })
    }
}

/// All hubs of this node.
#[derive(Debug, Clone)]
pub struct Hubs {
    /// Protects which hubs exist; held while one is looked up, joined or published to.
    hubs: Arc<Mutex<HashMap<Address, Arc<Hub>>>>,
    slots: usize,
}

impl Hubs {
    /// No hubs yet; each will hold `slots` publications (rounded up to a power of two by tokio).
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self { hubs: Arc::default(), slots: slots.max(1) }
    }

    /// Hands a publication to whoever reads this address now. The caller publishes in commit order.
    pub fn publish(&self, address: &Address, publication: &Arc<Publication>) {
        let hubs = lock(&self.hubs);
        let Some(hub) = hubs.get(address) else { return };
        let prev = {
            let mut readers = lock(&hub.readers);
            match publication.seq() {
                Some(seq) => std::mem::replace(&mut readers.last_published, seq),
                None => readers.last_published,
            }
        };
        // An error means that nobody listens at this moment; the store has it.
        _ = hub.tx.send(HubEvent::Publication { prev, publication: Arc::clone(publication) });
    }

    /// Whether anyone reads this address.
    #[must_use]
    pub fn is_read(&self, address: &Address) -> bool {
        lock(&self.hubs).contains_key(address)
    }

    /// How many addresses are being read.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.hubs).len()
    }

    /// Whether nothing is being read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Joins the hub of an address, making it if need be. The reader holds everything after `position`. `None` if
    /// it has `most` readers already.
    #[must_use]
    pub fn join(
        &self,
        address: &Address,
        position: Seq,
        transport: Transport,
        most: usize,
    ) -> Option<(ReaderHandle, broadcast::Receiver<HubEvent>)> {
        let mut hubs = lock(&self.hubs);
        let hub = hubs.entry(address.clone()).or_insert_with(|| {
            Arc::new(Hub {
                tx: broadcast::Sender::new(self.slots),
                readers: Mutex::default(),
                acked: AtomicU64::new(0),
                ended: AtomicBool::new(false),
            })
        });
        let mut readers = lock(&hub.readers);
        if readers.handles >= most {
            return None;
        }
        let receiver = hub.tx.subscribe();
        let position = Arc::new(AtomicU64::new(position.0));
        let id = readers.next_id;
        readers.next_id += 1;
        readers.handles += 1;
        readers.attached.insert(id, AttachedReader { position: Arc::clone(&position), transport });
        drop(readers);
        let (hubs, address, hub) = (self.clone(), address.clone(), Arc::clone(hub));
        Some((ReaderHandle { hubs, address, hub, id, position }, receiver))
    }

    /// Ends an address: its readers are told that nothing comes any more. Who joins afterwards begins anew.
    pub fn end(&self, address: &Address) {
        let mut hubs = lock(&self.hubs);
        let Some(hub) = hubs.remove(address) else { return };
        // Before anybody can make another hub of this address.
        hub.ended.store(true, Ordering::SeqCst);
        drop(hubs);
        // An error means that nobody listens at this moment.
        _ = hub.tx.send(HubEvent::Ended);
    }

    /// Who reads this address now.
    #[must_use]
    pub fn presence(&self, address: &Address) -> Connections {
        let mut connections = Connections::default();
        if let Some(hub) = lock(&self.hubs).get(address) {
            lock(&hub.readers).attached.values().for_each(|reader| connections.add(reader.transport));
        }
        connections
    }

    /// Notes an acknowledgement and answers up to where the engine may delete now.
    #[must_use]
    pub fn acknowledge(&self, address: &Address, seq: Seq) -> Option<Seq> {
        let hubs = lock(&self.hubs);
        let Some(hub) = hubs.get(address) else { return Some(seq) };
        let mut readers = lock(&hub.readers);
        readers.acked = readers.acked.max(seq);
        hub.acked.store(readers.acked.0, Ordering::SeqCst);
        readers.trimmable()
    }

    /// The highest acknowledgement known here; the engine may still hold what a slower reader needs.
    #[must_use]
    pub fn acknowledged(&self, address: &Address) -> Seq {
        lock(&self.hubs).get(address).map_or(Seq::START, |hub| Seq(hub.acked.load(Ordering::SeqCst)))
    }
}

/// One reader's place at a hub. The hub lives as long as one of its handles.
#[derive(Debug)]
pub struct ReaderHandle {
    hubs: Hubs,
    address: Address,
    hub: Arc<Hub>,
    id: u64,
    position: Arc<AtomicU64>,
}

impl ReaderHandle {
    /// The address this seat reads.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether the address has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.hub.ended.load(Ordering::SeqCst)
    }

    /// How far this reader has passed messages on.
    #[must_use]
    pub fn position(&self) -> Seq {
        Seq(self.position.load(Ordering::Acquire))
    }

    /// Moves on, and answers up to where the engine may delete now, if that waited for this reader.
    #[must_use]
    pub fn advance(&self, seq: Seq) -> Option<Seq> {
        // Sequentially consistent against `acknowledge`: of the two, at least one sees the other's store.
        let before = self.position.fetch_max(seq.0, Ordering::SeqCst);
        // Nobody has acknowledged beyond where this reader was: nothing waited for it.
        if self.hub.acked.load(Ordering::SeqCst) <= before {
            return None;
        }
        lock(&self.hub.readers).trimmable()
    }

    /// Stops being waited for; answers up to where the engine may delete now, if that waited for this reader.
    ///
    /// The hub stays until [`Self::leave`]: it knows what was acknowledged until the engine knows it too.
    #[must_use]
    pub fn detach(&self) -> Option<Seq> {
        let mut readers = lock(&self.hub.readers);
        readers.attached.remove(&self.id);
        readers.trimmable()
    }

    /// Leaves. The last one to leave takes the hub along.
    pub fn leave(&self) {
        let mut hubs = lock(&self.hubs.hubs);
        let mut readers = lock(&self.hub.readers);
        readers.attached.remove(&self.id);
        readers.handles -= 1;
        // After its end, another hub may have taken its place.
        if readers.handles == 0 && !self.has_ended() {
            hubs.remove(&self.address);
            shrink(&mut hubs);
        }
    }
}
