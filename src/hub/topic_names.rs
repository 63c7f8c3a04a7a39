//! The names of the topics that are read here.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use crate::message::{NameRange, TopicName};
use crate::sync::lock;

/// The topics that are read here, in their order. There are few of them beside sessions, so each may cost a second entry.
#[derive(Debug, Clone, Default)]
pub(super) struct TopicNames(Arc<Mutex<BTreeSet<TopicName>>>);

impl TopicNames {
    /// Notes a topic that somebody reads now.
    pub(super) fn insert(&self, topic: &TopicName) {
        lock(&self.0).insert(topic.clone());
    }

    /// Notes that nobody reads a topic any more.
    pub(super) fn remove(&self, topic: &TopicName) {
        lock(&self.0).remove(topic);
    }

    /// The first `limit` of them in this range.
    pub(super) fn page(&self, range: NameRange<'_>, limit: usize) -> Vec<TopicName> {
        range.first_of(&lock(&self.0), limit)
    }
}
