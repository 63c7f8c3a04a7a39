//! The topics whose members somebody watches.
//!
//! Once a second the members of each topic that somebody watches, and that has changed, are compared with what the watchers
//! were told last. So joining and leaving again within that second is not told, and a topic that nobody watches costs nothing.
//! One event is encoded once for all watchers.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::budget::{Budget, Holder};
use crate::clock::Clock;
use crate::hub::{ChangedTopics, MemberPage};
use crate::message::{Address, Message, PresenceFields, Publication, TopicName};
use crate::sync::{lock, shrink};

mod told;

pub(super) use told::MOST_NAMED;
use told::{Change, Told};

/// How many events wait for a slow watcher. One that is further behind is told the number of members only.
const SLOTS: usize = 4;

/// The topics that are watched on this node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Watches(Arc<Mutex<HashMap<TopicName, Arc<Watch>>>>);

/// A topic that is watched.
#[derive(Debug)]
pub(super) struct Watch {
    topic: TopicName,
    events: broadcast::Sender<Arc<Publication>>,
    told: Mutex<Told>,
}

impl Watches {
    /// The watch of a topic, with a receiver of its events. Made if there is none.
    pub(super) fn watch(&self, topic: &TopicName) -> (Arc<Watch>, broadcast::Receiver<Arc<Publication>>) {
        let mut watches = lock(&self.0);
        let new = || {
            let events = broadcast::Sender::new(SLOTS);
            Arc::new(Watch { topic: topic.clone(), events, told: Mutex::default() })
        };
        let watch = watches.entry(topic.clone()).or_insert_with(new);
        (Arc::clone(watch), watch.events.subscribe())
    }

    /// The watch of a topic, if somebody watches it.
    pub(super) fn get(&self, topic: &TopicName) -> Option<Arc<Watch>> {
        lock(&self.0).get(topic).cloned()
    }

    /// The watches whose members may differ from what was told. Drops those that nobody listens to.
    pub(super) fn due(&self, changed: &ChangedTopics) -> Vec<Arc<Watch>> {
        let mut watches = lock(&self.0);
        if watches.is_empty() {
            return Vec::new();
        }
        watches.retain(|_, watch| watch.events.receiver_count() > 0);
        shrink(&mut watches);
        let changed: BTreeSet<&TopicName> = changed.here.iter().chain(&changed.elsewhere).collect();
        let is_due = |watch: &&Arc<Watch>| changed.contains(&watch.topic) || lock(&watch.told).is_exposed();
        watches.values().filter(is_due).cloned().collect()
    }
}

impl Watch {
    pub(super) fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// Notes that somebody is shown the members as they are now.
    pub(super) fn show(&self, now: &MemberPage) {
        lock(&self.told).show(now);
    }

    /// Tells the watchers how the members differ from what they were told.
    pub(super) fn tell(&self, now: &MemberPage, (clock, budget): (Clock, &Budget)) {
        let change = lock(&self.told).tell(now);
        if let Some(change) = change {
            // An error means that nobody watches any more.
            _ = self.events.send(self.event(&change, (clock, budget)));
        }
    }

    /// The frame of a change. Without room for it in the memory budget, it tells the number of members only.
    fn event(&self, change: &Change, (clock, budget): (Clock, &Budget)) -> Arc<Publication> {
        let encode = |joined, left| {
            let fields = PresenceFields { count: change.count, joined, left };
            let message = Message::presence(&fields, clock.now());
            Arc::new(Publication::encode(&Address::Topic(self.topic.clone()), None, &message))
        };
        let Some((joined, left)) = &change.names else { return encode(None, None) };
        let event = encode(Some(joined), Some(left));
        let delivery = event.delivery(|bytes| budget.try_acquire(Holder::Proved, bytes));
        delivery.unwrap_or_else(|| encode(None, None))
    }
}

/// Tells how the members of a topic change.
#[derive(Debug)]
pub(crate) struct PresenceReader {
    watch: Arc<Watch>,
    receiver: broadcast::Receiver<Arc<Publication>>,
    clock: Clock,
    budget: Budget,
}

impl PresenceReader {
    pub(super) fn new(
        (watch, receiver): (Arc<Watch>, broadcast::Receiver<Arc<Publication>>),
        clock: Clock,
        budget: Budget,
    ) -> Self {
        Self { watch, receiver, clock, budget }
    }

    /// The next event. A reader that is too far behind is told the number of members as it is now.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Arc<Publication> {
        match self.receiver.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(_)) => {
                // First the place in the queue, then the number: no change is missed between them.
                self.receiver = self.receiver.resubscribe();
                let change = Change { count: lock(&self.watch.told).count(), names: None };
                self.watch.event(&change, (self.clock, &self.budget))
            }
            // It holds the sender.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
