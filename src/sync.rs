//! Locks and tables that the whole process uses, and the order in which locks are taken.
//!
//! # The order of locks
//! A thread that holds one of these locks takes only locks below it:
//!
//! 1. `publishing` of one shard of the embedded engine's outbox: held while committed messages of that shard are handed to the
//!    hubs, at level `memory`. The same of its publish queue, at the other levels.
//! 2. One shard of the embedded engine's index: held for one append, one read, or what expires in it. A message with a receipt
//!    locks two, and a registration all of them, in the order of their numbers.
//! 3. What waits for the writer, `IntakeLock`: held while a message is queued, and while the writer takes what is queued.
//! 4. A part that all shards have in common, each held for a moment: ids, authors, receipts, registrations, the newest bodies, what is
//!    full. Beside them, what one shard of the outbox holds.
//! 5. One shard of the map of hubs: held while a hub is looked up, joined or left.
//! 6. The names of the topics with hubs, held while one comes or goes. Or the readers of one hub, held too while a message is written to the sockets of a few of them, which do not block. Or what an
//!    engine's `Interest` locks while it notes a reader.
//! 7. Where a hub puts the end of its channel for one reader, or the output that a connection lends: held while something is
//!    written to it.
//!
//! The map of watched topics is held while what the watchers of one were told is looked at.
//!
//! All other locks are held alone, for a look-up: the leases of polls, the members of topics, the answers of the x0 pages, the connections of
//! an address, idle connections to the disk, the handle of the writer's thread. No lock is held across an await or a
//! disk access.
//!
//! A panic under the locks 2 to 4 can leave the store half changed: it is not used again, and what waits for the writer is
//! dropped. Every other lock is taken by [`lock`], which ignores poison.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a std mutex and ignores poison. Only for critical sections that cannot leave half-done state.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees the memory of a table that is almost empty; cheap if it is not.
pub(crate) fn shrink<K: Eq + Hash, V, S: BuildHasher>(table: &mut HashMap<K, V, S>) {
    shrink_above(table, 8192);
}

/// The same for a table that has room for more than so many entries.
pub(crate) fn shrink_above<K: Eq + Hash, V, S: BuildHasher>(table: &mut HashMap<K, V, S>, capacity: usize) {
    if table.capacity() > capacity && table.len() < table.capacity() / 8 {
        table.shrink_to(2 * table.len());
    }
}

/// A value with cache lines of its own: what other threads write beside it does not slow it down.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(T);

impl<T> Padded<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
