//! Messages that are to be deleted from the disk.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::engine::embedded::index::PendingDelete;
use crate::message::Seq;

/// How long deletions are held back: one commit for many of them changes fewer pages. After `kill -9` the messages that were
/// acknowledged meanwhile come again.
const LINGER: Duration = Duration::from_millis(50);

/// So many deletions are not held back.
const ENOUGH: usize = 512;

/// Messages deleted by one commit at most, each of which may be on a page of its own: few while appends wait.
const MAX_DELETES: usize = 1024;
const MAX_DELETES_IDLE: usize = 2048;

/// Messages that are to be deleted, by seq: the oldest are likely to be on pages together.
#[derive(Debug, Default)]
pub(super) struct DeleteBacklog {
    /// Each with the seq of the receipt that must be stored no later.
    by_seq: BTreeMap<Seq, Seq>,
    /// Since when something is held back.
    since: Option<Instant>,
}

impl DeleteBacklog {
    pub(super) fn is_empty(&self) -> bool {
        self.by_seq.is_empty()
    }

    pub(super) fn add(&mut self, deletes: Vec<PendingDelete>) {
        self.by_seq.extend(deletes.into_iter().map(|delete| (delete.seq, delete.receipt)));
    }

    /// What a commit of `appends` messages, up to seq `through`, deletes. It stays here until [`Self::written`].
    pub(super) fn next(&self, appends: usize, through: Seq) -> Vec<Seq> {
        // Deletes faster than messages arrive.
        let most = if appends == 0 { MAX_DELETES_IDLE } else { MAX_DELETES.max(2 * appends) };
        let ready = self.by_seq.iter().filter(|(_, receipt)| **receipt <= through);
        ready.map(|(seq, _)| *seq).take(most).collect()
    }

    /// These messages are deleted.
    pub(super) fn written(&mut self, deleted: &[Seq]) {
        for seq in deleted {
            self.by_seq.remove(seq);
        }
        if self.by_seq.is_empty() {
            self.since = None;
        }
    }

    /// How long deletions are still held back, with so many that are not added yet, and whether a receipt goes with one. Called when something is to be written that
    /// nobody waits for. A deletion that goes with a receipt is not held back: the two are stored together.
    pub(super) fn linger(&mut self, now: Instant, (count, has_receipts): (usize, bool)) -> Duration {
        let since = *self.since.get_or_insert(now);
        if has_receipts || self.by_seq.len() + count >= ENOUGH {
            return Duration::ZERO;
        }
        (since + LINGER).saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backlog(count: u64, receipt: u64) -> DeleteBacklog {
        let mut backlog = DeleteBacklog::default();
        let delete = |seq| PendingDelete { seq: Seq(seq), receipt: Seq(receipt) };
        backlog.add((1..=count).map(delete).collect());
        backlog
    }

    #[test]
    fn a_message_is_not_deleted_before_its_receipt_is_stored() {
        let mut backlog = backlog(2, 9);
        backlog.add(vec![PendingDelete { seq: Seq(5), receipt: Seq::START }]);
        assert_eq!(backlog.next(1, Seq(8)), [Seq(5)]);
        assert_eq!(backlog.next(1, Seq(9)), [Seq(1), Seq(2), Seq(5)]);
        backlog.written(&[Seq(1), Seq(2), Seq(5)]);
        assert!(backlog.is_empty());
    }

    #[test]
    fn deletions_are_bounded_and_faster_than_appends() {
        let backlog = backlog(10_000, 0);
        let counts = [0, 1, 600, 3000].map(|appends| backlog.next(appends, Seq(1)).len());
        assert_eq!(counts, [MAX_DELETES_IDLE, MAX_DELETES, 1200, 6000]);
    }

    #[test]
    fn deletions_wait_for_a_moment_and_not_longer() {
        let mut backlog = backlog(1, 0);
        let start = Instant::now();
        assert_eq!(backlog.linger(start, (0, false)), LINGER);
        assert_eq!(backlog.linger(start + LINGER / 2, (0, false)), LINGER / 2);
        assert_eq!(backlog.linger(start + 2 * LINGER, (0, false)), Duration::ZERO);
        backlog.written(&[Seq(1)]);
        assert_eq!(backlog.linger(start + 2 * LINGER, (0, false)), LINGER, "the next ones wait anew");
    }

    #[test]
    fn many_deletions_and_those_with_receipts_are_not_held_back() {
        let (mut backlog, now) = (backlog(1, 0), Instant::now());
        assert_eq!(backlog.linger(now, (ENOUGH - 2, false)), LINGER);
        assert_eq!(backlog.linger(now, (ENOUGH - 1, false)), Duration::ZERO);
        assert_eq!(backlog.linger(now, (1, true)), Duration::ZERO);
    }
}
