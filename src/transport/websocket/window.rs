//! The window of a connection: how much of its mailbox it may have that it has not acknowledged.

use std::collections::VecDeque;

use crate::budget::SMALL;
use crate::message::{GapReason, Item, Seq};

/// Most bytes of the messages that are not acknowledged. One message may be larger.
const MAX_BYTES: usize = 4 << 20;

/// What one connection has from its mailbox and has not acknowledged. Only messages that it can acknowledge count, and no
/// receipts.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Most messages; `None` without a window. Nothing is counted then.
    limit: Option<usize>,
    /// Seq and size of each message.
    unacknowledged: VecDeque<(Seq, usize)>,
    bytes: usize,
}

impl Window {
    /// A window of at most so many messages.
    pub(super) fn new(limit: Option<u32>) -> Self {
        Self { limit: limit.map(|limit| limit as usize), ..Self::default() }
    }

    /// Whether this item of the mailbox may be delivered now.
    pub(super) fn admits(&self, item: &Item) -> bool {
        let (Some(limit), Some((_, size))) = (self.limit, counted(item)) else { return true };
        self.unacknowledged.is_empty() || self.unacknowledged.len() < limit && self.bytes + size <= MAX_BYTES
    }

    /// Whether any small message may be delivered now.
    pub(super) fn admits_small(&self) -> bool {
        let Some(limit) = self.limit else { return true };
        self.unacknowledged.len() < limit && self.bytes + SMALL <= MAX_BYTES
    }

    /// Counts a message that is delivered.
    pub(super) fn message_delivered(&mut self, seq: Seq, size: usize) {
        if self.limit.is_some() {
            self.unacknowledged.push_back((seq, size));
            self.bytes += size;
        }
    }

    /// Counts an item of the mailbox that is delivered.
    pub(super) fn delivered(&mut self, item: &Item) {
        if self.limit.is_none() {
            return;
        }
        if let Some((seq, size)) = counted(item) {
            self.message_delivered(seq, size);
        } else if let Item::Gap(gap) = item
            && gap.reason == GapReason::Epoch
        {
            // What came before it cannot be acknowledged any more.
            self.unacknowledged.clear();
            self.bytes = 0;
        }
    }

    /// Everything up to `seq` is acknowledged by this connection.
    pub(super) fn acknowledged(&mut self, seq: Seq) {
        while let Some((_, size)) = self.unacknowledged.front().filter(|(first, _)| *first <= seq) {
            self.bytes -= size;
            self.unacknowledged.pop_front();
        }
    }
}

/// Seq and size of an item that counts.
fn counted(item: &Item) -> Option<(Seq, usize)> {
    match item {
        Item::Message(message) if message.kind().is_message() => {
            message.seq().map(|seq| (seq, message.frame().len()))
        }
        Item::Message(_) | Item::Gap(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::value::RawValue;

    use super::*;
    use crate::message::{Address, Gap, Kind, Message, MessageId, Outcome, Publication, SessionId};

    fn address() -> Address {
        Address::Session(SessionId::new("A").unwrap())
    }

    fn item(seq: Option<u64>, size: usize) -> Item {
        let payload = RawValue::from_string(format!("\"{}\"", "x".repeat(size))).unwrap();
        let message = Message { kind: Kind::Message, from: None, payload, ts: 1, reference: None };
        Item::Message(Arc::new(Publication::encode(&address(), seq.map(Seq), &message)))
    }

    fn full(limit: u32) -> Window {
        let mut window = Window::new(Some(limit));
        for seq in 1..=limit.into() {
            assert!(window.admits(&item(Some(seq), 1)));
            window.delivered(&item(Some(seq), 1));
        }
        assert!(!window.admits(&item(Some(99), 1)));
        window
    }

    #[test]
    fn messages_are_admitted_as_others_are_acknowledged() {
        let mut window = full(3);
        window.acknowledged(Seq(2));
        for seq in [4, 5] {
            assert!(window.admits(&item(Some(seq), 1)));
            window.delivered(&item(Some(seq), 1));
        }
        assert!(!window.admits(&item(Some(6), 1)));
        window.acknowledged(Seq(5));
        assert_eq!((window.unacknowledged.len(), window.bytes), (0, 0));
    }

    #[test]
    fn bytes_count_and_one_message_is_always_admitted() {
        let mut window = Window::new(Some(100));
        let large = |seq| item(Some(seq), 3 << 20);
        assert!(window.admits(&item(Some(1), 5 << 20)));
        window.delivered(&large(1));
        assert!(!window.admits(&large(2)));
        assert!(window.admits(&item(Some(2), 1000)));
        window.acknowledged(Seq(1));
        assert!(window.admits(&large(2)));
    }

    #[test]
    fn receipts_volatile_messages_and_gaps_do_not_count() {
        let mut window = full(1);
        let receipt = Message::receipt(&MessageId::new("c-1").unwrap(), Outcome::Expired, 7);
        let receipt = Item::Message(Arc::new(Publication::encode(&address(), Some(Seq(2)), &receipt)));
        let gap = Item::Gap(Gap { from: Seq(1), to: Seq(3), reason: GapReason::Expired });
        for item in [receipt, item(None, 1), gap] {
            assert!(window.admits(&item));
            window.delivered(&item);
        }
        assert_eq!(window.unacknowledged.len(), 1);
    }

    #[test]
    fn another_epoch_opens_the_window() {
        let mut window = full(1);
        window.delivered(&Item::Gap(Gap { from: Seq(1), to: Seq(3), reason: GapReason::Epoch }));
        assert!(window.admits(&item(Some(4), 1)));
    }

    #[test]
    fn without_a_window_nothing_is_counted() {
        let mut window = Window::new(None);
        window.delivered(&item(Some(1), 5 << 20));
        assert!(window.unacknowledged.is_empty() && window.admits(&item(Some(2), 5 << 20)));
    }
}
