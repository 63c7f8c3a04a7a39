//! A timer for deadlines that are hardly ever reached.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is set as seldom as possible: each head of a request and each poll has another deadline, and most never come to it.
#[derive(Debug, Default)]
pub(crate) struct LazyTimer(Option<Pin<Box<Sleep>>>);

impl LazyTimer {
    /// Ready at the deadline. It costs least if that is never before the one of the last call.
    pub(crate) fn poll(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.deadline() < deadline {
            ready!(sleep.as_mut().poll(cx));
            sleep.as_mut().reset(deadline);
        }
        sleep.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use std::time::Duration;

    use tokio::time::advance;

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
        // An earlier one counts at once.
        assert!(
            futures::poll!(std::pin::pin!(poll_fn(|cx| timer.poll(begun + 60 * second, cx)))).is_pending()
        );
        poll_fn(|cx| timer.poll(begun + 10 * second, cx)).await;
        assert_eq!(begun.elapsed(), 10 * second);
    }
}
