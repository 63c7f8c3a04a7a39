//! Appends that were sent and are not answered, by their numbers. Numbers follow each other, so no hashing is needed.

use std::collections::VecDeque;

use tokio::time::Instant;

/// What was sent and is not answered, and when no answer is expected any more. Invariant: the first one is not answered.
#[derive(Debug)]
pub(super) struct InFlight<T> {
    sent: VecDeque<Option<(Instant, T)>>,
    /// The number of the first one.
    first: u64,
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self { sent: VecDeque::new(), first: 0 }
    }
}

impl<T> InFlight<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// The number of the next one.
    pub(super) fn next(&self) -> u64 {
        self.first + self.sent.len() as u64
    }

    /// Adds one, and answers its number.
    pub(super) fn push(&mut self, sent: T, until: Instant) -> u64 {
        let number = self.next();
        self.sent.push_back(Some((until, sent)));
        number
    }

    /// Takes the one with this number; `None` if it was taken before.
    pub(super) fn take(&mut self, number: u64) -> Option<T> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let sent = self.sent.get_mut(at)?.take();
        while self.sent.front().is_some_and(Option::is_none) {
            self.sent.pop_front();
            self.first += 1;
        }
        if self.sent.is_empty() && self.sent.capacity() > 1024 {
            self.sent.shrink_to(256);
        }
        sent.map(|(_, sent)| sent)
    }

    /// Until when an answer to the oldest one is expected.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.sent.front().and_then(Option::as_ref).map(|(until, _)| *until)
    }

    /// Takes the oldest one and its number, if no answer to it is expected any more.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<(u64, T)> {
        self.oldest().filter(|until| *until <= now)?;
        let number = self.first;
        self.take(number).map(|sent| (number, sent))
    }
}
