//! The time of the store, by which everything stored expires.
//!
//! The machine's clock can be set: a machine without a battery starts in 1970, until it hears the time from the network.
//! So a process counts the time that passes by a clock that nobody sets. Table `clock` carries the store's time over a
//! restart. While no process runs, the machine's clock says how much time passes.
//!
//! Times that leave the engine, or come into it, are times of the machine's clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::clock::Clock;
use crate::engine::embedded::rows::clock::ClockReading;
use crate::engine::embedded::rows::store::CLOCK_WAS_SET;
use crate::engine::{Registrar, Registration, RegistrationSource};

/// Differences between the clocks below this are noise, in milliseconds.
const NOISE: u64 = 1000;

/// The time of the store; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct StoreClock {
    clock: Clock,
    /// The store's time when the steady clock showed `begun`.
    start: u64,
    begun: u64,
    /// How far the machine's clock is ahead of the store's time, as last seen.
    ahead: Arc<AtomicI64>,
}

impl StoreClock {
    /// Goes on where a store was when it was used last; begins with the time of day in a new store.
    pub(super) fn begin(clock: Clock, last: Option<ClockReading>) -> Self {
        let (wall, begun) = (clock.now(), clock.steady());
        let (start, ahead) = at(last, wall);
        Self { clock, start, begun, ahead: Arc::new(ahead.into()) }
    }

    /// Now, in the store's time.
    pub(super) fn now(&self) -> u64 {
        self.start.saturating_add(self.clock.steady().saturating_sub(self.begun))
    }

    /// The time of day, in Unix milliseconds.
    pub(super) fn wall(&self) -> u64 {
        self.clock.now()
    }

    /// What both clocks show.
    pub(super) fn reading(&self) -> ClockReading {
        let store = self.now();
        ClockReading { wall: shift(store, self.ahead()), store }
    }

    /// How far the machine's clock is ahead of the store's time, in milliseconds. Changes only when the machine's clock is
    /// set, so that a time is always translated to the same one.
    pub(super) fn ahead(&self) -> i64 {
        let measured = difference(self.wall(), self.now());
        let known = self.ahead.load(Ordering::Relaxed);
        if measured.abs_diff(known) <= NOISE {
            return known;
        }
        self.ahead.store(measured, Ordering::Relaxed);
        measured
    }

    /// A registration as others see it: its times are those of the machine's clock.
    pub(super) fn shown(&self, registration: &Registration) -> Registration {
        translated(registration, self.ahead())
    }

    /// Who asks for a registration; the end of a token is a time of the machine's clock.
    pub(super) fn registrar(&self, by: Registrar) -> Registrar {
        match by {
            Registrar::Token { until } if until > 0 => {
                Registrar::Token { until: shift(until, self.ahead().saturating_neg()) }
            }
            other => other,
        }
    }
}

/// A registration whose times are those of a clock that is ahead by so many milliseconds.
pub(super) fn translated(registration: &Registration, ahead: i64) -> Registration {
    let Registration { expires_at, source, tokens_until, .. } = *registration;
    let source = match source {
        RegistrationSource::Backend { until, proof } => {
            RegistrationSource::Backend { until: shift(until, ahead), proof }
        }
        other => other,
    };
    let tokens_until = if tokens_until == 0 { 0 } else { shift(tokens_until, ahead) };
    Registration { expires_at: shift(expires_at, ahead), source, tokens_until, ..registration.clone() }
}

/// The store's time when the machine's clock shows `wall`, and how far that is ahead of it, if nobody has used the store since
/// this reading.
pub(super) fn at(last: Option<ClockReading>, wall: u64) -> (u64, i64) {
    let store = last.map_or(wall, |last| last.store.saturating_add(passed(last.wall, wall)));
    (store, difference(wall, store))
}

/// How much time passed while the machine's clock went from one time to another. Nobody knows if it was set for the first
/// time meanwhile, or set back: then none is counted, and nothing expires too early.
fn passed(before: u64, now: u64) -> u64 {
    if before < CLOCK_WAS_SET && now >= CLOCK_WAS_SET { 0 } else { now.saturating_sub(before) }
}

fn difference(a: u64, b: u64) -> i64 {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    signed(a).saturating_sub(signed(b))
}

/// A time on another clock. Fits SQLite's integers.
pub(super) fn shift(time: u64, by: i64) -> u64 {
    time.saturating_add_signed(by).min(i64::MAX.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::Seq;

    const HOUR: u64 = 3_600_000;

    fn after_restart(clock: Clock, wall: u64, store: u64) -> u64 {
        StoreClock::begin(clock, Some(ClockReading { wall, store })).now()
    }

    #[test]
    fn a_clock_that_is_set_moves_no_time_of_the_store() {
        let clock = Clock::manual();
        let time = StoreClock::begin(clock, None);
        let start = clock.now();
        assert_eq!((time.now(), time.ahead()), (start, 0));
        for wall in [start + HOUR, start - HOUR, 0] {
            clock.set(wall);
            assert_eq!((time.now(), time.reading().wall), (start, wall));
        }
        clock.advance(Duration::from_millis(HOUR));
        assert_eq!(time.reading(), ClockReading { wall: HOUR, store: start + HOUR });
    }

    #[test]
    fn time_passes_between_two_processes_as_the_machines_clock_says() {
        let clock = Clock::manual();
        let now = clock.now();
        assert_eq!(after_restart(clock, now - HOUR, 5), 5 + HOUR);
        assert_eq!(after_restart(clock, now + HOUR, 5), 5, "it was set back meanwhile");
        assert_eq!(after_restart(clock, 7, 5), 5, "it was set for the first time meanwhile");
        clock.set(70);
        assert_eq!(after_restart(clock, now, 5), 5, "it is not set yet");
        assert_eq!(after_restart(clock, 7, 5), 68, "nor was it before");
    }

    #[test]
    fn small_differences_are_noise() {
        let clock = Clock::manual();
        let time = StoreClock::begin(clock, None);
        clock.set(clock.now() + NOISE);
        assert_eq!(time.ahead(), 0);
        clock.set(clock.now() + 1);
        assert_eq!(time.ahead(), 1001);
    }

    #[test]
    fn times_are_shown_as_the_machines_clock_has_them() {
        let clock = Clock::manual();
        let time = StoreClock::begin(clock, None);
        let now = time.now();
        clock.set(now + HOUR);
        let source = RegistrationSource::Backend { until: now + 8, proof: true };
        let registration =
            Registration { user: None, expires_at: now + 9, source, tokens_until: 0, since: Seq::START };
        let shown = time.shown(&registration);
        let until = RegistrationSource::Backend { until: now + HOUR + 8, proof: true };
        assert_eq!((shown.expires_at, shown.source, shown.tokens_until), (now + HOUR + 9, until, 0));
        let token = Registrar::Token { until: now + HOUR };
        assert_eq!(time.registrar(token), Registrar::Token { until: now });
        for by in [Registrar::Backend { proof: true }, Registrar::Token { until: 0 }] {
            assert_eq!(time.registrar(by), by);
        }
    }
}
