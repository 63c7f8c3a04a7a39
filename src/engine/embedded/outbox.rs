//! Messages that are committed at level `memory` and not published yet.
//!
//! In shards by address, so that threads which send to different addresses do not wait for each other. Each address has one
//! order, since it has one shard.

use std::sync::Mutex;

use crate::engine::embedded::index::{Published, SHARDS};
use crate::sync::{Padded, lock};

/// So many messages of a shard are published without new memory.
const KEPT: usize = 64;

/// Shards that have something to publish.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Filled(u64);

const _: () = assert!(SHARDS == u64::BITS as usize, "each shard has a bit");

impl Filled {
    /// All shards.
    #[cfg(test)]
    pub(super) fn all() -> Self {
        Self(u64::MAX)
    }

    /// The shards of both.
    pub(super) fn and(self, Self(other): Self) -> Self {
        Self(self.0 | other)
    }
}

#[derive(Debug, Default)]
struct Shard {
    /// Taken before the lock of a shard of the index. Holds what is being published.
    publishing: Mutex<Vec<Published>>,
    /// In commit order. Taken below the lock of the same shard of the index.
    committed: Mutex<Vec<Published>>,
}

/// Messages that are committed and not published yet.
#[derive(Debug)]
pub(super) struct Outbox(Box<[Padded<Shard>]>);

impl Outbox {
    pub(super) fn new() -> Self {
        Self((0..SHARDS).map(|_| Padded::default()).collect())
    }

    /// Adds a message in commit order: the caller holds the lock of its address. Returns its shard.
    pub(super) fn add(&self, committed: Published) -> Filled {
        let shard = committed.address.shard(SHARDS);
        lock(&self.0[shard].committed).push(committed);
        Filled(1 << shard)
    }

    /// Publishes what these shards hold. Afterwards everything is published that was added to them before.
    ///
    /// Whoever holds `publishing` empties the shard, so the messages of an address are published in commit order.
    pub(super) fn publish(&self, Filled(mut filled): Filled, publish: impl Fn(&[Published])) {
        while filled != 0 {
            let shard = &self.0[filled.trailing_zeros() as usize];
            filled &= filled - 1;
            // Poison is ignored: after a panic the messages that may not be published are still in the list, and hubs may
            // repeat a message.
            let mut publishing = lock(&shard.publishing);
            publishing.append(&mut lock(&shard.committed));
            publish(&publishing);
            publishing.clear();
            publishing.shrink_to(KEPT);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::message::{Address, Message, MessageId, Outcome, Publication, Seq, SessionId};

    fn published(name: &str, seq: u64) -> Published {
        let address = Address::Session(SessionId::new(name).unwrap());
        let message = Message::receipt(&MessageId::new("1").unwrap(), Outcome::Expired, 1);
        let publication = Arc::new(Publication::encode(&address, Some(Seq(seq)), &message));
        Published { address, publication, prev: Seq(seq - 1) }
    }

    fn publish(outbox: &Outbox, filled: Filled) -> Vec<u64> {
        let seqs = Mutex::new(Vec::new());
        outbox.publish(filled, |list| {
            let list = list.iter().filter_map(|published| published.publication.seq());
            lock(&seqs).extend(list.map(|seq| seq.0));
        });
        seqs.into_inner().unwrap()
    }

    #[test]
    fn each_address_is_published_in_its_order_and_once() {
        let outbox = Outbox::new();
        let first = outbox.add(published("A", 1));
        let second = outbox.add(published("A", 2)).and(outbox.add(published("B", 3)));
        assert!(first != second);
        assert_eq!(publish(&outbox, first), [1, 2], "also what was added since");
        assert_eq!(publish(&outbox, second), [3]);
        assert_eq!(publish(&outbox, Filled::default()), [0; 0]);
    }

    #[test]
    fn who_publishes_waits_only_for_those_of_its_shard() {
        let outbox = Outbox::new();
        let (a, b) = (outbox.add(published("A", 1)), outbox.add(published("B", 2)));
        // Nothing is waited for, though `A` is being published.
        outbox.publish(a, |_| assert_eq!(publish(&outbox, b), [2]));
    }
}
