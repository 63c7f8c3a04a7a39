//! The time of heads: for the loop, and for hyper on a connection whose head it does not read from its beginning.

use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use hyper_util::rt::TokioTimer;

use crate::sync::lock;

/// A timer that is set as seldom as possible: a connection sets a new deadline for each head, and hardly ever reaches one.
#[derive(Debug, Default)]
pub(super) struct LazyTimer(Option<Pin<Box<tokio::time::Sleep>>>);

impl LazyTimer {
    /// Ready at the deadline, which is never before the one of the last call.
    pub(super) fn poll(&mut self, deadline: tokio::time::Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        while sleep.deadline() < deadline {
            ready!(sleep.as_mut().poll(cx));
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx)
    }
}

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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::{Instant, advance};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lazy_timer_keeps_the_last_deadline() {
        let (mut timer, begun, second) = (LazyTimer::default(), Instant::now(), Duration::from_secs(1));
        for n in 1..=3 {
            // The deadline moves on while it waits.
            assert!(
                futures::poll!(std::pin::pin!(poll_fn(|cx| timer.poll(begun + 2 * n * second, cx))))
                    .is_pending()
            );
            advance(second).await;
        }
        poll_fn(|cx| timer.poll(begun + 7 * second, cx)).await;
        assert_eq!(begun.elapsed(), 7 * second);
        poll_fn(|cx| timer.poll(begun + 9 * second, cx)).await;
        assert_eq!(begun.elapsed(), 9 * second);
    }
}
