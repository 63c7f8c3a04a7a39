//! A table by address, in shards with a lock each: threads that use different addresses do not wait for each other.

use std::sync::{Mutex, MutexGuard};

use crate::message::Address;
use crate::sync::{lock, shrink_above};
use crate::table::Table;

/// How many shards: many more than threads.
const SHARDS: usize = 32;

/// A table that is larger gives its memory back when it is almost empty.
const KEPT: usize = 256;

/// One shard.
type Shard<V> = Table<Address, V>;

/// A table by address, in shards.
#[derive(Debug)]
pub(super) struct Shards<V>([Mutex<Shard<V>>; SHARDS]);

impl<V> Default for Shards<V> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }
}

impl<V> Shards<V> {
    /// Locks the shard of this address. A thread locks one shard at a time.
    pub(super) fn of(&self, address: &Address) -> MutexGuard<'_, Shard<V>> {
        lock(&self.0[address.shard(SHARDS)])
    }

    /// Locks one shard, by its number; `None` if there is no such shard.
    pub(super) fn at(&self, number: usize) -> Option<MutexGuard<'_, Shard<V>>> {
        self.0.get(number).map(lock)
    }

    /// Locks one shard after the other.
    pub(super) fn all(&self) -> impl Iterator<Item = MutexGuard<'_, Shard<V>>> {
        self.0.iter().map(lock)
    }

    /// Whether no shard is locked.
    #[cfg(test)]
    pub(super) fn are_free(&self) -> bool {
        self.0.iter().all(|shard| shard.try_lock().is_ok())
    }
}

/// Removes an entry of a shard, and gives memory back.
pub(super) fn remove<V>(table: &mut Shard<V>, address: &Address) -> Option<V> {
    let removed = table.remove(address);
    shrink_above(table, KEPT);
    removed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::SessionId;

    fn address(n: usize) -> Address {
        Address::Session(SessionId::new(&format!("session-{n}")).unwrap())
    }

    #[test]
    fn an_address_stays_in_its_shard_and_the_usual_names_are_spread() {
        let shards = Shards::default();
        for n in 0..32_000 {
            assert_eq!(shards.of(&address(n)).insert(address(n), n), None);
        }
        for n in 0..32_000 {
            assert_eq!(shards.of(&address(n)).get(&address(n)), Some(&n));
        }
        for shard in shards.all() {
            assert!((500..2_000).contains(&shard.len()), "{}", shard.len());
        }
    }

    #[test]
    fn memory_is_given_back() {
        let shards = Shards::default();
        (0..32_000).for_each(|n| _ = shards.of(&address(n)).insert(address(n), n));
        (0..32_000).for_each(|n| assert_eq!(remove(&mut shards.of(&address(n)), &address(n)), Some(n)));
        assert!(shards.all().all(|shard| shard.capacity() <= KEPT), "{shards:?}");
    }
}
