//! Which log has the next message that expires.

use std::collections::BTreeSet;

use crate::message::Address;

/// The due time of a log without messages, in Unix milliseconds.
pub(super) const NEVER: u64 = u64::MAX;

/// The logs with messages, by when they lose their next one at the earliest.
///
/// Invariant: a log is listed exactly under its `due` time, and not at all if that is [`NEVER`]. A due time may be
/// earlier than the first expiry: then a look at the log finds nothing and sets it right.
#[derive(Debug, Default)]
pub(super) struct ExpiryIndex {
    by_expiry: BTreeSet<(u64, Address)>,
}

impl ExpiryIndex {
    /// An index of all these due times.
    pub(super) fn of(due: Vec<(u64, Address)>) -> Self {
        Self { by_expiry: due.into_iter().collect() }
    }

    /// Moves a log from one due time to another; `due` is the log's own record of it.
    pub(super) fn reschedule(&mut self, address: &Address, due: &mut u64, to: u64) {
        if *due < NEVER {
            self.by_expiry.remove(&(*due, address.clone()));
        }
        if to < NEVER {
            self.by_expiry.insert((to, address.clone()));
        }
        *due = to;
    }

    /// The log that is due first, if one is due.
    pub(super) fn first_due(&self, now: u64) -> Option<Address> {
        self.by_expiry.first().filter(|(due, _)| *due <= now).map(|(_, address)| address.clone())
    }

    #[cfg(test)]
    pub(super) fn contains(&self, due: u64, address: &Address) -> bool {
        self.by_expiry.contains(&(due, address.clone()))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_expiry.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::TopicName;

    fn topic(name: &str) -> Address {
        Address::Topic(TopicName::new(name).unwrap())
    }

    #[test]
    fn logs_are_due_in_the_order_of_their_times() {
        let mut index = ExpiryIndex::default();
        let (mut a, mut b) = (NEVER, NEVER);
        index.reschedule(&topic("a"), &mut a, 20);
        index.reschedule(&topic("b"), &mut b, 10);
        assert_eq!(index.first_due(9), None);
        assert_eq!(index.first_due(10), Some(topic("b")));
        index.reschedule(&topic("b"), &mut b, 30);
        assert_eq!((index.first_due(19), index.first_due(20)), (None, Some(topic("a"))));
        assert_eq!((a, b), (20, 30));
    }

    #[test]
    fn a_log_without_messages_is_not_listed() {
        let mut index = ExpiryIndex::of(vec![(5, topic("a"))]);
        let mut due = 5;
        index.reschedule(&topic("a"), &mut due, NEVER);
        assert_eq!((index.len(), index.first_due(NEVER - 1), due), (0, None, NEVER));
    }
}
