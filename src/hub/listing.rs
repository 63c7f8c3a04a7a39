//! What is read here, for operators: topics by name, sessions by name, the readers of one address.
//!
//! Each call locks one shard at a time, for a moment.

use std::sync::atomic::Ordering;

use crate::hub::reader::AttachedReader;
use crate::hub::{Hubs, Transport};
use crate::message::{Address, FirstNames, NameRange, Seq, SessionId, TopicName};
use crate::sync::lock;

/// Most readers of one address that are told.
const MAX_READERS: usize = 100;

/// How far one reader of a mailbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReaderState {
    /// How it is connected.
    pub transport: Transport,
    /// Up to where it has been sent messages.
    pub sent: Seq,
}

impl Hubs {
    /// The first `limit` topics in this range that are read here.
    #[must_use]
    pub fn topics(&self, range: NameRange<'_>, limit: usize) -> Vec<TopicName> {
        self.topics.page(range, limit)
    }

    /// The first `limit` sessions in this range that are read here. It looks at all of them, and yields in between.
    pub(crate) async fn sessions(&self, range: NameRange<'_>, limit: usize) -> Vec<SessionId> {
        let mut first = FirstNames::new(range, limit);
        let mut number = 0;
        while self.offer_shard(number, &mut first) {
            number += 1;
            tokio::task::yield_now().await;
        }
        first.into_names()
    }

    /// Offers the sessions of one shard. `false` if there is no such shard.
    fn offer_shard(&self, number: usize, first: &mut FirstNames<'_, SessionId>) -> bool {
        let Some(shard) = self.hubs.at(number) else { return false };
        shard.keys().filter_map(Address::session).for_each(|session| first.offer(session));
        true
    }

    /// The readers of an address here; of very many, some.
    #[must_use]
    pub fn readers_of(&self, address: &Address) -> Vec<ReaderState> {
        let hubs = self.hubs.of(address);
        let Some(hub) = hubs.get(address) else { return Vec::new() };
        let readers = lock(&hub.readers);
        let state = |reader: &AttachedReader| ReaderState {
            transport: reader.transport,
            sent: Seq(reader.position.load(Ordering::Relaxed)),
        };
        readers.attached().take(MAX_READERS).map(state).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::EndReason;

    fn topic(name: &str) -> Address {
        Address::Topic(TopicName::new(name).unwrap())
    }

    fn session(name: &str) -> Address {
        Address::Session(SessionId::new(name).unwrap())
    }

    fn topics(hubs: &Hubs) -> Vec<String> {
        hubs.topics(NameRange::default(), 9).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_topic_is_listed_from_its_first_reader_to_its_last() {
        let hubs = Hubs::new(4);
        let join = |address: &Address| hubs.join(address, Seq(3), Transport::Sse, 9).unwrap();
        let [(one, _a), (two, _b), (other, _c)] =
            [join(&topic("news")), join(&topic("news")), join(&topic("a"))];
        let _session = join(&session("S"));
        assert_eq!(topics(&hubs), ["a", "news"]);
        let expected = ReaderState { transport: Transport::Sse, sent: Seq(3) };
        assert_eq!(hubs.readers_of(&topic("news")), [expected; 2]);
        one.leave();
        assert_eq!(topics(&hubs), ["a", "news"]);
        two.leave();
        assert_eq!(topics(&hubs), ["a"]);
        hubs.end(&topic("a"), EndReason::SessionEnded);
        assert_eq!(topics(&hubs), [""; 0]);
        let (_again, _d) = join(&topic("a"));
        other.leave();
        assert_eq!(topics(&hubs), ["a"], "the hub that ended leaves the new one listed");
    }

    #[tokio::test]
    async fn sessions_of_all_shards_are_listed_in_their_order() {
        let hubs = Hubs::new(4);
        let names: Vec<String> = (0..100).map(|n| format!("s{n:03}")).collect();
        let _joined: Vec<_> = names
            .iter()
            .rev()
            .map(|name| hubs.join(&session(name), Seq::START, Transport::Poll, 9).unwrap())
            .collect();
        let _topic = hubs.join(&topic("s0"), Seq::START, Transport::Poll, 9);
        let page = hubs.sessions(NameRange { prefix: "s", after: Some("s041") }, 3).await;
        assert_eq!(page.iter().map(SessionId::as_str).collect::<Vec<_>>(), ["s042", "s043", "s044"]);
        assert_eq!(hubs.sessions(NameRange::default(), 1000).await.len(), 100);
        assert!(hubs.hubs.are_free());
    }
}
