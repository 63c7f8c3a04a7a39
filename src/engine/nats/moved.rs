//! The senders' ids of a store that was moved here, so that a retry after the move is known.
//!
//! Such a store holds hashes of ids, not the ids. So they are not among those that NATS knows: each node holds them until the
//! window is over that they were stored for.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::sleep;

use crate::engine::Append;
use crate::engine::embedded::dedup::{ContentHash, DedupHasher, DedupKey, SendId};
use crate::engine::embedded::export::StoredId;
use crate::engine::nats::error::NatsError;
use crate::engine::nats::link::Link;
use crate::message::Seq;
use crate::sync::lock;

/// Ids in one message of the stream.
pub(super) const BATCH: usize = 1024;

/// Bytes of one id: its hash, that of its content, its seq, and until when it is remembered.
const ID_BYTES: usize = 40;

/// How often a batch is looked for that a copy of the stream does not have yet, and after which pause.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// What is recorded of a store that is moved into the streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MoveRecord {
    /// Which store it is.
    pub(super) epoch: String,
    /// In which state it was.
    pub(super) commits: u64,
    /// Which version of this program moves it: another one may put something in another place.
    pub(super) version: String,
    /// When that began, in Unix milliseconds. What had expired by then is not moved.
    pub(super) began: u64,
    /// How many ids there are, and until when the last one is remembered.
    pub(super) ids: usize,
    pub(super) ids_until: u64,
    /// The newest seq of each stream of messages when everything was there.
    pub(super) ends: Vec<u64>,
}

/// An id that is known.
#[derive(Debug, Clone, Copy)]
struct Known {
    content: ContentHash,
    seq: Seq,
    until: u64,
}

/// The ids.
#[derive(Debug)]
pub(super) struct MovedIds {
    hasher: DedupHasher,
    ends: Vec<u64>,
    until: u64,
    known: Mutex<HashMap<DedupKey, Known>>,
}

/// The subject of a batch of ids.
pub(super) fn batch_subject(prefix: &str, number: usize) -> String {
    format!("{prefix}.i.{number}")
}

/// What is stored of some ids.
pub(super) fn encode(ids: &[StoredId]) -> Bytes {
    let mut bytes = Vec::with_capacity(ids.len() * ID_BYTES);
    for (id, seq, until) in ids {
        bytes.extend_from_slice(&id.key.to_bytes());
        bytes.extend_from_slice(&id.content.to_bytes());
        bytes.extend_from_slice(&seq.0.to_le_bytes());
        bytes.extend_from_slice(&until.to_le_bytes());
    }
    bytes.into()
}

fn decode(id: &[u8; ID_BYTES]) -> Option<(DedupKey, Known)> {
    let (key, rest) = id.split_first_chunk()?;
    let (content, rest) = rest.split_first_chunk()?;
    let (seq, rest) = rest.split_first_chunk()?;
    let until = u64::from_le_bytes(*rest.first_chunk()?);
    let known =
        Known { content: ContentHash::from_bytes(*content), seq: Seq(u64::from_le_bytes(*seq)), until };
    Some((DedupKey::from_bytes(*key), known))
}

impl MovedIds {
    fn new(secret: &[u8; 16], record: &MoveRecord) -> Self {
        let (ends, until) = (record.ends.clone(), record.ids_until);
        Self { hasher: DedupHasher::new(secret), ends, until, known: Mutex::default() }
    }

    fn add(&self, batch: &[u8]) {
        lock(&self.known).extend(batch.as_chunks().0.iter().filter_map(decode));
    }

    /// Reads them.
    ///
    /// # Errors
    /// [`NatsError::Request`]: some are missing.
    pub(super) async fn load(
        link: &Link,
        prefix: &str,
        secret: &[u8; 16],
        record: &MoveRecord,
    ) -> Result<Self, NatsError> {
        let ids = Self::new(secret, record);
        let stream = format!("{prefix}_I");
        for number in 0..record.ids.div_ceil(BATCH) {
            let question = json!({ "last_by_subj": batch_subject(prefix, number) });
            let failed = |reason| NatsError::Request { what: format!("read stream {stream}"), reason };
            let mut attempts = 0;
            loop {
                match link.get_one(&stream, &question).await {
                    Ok(Some(batch)) => break ids.add(&batch.payload),
                    Ok(None) if attempts == ATTEMPTS => return Err(failed("ids are missing".into())),
                    Err(error) if attempts == ATTEMPTS => return Err(failed(error.reason())),
                    Ok(None) | Err(_) => {
                        attempts += 1;
                        sleep(PAUSE).await;
                    }
                }
            }
        }
        Ok(ids)
    }

    /// Until when the last one is remembered, in Unix milliseconds.
    pub(super) fn until(&self) -> u64 {
        self.until
    }

    /// The seq that a message with this id got before the move; `Some(None)` if it was another message. `since` is the seq since
    /// which the mailbox has its owner: if the owner came after the move, nothing is known.
    pub(super) fn find(&self, append: &Append, stream: usize, since: Seq, now: u64) -> Option<Option<Seq>> {
        let SendId { key, content, .. } = self.hasher.id_of(append)?;
        let known = *lock(&self.known).get(&key)?;
        let is_known = known.until > now && self.ends.get(stream).is_some_and(|end| since.0 <= *end);
        is_known.then(|| known.content.matches(content).then_some(known.seq))
    }

    /// Frees their memory when they are over.
    pub(super) fn forget(&self, now: u64) {
        if self.until <= now {
            *lock(&self.known) = HashMap::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::message::{Address, Author, Kind, Message, MessageId, SessionId};

    fn append(id: &str, payload: &str) -> Append {
        let payload = RawValue::from_string(payload.to_owned()).unwrap();
        let message = Message { kind: Kind::Message, from: None, payload, ts: 1, reference: None };
        let address = Address::Session(SessionId::new("A").unwrap());
        let author = Author::Session(SessionId::new("S").unwrap());
        Append { id: MessageId::new(id).ok(), ..Append::new(address, message, author) }
    }

    #[test]
    fn a_retry_is_known_until_its_time_and_for_the_same_owner_only() {
        let record = MoveRecord {
            epoch: "e".to_owned(),
            commits: 1,
            version: "1".to_owned(),
            began: 1,
            ids: 1,
            ids_until: 100,
            ends: vec![50],
        };
        let ids = MovedIds::new(&[1; 16], &record);
        let id = DedupHasher::new(&[1; 16]).id_of(&append("x", "1")).unwrap();
        ids.add(&encode(&[(id, Seq(7), 90)]));
        assert_eq!(ids.find(&append("x", "1"), 0, Seq(50), 89), Some(Some(Seq(7))));
        assert_eq!(ids.find(&append("x", "2"), 0, Seq(50), 89), Some(None), "another message");
        assert_eq!(ids.find(&append("y", "1"), 0, Seq(50), 89), None);
        assert_eq!(ids.find(&append("x", "1"), 0, Seq(51), 89), None, "another owner");
        assert_eq!(ids.find(&append("x", "1"), 0, Seq(50), 90), None, "its time is over");
        ids.forget(99);
        assert_eq!(ids.find(&append("x", "1"), 0, Seq(0), 89), Some(Some(Seq(7))));
        ids.forget(100);
        assert_eq!(ids.find(&append("x", "1"), 0, Seq(0), 89), None);
    }
}
