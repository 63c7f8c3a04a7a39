//! Who pays for stored messages, and how much each pays for now.

#[cfg(test)]
use std::collections::HashMap;

use crate::engine::Usage;
use crate::message::SenderName;
use crate::sync::shrink;
use crate::table::Table;

/// An author that pays for messages, as long as it has some.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct PayerId(u32);

impl PayerId {
    /// Nobody pays. Also an author that has no messages yet.
    pub(crate) const NONE: Self = Self(0);

    /// How many bits an id takes.
    pub(super) const BITS: u32 = 30;

    pub(super) fn to_bits(self) -> u32 {
        self.0
    }

    pub(super) fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

#[derive(Debug)]
struct Payer {
    name: SenderName,
    usage: Usage,
    /// In how many histories it has messages.
    topics: usize,
}

/// The authors that have stored messages. Others cost nothing.
///
/// Invariant: both tables have the same authors.
#[derive(Debug, Default)]
pub(super) struct Payers {
    ids: Table<SenderName, PayerId>,
    payers: Table<PayerId, Payer>,
    last: u32,
}

impl Payers {
    /// The id of an author; [`PayerId::NONE`] if it has no messages.
    pub(super) fn find(&self, name: &SenderName) -> PayerId {
        self.ids.get(name).copied().unwrap_or_default()
    }

    /// An author has one more message, of so many bytes.
    pub(super) fn enter(&mut self, name: &SenderName, bytes: usize) -> PayerId {
        let known = self.ids.get(name).copied();
        let id = known.unwrap_or_else(|| self.unused());
        if known.is_none() {
            self.ids.insert(name.clone(), id);
            self.payers.insert(id, Payer { name: name.clone(), usage: Usage::default(), topics: 0 });
        }
        if let Some(payer) = self.payers.get_mut(&id) {
            payer.usage.messages += 1;
            payer.usage.bytes += bytes;
        }
        id
    }

    /// There are fewer authors than ids, since each author has a message in memory.
    fn unused(&mut self) -> PayerId {
        loop {
            self.last = (self.last + 1) & ((1 << PayerId::BITS) - 1);
            let id = PayerId(self.last);
            if id != PayerId::NONE && !self.payers.contains_key(&id) {
                return id;
            }
        }
    }

    /// What an author has stored.
    pub(super) fn usage(&self, id: PayerId) -> Usage {
        self.payers.get(&id).map(|payer| payer.usage).unwrap_or_default()
    }

    /// In how many histories an author has messages.
    pub(super) fn topics(&self, id: PayerId) -> usize {
        self.payers.get(&id).map_or(0, |payer| payer.topics)
    }

    /// An author has one message less. Without messages it is forgotten.
    pub(super) fn remove(&mut self, id: PayerId, bytes: usize) {
        let Some(payer) = self.payers.get_mut(&id) else { return };
        payer.usage.messages -= 1;
        payer.usage.bytes -= bytes;
        if payer.usage.messages == 0 {
            let gone = self.payers.remove(&id);
            gone.map(|gone| self.ids.remove(&gone.name));
            shrink(&mut self.payers);
            shrink(&mut self.ids);
        }
    }

    /// An author has its first message in a history.
    pub(super) fn enter_topic(&mut self, id: PayerId) {
        if let Some(payer) = self.payers.get_mut(&id) {
            payer.topics += 1;
        }
    }

    /// An author has no message in a history any more. Called before its last message is removed.
    pub(super) fn leave_topic(&mut self, id: PayerId) {
        if let Some(payer) = self.payers.get_mut(&id) {
            payer.topics -= 1;
        }
    }

    /// Every author, with what it has and in how many histories.
    #[cfg(test)]
    pub(super) fn all(&self) -> HashMap<PayerId, (Usage, usize)> {
        assert_eq!(self.ids.len(), self.payers.len());
        assert!(self.ids.iter().all(|(name, id)| self.payers[id].name == *name));
        self.payers.iter().map(|(id, payer)| (*id, (payer.usage, payer.topics))).collect()
    }
}

/// What each author has in one mailbox or history, or in the queue.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally(Table<PayerId, Usage>);

impl Tally {
    /// What an author has here.
    pub(super) fn usage(&self, id: PayerId) -> Usage {
        self.0.get(&id).copied().unwrap_or_default()
    }

    /// Adds a message. Returns whether it is the author's first one here.
    pub(super) fn add(&mut self, id: PayerId, bytes: usize) -> bool {
        if id == PayerId::NONE {
            return false;
        }
        let usage = self.0.entry(id).or_default();
        usage.messages += 1;
        usage.bytes += bytes;
        usage.messages == 1
    }

    /// Removes a message. Returns whether it was the author's last one here.
    pub(super) fn remove(&mut self, id: PayerId, bytes: usize) -> bool {
        let Some(usage) = self.0.get_mut(&id) else { return false };
        usage.messages -= 1;
        usage.bytes -= bytes;
        let is_last = usage.messages == 0;
        if is_last {
            self.0.remove(&id);
            shrink(&mut self.0);
        }
        is_last
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets everybody.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    #[cfg(test)]
    pub(super) fn payers(&self) -> impl Iterator<Item = PayerId> {
        self.0.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> SenderName {
        SenderName::new(name).unwrap()
    }

    #[test]
    fn an_author_is_known_as_long_as_it_has_messages() {
        let mut payers = Payers::default();
        assert_eq!(payers.find(&name("ann")), PayerId::NONE);
        let ann = payers.enter(&name("ann"), 10);
        assert_eq!((payers.enter(&name("ann"), 5), payers.find(&name("ann"))), (ann, ann));
        assert_eq!(payers.usage(ann), Usage { messages: 2, bytes: 15 });
        payers.remove(ann, 10);
        payers.remove(ann, 5);
        assert_eq!((payers.find(&name("ann")), payers.all().len()), (PayerId::NONE, 0));
    }

    #[test]
    fn nobody_has_nothing() {
        let mut payers = Payers::default();
        payers.enter_topic(PayerId::NONE);
        payers.remove(PayerId::NONE, 10);
        assert_eq!((payers.usage(PayerId::NONE), payers.topics(PayerId::NONE)), (Usage::default(), 0));
        let mut tally = Tally::default();
        assert!(!tally.add(PayerId::NONE, 10) && !tally.remove(PayerId::NONE, 10) && tally.is_empty());
    }

    #[test]
    fn ids_in_use_are_not_given_again() {
        let mut payers = Payers { last: (1 << PayerId::BITS) - 2, ..Payers::default() };
        let ids = ["a", "b", "c"].map(|author| payers.enter(&name(author), 1));
        assert_eq!(ids.map(PayerId::to_bits), [(1 << PayerId::BITS) - 1, 1, 2]);
    }

    #[test]
    fn a_tally_says_when_an_author_comes_and_goes() {
        let (mut tally, id) = (Tally::default(), PayerId(7));
        assert!(tally.add(id, 3) && !tally.add(id, 4));
        assert_eq!(tally.usage(id), Usage { messages: 2, bytes: 7 });
        assert!(!tally.remove(id, 3) && tally.remove(id, 4) && tally.is_empty());
    }
}
