//! How long a message takes from its publication to the readers of its hub, for the metrics.
//!
//! A hub times one message at a time: the next one is timed when the channel holds the last one no longer, so that a reader
//! that is behind still finds its time. It takes eight bytes of a hub, and for most messages no look at the clock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::metrics;
use crate::protocol::Transport;

/// Of so many messages of a hub, at least, one is timed.
const ONE_OF: u64 = 16;

/// Which event of a hub is timed, and when it was sent: the low halves of its number, and of the microseconds since the start.
#[derive(Debug, Default)]
pub(super) struct Timed(AtomicU64);

/// Microseconds since the first call, within 71 minutes.
#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
fn micros() -> u32 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_micros() as u32
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
fn low(number: u64) -> u32 {
    number as u32
}

impl Timed {
    /// An event with this number is sent to a hub whose channel holds so many. Under the lock of the readers.
    pub(super) fn begin(&self, number: u64, slots: usize) {
        let every = low((slots as u64).max(ONE_OF));
        let (timed, _) = self.get();
        if number == 0 || low(number).wrapping_sub(timed) >= every {
            self.0.store(u64::from(low(number)) << 32 | u64::from(micros()), Ordering::Relaxed);
        }
    }

    fn get(&self) -> (u32, u32) {
        let both = self.0.load(Ordering::Relaxed);
        (low(both >> 32), low(both))
    }

    /// How long ago the timed event was sent, if it is one of those from `from` on, up to before `end`.
    fn took(&self, (from, end): (u64, u64)) -> Option<Duration> {
        let (timed, sent_at) = self.get();
        let is_among = timed.wrapping_sub(low(from)) < low(end.wrapping_sub(from));
        is_among.then(|| Duration::from_micros(micros().wrapping_sub(sent_at).into()))
    }

    /// A reader takes the event with this number, to write it.
    pub(super) fn taken(&self, number: u64) {
        if let Some(took) = self.took((number, number + 1)) {
            metrics::observe_delivery(took, 1);
        }
    }
}

/// What was written to some readers of a hub.
#[derive(Debug, Default)]
pub(super) struct Written {
    messages: [u64; Transport::ALL.len()],
    readers: u64,
}

impl Written {
    /// So many messages were written to a reader.
    pub(super) fn add(&mut self, transport: Transport, messages: usize) {
        self.messages[transport as usize] += messages as u64;
        self.readers += u64::from(messages > 0);
    }

    /// Counts it, all readers at once. It is what was sent from event `from` on, up to before `end`.
    pub(super) fn count(self, timed: &Timed, range: (u64, u64)) {
        if self.readers == 0 {
            return;
        }
        for (transport, messages) in Transport::ALL.into_iter().zip(self.messages) {
            metrics::count_delivered(transport, messages);
        }
        if let Some(took) = timed.took(range) {
            metrics::observe_delivery(took, self.readers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of some events are timed, in a hub with so many slots.
    fn timed(slots: usize) -> Vec<u64> {
        let timed = Timed::default();
        let is_timed = |number| {
            timed.begin(number, slots);
            timed.took((number, number + 1)).is_some()
        };
        (0..130).filter(|number| is_timed(*number)).collect()
    }

    #[test]
    fn the_first_message_is_timed_and_then_one_of_those_that_a_channel_holds() {
        assert_eq!(timed(4), [0, 16, 32, 48, 64, 80, 96, 112, 128]);
        assert_eq!(timed(64), [0, 64, 128]);
    }

    #[test]
    fn a_batch_is_timed_if_it_holds_the_timed_message() {
        let timed = Timed::default();
        timed.begin(0, 64);
        timed.begin(64, 64);
        for (range, is_among) in [((60, 70), true), ((64, 65), true), ((60, 64), false), ((65, 70), false)] {
            assert_eq!(timed.took(range).is_some(), is_among, "{range:?}");
        }
    }
}
