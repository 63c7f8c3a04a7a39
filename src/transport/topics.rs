//! The topics one connection reads, as one stream.

use std::collections::HashMap;

use futures::future::AbortHandle;
use futures::stream::{BoxStream, SelectAll, StreamExt};
use futures::{FutureExt, stream};

use crate::message::{Item, TopicName};
use crate::subscriber::Subscriber;

/// Readers of any number of topics.
#[derive(Default)]
pub(super) struct Topics {
    streams: SelectAll<BoxStream<'static, (TopicName, Item)>>,
    stop: HashMap<TopicName, AbortHandle>,
}

impl std::fmt::Debug for Topics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.stop.keys()).finish()
    }
}

impl Topics {
    pub(super) fn len(&self) -> usize {
        self.stop.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.stop.is_empty()
    }

    pub(super) fn contains(&self, topic: &TopicName) -> bool {
        self.stop.contains_key(topic)
    }

    /// Reads a topic, from where the subscriber stands; a subscription to the same topic is replaced.
    pub(super) fn insert(&mut self, topic: TopicName, subscriber: Subscriber) {
        let name = topic.clone();
        // One allocation for each subscription, none for each message.
        let items = stream::unfold(subscriber, move |mut subscriber| {
            let name = name.clone();
            async move {
                let item = subscriber.next().await?;
                Some(((name, item), subscriber))
            }
        });
        let (items, stop) = stream::abortable(items);
        self.streams.push(items.boxed());
        if let Some(before) = self.stop.insert(topic, stop) {
            before.abort();
        }
    }

    /// Stops reading a topic; answers whether it was read.
    pub(super) fn remove(&mut self, topic: &TopicName) -> bool {
        self.stop.remove(topic).map(|stop| stop.abort()).is_some()
    }

    /// Stops reading all topics that `keep` does not name.
    pub(super) fn retain(&mut self, keep: impl Fn(&TopicName) -> bool) {
        self.stop.retain(|topic, stop| {
            let kept = keep(topic);
            if !kept {
                stop.abort();
            }
            kept
        });
    }

    /// The next item of any topic; waits until there is one, for ever while no topic is read.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> (TopicName, Item) {
        loop {
            match self.streams.next().await {
                Some(next) if self.stop.contains_key(&next.0) => return next,
                Some(_) => {}
                None => std::future::pending::<()>().await,
            }
        }
    }

    /// The next item of any topic if one is at hand.
    pub(super) fn try_next(&mut self) -> Option<(TopicName, Item)> {
        if self.is_empty() { None } else { self.next().now_or_never() }
    }
}
