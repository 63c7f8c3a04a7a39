//! The other nodes: which are there, and topics whose members they announced.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::hub::{Connections, MemberPage};
use crate::message::{SenderName, TopicName};
use crate::sync::lock;

/// A node that was silent for so long is gone.
const GONE: Duration = Duration::from_secs(4);

/// The other nodes. Cheap: there are few.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<HashMap<String, Peer>>);

#[derive(Debug)]
struct Peer {
    heard: Instant,
    topics: HashSet<TopicName>,
}

/// What nodes ask each other.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Question {
    /// Who reads the mailbox of a session.
    Session(String),
    /// Who reads the mailbox of a backend.
    Backend(String),
    /// Who reads a topic.
    Topic(String),
    /// The members of a topic: after a name, and at most how many.
    Members(String, Option<String>, usize),
}

/// A node answers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) node: String,
    #[serde(default)]
    pub(super) connections: [usize; 4],
    #[serde(default)]
    pub(super) count: usize,
    #[serde(default)]
    pub(super) members: Vec<String>,
}

/// What a node announces.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Announcement {
    pub(super) node: String,
    /// Topics whose members changed there.
    pub(super) topics: Vec<String>,
}

/// Connections as numbers.
pub(super) fn to_numbers(connections: Connections) -> [usize; 4] {
    [connections.websocket, connections.sse, connections.poll, connections.legacy]
}

/// The inverse of [`to_numbers`].
pub(super) fn from_numbers([websocket, sse, poll, legacy]: [usize; 4]) -> Connections {
    Connections { websocket, sse, poll, legacy }
}

/// The members that several nodes know. A name that reads a topic on several nodes is one member, as far as the names are
/// known.
pub(super) fn merge(pages: Vec<MemberPage>, limit: usize) -> MemberPage {
    let most: usize = pages.iter().map(|page| page.count).sum();
    let known: usize = pages.iter().map(|page| page.members.len()).sum();
    let mut members: Vec<SenderName> = pages.into_iter().flat_map(|page| page.members).collect();
    members.sort_unstable();
    members.dedup();
    // A member that two nodes name is counted twice in the sum.
    let count = most - (known - members.len());
    members.truncate(limit);
    MemberPage { count, members }
}

impl Peers {
    /// Notes that a node is there. Answers whether it was not known.
    pub(super) fn heard(&self, node: &str) -> bool {
        let mut peers = lock(&self.0);
        match peers.get_mut(node) {
            Some(peer) => {
                peer.heard = Instant::now();
                false
            }
            None => {
                peers.insert(node.to_owned(), Peer { heard: Instant::now(), topics: HashSet::new() });
                true
            }
        }
    }

    /// Notes that a node has, or had, members of these topics.
    pub(super) fn announced(&self, node: &str, topics: &[TopicName]) {
        if let Some(peer) = lock(&self.0).get_mut(node) {
            peer.topics.extend(topics.iter().cloned());
        }
    }

    /// The nodes that are there.
    pub(super) fn all(&self) -> HashSet<String> {
        lock(&self.0).keys().cloned().collect()
    }

    /// Forgets a node that stops in order, or those that were silent for too long. Answers the topics that they had members
    /// of.
    pub(super) fn forget(&self, node: Option<&str>) -> HashSet<TopicName> {
        let (now, mut peers) = (Instant::now(), lock(&self.0));
        let mut topics = HashSet::new();
        peers.retain(|name, peer| {
            let is_gone = node == Some(name.as_str()) || peer.heard + GONE < now;
            if is_gone {
                topics.extend(peer.topics.drain());
            }
            !is_gone
        });
        topics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(count: usize, members: &[&str]) -> MemberPage {
        MemberPage { count, members: members.iter().map(|name| SenderName::new(name).unwrap()).collect() }
    }

    #[test]
    fn a_member_on_two_nodes_is_counted_once() {
        let merged = merge(vec![page(3, &["ann", "bob", "eve"]), page(2, &["ann", "dan"])], 2);
        assert_eq!(merged, page(4, &["ann", "bob"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_gone_with_its_topics() {
        let (peers, news) = (Peers::default(), TopicName::new("news").unwrap());
        assert!(peers.heard("n") && !peers.heard("n"));
        peers.announced("n", std::slice::from_ref(&news));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(peers.forget(None).is_empty() && peers.all().contains("n"));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(peers.forget(None).contains(&news) && peers.all().is_empty());
    }
}
