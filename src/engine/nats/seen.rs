//! What came to this node of one address.

use std::collections::BTreeMap;

use crate::message::Seq;

/// What came to this node of one address.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Messages that are not deleted, and their bytes: the newest that came here.
    recent: BTreeMap<Seq, usize>,
    /// All messages after the first position up to the second one came here, as far as they are not deleted.
    covered: (Seq, Seq),
    /// Those of them whose senders ask for a receipt.
    receipts: Vec<Seq>,
}

impl Seen {
    /// Notes a message that came here. Between `prev` and it there is none. At most twice `most` are remembered.
    pub(super) fn note(&mut self, (prev, seq): (Seq, Seq), bytes: usize, asks: bool, most: usize) {
        let most = 2 * most.max(1);
        self.recent.insert(seq, bytes);
        if self.recent.len() > most {
            self.recent.pop_first();
        }
        if prev < self.covered.0 || prev > self.covered.1 {
            self.covered = (prev, seq);
            self.receipts.clear();
        }
        self.covered.1 = self.covered.1.max(seq);
        if asks && !self.receipts.contains(&seq) {
            self.receipts.push(seq);
            if self.receipts.len() > most {
                self.covered.0 = self.receipts.remove(0);
            }
        }
    }

    /// Whether all messages between two positions came here, and none of them asks for a receipt.
    pub(super) fn asks_for_nothing(&self, after: Seq, through: Seq) -> bool {
        self.covered.0 <= after
            && through <= self.covered.1
            && !self.receipts.iter().any(|seq| *seq > after && *seq <= through)
    }

    /// Notes that everything up to `through` is deleted.
    pub(super) fn trimmed(&mut self, through: Seq) {
        self.recent = self.recent.split_off(&Seq(through.0.saturating_add(1)));
    }

    /// Notes that the receipts up to `through` are sent.
    pub(super) fn answered(&mut self, through: Seq) {
        self.receipts.retain(|seq| *seq > through);
    }

    /// The newest message so far below `through` that those above it, up to `through`, fill the limits.
    pub(super) fn beyond(&self, through: Seq, (messages, bytes): (usize, usize)) -> Seq {
        let (mut count, mut sum) = (0, 0);
        for (seq, size) in self.recent.range(..=through).rev() {
            (count, sum) = (count + 1, sum + size);
            if count > messages || sum > bytes {
                return *seq;
            }
        }
        Seq::START
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(notes: &[(u64, u64, bool)]) -> Seen {
        let mut seen = Seen::default();
        for (prev, seq, asks) in notes {
            seen.note((Seq(*prev), Seq(*seq)), 1, *asks, 2);
        }
        seen
    }

    fn asks_for_nothing(seen: &Seen, after: u64, through: u64) -> bool {
        seen.asks_for_nothing(Seq(after), Seq(through))
    }

    #[test]
    fn only_what_came_here_without_a_hole_is_known_to_ask_for_nothing() {
        let seen = seen(&[(3, 5, false), (5, 8, false)]);
        assert!(asks_for_nothing(&seen, 3, 8) && asks_for_nothing(&seen, 5, 6));
        assert!(!asks_for_nothing(&seen, 2, 8) && !asks_for_nothing(&seen, 3, 9));
        let seen = self::seen(&[(3, 5, false), (6, 8, false)]);
        assert!(!asks_for_nothing(&seen, 3, 8) && asks_for_nothing(&seen, 6, 8));
    }

    #[test]
    fn what_asks_is_known_until_it_is_answered() {
        let mut seen = seen(&[(0, 2, false), (2, 4, true), (2, 4, true), (4, 6, false)]);
        assert!(asks_for_nothing(&seen, 0, 3) && asks_for_nothing(&seen, 4, 6));
        assert!(!asks_for_nothing(&seen, 3, 4));
        seen.answered(Seq(4));
        assert!(asks_for_nothing(&seen, 0, 6));
        let seen = self::seen(&(1..=6).map(|seq| (seq - 1, seq, true)).collect::<Vec<_>>());
        assert_eq!(seen.receipts.len(), 4, "what is remembered is bounded");
        assert!(!asks_for_nothing(&seen, 1, 2), "it is not known any more");
    }

    #[test]
    fn what_is_held_back_is_bounded_in_messages_and_bytes() {
        let mut seen = Seen::default();
        for seq in 1..=10 {
            seen.note((Seq(seq - 1), Seq(seq)), 10, false, 5);
        }
        let beyond = |seen: &Seen, messages, bytes| seen.beyond(Seq(8), (messages, bytes));
        assert_eq!(beyond(&seen, 3, 1000), Seq(5));
        assert_eq!(beyond(&seen, 100, 20), Seq(6));
        assert_eq!(beyond(&seen, 100, 1000), Seq::START);
        seen.trimmed(Seq(7));
        assert_eq!(beyond(&seen, 0, 1000), Seq(8));
    }
}
