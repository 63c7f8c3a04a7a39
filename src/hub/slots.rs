//! How many events a hub holds.

use crate::message::Address;

/// How many events the hub of an address holds. It has room for all of them from its beginning (for a power of two, in tokio).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    session: usize,
    other: usize,
}

impl Slots {
    /// Few for a session, since each one that is connected has a hub; not fewer, since of a burst of volatile messages no more
    /// than these wait for a reader. More for a topic: when many read it, the last one is still waking up while the next
    /// messages come, and reads the store for each that it finds gone. A backend has one mailbox for the messages of all its
    /// clients.
    const DEFAULT: Self = Self { session: 16, other: 64 };

    pub(super) fn of(self, address: &Address) -> usize {
        match address {
            Address::Session(_) => self.session,
            Address::Topic(_) | Address::Backend(_) => self.other,
        }
    }
}

/// The same for each address.
impl From<usize> for Slots {
    fn from(slots: usize) -> Self {
        let slots = slots.max(1);
        Self { session: slots, other: slots }
    }
}

/// The default, unless it is set.
impl From<Option<usize>> for Slots {
    fn from(slots: Option<usize>) -> Self {
        slots.map_or(Self::DEFAULT, Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{SessionId, TopicName};

    #[test]
    fn sessions_have_few_slots_and_topics_more_unless_they_are_set() {
        let mailbox = Address::Session(SessionId::new("A").unwrap());
        let topic = Address::Topic(TopicName::new("news").unwrap());
        let slots = |set| [&mailbox, &topic].map(|address| Slots::from(set).of(address));
        assert_eq!((slots(None), slots(Some(2)), slots(Some(0))), ([16, 64], [2, 2], [1, 1]));
    }
}
