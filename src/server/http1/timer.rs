//! The time of heads for hyper, on a connection whose head it does not read from its beginning.

use std::pin::Pin;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use hyper_util::rt::TokioTimer;

use crate::sync::lock;

/// Tokio's time. The first head began at another time than now: hyper asks for the time when it begins to wait for one.
#[derive(Debug, Default)]
pub(in crate::server) struct HeadTimer(Mutex<Option<Instant>>);

impl HeadTimer {
    /// The first head began at this time.
    pub(super) fn begun(at: tokio::time::Instant) -> Self {
        Self(Mutex::new(Some(at.into_std())))
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        TokioTimer::new().sleep(duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        TokioTimer::new().sleep_until(deadline)
    }

    fn now(&self) -> Instant {
        lock(&self.0).take().unwrap_or_else(|| TokioTimer::new().now())
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, new_deadline: Instant) {
        TokioTimer::new().reset(sleep, new_deadline);
    }
}
