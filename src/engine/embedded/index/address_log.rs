//! The log of one address: the stored messages of a mailbox or of a topic's history.

use std::collections::VecDeque;

use crate::engine::embedded::index::expiry::NEVER;
use crate::engine::embedded::index::payers::{PayerId, Tally};
use crate::engine::{Bounds, Position};
use crate::message::Seq;
use crate::table::Table;

/// One stored message. Its size bounds how many messages fit into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogEntry {
    pub(super) seq: Seq,
    /// In Unix milliseconds.
    pub(super) expires_at: u64,
    /// What the message counts against the bounds.
    pub(super) bytes: u32,
    /// Who pays for it, and [`RECEIPT`] and [`HOLE`].
    tag: u32,
}

const _: () = assert!(size_of::<LogEntry>() == 24, "a waiting message takes 24 bytes of its log");

/// The sender of the message gets a receipt for it.
const RECEIPT: u32 = 1 << PayerId::BITS;

/// [`Holes`] knows a hole before the message.
const HOLE: u32 = RECEIPT << 1;

impl LogEntry {
    /// An entry that nobody pays for.
    pub(super) fn new(seq: Seq, expires_at: u64, bytes: u32) -> Self {
        Self { seq, expires_at, bytes, tag: 0 }
    }

    /// The same entry, which this author pays for.
    pub(super) fn paid_by(self, payer: PayerId) -> Self {
        Self { tag: self.tag | payer.to_bits(), ..self }
    }

    /// The same entry. If `receipt`, its sender gets a receipt for it.
    pub(super) fn with_receipt(self, receipt: bool) -> Self {
        Self { tag: if receipt { self.tag | RECEIPT } else { self.tag }, ..self }
    }

    pub(super) fn payer(&self) -> PayerId {
        PayerId::from_bits(self.tag & (RECEIPT - 1))
    }

    /// Whether its sender gets a receipt for it.
    pub(super) fn receipt(&self) -> bool {
        self.tag & RECEIPT > 0
    }

    /// Whether [`Holes`] knows a hole before it.
    pub(super) fn hole(&self) -> bool {
        self.tag & HOLE > 0
    }
}

/// Holes inside logs: messages that expired between two stored ones.
///
/// Keyed by the seq of the later message. Few messages have a hole before them, so entries only have a flag.
#[derive(Debug, Default)]
pub(super) struct Holes(Table<Seq, Seq>);

impl Holes {
    /// Notes that `last_gone` expired right before `entry`.
    fn note(&mut self, entry: &mut LogEntry, last_gone: Seq) {
        entry.tag |= HOLE;
        let hole = self.0.entry(entry.seq).or_default();
        *hole = last_gone.max(*hole);
    }

    /// The highest seq that expired right before `entry`.
    pub(super) fn before(&self, entry: &LogEntry) -> Option<Seq> {
        if entry.hole() { self.0.get(&entry.seq).copied() } else { None }
    }

    /// Forgets the hole before an entry that leaves its log.
    fn take(&mut self, entry: &LogEntry) -> Option<Seq> {
        if entry.hole() { self.0.remove(&entry.seq) } else { None }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The stored messages of one address.
///
/// Invariants: entries are in seq order and above the floor unless they are not committed yet; `bytes` is their
/// sum; an entry is flagged exactly if [`Holes`] has a hole before it.
#[derive(Debug)]
pub(super) struct AddressLog {
    entries: VecDeque<LogEntry>,
    bytes: usize,
    position: Position,
    /// When the expiry index lists this log, in Unix milliseconds; [`NEVER`] if it does not.
    pub(super) due: u64,
    /// Whether the queue of empty logs lists it.
    pub(super) listed: bool,
    /// What each author has here, where that is counted; see [`AddressLogs`](super::logs::AddressLogs).
    pub(super) tally: Option<Box<Tally>>,
}

impl AddressLog {
    /// An empty log. Everything up to `forgotten` may have been stored under this address and forgotten.
    pub(super) fn after_forgotten(forgotten: Seq) -> Self {
        Self::at(Position { floor: forgotten, ..Position::default() })
    }

    /// An empty log at this position.
    pub(super) fn at(position: Position) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, position, due: NEVER, listed: false, tally: None }
    }

    pub(super) fn entries(&self) -> &VecDeque<LogEntry> {
        &self.entries
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// The highest seq that expired after the last message still there.
    pub(super) fn expired_since_last(&self) -> Seq {
        match self.entries.back() {
            Some(last) if last.seq > self.position.expired => Seq::START,
            _ => self.position.expired,
        }
    }

    /// The highest seq that was ever stored here.
    pub(super) fn last(&self) -> Seq {
        let Position { floor, expired, newest } = self.position;
        self.entries.back().map_or(Seq::START, |last| last.seq).max(floor).max(expired).max(newest)
    }

    /// How many of its messages are committed.
    pub(super) fn committed(&self, committed: Seq) -> usize {
        match self.entries.back() {
            Some(last) if last.seq > committed => self.through(committed),
            _ => self.entries.len(),
        }
    }

    /// How many entries have seqs up to and including `seq`.
    pub(super) fn through(&self, seq: Seq) -> usize {
        self.entries.partition_point(|entry| entry.seq <= seq)
    }

    /// The newest entry up to `through` that is not among the last so many, or so many bytes, before it. [`Seq::START`] if
    /// there is none. Looks at no more entries than may be kept.
    pub(super) fn beyond(&self, through: Seq, (messages, bytes): (usize, usize)) -> Seq {
        let mut kept = 0;
        let mut entries = self.entries.range(..self.through(through)).rev().enumerate();
        let beyond = entries.find(|(newer, entry)| {
            kept += entry.bytes as usize;
            *newer >= messages || kept > bytes
        });
        beyond.map_or(Seq::START, |(_, entry)| entry.seq)
    }

    pub(super) fn holds(&self, seq: Seq) -> bool {
        self.entries.binary_search_by_key(&seq, |entry| entry.seq).is_ok()
    }

    /// Appends an entry and returns the seq before it.
    pub(super) fn push(&mut self, mut entry: LogEntry, holes: &mut Holes) -> Seq {
        let prev = self.last();
        debug_assert!(entry.seq > prev, "seqs of one address increase");
        let expired = self.expired_since_last();
        if expired > Seq::START {
            holes.note(&mut entry, expired);
        }
        self.bytes += entry.bytes as usize;
        self.entries.push_back(entry);
        prev
    }

    /// Appends an entry that was read back from the disk, where `prev` was the seq before it.
    ///
    /// Returns false for an entry below the floor: it was acknowledged and not deleted before a crash.
    pub(super) fn restore(&mut self, mut entry: LogEntry, prev: Seq, holes: &mut Holes) -> bool {
        let Position { floor, expired, .. } = self.position;
        if entry.seq <= floor {
            return false;
        }
        match self.entries.back() {
            // The messages before the first one were deleted in order. Expired ones are in the stored floor.
            None if prev > floor.max(expired) => self.position.floor = prev,
            Some(before) if prev > before.seq => holes.note(&mut entry, prev),
            _ => {}
        }
        if self.entries.len() == self.entries.capacity() {
            // Grows by half instead of doubling: most of the memory is in many small logs.
            self.entries.reserve_exact((self.entries.len() / 2).max(4));
        }
        self.bytes += entry.bytes as usize;
        self.position.newest = entry.seq;
        self.entries.push_back(entry);
        true
    }

    /// Marks the last restored entry: its sender gets a receipt for it.
    pub(super) fn restore_receipt(&mut self) {
        if let Some(last) = self.entries.back_mut() {
            *last = last.with_receipt(true);
        }
    }

    /// A message is committed. Returns the newest seq that was committed here before it.
    pub(super) fn commit(&mut self, seq: Seq) -> Seq {
        let before = self.position.newest;
        self.position.newest = before.max(seq);
        before
    }

    /// Raises the floor to `through` and removes the entries below it. The floor rises in an empty log too.
    pub(super) fn trim(&mut self, through: Seq, holes: &mut Holes) -> Vec<LogEntry> {
        self.position.floor = self.position.floor.max(through);
        self.remove_through(through, holes)
    }

    /// Ends what was stored up to `through`: the floor rises above it. See [`Self::remove_ended`].
    pub(super) fn end(&mut self, through: Seq) {
        self.raise_floor(through.min(self.last()));
    }

    /// Raises the floor, over messages too that are not committed yet.
    pub(super) fn raise_floor(&mut self, to: Seq) {
        self.position.floor = self.position.floor.max(to);
        self.position.newest = self.position.newest.max(self.position.floor);
    }

    /// Removes the committed entries below the floor.
    pub(super) fn remove_ended(&mut self, committed: Seq, holes: &mut Holes) -> Vec<LogEntry> {
        self.remove_through(self.position.floor.min(committed), holes)
    }

    fn remove_through(&mut self, through: Seq, holes: &mut Holes) -> Vec<LogEntry> {
        let end = self.through(through);
        let removed: Vec<LogEntry> = self.entries.drain(..end).collect();
        for entry in &removed {
            self.bytes -= entry.bytes as usize;
            holes.take(entry);
        }
        removed
    }

    /// Removes the oldest committed entries until the rest is within `bounds`. The newest one stays.
    pub(super) fn remove_oldest(
        &mut self,
        bounds: &Bounds,
        committed: Seq,
        holes: &mut Holes,
    ) -> Vec<LogEntry> {
        let mut left = self.committed(committed);
        let mut removed = Vec::new();
        while left > bounds.messages || (left > 1 && self.bytes > bounds.bytes) {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.bytes as usize;
            self.position.floor = oldest.seq;
            holes.take(&oldest);
            left -= 1;
            removed.push(oldest);
        }
        removed
    }

    /// Removes the committed entries that have expired.
    pub(super) fn expire(&mut self, now: u64, committed: Seq, holes: &mut Holes) -> Vec<LogEntry> {
        let mut expired = Vec::new();
        let mut kept = VecDeque::with_capacity(self.entries.len());
        let mut last_gone = Seq::START;
        for mut entry in std::mem::take(&mut self.entries) {
            if entry.expires_at <= now && entry.seq <= committed {
                self.bytes -= entry.bytes as usize;
                holes.take(&entry);
                last_gone = entry.seq;
                expired.push(entry);
                continue;
            }
            if last_gone > Seq::START {
                holes.note(&mut entry, last_gone);
                last_gone = Seq::START;
            }
            kept.push_back(entry);
        }
        self.entries = kept;
        if let Some(last) = expired.last() {
            self.position.expired = self.position.expired.max(last.seq);
        }
        expired
    }

    /// When its next message expires at the earliest, but after `now`; [`NEVER`] without messages.
    ///
    /// A message that is due and not committed yet is looked at again later.
    pub(super) fn next_expiry(&self, now: u64) -> u64 {
        self.entries.iter().map(|entry| entry.expires_at.max(now + 1)).min().unwrap_or(NEVER)
    }

    /// Removes one entry that could not be stored. The hole before it is then before the entry after it.
    pub(super) fn remove(&mut self, seq: Seq, holes: &mut Holes) -> Option<LogEntry> {
        let at = self.entries.binary_search_by_key(&seq, |entry| entry.seq).ok()?;
        let entry = self.entries.remove(at)?;
        self.bytes -= entry.bytes as usize;
        if let (Some(hole), Some(next)) = (holes.take(&entry), self.entries.get_mut(at)) {
            holes.note(next, hole);
        }
        Some(entry)
    }

    /// The highest seq that was stored here before `seq`.
    pub(super) fn before(&self, seq: Seq) -> Seq {
        let at = self.entries.partition_point(|entry| entry.seq < seq);
        let Position { floor, expired, newest } = self.position;
        let before = at.checked_sub(1).map_or(Seq::START, |at| self.entries[at].seq);
        before.max(floor).max(expired).max(newest)
    }

    /// Gives back the memory of an empty log.
    pub(super) fn release_memory(&mut self) {
        debug_assert!(self.is_empty() && self.bytes == 0, "an empty log holds no bytes");
        self.entries = VecDeque::new();
        self.tally = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64, expires_at: u64) -> LogEntry {
        LogEntry::new(Seq(seq), expires_at, 10)
    }

    fn log(entries: &[(u64, u64)], holes: &mut Holes) -> AddressLog {
        let mut log = AddressLog::after_forgotten(Seq::START);
        for (seq, expires_at) in entries {
            log.push(entry(*seq, *expires_at), holes);
        }
        log
    }

    fn seqs<'a>(entries: impl IntoIterator<Item = &'a LogEntry>) -> Vec<u64> {
        entries.into_iter().map(|entry| entry.seq.0).collect()
    }

    fn assert_consistent(log: &AddressLog, holes: &Holes) {
        assert_eq!(log.bytes(), log.entries.len() * 10);
        let flagged = log.entries.iter().filter(|entry| entry.hole()).count();
        assert_eq!(flagged, holes.len(), "each hole has its entry");
    }

    #[test]
    fn push_returns_the_seq_before() {
        let mut holes = Holes::default();
        let mut log = AddressLog::after_forgotten(Seq(3));
        assert_eq!(log.push(entry(5, NEVER), &mut holes), Seq(3));
        assert_eq!(log.push(entry(9, NEVER), &mut holes), Seq(5));
        assert_eq!((log.before(Seq(5)), log.before(Seq(9)), log.last()), (Seq(3), Seq(5), Seq(9)));
        assert_consistent(&log, &holes);
    }

    #[test]
    fn commit_returns_what_was_committed_before() {
        let mut holes = Holes::default();
        let mut log = AddressLog::after_forgotten(Seq(3));
        log.push(entry(5, NEVER), &mut holes);
        log.push(entry(9, NEVER), &mut holes);
        assert_eq!(log.commit(Seq(5)), Seq::START, "what was forgotten was published to nobody");
        assert_eq!(log.commit(Seq(9)), Seq(5));
    }

    #[test]
    fn only_committed_entries_count_as_committed() {
        let mut holes = Holes::default();
        let log = log(&[(1, 5), (2, 5), (4, 5)], &mut holes);
        assert_eq!([0, 1, 3, 4, 9].map(|seq| log.committed(Seq(seq))), [0, 1, 2, 3, 3]);
    }

    #[test]
    fn what_is_beyond_the_kept_messages_and_bytes_is_found() {
        let mut holes = Holes::default();
        let mut log = AddressLog::at(Position::default());
        for seq in [1, 2, 4, 7] {
            log.push(entry(seq, NEVER), &mut holes);
        }
        // Each entry has 10 bytes.
        for (through, most, beyond) in [
            (7, (4, 40), 0),
            (7, (3, 40), 1),
            (7, (4, 39), 1),
            (7, (4, 9), 7),
            (7, (0, 40), 7),
            (5, (1, 40), 2),
            (0, (0, 0), 0),
        ] {
            assert_eq!(log.beyond(Seq(through), most), Seq(beyond), "{through} {most:?}");
        }
    }

    #[test]
    fn trimming_raises_the_floor_even_beyond_the_end() {
        let mut holes = Holes::default();
        let mut log = log(&[(1, 5), (2, 5), (4, 5)], &mut holes);
        assert_eq!(seqs(&log.trim(Seq(2), &mut holes)), [1, 2]);
        assert_eq!(seqs(&log.trim(Seq(1), &mut holes)), [0; 0]);
        assert_eq!(log.position().floor, Seq(2), "the floor does not sink");
        assert_eq!(seqs(&log.trim(Seq(7), &mut holes)), [4]);
        assert_eq!((log.position().floor, log.last()), (Seq(7), Seq(7)));
        assert_consistent(&log, &holes);
    }

    #[test]
    fn expiry_leaves_holes_where_later_messages_stay() {
        let mut holes = Holes::default();
        let mut log = log(&[(1, 10), (2, 30), (3, 10), (4, 10), (5, 30), (6, 10)], &mut holes);
        assert_eq!(seqs(&log.expire(10, Seq(5), &mut holes)), [1, 3, 4]);
        assert_eq!(seqs(log.entries()), [2, 5, 6]);
        let found: Vec<_> = log.entries().iter().map(|entry| holes.before(entry)).collect();
        assert_eq!(found, [Some(Seq(1)), Some(Seq(4)), None]);
        assert_eq!(log.next_expiry(10), 11, "6 is due and not committed: it is looked at again");
        assert_consistent(&log, &holes);
        // Holes merge, and leave with their entry.
        assert_eq!(seqs(&log.expire(30, Seq(5), &mut holes)), [2, 5]);
        assert_eq!(holes.before(&log.entries()[0]), Some(Seq(5)));
        assert_eq!(seqs(&log.expire(30, Seq(6), &mut holes)), [6]);
        assert_eq!((log.expired_since_last(), log.next_expiry(30), holes.len()), (Seq(6), NEVER, 0));
        assert_consistent(&log, &holes);
    }

    #[test]
    fn a_push_after_everything_expired_has_a_hole_before_it() {
        let mut holes = Holes::default();
        let mut log = log(&[(1, 10)], &mut holes);
        log.expire(10, Seq(1), &mut holes);
        assert_eq!(log.push(entry(2, 20), &mut holes), Seq(1));
        assert_eq!(holes.before(&log.entries()[0]), Some(Seq(1)));
        assert_eq!(log.trim(Seq(2), &mut holes).len(), 1);
        assert_consistent(&log, &holes);
    }

    #[test]
    fn a_refused_entry_leaves_its_hole_to_the_next_one() {
        let mut holes = Holes::default();
        let mut log = log(&[(1, 10)], &mut holes);
        log.expire(10, Seq(1), &mut holes);
        log.push(entry(2, 20), &mut holes);
        log.push(entry(3, 20), &mut holes);
        assert_eq!(log.remove(Seq(2), &mut holes).map(|entry| entry.seq), Some(Seq(2)));
        assert_eq!(holes.before(&log.entries()[0]), Some(Seq(1)));
        assert_eq!(log.remove(Seq(2), &mut holes), None);
        assert_consistent(&log, &holes);
        log.remove(Seq(3), &mut holes);
        assert_eq!((holes.len(), log.bytes()), (0, 0));
    }

    #[test]
    fn a_history_keeps_its_newest_message_whatever_its_size() {
        let mut holes = Holes::default();
        let bounds = Bounds { messages: 2, bytes: 5, age: std::time::Duration::ZERO };
        let mut log = log(&[(1, 9), (2, 9), (3, 9), (4, 9)], &mut holes);
        assert_eq!(seqs(&log.remove_oldest(&bounds, Seq(3), &mut holes)), [1, 2]);
        assert_eq!(log.position().floor, Seq(2));
        assert_eq!(seqs(&log.remove_oldest(&bounds, Seq(4), &mut holes)), [3]);
        assert_eq!(seqs(log.entries()), [4]);
        assert_consistent(&log, &holes);
    }

    #[test]
    fn an_ended_log_loses_committed_entries_first() {
        let mut holes = Holes::default();
        let mut log = log(&[(1, 9), (2, 9)], &mut holes);
        log.end(Seq(u64::MAX));
        assert_eq!(seqs(&log.remove_ended(Seq(1), &mut holes)), [1]);
        log.push(entry(3, 9), &mut holes);
        assert_eq!(seqs(&log.remove_ended(Seq(3), &mut holes)), [2], "what came after the end stays");
        assert_consistent(&log, &holes);
    }

    #[test]
    fn restored_entries_tell_holes_and_the_floor() {
        let mut holes = Holes::default();
        let mut log = AddressLog::at(Position { floor: Seq(2), expired: Seq(3), newest: Seq(3) });
        assert!(!log.restore(entry(2, 9), Seq(1), &mut holes), "it was acknowledged");
        assert!(log.restore(entry(5, 9), Seq(4), &mut holes));
        assert_eq!(log.position().floor, Seq(4), "4 was deleted without a stored floor");
        assert!(log.restore(entry(6, 9), Seq(5), &mut holes));
        assert!(log.restore(entry(9, 9), Seq(8), &mut holes));
        let found: Vec<_> = log.entries().iter().map(|entry| holes.before(entry)).collect();
        assert_eq!(found, [None, None, Some(Seq(8))]);
        assert_eq!((log.position().newest, log.last()), (Seq(9), Seq(9)));
        assert_consistent(&log, &holes);
    }
}
