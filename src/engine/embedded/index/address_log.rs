//! The stored messages of one address.

use std::collections::VecDeque;

use crate::engine::Position;
use crate::message::Seq;

/// The stored messages of one address.
#[derive(Debug)]
pub(super) struct AddressLog {
    /// In seq order.
    pub(super) entries: VecDeque<LogEntry>,
    pub(super) bytes: usize,
    pub(super) position: Position,
    /// What `Index::by_expiry` says of it; [`u64::MAX`] if nothing.
    pub(super) earliest_expiry: u64,
    /// Whether `Index::empty` lists it.
    pub(super) listed: bool,
}

#[derive(Debug)]
pub(super) struct LogEntry {
    pub(super) seq: Seq,
    pub(super) expires_at: u64,
    pub(super) bytes: u32,
    /// Whether `Index::receipts` has something for it.
    pub(super) receipt: bool,
    /// Whether `Index::holes` has something for it.
    pub(super) hole: bool,
}

impl AddressLog {
    /// A new log may be an old one that was forgotten while it was empty.
    pub(super) fn after_forgotten(forgotten: Seq) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            position: Position { floor: forgotten, ..Position::default() },
            earliest_expiry: u64::MAX,
            listed: false,
        }
    }

    /// The highest seq that expired after the last message still there.
    pub(super) fn expired_since_last(&self) -> Seq {
        match self.entries.back() {
            Some(last) if last.seq > self.position.expired => Seq::START,
            _ => self.position.expired,
        }
    }

    /// The last seq that was ever here.
    pub(super) fn last(&self) -> Seq {
        let Position { floor, expired, newest } = self.position;
        self.entries.back().map_or(Seq::START, |last| last.seq).max(floor).max(expired).max(newest)
    }

    /// How many of its messages are committed.
    pub(super) fn committed(&self, committed: Seq) -> usize {
        match self.entries.back() {
            Some(last) if last.seq > committed => {
                self.entries.partition_point(|entry| entry.seq <= committed)
            }
            _ => self.entries.len(),
        }
    }
}
