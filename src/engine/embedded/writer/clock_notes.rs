//! When a reading of the clocks is written to the disk.

use crate::engine::embedded::rows::clock::ClockReading;
use crate::engine::embedded::store_clock::StoreClock;

/// How old the last reading gets while there are commits, in milliseconds.
const EVERY: u64 = 60_000;

/// The last reading of the clocks that was written.
#[derive(Debug)]
pub(super) struct ClockNotes {
    written: ClockReading,
}

impl ClockNotes {
    /// This reading was written at the start.
    pub(super) fn new(written: ClockReading) -> Self {
        Self { written }
    }

    /// Whether the machine's clock was set since: that is worth a commit of its own. A crash before it counts the time
    /// until the next start wrongly.
    pub(super) fn has_moved(&self, clock: &StoreClock) -> bool {
        self.written.ahead() != clock.ahead()
    }

    /// The reading that the next commit writes, if it does.
    pub(super) fn due(&self, clock: &StoreClock) -> Option<ClockReading> {
        let is_old = clock.now().saturating_sub(self.written.store) >= EVERY;
        (is_old || self.has_moved(clock)).then(|| clock.reading())
    }

    /// A commit has succeeded.
    pub(super) fn written(&mut self, reading: Option<ClockReading>) {
        self.written = reading.unwrap_or(self.written);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_reading_is_written_once_a_minute_and_when_the_clock_was_set() {
        let machine = Clock::manual();
        let clock = StoreClock::begin(machine, None);
        let mut notes = ClockNotes::new(clock.reading());
        assert_eq!(notes.due(&clock), None);
        machine.advance(Duration::from_millis(EVERY - 1));
        assert_eq!(notes.due(&clock), None);
        machine.set(7);
        assert!(notes.has_moved(&clock));
        assert_eq!(notes.due(&clock), Some(clock.reading()));
        notes.written(notes.due(&clock));
        assert!(!notes.has_moved(&clock));
        machine.advance(Duration::from_millis(EVERY));
        assert!(!notes.has_moved(&clock) && notes.due(&clock).is_some());
    }
}
