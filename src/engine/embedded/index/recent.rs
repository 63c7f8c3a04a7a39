//! The newest publications, for readers that are a little behind.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::engine::embedded::index::queue::cost;
use crate::message::{Publication, Seq};

/// Bytes and number of publications kept.
const MAX_BYTES: usize = 8 << 20;
const MAX_MESSAGES: usize = 16_384;

/// The newest committed publications, in seq order. Readers that need older ones read the disk.
///
/// Invariant: `bytes` is the sum of their costs, and within the bounds.
#[derive(Debug, Default)]
pub(super) struct RecentPublications {
    publications: VecDeque<Arc<Publication>>,
    bytes: usize,
}

impl RecentPublications {
    /// Adds the newest one and drops the oldest ones beyond the bounds.
    pub(super) fn push(&mut self, publication: &Arc<Publication>) {
        self.bytes += cost(publication);
        self.publications.push_back(Arc::clone(publication));
        while self.publications.len() > MAX_MESSAGES || self.bytes > MAX_BYTES {
            let Some(oldest) = self.publications.pop_front() else { break };
            self.bytes -= cost(&oldest);
        }
    }

    /// The publication with this seq, if it is one of them.
    pub(super) fn get(&self, seq: Seq) -> Option<&Arc<Publication>> {
        let at = self.publications.binary_search_by_key(&Some(seq), |publication| publication.seq()).ok()?;
        self.publications.get(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Address, Kind, Message, SessionId};
    use serde_json::value::RawValue;

    fn publication(seq: u64, size: usize) -> Arc<Publication> {
        let address = Address::Session(SessionId::new("A").unwrap());
        let payload = RawValue::from_string(format!("\"{}\"", "x".repeat(size))).unwrap();
        let message = Message { kind: Kind::Message, from: None, payload, ts: 1, reference: None };
        Arc::new(Publication::encode(&address, Some(Seq(seq)), &message))
    }

    #[test]
    fn the_newest_ones_are_found_by_seq() {
        let mut recent = RecentPublications::default();
        for seq in [1, 4, 9] {
            recent.push(&publication(seq, 10));
        }
        assert_eq!(recent.get(Seq(4)).unwrap().seq(), Some(Seq(4)));
        assert!(recent.get(Seq(5)).is_none());
    }

    #[test]
    fn the_oldest_ones_go_when_there_are_too_many_bytes_or_messages() {
        let mut recent = RecentPublications::default();
        for seq in 1..=9 {
            recent.push(&publication(seq, 1 << 20));
        }
        assert!(recent.get(Seq(2)).is_none() && recent.get(Seq(3)).is_some());
        for seq in 10..=10 + MAX_MESSAGES as u64 {
            recent.push(&publication(seq, 1));
        }
        assert_eq!(recent.publications.len(), MAX_MESSAGES);
        let sum: usize = recent.publications.iter().map(|publication| cost(publication)).sum();
        assert_eq!(recent.bytes, sum);
    }

    #[test]
    fn one_message_above_the_bounds_is_not_kept() {
        let mut recent = RecentPublications::default();
        recent.push(&publication(1, MAX_BYTES));
        assert!(recent.get(Seq(1)).is_none());
        assert_eq!(recent.bytes, 0);
    }
}
