//! The topics that one connection reads, and those whose members it watches, merged into one stream.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::stream::{self, BoxStream, StreamExt};
use tokio::task::coop::cooperative;

use crate::broker::{Broker, PresenceReader};
use crate::engine::EngineError;
use crate::hub::{Membership, Outlet};
use crate::link::LentOutput;
use crate::message::{Item, TopicName};
use crate::protocol::Presence;
use crate::subscriber::Subscriber;

/// The subscriptions of one connection to topics. The caller bounds their number.
#[derive(Default)]
pub(super) struct TopicReaders {
    readers: Vec<(TopicName, TopicReader)>,
    /// Which one is asked first: the one after that which had an item last, so a busy topic does not starve the others.
    first: usize,
}

/// What is read of a topic.
enum TopicReader {
    /// Its messages. The reader is a member as long.
    Messages(Box<Subscriber>, #[expect(dead_code, reason = "it is held")] Option<Membership>),
    /// How its members change.
    Presence(BoxStream<'static, Item>),
}

impl TopicReader {
    fn is_messages(&self) -> bool {
        matches!(self, Self::Messages(..))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, EngineError>>> {
        match self {
            Self::Messages(subscriber, _) => subscriber.poll_next_if(cx, |_| true),
            Self::Presence(events) => events.poll_next_unpin(cx).map(|event| event.map(Ok)),
        }
    }

    /// Polls without waiting for what is not ready. A wait that is under way goes on.
    fn poll_ready(&mut self) -> Poll<Option<Result<Item, EngineError>>> {
        if let Self::Messages(subscriber, _) = self
            && let Some(item) = subscriber.try_next()
        {
            return Poll::Ready(Some(Ok(item)));
        }
        match self {
            Self::Messages(subscriber, _) if subscriber.is_live() => Poll::Pending,
            _ => self.poll_next(&mut Context::from_waker(Waker::noop())),
        }
    }
}

impl std::fmt::Debug for TopicReaders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.readers.iter().map(|(topic, _)| topic)).finish()
    }
}

impl TopicReaders {
    /// How many topics are read.
    pub(super) fn len(&self) -> usize {
        self.topics().count()
    }

    /// The topics that are read.
    fn topics(&self) -> impl Iterator<Item = &TopicName> {
        self.readers.iter().filter(|(_, reader)| reader.is_messages()).map(|(topic, _)| topic)
    }

    /// The topics whose members are watched.
    fn watched(&self) -> impl Iterator<Item = &TopicName> {
        self.readers.iter().filter(|(_, reader)| !reader.is_messages()).map(|(topic, _)| topic)
    }

    /// Whether neither messages nor members of any topic are read.
    pub(super) fn is_empty(&self) -> bool {
        self.readers.is_empty()
    }

    pub(super) fn contains(&self, topic: &TopicName) -> bool {
        self.topics().any(|name| name == topic)
    }

    /// Whether changes of the members of a topic are read.
    pub(super) fn watches(&self, topic: &TopicName) -> bool {
        self.watched().any(|name| name == topic)
    }

    /// Reads a topic from the position of the subscriber. Replaces a subscription to the same topic. The reader is a member
    /// as long.
    pub(super) fn insert(&mut self, topic: TopicName, subscriber: Subscriber, member: Option<Membership>) {
        self.put(topic, TopicReader::Messages(Box::new(subscriber), member));
    }

    /// Replaces the reader of the same part of this topic.
    fn put(&mut self, topic: TopicName, reader: TopicReader) {
        self.take(&topic, reader.is_messages());
        self.readers.push((topic, reader));
    }

    /// Stops reading the messages of a topic, or how its members change. Returns whether that was read.
    fn take(&mut self, topic: &TopicName, messages: bool) -> bool {
        let is_it =
            |(name, reader): &(TopicName, TopicReader)| name == topic && reader.is_messages() == messages;
        let at = self.readers.iter().position(is_it);
        at.map(|at| self.readers.swap_remove(at)).is_some()
    }

    /// Reads how the members of a topic change, from now on, or stops that. Answers how many they are.
    pub(super) async fn set_watched(
        &mut self,
        broker: &Broker,
        topic: &TopicName,
        watched: bool,
    ) -> Option<Presence> {
        if !watched {
            self.unwatch(topic);
            return None;
        }
        let (presence, count) = broker.watch(topic).await;
        self.watch(topic.clone(), presence);
        Some(Presence { count })
    }

    fn watch(&mut self, topic: TopicName, presence: PresenceReader) {
        let items = stream::unfold(presence, async |mut presence| {
            let event = presence.next().await;
            Some((Item::Message(event), presence))
        });
        self.put(topic, TopicReader::Presence(items.boxed()));
    }

    fn unwatch(&mut self, topic: &TopicName) {
        self.take(topic, false);
    }

    /// Stops reading a topic. Returns whether it was read.
    pub(super) fn remove(&mut self, topic: &TopicName) -> bool {
        self.unwatch(topic);
        self.take(topic, true)
    }

    /// Stops reading all topics except those that `keep` accepts. Returns those that are no longer read.
    pub(super) fn retain(&mut self, keep: impl Fn(&TopicName) -> bool) -> Vec<TopicName> {
        let removed: Vec<_> = self.topics().filter(|topic| !keep(topic)).cloned().collect();
        for topic in &removed {
            self.remove(topic);
        }
        removed
    }

    /// Stops reading how members change, except of topics that `keep` accepts. Returns those.
    pub(super) fn retain_watched(&mut self, keep: impl Fn(&TopicName) -> bool) -> Vec<TopicName> {
        let removed: Vec<_> = self.watched().filter(|topic| !keep(topic)).cloned().collect();
        for topic in &removed {
            self.unwatch(topic);
        }
        removed
    }

    /// The next item of any topic, or why one cannot be read now: that is told once. Waits for ever while no topic is read.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> (TopicName, Result<Item, EngineError>) {
        cooperative(poll_fn(|cx| self.poll_next(cx))).await
    }

    /// Polls for the same.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(TopicName, Result<Item, EngineError>)> {
        self.poll_in_turn(|reader| reader.poll_next(cx))
    }

    /// The next item of any topic, if one is ready.
    fn try_next(&mut self) -> Option<(TopicName, Result<Item, EngineError>)> {
        match self.poll_in_turn(TopicReader::poll_ready) {
            Poll::Ready(next) => Some(next),
            Poll::Pending => None,
        }
    }

    fn poll_in_turn(
        &mut self,
        mut poll: impl FnMut(&mut TopicReader) -> Poll<Option<Result<Item, EngineError>>>,
    ) -> Poll<(TopicName, Result<Item, EngineError>)> {
        let mut at = self.first;
        for _ in 0..self.readers.len() {
            at = if at < self.readers.len() { at } else { 0 };
            let (topic, reader) = &mut self.readers[at];
            match poll(reader) {
                Poll::Ready(Some(item)) => {
                    self.first = at + 1;
                    return Poll::Ready((topic.clone(), item));
                }
                Poll::Ready(None) => _ = self.readers.swap_remove(at),
                Poll::Pending => at += 1,
            }
        }
        Poll::Pending
    }

    /// Lends the output of the connection to what is published to its topics. Returns whether there are any, and nothing else is
    /// to be written before what comes next.
    pub(super) fn lend(&mut self, outlet: &Arc<LentOutput>) -> bool {
        let lend = |reader: &mut TopicReader| match reader {
            TopicReader::Messages(subscriber, _) => subscriber.lend(|| Arc::clone(outlet) as Arc<dyn Outlet>),
            TopicReader::Presence(_) => true,
        };
        self.has_messages() && self.readers.iter_mut().all(|(_, reader)| lend(reader))
    }

    /// Whether messages are read.
    pub(super) fn has_messages(&self) -> bool {
        self.readers.iter().any(|(_, reader)| reader.is_messages())
    }

    /// The next item that is ready: of the mailbox, if it is admitted, or else of any topic, which is named.
    pub(super) fn try_next_after(
        &mut self,
        mailbox: Option<&mut Subscriber>,
        admits: impl Fn(&Item) -> bool,
    ) -> Option<(Option<TopicName>, Result<Item, EngineError>)> {
        let item = mailbox.and_then(|mailbox| mailbox.try_next_if(admits)).map(|item| (None, Ok(item)));
        item.or_else(|| self.try_next().map(|(topic, item)| (Some(topic), item)))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use serde_json::json;

    use super::*;
    use crate::edge::Gateway;
    use crate::hub::Transport;
    use crate::protocol::{Resume, To};
    use crate::transport::testing::{gateway, send, topic};

    async fn read(gateway: &Gateway, topics: &mut TopicReaders, name: &str) {
        let (subscriber, _) =
            gateway.broker.topic(&topic(name), &Resume::default(), Transport::Websocket).await;
        topics.insert(topic(name), subscriber, None);
    }

    async fn publish(gateway: &Gateway, name: &str, payload: u32) {
        send(gateway, To::Topic(topic(name)), &json!(payload), false).await;
    }

    fn payload((topic, item): (TopicName, Result<Item, EngineError>)) -> (String, String) {
        match item {
            Ok(Item::Message(message)) => (topic.to_string(), message.payload().to_owned()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_topic_is_read_in_its_order() {
        let gateway = gateway(&[]);
        let mut topics = TopicReaders::default();
        for name in ["a", "b"] {
            read(&gateway, &mut topics, name).await;
        }
        for n in 0..3 {
            publish(&gateway, "a", n).await;
            publish(&gateway, "b", n).await;
        }
        let mut read = Vec::new();
        for _ in 0..6 {
            read.push(payload(topics.next().await));
        }
        for name in ["a", "b"] {
            let of: Vec<_> =
                read.iter().filter(|(topic, _)| topic == name).map(|(_, p)| p.as_str()).collect();
            assert_eq!(of, ["0", "1", "2"], "{name}");
        }
        assert!(topics.try_next().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_wait_loses_nothing() {
        let gateway = gateway(&[]);
        let mut topics = TopicReaders::default();
        read(&gateway, &mut topics, "a").await;
        assert!(topics.next().now_or_never().is_none());
        publish(&gateway, "a", 1).await;
        assert_eq!(payload(topics.next().await), ("a".to_owned(), "1".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn without_topics_nothing_comes() {
        let mut topics = TopicReaders::default();
        assert!(topics.is_empty() && topics.try_next().is_none());
        assert!(topics.next().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_topic_is_not_read() {
        let gateway = gateway(&[]);
        let mut topics = TopicReaders::default();
        for name in ["a", "b", "c"] {
            read(&gateway, &mut topics, name).await;
        }
        assert!(topics.remove(&topic("a")) && !topics.remove(&topic("a")));
        assert_eq!(topics.retain(|name| *name == topic("b")), [topic("c")]);
        assert!(topics.len() == 1 && topics.contains(&topic("b")));
        for name in ["a", "b", "c"] {
            publish(&gateway, name, 1).await;
        }
        assert_eq!(payload(topics.next().await).0, "b");
        assert!(topics.try_next().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_subscription_to_a_topic_replaces_the_first() {
        let gateway = gateway(&[]);
        let mut topics = TopicReaders::default();
        for _ in 0..2 {
            read(&gateway, &mut topics, "a").await;
        }
        assert!(topics.len() == 1 && topics.contains(&topic("a")));
        publish(&gateway, "a", 1).await;
        topics.next().await.1.unwrap();
        assert!(topics.try_next().is_none());
    }
}
