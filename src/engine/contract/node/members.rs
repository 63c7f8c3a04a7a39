//! Who reads here and on the other nodes, as a node of several machines learns it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Node;
use crate::hub::{Connections, Hubs, MemberPage};
use crate::message::{Address, SenderName, TopicName};
use crate::sync::lock;

impl Node {
    fn all_hubs(&self) -> Vec<Hubs> {
        lock(&self.0.cluster.hubs).clone()
    }

    pub(crate) async fn presence(&self, address: &Address) -> Connections {
        self.0.chance.delay().await;
        self.all_hubs()
            .iter()
            .map(|hubs| hubs.presence(address))
            .fold(Connections::default(), Connections::with)
    }

    /// Asks every node.
    pub(crate) async fn members(
        &self,
        topic: &TopicName,
        after: Option<&SenderName>,
        limit: usize,
    ) -> MemberPage {
        self.0.chance.delay().await;
        let pages = self.all_hubs().into_iter().map(|hubs| hubs.members().page(topic, None, usize::MAX));
        let names: BTreeSet<SenderName> = pages.flat_map(|page| page.members).collect();
        let count = names.len();
        let is_asked = |name: &SenderName| after.is_none_or(|after| name > after);
        MemberPage { count, members: names.into_iter().filter(is_asked).take(limit).collect() }
    }

    /// The others hear it late, and twice.
    pub(crate) fn announce_members(&self, topics: &[TopicName]) {
        let others = self.all_hubs().into_iter().filter(|hubs| !hubs.is_same(&self.0.hubs));
        for hubs in others {
            for late in [self.0.chance.up_to(20), self.0.chance.up_to(40)] {
                let (members, topics) = (hubs.members().clone(), topics.to_vec());
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(late)).await;
                    topics.iter().for_each(|topic| members.changed_elsewhere(topic));
                });
            }
        }
    }
}
