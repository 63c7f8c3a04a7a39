//! The senders' ids of the dedup window, so that a retry is stored once.

use std::hash::{Hash, Hasher};

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::engine::Append;
use crate::message::{Address, Author, Message, MessageId};

mod slots;
mod window;

pub(super) use window::Dedup;

/// A keyed hash of (receiver, sender, id). Without the key no sender can find an id that collides with another one.
///
/// Two halves, because a number of 128 bits is aligned to 16 bytes and makes each entry larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) struct DedupKey(u64, u64);

impl DedupKey {
    pub(in crate::engine) fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.0) << 64 | u128::from(self.1)).to_le_bytes()
    }

    pub(in crate::engine) fn from_bytes(bytes: [u8; 16]) -> Self {
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
pub(in crate::engine) struct ContentHash(u64);

impl ContentHash {
    /// The content is not known: every content matches. Ids of format 1 have no hash.
    pub(in crate::engine) const UNKNOWN: Self = Self(0);

    pub(in crate::engine) fn to_bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }

    pub(in crate::engine) fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_le_bytes(bytes))
    }

    pub(in crate::engine) fn matches(self, other: Self) -> bool {
        self == other || self == Self::UNKNOWN || other == Self::UNKNOWN
    }
}

/// A keyed hash of an author. Two authors that have the same one share a number of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) struct AuthorKey(u32);

impl AuthorKey {
    /// The author is not known. Ids of formats 1 and 2 have none.
    pub(in crate::engine) const UNKNOWN: Self = Self(0);

    pub(in crate::engine) fn to_bytes(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }

    pub(in crate::engine) fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_le_bytes(bytes))
    }
}

impl Hash for AuthorKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.0) << 32 | u64::from(self.0));
    }
}

/// What tells whether an append was made before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) struct SendId {
    pub(in crate::engine) key: DedupKey,
    pub(in crate::engine) content: ContentHash,
    pub(in crate::engine) author: AuthorKey,
}

/// Whether an id that is known was for the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) struct SameContent(pub(in crate::engine) bool);

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
pub(in crate::engine) struct DedupHasher(SipHasher13);

impl DedupHasher {
    pub(in crate::engine) fn new(secret: &[u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(secret))
    }

    /// The id of an append that has one.
    pub(in crate::engine) fn id_of(&self, append: &Append) -> Option<SendId> {
        self.ids_of(append)(&append.address)
    }

    /// The id of an append that has one, at each address that it goes to. What is the same there is hashed once.
    pub(in crate::engine) fn ids_of(&self, append: &Append) -> impl Fn(&Address) -> Option<SendId> {
        let same =
            append.id.as_ref().map(|id| (id, self.content(&append.message), self.author(&append.author)));
        move |address| {
            let (id, content, author) = same?;
            Some(SendId { key: self.key(address, &append.author, &append.message, id), content, author })
        }
    }

    /// Senders without a name are one author.
    fn author(&self, author: &Author) -> AuthorKey {
        let mut hasher = self.0;
        author.hash(&mut hasher);
        let [.., a, b, c, d] = hasher.finish().to_le_bytes();
        AuthorKey(u32::from_le_bytes([a, b, c, d]).max(1))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Kind, SessionId};
    use serde_json::value::RawValue;

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
        let [s, t] = ["S", "T"].map(|name| hasher.author(&author(name)));
        assert!(s != t && s != AuthorKey::UNKNOWN && s == AuthorKey::from_bytes(s.to_bytes()));
    }
}
