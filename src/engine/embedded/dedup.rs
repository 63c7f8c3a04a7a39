//! The senders' ids of the last minutes, so that a retry is stored once.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::message::{Address, Message, MessageId, Seq};

/// What stands for one (receiver, sender, id): a keyed hash, so that nobody can aim at somebody else's.
pub(super) type Key = u128;

/// Makes keys; its secret is stored with the ids.
#[derive(Debug, Clone)]
pub(super) struct Keys(SipHasher13);

impl Keys {
    pub(super) fn new(secret: &[u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(secret))
    }

    pub(super) fn key(&self, address: &Address, message: &Message, id: &MessageId) -> Key {
        // Senders without a name cannot be told apart, but their retries have the same payload.
        let sender = match &message.from {
            Some(from) => Ok(from),
            None => Err(message.payload.get()),
        };
        let mut hasher = self.0;
        (address, sender, id).hash(&mut hasher);
        hasher.finish128().as_u128()
    }
}

/// Ids and the seqs they got.
#[derive(Debug)]
pub(super) struct Dedup {
    seqs: HashMap<Key, Seq>,
    /// Oldest first, with the time it is forgotten in Unix milliseconds.
    order: VecDeque<(u64, Key)>,
    window: u64,
    most: usize,
}

impl Dedup {
    /// Remembers ids for `window` milliseconds, and at most `most` of them.
    pub(super) fn new(window: u64, most: usize) -> Self {
        Self { seqs: HashMap::new(), order: VecDeque::new(), window, most }
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

    pub(super) fn get(&mut self, key: Key, now: u64) -> Option<Seq> {
        self.forget(now);
        self.seqs.get(&key).copied()
    }

    pub(super) fn remember(&mut self, key: Key, seq: Seq, now: u64) {
        self.restore(key, seq, now + self.window);
    }

    /// Remembers an id until the given time.
    pub(super) fn restore(&mut self, key: Key, seq: Seq, until: u64) {
        self.seqs.insert(key, seq);
        self.order.push_back((until, key));
    }

    /// A message was not stored after all: its retry is a first send.
    pub(super) fn revoke(&mut self, key: Key) {
        self.seqs.remove(&key);
        // It is among the newest.
        if let Some(at) = self.order.iter().rposition(|(_, known)| *known == key) {
            self.order.remove(at);
        }
    }
}
