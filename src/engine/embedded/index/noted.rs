//! The number of shards, and how much they have noted for the writer and it has not taken yet.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sync::Padded;

/// How many shards the index has: as many as a number has bits.
pub(crate) const SHARDS: usize = 64;

/// One floor. A number of deletions is below it.
const FLOOR: u64 = 1 << 40;

/// Deletions and floors that the shards have noted and the writer has not taken.
#[derive(Debug, Default)]
pub(crate) struct Noted(Padded<AtomicU64>);

fn packed(deletes: usize, floors: usize) -> u64 {
    deletes as u64 + FLOOR * floors as u64
}

impl Noted {
    /// A shard has noted so many more. Returns whether nothing was noted before.
    pub(super) fn add(&self, deletes: usize, floors: usize) -> bool {
        self.0.fetch_add(packed(deletes, floors), Ordering::AcqRel) == 0
    }

    /// So many of a shard are taken, or dropped.
    pub(super) fn remove(&self, deletes: usize, floors: usize) {
        self.0.fetch_sub(packed(deletes, floors), Ordering::AcqRel);
    }

    pub(super) fn deletes(&self) -> usize {
        usize::try_from(self.0.load(Ordering::Acquire) % FLOOR).unwrap_or(usize::MAX)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_and_floors_are_counted_apart() {
        let noted = Noted::default();
        assert!(noted.is_empty() && noted.add(0, 1));
        assert!(!noted.add(3, 1));
        assert_eq!((noted.deletes(), noted.is_empty()), (3, false));
        noted.remove(3, 0);
        assert_eq!((noted.deletes(), noted.is_empty()), (0, false));
        noted.remove(0, 2);
        assert!(noted.is_empty());
    }
}
