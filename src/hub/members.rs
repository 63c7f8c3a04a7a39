//! The members of topics: who reads them on this node, by name.
//!
//! They are kept whether somebody asks or not, so that whoever asks has them at once. Publishing does not touch them. A name
//! that reads a topic several times is one member.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex};

use crate::message::{SenderName, TopicName};
use crate::sync::{lock, shrink};

/// Some of the members of a topic, and how many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberPage {
    /// How many members the topic has.
    pub count: usize,
    /// Names in their order.
    pub members: Vec<SenderName>,
}

/// Topics whose members may have changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ChangedTopics {
    /// Here: the engine tells the other nodes.
    pub here: Vec<TopicName>,
    /// On another node.
    pub elsewhere: Vec<TopicName>,
}

/// The members of all topics on this node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Members(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// How many times each name reads a topic.
    topics: HashMap<TopicName, BTreeMap<SenderName, u32>>,
    here: HashSet<TopicName>,
    elsewhere: HashSet<TopicName>,
}

impl Members {
    /// Notes that this name reads a topic, until the membership is dropped.
    #[must_use]
    pub fn join(&self, topic: &TopicName, name: SenderName) -> Membership {
        let mut table = lock(&self.0);
        let readings = table.topics.entry(topic.clone()).or_default().entry(name.clone()).or_default();
        *readings += 1;
        if *readings == 1 {
            table.here.insert(topic.clone());
        }
        Membership { members: self.clone(), topic: topic.clone(), name }
    }

    fn leave(&self, topic: &TopicName, name: &SenderName) {
        let mut table = lock(&self.0);
        let Some(names) = table.topics.get_mut(topic) else { return };
        let Entry::Occupied(mut readings) = names.entry(name.clone()) else { return };
        *readings.get_mut() -= 1;
        if *readings.get() > 0 {
            return;
        }
        readings.remove();
        if names.is_empty() {
            table.topics.remove(topic);
            shrink(&mut table.topics);
        }
        table.here.insert(topic.clone());
    }

    /// How many members a topic has here, and the first `limit` of them after a name.
    #[must_use]
    pub fn page(&self, topic: &TopicName, after: Option<&SenderName>, limit: usize) -> MemberPage {
        let table = lock(&self.0);
        let Some(names) = table.topics.get(topic) else { return MemberPage::default() };
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let members =
            names.range::<SenderName, _>((after, Bound::Unbounded)).take(limit).map(|(name, _)| name.clone());
        MemberPage { count: names.len(), members: members.collect() }
    }

    /// Notes that the members of a topic may have changed on another node.
    pub fn changed_elsewhere(&self, topic: &TopicName) {
        lock(&self.0).elsewhere.insert(topic.clone());
    }

    /// The topics whose members may have changed since the last call.
    #[must_use]
    pub fn take_changed(&self) -> ChangedTopics {
        let mut table = lock(&self.0);
        let (here, elsewhere) = (std::mem::take(&mut table.here), std::mem::take(&mut table.elsewhere));
        drop(table);
        ChangedTopics { here: here.into_iter().collect(), elsewhere: elsewhere.into_iter().collect() }
    }
}

/// One reading of a topic by a name. It ends when this is dropped.
#[derive(Debug)]
pub struct Membership {
    members: Members,
    topic: TopicName,
    name: SenderName,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.members.leave(&self.topic, &self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> TopicName {
        TopicName::new(name).unwrap()
    }

    fn name(name: &str) -> SenderName {
        SenderName::new(name).unwrap()
    }

    fn names(page: &MemberPage) -> Vec<&str> {
        page.members.iter().map(SenderName::as_str).collect()
    }

    #[test]
    fn a_name_is_one_member_from_its_first_reading_to_its_last() {
        let (members, news) = (Members::default(), topic("news"));
        let readings = [members.join(&news, name("ann")), members.join(&news, name("ann"))];
        assert_eq!(members.take_changed().here, std::slice::from_ref(&news));
        let [first, second] = readings;
        drop(first);
        assert_eq!(members.take_changed(), ChangedTopics::default(), "still there");
        assert_eq!(names(&members.page(&news, None, 9)), ["ann"]);
        drop(second);
        assert_eq!(members.take_changed().here, std::slice::from_ref(&news));
        assert_eq!(members.page(&news, None, 9), MemberPage::default());
        assert!(lock(&members.0).topics.is_empty(), "a topic without members costs nothing");
    }

    #[test]
    fn pages_follow_each_other_in_the_order_of_names() {
        let (members, news) = (Members::default(), topic("news"));
        let _readings: Vec<_> = ["d", "a", "c", "b"].map(|one| members.join(&news, name(one))).into();
        let _other = members.join(&topic("other"), name("x"));
        let page = |after: Option<&str>, limit| members.page(&news, after.map(name).as_ref(), limit);
        assert_eq!((names(&page(None, 3)), page(None, 3).count), (vec!["a", "b", "c"], 4));
        assert_eq!(names(&page(Some("c"), 3)), ["d"]);
        assert_eq!(names(&page(Some("bb"), 3)), ["c", "d"], "the name may have left");
        assert_eq!((names(&page(Some("d"), 3)), page(Some("d"), 0).count), (vec![], 4));
    }

    #[test]
    fn what_changed_elsewhere_is_told_apart() {
        let members = Members::default();
        members.changed_elsewhere(&topic("news"));
        let elsewhere = vec![topic("news")];
        assert_eq!(members.take_changed(), ChangedTopics { here: vec![], elsewhere });
        assert_eq!(members.take_changed(), ChangedTopics::default());
    }

    #[test]
    fn ten_thousand_come_and_go_in_no_time() {
        let (members, news) = (Members::default(), topic("news"));
        let readings: Vec<_> = (0..10_000).map(|n| members.join(&news, name(&n.to_string()))).collect();
        assert_eq!(members.page(&news, None, 1001).count, 10_000);
        drop(readings);
        assert_eq!(members.page(&news, None, 1001).count, 0);
    }
}
