//! Which addresses are read on this node, and so subscribed to.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::engine::nats::seen::Seen;
use crate::hub::Interest;
use crate::message::{Address, Seq};
use crate::sync::{lock, shrink};

/// How long a subscription goes on after the last reader left: most come back soon.
const GRACE: Duration = Duration::from_secs(1);

/// The addresses that are read on this node.
#[derive(Debug, Default)]
pub struct Feeds {
    feeds: Mutex<HashMap<Address, Feed>>,
    changes: Mutex<Vec<Change>>,
    /// Notified when there are changes.
    pub(super) changed: Notify,
    /// Notified when subscriptions are up.
    up: Notify,
}

#[derive(Debug, Default)]
struct Feed {
    /// When its last reader left; `None` while it is read.
    left: Option<Instant>,
    /// Whether it is subscribed to.
    is_up: bool,
    seen: Seen,
}

/// What happened to the readers of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// It has its first reader, and is not subscribed to.
    Read(Address),
    /// Its last reader left. It is to be closed then.
    Left(Address, Instant),
}

impl Feeds {
    fn change(&self, change: Change) {
        lock(&self.changes).push(change);
        self.changed.notify_one();
    }

    fn with<T>(&self, address: &Address, on: impl FnOnce(&mut Feed) -> T) -> Option<T> {
        lock(&self.feeds).get_mut(address).map(on)
    }
}

impl Interest for Feeds {
    fn first_reader(&self, address: &Address) {
        let mut feeds = lock(&self.feeds);
        let known = feeds.len();
        feeds.entry(address.clone()).or_default().left = None;
        if feeds.len() > known {
            self.change(Change::Read(address.clone()));
        }
    }

    fn last_reader_left(&self, address: &Address) {
        let now = Instant::now();
        if let Some(feed) = lock(&self.feeds).get_mut(address) {
            feed.left = Some(now);
            self.change(Change::Left(address.clone(), now + GRACE));
        }
    }
}

impl Feeds {
    /// What happened since the last call, in order.
    pub(super) fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut *lock(&self.changes))
    }

    /// Notes that addresses are subscribed to.
    pub(super) fn set_up<'a>(&self, addresses: impl IntoIterator<Item = &'a Address>) {
        let mut feeds = lock(&self.feeds);
        for address in addresses {
            if let Some(feed) = feeds.get_mut(address) {
                feed.is_up = true;
            }
        }
        drop(feeds);
        self.up.notify_waiters();
    }

    /// Forgets an address whose last reader left long enough ago. Answers whether it did.
    pub(super) fn close(&self, address: &Address, now: Instant) -> bool {
        let mut feeds = lock(&self.feeds);
        let has_gone = |feed: &Feed| feed.left.is_some_and(|left| left + GRACE <= now);
        if !feeds.get(address).is_some_and(has_gone) {
            return false;
        }
        feeds.remove(address);
        shrink(&mut feeds);
        true
    }

    /// Notes a message that came here, between which and `prev` there is none. Readers may hold back so many.
    pub(super) fn note(&self, address: &Address, seqs: (Seq, Seq), bytes: usize, asks: bool, most: usize) {
        self.with(address, |feed| feed.seen.note(seqs, bytes, asks, most));
    }

    /// Notes that everything up to `through` is deleted.
    pub(super) fn trimmed(&self, address: &Address, through: Seq) {
        self.with(address, |feed| feed.seen.trimmed(through));
    }

    /// Whether all messages of an address between two positions came here, and none of them asks for a receipt.
    pub(super) fn asks_for_nothing(&self, address: &Address, (after, through): (Seq, Seq)) -> bool {
        self.with(address, |feed| feed.seen.asks_for_nothing(after, through)).unwrap_or_default()
    }

    /// Notes that the receipts for messages up to `through` are sent.
    pub(super) fn answered(&self, address: &Address, through: Seq) {
        self.with(address, |feed| feed.seen.answered(through));
    }

    /// Up to where messages are held back for too long, if all up to `acknowledged` are acknowledged and so many, and so many
    /// bytes, may be held back.
    pub(super) fn beyond(&self, address: &Address, acknowledged: Seq, limits: (usize, usize)) -> Seq {
        self.with(address, |feed| feed.seen.beyond(acknowledged, limits)).unwrap_or_default()
    }

    /// Waits until an address that is read here is subscribed to.
    pub(super) async fn subscribed(&self, address: &Address) {
        loop {
            let mut up = std::pin::pin!(self.up.notified());
            up.as_mut().enable();
            if self.with(address, |feed| feed.left.is_some() || feed.is_up).unwrap_or(true) {
                return;
            }
            up.await;
        }
    }

    /// All addresses that are subscribed to.
    pub(super) fn all(&self) -> Vec<Address> {
        lock(&self.feeds).keys().cloned().collect()
    }

    /// Whether an address is subscribed to.
    #[cfg(test)]
    pub(in crate::engine) fn has(&self, address: &Address) -> bool {
        self.with(address, |feed| feed.is_up).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::SessionId;

    #[tokio::test(start_paused = true)]
    async fn an_address_is_forgotten_after_a_grace_without_readers() {
        let (feeds, address) = (Feeds::default(), Address::Session(SessionId::new("A").unwrap()));
        feeds.note(&address, (Seq(0), Seq(1)), 1, false, 9);
        assert_eq!(feeds.beyond(&address, Seq(9), (0, 0)), Seq::START, "nobody reads it");
        feeds.first_reader(&address);
        assert_eq!(feeds.take_changes(), [Change::Read(address.clone())]);
        feeds.set_up([&address]);
        feeds.last_reader_left(&address);
        let (at, closes) = (Instant::now() + GRACE, |at| feeds.close(&address, at));
        assert_eq!(feeds.take_changes(), [Change::Left(address.clone(), at)]);
        assert!(!closes(Instant::now()));
        feeds.first_reader(&address);
        assert!(feeds.take_changes().is_empty() && !closes(at), "it is read again");
        tokio::time::advance(GRACE / 2).await;
        feeds.last_reader_left(&address);
        assert!(!closes(at), "that was a later one");
        assert!(closes(at + GRACE / 2) && feeds.all().is_empty());
    }
}
