//! The topics one connection reads, as one stream.

use std::future::poll_fn;
use std::task::{Context, Poll};

use futures::stream::{BoxStream, StreamExt};
use futures::{FutureExt, stream};

use crate::message::{Item, TopicName};
use crate::subscriber::Subscriber;

/// Readers of a number of topics, bounded by the caller.
#[derive(Default)]
pub(super) struct Topics {
    readers: Vec<(TopicName, BoxStream<'static, Item>)>,
    /// Which reader is asked first next time, so that a busy topic does not keep the others waiting.
    turn: usize,
}

impl std::fmt::Debug for Topics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.readers.iter().map(|(topic, _)| topic)).finish()
    }
}

impl Topics {
    pub(super) fn len(&self) -> usize {
        self.readers.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.readers.is_empty()
    }

    /// Which topics are read.
    pub(super) fn names(&self) -> Vec<TopicName> {
        self.readers.iter().map(|(topic, _)| topic.clone()).collect()
    }

    pub(super) fn contains(&self, topic: &TopicName) -> bool {
        self.readers.iter().any(|(name, _)| name == topic)
    }

    /// Reads a topic, from where the subscriber stands; a subscription to the same topic is replaced.
    pub(super) fn insert(&mut self, topic: TopicName, subscriber: Subscriber) {
        self.remove(&topic);
        // One allocation for each subscription, none for each message.
        let items = stream::unfold(subscriber, async |mut subscriber| {
            let item = subscriber.next().await?;
            Some((item, subscriber))
        });
        self.readers.push((topic, items.boxed()));
    }

    /// Stops reading a topic; answers whether it was read.
    pub(super) fn remove(&mut self, topic: &TopicName) -> bool {
        let before = self.len();
        self.retain(|name| name != topic);
        self.len() < before
    }

    /// Stops reading all topics that `keep` does not name.
    pub(super) fn retain(&mut self, keep: impl Fn(&TopicName) -> bool) {
        self.readers.retain(|(topic, _)| keep(topic));
    }

    /// The next item of any topic; waits until there is one, for ever while no topic is read.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> (TopicName, Item) {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(TopicName, Item)> {
        for offset in 0..self.len() {
            let at = (self.turn + offset) % self.len();
            let (topic, items) = &mut self.readers[at];
            // A reader ends only when its hub is gone; there is nothing to wait for then.
            if let Poll::Ready(Some(item)) = items.poll_next_unpin(cx) {
                self.turn = at + 1;
                return Poll::Ready((topic.clone(), item));
            }
        }
        Poll::Pending
    }

    /// The next item of any topic if one is at hand.
    pub(super) fn try_next(&mut self) -> Option<(TopicName, Item)> {
        if self.is_empty() { None } else { self.next().now_or_never() }
    }
}
