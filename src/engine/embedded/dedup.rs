//! The senders' ids of the dedup window, so that a retry is stored once.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::engine::Append;
use crate::message::{Address, Author, Message, MessageId, Seq};

/// How many ids that are over one send forgets. The janitor forgets the rest soon: until then they count.
const FORGET_ON_SEND: usize = 64;

/// A keyed hash of (receiver, sender, id). Without the key no sender can find an id that collides with another one.
///
/// Two halves, because a number of 128 bits is aligned to 16 bytes and makes each entry larger.
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

/// A keyed hash of a payload. It tells a retry from another message with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentHash(u64);

impl ContentHash {
    /// The content is not known: every content matches. Ids of format 1 have no hash.
    pub(super) const UNKNOWN: Self = Self(0);

    pub(super) fn to_bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }

    pub(super) fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_le_bytes(bytes))
    }

    fn matches(self, other: Self) -> bool {
        self == other || self == Self::UNKNOWN || other == Self::UNKNOWN
    }
}

/// What tells whether an append was made before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SendId {
    pub(super) key: DedupKey,
    pub(super) content: ContentHash,
}

/// Whether an id that is known was for the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SameContent(pub(super) bool);

/// Uses a key, which is a hash, as its own hash.
#[derive(Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
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

/// Makes keys. Its secret is stored with the ids.
#[derive(Debug, Clone)]
pub(super) struct DedupHasher(SipHasher13);

impl DedupHasher {
    pub(super) fn new(secret: &[u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(secret))
    }

    /// The id of an append that has one.
    pub(super) fn id_of(&self, append: &Append) -> Option<SendId> {
        let id = append.id.as_ref()?;
        let key = self.key(&append.address, &append.author, &append.message, id);
        Some(SendId { key, content: self.content(&append.message) })
    }

    fn content(&self, message: &Message) -> ContentHash {
        let mut hasher = self.0;
        hasher.write(message.payload.get().as_bytes());
        ContentHash(hasher.finish().max(1))
    }

    fn key(&self, address: &Address, author: &Author, message: &Message, id: &MessageId) -> DedupKey {
        // Senders without a name cannot be told apart. Their retries have the same payload.
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

/// The ids of the dedup window, the seqs that they got, and the content that they were for.
///
/// Invariant: each key in `known` is in `order` at least once, unless it was revoked.
#[derive(Debug)]
pub(super) struct Dedup {
    known: HashMap<DedupKey, (Seq, ContentHash), BuildHasherDefault<IdentityHasher>>,
    /// Oldest first, with the time at which it is forgotten, in Unix milliseconds.
    order: VecDeque<(u64, DedupKey)>,
    window: u64,
    max_ids: usize,
}

impl Dedup {
    /// Remembers ids for `window` milliseconds, and at most `max_ids` of them.
    pub(super) fn new(window: u64, max_ids: usize) -> Self {
        Self { known: HashMap::default(), order: VecDeque::new(), window, max_ids }
    }

    /// Forgets expired ids, and the oldest ones beyond the limit: at most so many, since the caller holds the store's lock.
    /// Returns whether there are more.
    pub(super) fn forget(&mut self, now: u64, most: usize) -> bool {
        for _ in 0..most {
            let Some((_, oldest)) = self.order.front().filter(|oldest| self.is_forgotten(oldest, now)) else {
                break;
            };
            self.known.remove(oldest);
            self.order.pop_front();
        }
        // A busy minute must not hold its memory for ever.
        if self.known.capacity() > 4 * self.known.len().max(256) {
            self.known.shrink_to(2 * self.known.len());
            self.order.shrink_to(2 * self.order.len());
        }
        self.order.front().is_some_and(|oldest| self.is_forgotten(oldest, now))
    }

    fn is_forgotten(&self, (until, _): &(u64, DedupKey), now: u64) -> bool {
        *until <= now || self.order.len() > self.max_ids
    }

    /// The seq of the message that was sent with this id before, and whether it was this one.
    pub(super) fn get(&mut self, id: SendId, now: u64) -> Option<(Seq, SameContent)> {
        self.forget(now, FORGET_ON_SEND);
        let (seq, content) = self.known.get(&id.key)?;
        Some((*seq, SameContent(content.matches(id.content))))
    }

    /// Remembers an id for the window.
    pub(super) fn remember(&mut self, id: SendId, seq: Seq, now: u64) {
        self.restore(id, seq, now.saturating_add(self.window));
    }

    /// Reserves memory for ids that are restored.
    pub(super) fn reserve(&mut self, ids: usize) {
        self.known.reserve(ids.min(self.max_ids));
        self.order.reserve(ids.min(self.max_ids));
    }

    /// Remembers an id until the given time.
    pub(super) fn restore(&mut self, id: SendId, seq: Seq, until: u64) {
        self.known.insert(id.key, (seq, id.content));
        self.order.push_back((until, id.key));
    }

    /// A message was not stored: its retry is a first send.
    pub(super) fn revoke(&mut self, key: DedupKey) {
        self.known.remove(&key);
        // It is one of the newest.
        if let Some(at) = self.order.iter().rposition(|(_, known)| *known == key) {
            self.order.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Kind, SessionId};
    use serde_json::value::RawValue;

    fn key(n: u8) -> DedupKey {
        DedupKey::from_bytes([n; 16])
    }

    fn id(n: u8) -> SendId {
        SendId { key: key(n), content: ContentHash(7) }
    }

    fn seq(dedup: &mut Dedup, n: u8, now: u64) -> Option<Seq> {
        dedup.get(id(n), now).map(|(seq, _)| seq)
    }

    #[test]
    fn ids_are_remembered_for_the_window() {
        let mut dedup = Dedup::new(100, 9);
        dedup.remember(id(1), Seq(1), 0);
        dedup.remember(id(2), Seq(2), 50);
        assert_eq!([1, 2].map(|n| seq(&mut dedup, n, 99)), [Some(Seq(1)), Some(Seq(2))]);
        assert_eq!([1, 2].map(|n| seq(&mut dedup, n, 100)), [None, Some(Seq(2))]);
        assert!(!dedup.forget(150, 9));
        assert!(dedup.known.is_empty() && dedup.order.is_empty());
    }

    #[test]
    fn the_oldest_ids_are_forgotten_beyond_the_limit() {
        let mut dedup = Dedup::new(100, 2);
        for n in 1..=3 {
            dedup.remember(id(n), Seq(n.into()), 0);
        }
        assert_eq!([1, 2, 3].map(|n| seq(&mut dedup, n, 0)), [None, Some(Seq(2)), Some(Seq(3))]);
    }

    #[test]
    fn ids_are_forgotten_in_slices() {
        let mut dedup = Dedup::new(100, 1000);
        (1..=200).for_each(|n| dedup.remember(id(n), Seq(n.into()), 0));
        assert_eq!([1, 200].map(|n| seq(&mut dedup, n, 100).is_some()), [false, true]);
        assert!(dedup.forget(100, 10));
        assert!(!dedup.forget(100, 190) && dedup.order.is_empty());
    }

    #[test]
    fn a_revoked_id_is_new_again_and_does_not_end_its_successor() {
        let mut dedup = Dedup::new(100, 9);
        dedup.remember(id(1), Seq(1), 0);
        dedup.revoke(key(1));
        assert_eq!(seq(&mut dedup, 1, 0), None);
        dedup.remember(id(1), Seq(2), 50);
        assert_eq!(seq(&mut dedup, 1, 120), Some(Seq(2)), "the first time was over at 100");
    }

    #[test]
    fn a_known_id_with_other_content_is_no_retry() {
        let mut dedup = Dedup::new(100, 9);
        dedup.remember(id(1), Seq(1), 0);
        let other = |n, content| SendId { key: key(n), content };
        assert_eq!(dedup.get(id(1), 0), Some((Seq(1), SameContent(true))));
        assert_eq!(dedup.get(other(1, ContentHash(8)), 0), Some((Seq(1), SameContent(false))));
        assert_eq!(dedup.get(other(1, ContentHash(8)), 100), None, "forgotten");
        dedup.restore(other(2, ContentHash::UNKNOWN), Seq(2), 300);
        let known = dedup.get(other(2, ContentHash(8)), 200);
        assert_eq!(known, Some((Seq(2), SameContent(true))), "as format 1 stored it");
    }

    #[test]
    fn keys_differ_by_receiver_sender_and_id_and_anonymous_ones_by_payload() {
        let hasher = DedupHasher::new(&[7; 16]);
        let mailbox = |name: &str| Address::Session(SessionId::new(name).unwrap());
        let message = |payload: &str| {
            let payload = RawValue::from_string(payload.to_owned()).unwrap();
            Message { kind: Kind::Message, from: None, payload, ts: 1, reference: None }
        };
        let id = |id: &str| MessageId::new(id).unwrap();
        let author = |name: &str| Author::Session(SessionId::new(name).unwrap());
        let first = hasher.key(&mailbox("A"), &author("S"), &message("1"), &id("x"));
        assert_eq!(hasher.key(&mailbox("A"), &author("S"), &message("2"), &id("x")), first);
        for other in [
            hasher.key(&mailbox("B"), &author("S"), &message("1"), &id("x")),
            hasher.key(&mailbox("A"), &author("T"), &message("1"), &id("x")),
            hasher.key(&mailbox("A"), &author("S"), &message("1"), &id("y")),
            DedupHasher::new(&[8; 16]).key(&mailbox("A"), &author("S"), &message("1"), &id("x")),
        ] {
            assert_ne!(other, first);
        }
        assert_eq!(hasher.content(&message("1")), hasher.content(&message("1")));
        assert_ne!(hasher.content(&message("1")), hasher.content(&message("2")));
        let anonymous = |payload| hasher.key(&mailbox("A"), &Author::Anonymous, &message(payload), &id("x"));
        assert!(anonymous("1") == anonymous("1") && anonymous("1") != anonymous("2"));
        assert_eq!(DedupKey::from_bytes(first.to_bytes()), first);
    }
}
