//! Whether there is room for a message.

use std::time::Duration;

use crate::engine::embedded::index::logs::AddressLogs;
use crate::engine::embedded::index::payers::PayerId;
use crate::engine::embedded::index::receipts::Receipts;
use crate::engine::embedded::index::totals::Totals;
use crate::engine::shares::MAX_TOPICS;
use crate::engine::{Bounds, EngineError, Settings, Share, Usage};
use crate::message::{Address, SenderName};

/// The room of an address, and that of the mailbox that gets a receipt, while nothing can change it.
#[derive(Debug)]
pub(super) struct Room<'a> {
    pub(super) settings: &'a Settings,
    pub(super) totals: &'a Totals,
    /// Where the address is.
    pub(super) logs: &'a AddressLogs,
    /// Where the mailbox is that gets a receipt.
    pub(super) receiver: &'a AddressLogs,
    pub(super) receipts: &'a Receipts,
}

impl Room<'_> {
    /// Reserves room for a message of this cost, if there is room for it and for the receipt that `receipt_for` gets for it.
    /// `payer` is its author, if authors have shares. Returns the id of that.
    ///
    /// # Errors
    /// `QuotaExceeded`, `TooManyTopics`, `StoreFull`, `HistoryTooSmall`, `MailboxFull` or `NoRoomForReceipt`.
    pub(super) fn reserve(
        &self,
        address: &Address,
        cost: usize,
        receipt_for: Option<&Address>,
        payer: Option<&SenderName>,
    ) -> Result<PayerId, EngineError> {
        let id = self.totals.reserve(cost, self.settings.total_bytes, payer)?;
        self.check(address, cost, receipt_for, payer.map(|_| id))
            .inspect_err(|_| self.totals.release(cost, id))
            .map(|()| id)
    }

    /// Whether the address has room, with `payer` if authors have shares.
    fn check(
        &self,
        address: &Address,
        cost: usize,
        receipt_for: Option<&Address>,
        payer: Option<PayerId>,
    ) -> Result<(), EngineError> {
        if !address.is_mailbox() {
            return self.check_history(address, cost, payer);
        }
        let bounds = self.check_mailbox(address, cost, payer)?;
        if let Some(receiver) = receipt_for {
            let own = usize::from(receiver == address);
            let (messages, _) = held(self.receiver, self.receipts, receiver);
            if messages + own >= bounds.messages {
                return Err(EngineError::NoRoomForReceipt { messages, limit: bounds.messages });
            }
        }
        Ok(())
    }

    /// A history makes room by itself, for every message that fits into it at all.
    fn check_history(&self, topic: &Address, cost: usize, payer: Option<PayerId>) -> Result<(), EngineError> {
        let limit = self.settings.history.bytes;
        if cost > limit {
            return Err(EngineError::HistoryTooSmall { size: cost, limit });
        }
        match payer {
            Some(payer)
                if self.totals.topics(payer) >= MAX_TOPICS && self.own(topic, payer).messages == 0 =>
            {
                Err(EngineError::TooManyTopics { limit: MAX_TOPICS })
            }
            _ => Ok(()),
        }
    }

    /// Returns the bounds of the mailbox for this author.
    fn check_mailbox(
        &self,
        mailbox: &Address,
        cost: usize,
        payer: Option<PayerId>,
    ) -> Result<Bounds, EngineError> {
        let mut bounds = self.settings.mailbox;
        let (messages, bytes) = held(self.logs, self.receipts, mailbox);
        if let Some(payer) = payer {
            let whole = Usage { messages: bounds.messages, bytes: bounds.bytes };
            let own = self.own(mailbox, payer);
            Share::Mailbox.check(
                whole,
                Usage { messages, bytes },
                own,
                Usage { messages: 1, bytes: cost },
            )?;
            let Usage { messages, bytes } = whole.for_authors();
            bounds = Bounds { messages, bytes, ..bounds };
        }
        match messages >= bounds.messages || bytes + cost > bounds.bytes {
            true => Err(EngineError::MailboxFull { messages, bytes, bounds }),
            false => Ok(bounds),
        }
    }

    /// What an author has in a mailbox or history, if that is tallied.
    fn own(&self, address: &Address, payer: PayerId) -> Usage {
        let tally = self.logs.get(address).and_then(|log| log.tally.as_ref());
        tally.map(|tally| tally.usage(payer)).unwrap_or_default()
    }
}

/// How many messages and bytes a mailbox holds, with the room reserved for receipts.
pub(super) fn held(logs: &AddressLogs, receipts: &Receipts, mailbox: &Address) -> (usize, usize) {
    let log = logs.get(mailbox);
    let (messages, bytes) = log.map_or((0, 0), |log| (log.entries().len(), log.bytes()));
    (messages + receipts.reserved(mailbox), bytes)
}

/// How long a message is kept. A topic keeps none longer than its age limit.
pub(super) fn age(settings: &Settings, address: &Address, ttl: Option<Duration>) -> Duration {
    let Settings { mailbox, history, .. } = settings;
    match address {
        Address::Topic(_) => ttl.map_or(history.age, |ttl| ttl.min(history.age)),
        Address::Session(_) | Address::Backend(_) => ttl.unwrap_or(mailbox.age),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::engine::QueueBounds;
    use crate::engine::embedded::index::address_log::LogEntry;
    use crate::message::{MessageId, Seq, SessionId, TopicName};

    const SETTINGS: Settings = Settings {
        mailbox: Bounds { messages: 3, bytes: 100, age: Duration::from_secs(60) },
        history: Bounds { messages: 2, bytes: 50, age: Duration::from_secs(30) },
        total_bytes: 200,
        dedup_window: Duration::ZERO,
        dedup_ids: 0,
        sessions_per_user: 1,
        shares: false,
        queue: QueueBounds { messages: 1, bytes: 1 },
        clock: Clock::Wall,
    };

    fn mailbox(name: &str) -> Address {
        Address::Session(SessionId::new(name).unwrap())
    }

    fn logs(entries: &[(&str, u32)]) -> AddressLogs {
        let mut logs = AddressLogs::default();
        logs.totals().add(entries.iter().map(|(_, bytes)| *bytes as usize).sum(), None);
        for (seq, (name, bytes)) in (1..).zip(entries) {
            let address = mailbox(name);
            let (seq, bytes) = (Seq(seq), *bytes);
            let Ok(()) =
                logs.push(&address, |_| Ok::<_, std::convert::Infallible>(LogEntry::new(seq, 9, bytes)));
        }
        logs
    }

    fn check(
        logs: &AddressLogs,
        receipts: &Receipts,
        to: &str,
        cost: usize,
        receipt_for: Option<&str>,
    ) -> Result<(), EngineError> {
        let room = Room { settings: &SETTINGS, totals: logs.totals(), logs, receiver: logs, receipts };
        let reserved = room.reserve(&mailbox(to), cost, receipt_for.map(mailbox).as_ref(), None)?;
        logs.totals().release(cost, reserved);
        Ok(())
    }

    #[test]
    fn a_mailbox_is_full_by_messages_or_bytes_and_the_store_by_bytes() {
        let none = Receipts::default();
        let logs = logs(&[("A", 20), ("A", 20), ("B", 60), ("C", 80)]);
        assert_eq!(check(&logs, &none, "A", 20, None), Ok(()));
        assert_eq!(check(&logs, &none, "A", 21, None), Err(EngineError::StoreFull { limit: 200 }));
        let (bounds, refused) = (SETTINGS.mailbox, check(&logs, &none, "C", 20, None));
        assert_eq!(refused, Ok(()));
        let logs = self::logs(&[("A", 90)]);
        let refused = check(&logs, &none, "A", 11, None);
        assert_eq!(refused, Err(EngineError::MailboxFull { messages: 1, bytes: 90, bounds }));
        let logs = self::logs(&[("A", 1), ("A", 1), ("A", 1)]);
        let refused = check(&logs, &none, "A", 1, None);
        assert_eq!(refused, Err(EngineError::MailboxFull { messages: 3, bytes: 3, bounds }));
    }

    #[test]
    fn reserved_receipts_take_room() {
        let receipts = Receipts::default();
        for seq in 1..=2 {
            receipts.reserve(Seq(seq), mailbox("A"), MessageId::new("1").unwrap());
        }
        let logs = logs(&[("B", 1)]);
        assert_eq!(check(&logs, &receipts, "A", 1, None), Ok(()));
        assert_eq!(check(&logs, &receipts, "B", 1, Some("A")), Ok(()));
        let own = check(&logs, &receipts, "A", 1, Some("A"));
        assert_eq!(own, Err(EngineError::NoRoomForReceipt { messages: 2, limit: 3 }));
        receipts.reserve(Seq(3), mailbox("A"), MessageId::new("1").unwrap());
        let refused = check(&logs, &receipts, "B", 1, Some("A"));
        assert_eq!(refused, Err(EngineError::NoRoomForReceipt { messages: 3, limit: 3 }));
        assert!(matches!(check(&logs, &receipts, "A", 1, None), Err(EngineError::MailboxFull { .. })));
    }

    #[test]
    fn a_history_takes_what_fits_into_it_and_keeps_nothing_longer_than_its_age() {
        let (logs, receipts) = (AddressLogs::default(), Receipts::default());
        let (totals, receiver) = (logs.totals(), &logs);
        let room = Room { settings: &SETTINGS, totals, logs: &logs, receiver, receipts: &receipts };
        let topic = Address::Topic(TopicName::new("t").unwrap());
        assert_eq!(room.reserve(&topic, 50, None, None), Ok(PayerId::NONE));
        let refused = room.reserve(&topic, 51, None, None);
        assert_eq!(refused, Err(EngineError::HistoryTooSmall { size: 51, limit: 50 }));
        assert_eq!(totals.bytes(), 50, "what is refused is not reserved");
        let seconds = |address: &Address, ttl: Option<u64>| {
            age(&SETTINGS, address, ttl.map(Duration::from_secs)).as_secs()
        };
        let mailbox = mailbox("A");
        assert_eq!([None, Some(10), Some(90)].map(|ttl| seconds(&topic, ttl)), [30, 10, 30]);
        assert_eq!([None, Some(10), Some(90)].map(|ttl| seconds(&mailbox, ttl)), [60, 10, 90]);
    }
}
