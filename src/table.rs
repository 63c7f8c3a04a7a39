//! Hash tables for names that clients choose.
//!
//! The hash is fast, and every table has a random key: who does not know it cannot choose names that collide.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::SharedSeed;
use foldhash::fast::FoldHasher;

/// A hash table with a random key.
pub(crate) type Table<K, V> = HashMap<K, V, RandomKey>;

/// What the keys of all tables of this process have in common.
static COMMON: LazyLock<SharedSeed> = LazyLock::new(|| SharedSeed::from_u64(random()));

/// The key of the next table. Tables have different keys, because one that is filled in the order of another one would have
/// many collisions for a while.
static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(random()));

fn random() -> u64 {
    getrandom::u64().expect("the operating system gives random numbers")
}

/// The key of one table.
#[derive(Debug, Clone)]
pub(crate) struct RandomKey {
    common: &'static SharedSeed,
    own: u64,
}

impl Default for RandomKey {
    fn default() -> Self {
        // An odd number, with its bits spread over all places.
        Self { common: &COMMON, own: NEXT.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed) }
    }
}

impl BuildHasher for RandomKey {
    type Hasher = FoldHasher<'static>;

    fn build_hasher(&self) -> Self::Hasher {
        FoldHasher::with_seed(self.own, self.common)
    }
}

/// A number for a name. All its bits depend on the whole name, and on a key that this process alone knows.
pub(crate) fn spread(name: &str) -> u64 {
    static KEY: LazyLock<RandomKey> = LazyLock::new(RandomKey::default);
    KEY.hash_one(name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_table_hashes_otherwise_and_its_copies_alike() {
        let keys: Vec<_> = (0..64).map(|_| RandomKey::default()).collect();
        let hashes: HashSet<u64> = keys.iter().map(|key| key.hash_one("session-000001")).collect();
        assert_eq!(hashes.len(), keys.len());
        for key in keys {
            assert_eq!(key.hash_one("session-000001"), key.clone().hash_one("session-000001"));
        }
    }

    #[test]
    fn names_that_differ_little_are_spread() {
        let (key, mut counts) = (RandomKey::default(), [0_u32; 64]);
        for n in 0..64_000 {
            let hash = key.hash_one(format!("session-{n}"));
            // The bits by which a table chooses the place of an entry.
            counts[usize::try_from(hash & 63).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (700..1_300).contains(count)), "{counts:?}");
    }
}
