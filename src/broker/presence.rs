//! Who reads a topic: the list, and what those are told that asked for changes.

use crate::broker::Broker;
use crate::broker::watches::{MOST_NAMED, PresenceReader};
use crate::hub::{MemberPage, Membership};
use crate::message::{SenderName, TopicName};

impl Broker {
    /// Notes that a caller of this name reads a topic, until the membership is dropped.
    #[must_use]
    pub(crate) fn join(&self, topic: &TopicName, name: SenderName) -> Membership {
        self.hubs.members().join(topic, name)
    }

    /// Watches the members of a topic. Answers how many there are now; changes from then on are told.
    pub(crate) async fn watch(&self, topic: &TopicName) -> (PresenceReader, usize) {
        // First the place in the queue, then the members: no change is missed between them.
        let watch = self.watches.watch(topic);
        let now = self.all_members(topic).await;
        watch.0.show(&now);
        (PresenceReader::new(watch, self.clock, self.budget().clone()), now.count)
    }

    /// How many members a topic has, and the first `limit` of them after a name.
    pub(crate) async fn members(
        &self,
        topic: &TopicName,
        after: Option<&SenderName>,
        limit: usize,
    ) -> MemberPage {
        if let Some(watch) = self.watches.get(topic) {
            let now = self.all_members(topic).await;
            watch.show(&now);
            if now.count <= MOST_NAMED {
                let after = |name: &SenderName| after.is_none_or(|after| name > after);
                let members = now.members.into_iter().filter(after).take(limit).collect();
                return MemberPage { count: now.count, members };
            }
        }
        self.engine.members(topic, after, limit).await
    }

    /// All members of a topic; not all names if there are more than [`MOST_NAMED`].
    async fn all_members(&self, topic: &TopicName) -> MemberPage {
        self.engine.members(topic, None, MOST_NAMED).await
    }

    /// Tells the watchers of topics how the members have changed, and the other nodes that they have. Run it every second.
    pub(crate) async fn tell_presence(&self) {
        let changed = self.hubs.members().take_changed();
        if !changed.here.is_empty() {
            self.engine.announce_members(&changed.here);
        }
        for watch in self.watches.due(&changed) {
            let now = self.all_members(watch.topic()).await;
            watch.tell(&now, (self.clock, self.budget()));
        }
    }
}
