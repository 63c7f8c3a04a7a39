//! What is stored, for operators: topics and sessions by name. One shard is locked at a time.

use crate::engine::Usage;
use crate::engine::embedded::index::{Index, SHARDS};
use crate::message::{Address, FirstNames, NameRange, SessionId, TopicName};

impl Index {
    /// The first `limit` topics in this range with stored messages.
    pub(in crate::engine::embedded) fn topics(&self, range: NameRange<'_>, limit: usize) -> Vec<TopicName> {
        let mut first = FirstNames::new(range, limit);
        self.shards.each().for_each(|shard| first.extend(shard.logs.topics(range, limit)));
        first.into_names()
    }

    /// Offers the sessions of one shard that have stored messages. `false` if there is no such shard.
    pub(in crate::engine::embedded) fn offer_sessions(
        &self,
        number: usize,
        first: &mut FirstNames<'_, SessionId>,
    ) -> bool {
        let shard = if number < SHARDS { self.shards.lock_at(number) } else { None };
        let Some(shard) = shard else { return false };
        shard.logs.sessions().for_each(|session| first.offer(session));
        true
    }

    /// What is stored at an address, with what is not committed yet.
    pub(in crate::engine::embedded) fn stored(&self, address: &Address) -> Usage {
        let Some(shard) = self.shards.lock(address) else { return Usage::default() };
        let usage = |log: &super::address_log::AddressLog| Usage {
            messages: log.entries().len(),
            bytes: log.bytes(),
        };
        shard.logs.get(address).map_or_else(Usage::default, usage)
    }
}
