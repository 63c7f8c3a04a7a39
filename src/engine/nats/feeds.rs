//! Which addresses are read on this node, and so subscribed to.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::hub::Interest;
use crate::message::{Address, Seq};
use crate::sync::{lock, shrink};

/// The addresses that are read on this node.
#[derive(Debug, Default)]
pub struct Feeds {
    feeds: Mutex<HashMap<Address, Feed>>,
    /// Addresses that have a reader and no task yet.
    new: Mutex<Vec<Address>>,
    /// Notified when there is a new address.
    pub(super) changed: Notify,
    /// Notified when a subscription is up.
    up: Notify,
}

#[derive(Debug, Default)]
struct Feed {
    is_read: bool,
    /// Whether it is subscribed to.
    is_up: bool,
    /// Notified when its last reader left, and when another one came.
    readers: Arc<Notify>,
    /// Messages that are not deleted, and their bytes: the newest that came here.
    recent: BTreeMap<Seq, usize>,
}

impl Feed {
    /// The newest message so far below `through` that those above it, up to `through`, fill the limits.
    fn beyond(&self, through: Seq, (messages, bytes): (usize, usize)) -> Seq {
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

impl Interest for Feeds {
    fn first_reader(&self, address: &Address) {
        let mut feeds = lock(&self.feeds);
        let known = feeds.len();
        let feed = feeds.entry(address.clone()).or_default();
        feed.is_read = true;
        feed.readers.notify_one();
        if feeds.len() > known {
            lock(&self.new).push(address.clone());
            self.changed.notify_one();
        }
    }

    fn last_reader_left(&self, address: &Address) {
        if let Some(feed) = lock(&self.feeds).get_mut(address) {
            feed.is_read = false;
            feed.readers.notify_one();
        }
    }
}

impl Feeds {
    /// The addresses that have got a reader.
    pub(super) fn take_new(&self) -> Vec<Address> {
        std::mem::take(&mut *lock(&self.new))
    }

    /// Tells when readers of an address come or go.
    pub(super) fn readers(&self, address: &Address) -> Arc<Notify> {
        lock(&self.feeds).entry(address.clone()).or_default().readers.clone()
    }

    /// Whether an address has readers.
    pub(super) fn is_read(&self, address: &Address) -> bool {
        lock(&self.feeds).get(address).is_some_and(|feed| feed.is_read)
    }

    /// Notes that an address is subscribed to.
    pub(super) fn set_up(&self, address: &Address) {
        if let Some(feed) = lock(&self.feeds).get_mut(address) {
            feed.is_up = true;
        }
        self.up.notify_waiters();
    }

    /// Forgets an address without readers. Answers whether it has none.
    pub(super) fn close(&self, address: &Address) -> bool {
        let mut feeds = lock(&self.feeds);
        if feeds.get(address).is_some_and(|feed| feed.is_read) {
            return false;
        }
        feeds.remove(address);
        shrink(&mut feeds);
        true
    }

    /// Notes that a message came here, of which readers may hold back so many.
    pub(super) fn note(&self, address: &Address, seq: Seq, bytes: usize, most: usize) {
        if let Some(feed) = lock(&self.feeds).get_mut(address) {
            feed.recent.insert(seq, bytes);
            if feed.recent.len() > 2 * most.max(1) {
                feed.recent.pop_first();
            }
        }
    }

    /// Notes that everything up to `through` is deleted.
    pub(super) fn trimmed(&self, address: &Address, through: Seq) {
        if let Some(feed) = lock(&self.feeds).get_mut(address) {
            feed.recent.retain(|seq, _| *seq > through);
        }
    }

    /// Up to where messages are held back for too long, if all up to `acknowledged` are acknowledged and so many, and so many
    /// bytes, may be held back.
    pub(super) fn beyond(&self, address: &Address, acknowledged: Seq, limits: (usize, usize)) -> Seq {
        lock(&self.feeds).get(address).map_or(Seq::START, |feed| feed.beyond(acknowledged, limits))
    }

    /// Waits until an address that is read here is subscribed to.
    pub(super) async fn subscribed(&self, address: &Address) {
        loop {
            let mut up = std::pin::pin!(self.up.notified());
            up.as_mut().enable();
            if lock(&self.feeds).get(address).is_none_or(|feed| !feed.is_read || feed.is_up) {
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
        lock(&self.feeds).get(address).is_some_and(|feed| feed.is_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::SessionId;

    #[test]
    fn what_is_held_back_is_bounded_in_messages_and_bytes() {
        let (feeds, address) = (Feeds::default(), Address::Session(SessionId::new("A").unwrap()));
        feeds.note(&address, Seq(1), 1, 9);
        assert_eq!(feeds.beyond(&address, Seq(9), (0, 0)), Seq::START, "nobody reads it");
        feeds.first_reader(&address);
        assert_eq!(feeds.take_new(), std::slice::from_ref(&address));
        (1..=5).for_each(|seq| feeds.note(&address, Seq(seq), 10, 9));
        assert_eq!(feeds.beyond(&address, Seq(5), (9, 999)), Seq::START);
        assert_eq!(feeds.beyond(&address, Seq(5), (2, 999)), Seq(3));
        assert_eq!(feeds.beyond(&address, Seq(4), (9, 25)), Seq(2));
        feeds.trimmed(&address, Seq(3));
        assert_eq!(feeds.beyond(&address, Seq(5), (2, 999)), Seq::START);
        assert!(!feeds.close(&address));
        feeds.last_reader_left(&address);
        assert!(feeds.close(&address) && feeds.all().is_empty());
    }
}
