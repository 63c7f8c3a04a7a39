//! The live side of an address on this node: its last events, while someone reads.
//!
//! A hub may drop, repeat or reorder what it is given. A reader reads what it did not get from the engine, at its
//! cursor. Publishing never awaits and does no work per reader. A hub also knows how far each of its readers is, so
//! that an acknowledgement by one tab does not delete what a slower tab of the same session still needs.
//!
//! A hub knows no engine. The engine is told which addresses are read here through [`Interest`].

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::budget::{Budget, Holder};
use crate::message::{Address, Publication, Seq};
use crate::sync::lock;

mod acks;
mod address_hub;
mod batch;
mod channel;
mod direct;
mod event;
mod fanout;
mod interest;
mod listing;
mod members;
mod outlet;
mod outlets;
mod presence;
mod reader;
mod readers;
mod receiver;
mod shards;
mod slots;
mod timing;
mod topic_names;

pub use event::{EndReason, HubEvent};
pub use interest::Interest;
pub use listing::ReaderState;
pub use members::{ChangedTopics, MemberPage, Members, Membership};
pub use outlet::{Encoded, Encoding, Outlet};
pub use presence::Connections;
pub use receiver::HubReceiver;
pub use slots::Slots;

pub use crate::protocol::Transport;

use address_hub::Hub;
use reader::AttachedReader;
use shards::Shards;
use topic_names::TopicNames;

/// Most bytes of a stored message that a hub holds until its slowest reader has taken it. Readers fetch a larger one from
/// the engine.
const MAX_HELD: usize = 64 * 1024;

/// All hubs of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hubs {
    /// Which hubs exist. A shard is locked while one is looked up, joined or left.
    hubs: Arc<Shards<Arc<Hub>>>,
    /// The topics among them.
    topics: TopicNames,
    slots: Slots,
    members: Members,
    /// Bounds the large messages on their way to readers.
    budget: Budget,
    /// Is told which addresses are read, under the lock of their shard of `hubs`.
    interest: Option<Arc<dyn Interest>>,
}

impl Hubs {
    /// No hubs yet.
    #[must_use]
    pub fn new(slots: impl Into<Slots>) -> Self {
        let (hubs, topics, members) = (Arc::default(), TopicNames::default(), Members::default());
        Self { hubs, topics, slots: slots.into(), members, budget: Budget::new(Budget::MOST), interest: None }
    }

    /// The same hubs, whose large messages draw on this budget.
    #[must_use]
    pub(crate) fn within(self, budget: Budget) -> Self {
        Self { budget, ..self }
    }

    /// Bounds the large messages on their way to readers.
    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Who reads topics here.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Whether these are the same hubs.
    #[cfg(test)]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.hubs, &other.hubs)
    }

    /// Hubs that tell which addresses are read.
    #[must_use]
    pub fn watched(slots: impl Into<Slots>, interest: Arc<dyn Interest>) -> Self {
        Self { interest: Some(interest), ..Self::new(slots) }
    }

    /// Hands a stored message to the current readers of this address. `prev` is the seq that the address had before,
    /// [`Seq::START`] if it held nothing. A large message is announced: it would wait here for the slowest reader.
    pub fn publish(&self, address: &Address, publication: &Arc<Publication>, prev: Seq) {
        self.tell(address, || match publication.seq() {
            Some(seq) if publication.frame().len() > MAX_HELD => HubEvent::Available(seq),
            seq => match self.deliver(publication) {
                Some(publication) => HubEvent::Stored { prev, publication },
                None => HubEvent::Available(seq.unwrap_or_default()),
            },
        });
    }

    /// Hands a message that is not stored to the current readers of this address. `false` if there is no room for it in the
    /// memory budget.
    pub fn publish_volatile(&self, address: &Address, publication: &Arc<Publication>) -> bool {
        if !self.is_read(address) {
            return true;
        }
        let Some(publication) = self.deliver(publication) else { return false };
        self.tell(address, || HubEvent::Volatile(publication));
        true
    }

    fn deliver(&self, publication: &Arc<Publication>) -> Option<Arc<Publication>> {
        publication.delivery(|bytes| self.budget.try_acquire(Holder::Proved, bytes))
    }

    /// Tells the readers of this address that the engine holds a message of this seq which is not published.
    pub fn wake(&self, address: &Address, seq: Seq) {
        self.tell(address, || HubEvent::Available(seq));
    }

    fn tell(&self, address: &Address, event: impl FnOnce() -> HubEvent) {
        // Not under the lock of the shard.
        let Some(hub) = self.hubs.of(address).get(address).cloned() else { return };
        hub.send(event());
    }

    /// Tells all readers that the epoch of the store is another one now. What was acknowledged is forgotten.
    pub fn change_epoch(&self) {
        self.hubs.all().for_each(|shard| shard.values().for_each(|hub| hub.change_epoch()));
    }

    /// Whether this address has a reader here.
    #[must_use]
    pub fn is_read(&self, address: &Address) -> bool {
        self.hubs.of(address).contains_key(address)
    }

    /// How many readers the mailboxes have here, and how many the topics.
    #[must_use]
    pub(crate) fn readers(&self) -> (Connections, Connections) {
        let (mut mailboxes, mut topics) = (Connections::default(), Connections::default());
        for shard in self.hubs.all() {
            for (address, hub) in shard.iter() {
                let sum = if address.is_mailbox() { &mut mailboxes } else { &mut topics };
                lock(&hub.readers).attached().for_each(|reader| sum.add(reader.transport));
            }
        }
        (mailboxes, topics)
    }

    /// How many addresses are read.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hubs.all().map(|shard| shard.len()).sum()
    }

    /// Whether no address is read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Joins the hub of an address, and makes it if there is none. What is stored after `position` is not deleted
    /// before the reader has sent it. `None` if the address has `most` readers already.
    #[must_use]
    pub fn join(
        &self,
        address: &Address,
        position: Seq,
        transport: Transport,
        most: usize,
    ) -> Option<(ReaderHandle, HubReceiver)> {
        let mut hubs = self.hubs.of(address);
        let hub = match hubs.entry(address.clone()) {
            Entry::Occupied(hub) => hub.into_mut(),
            Entry::Vacant(place) => {
                self.note_first(address);
                place.insert(Arc::new(Hub::new(self.slots.of(address))))
            }
        };
        let mut readers = lock(&hub.readers);
        let (place, reader, end) = readers.attach(position, transport, most, hub.sent())?;
        let released_before = readers.released;
        drop(readers);
        let (hubs, address, hub) = (self.clone(), address.clone(), Arc::clone(hub));
        let receiver = HubReceiver::new(Arc::clone(&reader), Arc::clone(&hub), end);
        Some((ReaderHandle { hubs, address, hub, place, reader, released_before }, receiver))
    }

    /// Ends an address: its readers end. Who joins afterwards joins a new hub.
    pub fn end(&self, address: &Address, reason: EndReason) {
        let mut hubs = self.hubs.of(address);
        let Some(hub) = shards::remove(&mut hubs, address) else { return };
        // Before anybody can make another hub of this address.
        _ = hub.ended.set(reason);
        self.note_last_left(address);
        drop(hubs);
        // Their connections get nothing else either.
        lock(&hub.readers).attached().filter_map(AttachedReader::outlet).for_each(Outlet::close);
        hub.send(HubEvent::Ended(reason));
    }

    fn note_first(&self, address: &Address) {
        if let Address::Topic(topic) = address {
            self.topics.insert(topic);
        }
        if let Some(interest) = &self.interest {
            interest.first_reader(address);
        }
    }

    fn note_last_left(&self, address: &Address) {
        if let Address::Topic(topic) = address {
            self.topics.remove(topic);
        }
        if let Some(interest) = &self.interest {
            interest.last_reader_left(address);
        }
    }

    /// Who reads this address here now.
    #[must_use]
    pub fn presence(&self, address: &Address) -> Connections {
        let mut connections = Connections::default();
        if let Some(hub) = self.hubs.of(address).get(address) {
            lock(&hub.readers).attached().for_each(|reader| connections.add(reader.transport));
        }
        connections
    }
}

/// One reader of a hub. The hub lives as long as one of its handles.
#[derive(Debug)]
pub struct ReaderHandle {
    hubs: Hubs,
    address: Address,
    hub: Arc<Hub>,
    /// Its place in the hub.
    place: usize,
    reader: Arc<AttachedReader>,
    /// What was released before it joined.
    released_before: Seq,
}

impl ReaderHandle {
    /// The address that is read.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Why the address has ended; `None` while it has not.
    #[must_use]
    pub fn ended(&self) -> Option<EndReason> {
        self.hub.ended.get().copied()
    }

    /// Up to where this reader has sent messages.
    #[must_use]
    pub fn position(&self) -> Seq {
        Seq(self.reader.position.load(Ordering::Acquire))
    }

    /// Up to where messages were deleted that this reader may have needed: see [`Hubs::release`].
    #[must_use]
    pub fn released(&self) -> Option<Seq> {
        let released = lock(&self.hub.readers).released;
        (released > self.released_before).then_some(released)
    }

    /// Notes that everything up to `seq` was sent. Answers up to where the engine may delete now, if that waited for
    /// this reader.
    #[must_use]
    pub fn advance(&self, seq: Seq) -> Option<Seq> {
        // Sequentially consistent against `acknowledge`: of the two, at least one sees the other's store.
        let before = self.reader.position.fetch_max(seq.0, Ordering::SeqCst);
        // No acknowledgement is above where this reader was: nothing waited for it.
        if self.hub.acked.load(Ordering::SeqCst) <= before {
            return None;
        }
        lock(&self.hub.readers).trimmable()
    }

    /// Stops deletions from waiting for this reader. Answers up to where the engine may delete now, if that waited
    /// for it.
    ///
    /// The hub stays until [`Self::leave`]: it knows what is acknowledged until the engine has deleted it.
    #[must_use]
    pub fn detach(&self) -> Option<Seq> {
        let mut readers = lock(&self.hub.readers);
        self.hub.detach(&mut readers, self.place);
        readers.trimmable()
    }

    /// Lends the output of the reader's connection: what is sent to the hub is written there while the connection rests. Each
    /// call after the first one does nothing.
    pub(crate) fn lend(&self, outlet: impl FnOnce() -> Arc<dyn Outlet>) {
        if self.reader.outlet().is_none() {
            let _readers = lock(&self.hub.readers);
            self.reader.set_outlet(outlet());
            self.hub.lend(&self.reader);
        }
    }

    /// Whether the next message may be written to the connection, if it is small and the output is lent then.
    pub(crate) fn set_takes_one(&self, takes_one: bool) {
        self.reader.set_takes_one(takes_one);
    }

    /// The size of the frame of a stored message that was written to the connection while its output was lent, if it was one.
    pub(crate) fn take_written(&self) -> Option<usize> {
        self.reader.take_written()
    }

    /// Answers up to where the engine may delete now, if that waited for what was written to the connection while its output was
    /// lent.
    #[must_use]
    pub(crate) fn settle(&self) -> Option<Seq> {
        if self.reader.is_unsettled() {
            self.reader.set_unsettled(false);
            return lock(&self.hub.readers).trimmable();
        }
        None
    }

    /// Closes this output when the address ends. Each call after the first one does nothing. Whether the address has ended is
    /// to be asked after it.
    pub(crate) fn close_at_end(&self, outlet: impl FnOnce() -> Arc<dyn Outlet>) {
        if self.reader.outlet().is_none() {
            let _readers = lock(&self.hub.readers);
            self.reader.set_outlet(outlet());
        }
    }

    /// Leaves. The hub goes with its last handle.
    pub fn leave(&self) {
        let mut hubs = self.hubs.hubs.of(&self.address);
        let mut readers = lock(&self.hub.readers);
        self.hub.detach(&mut readers, self.place);
        readers.handles -= 1;
        // After the end of the address, its place may hold another hub.
        if readers.handles == 0 && self.ended().is_none() {
            _ = shards::remove(&mut hubs, &self.address);
            self.hubs.note_last_left(&self.address);
        }
    }
}

#[cfg(test)]
mod tests;
