//! The senders' ids of the last minutes, so that a retry is stored once.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::message::{Address, Author, Message, MessageId, Seq};

/// What stands for one (receiver, sender, id): a keyed hash, so that nobody can aim at somebody else's.
///
/// Two halves, since one number of 128 bits would be aligned to, and cost, 16 bytes more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DedupKey(u64, u64);

impl DedupKey {
    pub(super) fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.0) << 64 | u128::from(self.1)).to_le_bytes()
    }

    pub(super) fn from_bytes(bytes: [u8; 16]) -> Self {
        let all = u128::from_le_bytes(bytes);
        let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).expect("64 bits");
        Self(half(all >> 64), half(all))
    }
}

impl Hash for DedupKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.1);
    }
}

/// Takes a key for the hash that it is.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("a key writes one number");
    }

    fn write_u64(&mut self, bits: u64) {
        self.0 = bits;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Makes keys; its secret is stored with the ids.
#[derive(Debug, Clone)]
pub(super) struct DedupHasher(SipHasher13);

impl DedupHasher {
    pub(super) fn new(secret: &[u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(secret))
    }

    pub(super) fn key(
        &self,
        address: &Address,
        author: &Author,
        message: &Message,
        id: &MessageId,
    ) -> DedupKey {
        // Senders without a name cannot be told apart, but their retries have the same payload.
        let sender = match author {
            Author::Anonymous => Err(message.payload.get()),
            author => Ok(author),
        };
        let mut hasher = self.0;
        (address, sender, id).hash(&mut hasher);
        let hash = hasher.finish128();
        DedupKey(hash.h1, hash.h2)
    }
}

/// Ids and the seqs they got.
#[derive(Debug)]
pub(super) struct Dedup {
    seqs: HashMap<DedupKey, Seq, BuildHasherDefault<AsIs>>,
    /// Oldest first, with the time it is forgotten in Unix milliseconds.
    order: VecDeque<(u64, DedupKey)>,
    window: u64,
    most: usize,
}

impl Dedup {
    /// Remembers ids for `window` milliseconds, and at most `most` of them.
    pub(super) fn new(window: u64, most: usize) -> Self {
        Self { seqs: HashMap::default(), order: VecDeque::new(), window, most }
    }

    pub(super) fn forget(&mut self, now: u64) {
        while let Some((until, oldest)) = self.order.front()
            && (*until <= now || self.order.len() > self.most)
        {
            self.seqs.remove(oldest);
            self.order.pop_front();
        }
        // What a busy minute took must not be held for ever.
        if self.seqs.capacity() > 4 * self.seqs.len().max(256) {
            self.seqs.shrink_to(2 * self.seqs.len());
            self.order.shrink_to(2 * self.order.len());
        }
    }

    pub(super) fn get(&mut self, key: DedupKey, now: u64) -> Option<Seq> {
        self.forget(now);
        self.seqs.get(&key).copied()
    }

    pub(super) fn remember(&mut self, key: DedupKey, seq: Seq, now: u64) {
        self.restore(key, seq, now.saturating_add(self.window));
    }

    /// Makes room for what is restored.
    pub(super) fn reserve(&mut self, ids: usize) {
        self.seqs.reserve(ids.min(self.most));
        self.order.reserve(ids.min(self.most));
    }

    /// Remembers an id until the given time.
    pub(super) fn restore(&mut self, key: DedupKey, seq: Seq, until: u64) {
        self.seqs.insert(key, seq);
        self.order.push_back((until, key));
    }

    /// A message was not stored after all: its retry is a first send.
    pub(super) fn revoke(&mut self, key: DedupKey) {
        self.seqs.remove(&key);
        // It is among the newest.
        if let Some(at) = self.order.iter().rposition(|(_, known)| *known == key) {
            self.order.remove(at);
        }
    }
}
