//! The response of one stream: how much of it waits for the peer.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use bytes::Buf;
use futures::task::AtomicWaker;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::limits::ConnectionPermit;
use crate::link::{Link, WRITE_TIMEOUT, time_for};

/// How often the progress of pending output is looked at.
const CHECK: Duration = Duration::from_secs(5);

/// The output of one stream.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Bytes that were handed to the connection.
    given: AtomicU64,
    /// Bytes of these that the connection has written, or dropped.
    taken: AtomicU64,
    /// Woken when all is taken.
    drained: AtomicWaker,
    /// Notified when the first bytes after a while begin to wait.
    waits: Notify,
    /// Counts the stream for its address.
    permit: OnceLock<ConnectionPermit>,
}

impl Output {
    pub(super) fn keep(&self, permit: ConnectionPermit) {
        _ = self.permit.set(permit);
    }

    fn pending(&self) -> u64 {
        let taken = self.taken.load(Ordering::SeqCst);
        self.given.load(Ordering::SeqCst).saturating_sub(taken)
    }

    fn give(&self, bytes: usize) {
        if self.pending() == 0 {
            self.waits.notify_one();
        }
        self.given.fetch_add(bytes as u64, Ordering::SeqCst);
    }

    fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::SeqCst);
        if self.pending() == 0 {
            self.drained.wake();
        }
    }

    fn poll_drained(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.drained.register(cx.waker());
        if self.pending() == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits until the peer has taken nothing of the pending output for [`WRITE_TIMEOUT`], or takes it more slowly than
    /// [`MIN_RATE`](crate::link::MIN_RATE). While the connection itself waits for the peer's TCP, no stream is judged: [`Link`]
    /// does that for the whole connection.
    pub(super) async fn stalled(&self, link: &Link) {
        loop {
            self.waits.notified().await;
            let mut progress = Progress::new(self);
            while self.pending() > 0 {
                let now = Instant::now();
                if now >= progress.deadline() {
                    return;
                }
                sleep_until(progress.deadline().min(now + CHECK)).await;
                match link.is_write_blocked() {
                    true => progress = Progress::new(self),
                    false => progress.update(self),
                }
            }
        }
    }
}

/// How fast the peer takes pending output.
struct Progress {
    /// All bytes that were given when this began.
    given: u64,
    /// When all of that has to be taken.
    complete: Instant,
    /// Bytes taken when there was progress last, and when that was.
    taken: u64,
    moved: Instant,
}

impl Progress {
    fn new(output: &Output) -> Self {
        let (given, taken) = (output.given.load(Ordering::SeqCst), output.taken.load(Ordering::SeqCst));
        let moved = Instant::now();
        let complete = moved + WRITE_TIMEOUT + time_for(given.saturating_sub(taken));
        Self { given, complete, taken, moved }
    }

    fn update(&mut self, output: &Output) {
        let taken = output.taken.load(Ordering::SeqCst);
        if taken >= self.given {
            *self = Self::new(output);
        } else if taken > self.taken {
            (self.taken, self.moved) = (taken, Instant::now());
        }
    }

    fn deadline(&self) -> Instant {
        self.complete.min(self.moved + WRITE_TIMEOUT)
    }
}

/// Bytes of a response on their way to the peer.
#[derive(Debug)]
pub(crate) struct Tracked {
    bytes: Bytes,
    output: Arc<Output>,
}

impl Buf for Tracked {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
        self.output.take(bytes);
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.output.take(self.bytes.len());
    }
}

/// The body of a response. It ends only when all of it is taken: until then its stream can be reset.
#[derive(Debug)]
pub(crate) struct TrackedBody {
    body: Body,
    output: Arc<Output>,
}

impl TrackedBody {
    pub(super) fn new(body: Body, output: Arc<Output>) -> Self {
        Self { body, output }
    }
}

impl HttpBody for TrackedBody {
    type Data = Tracked;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Tracked>, axum::Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else { return Poll::Pending };
        let Some(frame) = frame else { return self.output.poll_drained(cx).map(|()| None) };
        Poll::Ready(Some(frame.map(|frame| {
            frame.map_data(|bytes| {
                self.output.give(bytes.len());
                Tracked { bytes, output: Arc::clone(&self.output) }
            })
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.output.pending() == 0
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;
    use http_body_util::BodyExt;

    use super::*;

    fn body(text: &'static str) -> (TrackedBody, Arc<Output>) {
        let output = Arc::<Output>::default();
        (TrackedBody::new(Body::from(text), Arc::clone(&output)), output)
    }

    /// A body of so many times 16 KiB.
    fn large_body(parts: usize) -> (TrackedBody, Arc<Output>) {
        let output = Arc::<Output>::default();
        let bytes = Bytes::from(vec![0; parts * 16 * 1024]);
        (TrackedBody::new(Body::from(bytes), Arc::clone(&output)), output)
    }

    #[tokio::test]
    async fn a_body_ends_when_all_of_it_is_taken() {
        let (mut body, output) = body("hello");
        assert!(!body.is_end_stream());
        let mut data = body.frame().await.unwrap().unwrap().into_data().unwrap();
        data.advance(3);
        assert_eq!((output.pending(), body.is_end_stream()), (2, false));
        assert!(poll!(body.frame()).is_pending());
        drop(data);
        assert!(body.is_end_stream());
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn an_empty_body_ends_at_once() {
        assert!(TrackedBody::new(Body::empty(), Arc::default()).is_end_stream());
    }

    #[tokio::test(start_paused = true)]
    async fn output_that_nobody_takes_is_stalled_after_thirty_seconds() {
        let ((mut body, output), link) = (large_body(200), Link::new());
        let mut stalled = Box::pin(output.stalled(&link));
        assert!(poll!(&mut stalled).is_pending());
        tokio::time::sleep(10 * WRITE_TIMEOUT).await;
        assert!(poll!(&mut stalled).is_pending(), "nothing waits");
        let mut data = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let begun = Instant::now();
        let taking = async {
            for _ in 0..4 {
                tokio::time::sleep(WRITE_TIMEOUT - CHECK).await;
                data.advance(1);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = taking => {}
            () = stalled => {}
        }
        assert!(begun.elapsed() >= 5 * WRITE_TIMEOUT - 4 * CHECK, "{:?}", begun.elapsed());
        assert!(begun.elapsed() <= 5 * WRITE_TIMEOUT, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn output_that_is_taken_too_slowly_is_stalled() {
        let ((mut body, output), link, begun) = (large_body(40), Link::new(), Instant::now());
        let mut data = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let taking = async {
            for _ in 0..20 {
                tokio::time::sleep(CHECK).await;
                data.advance(16 * 1024);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = taking => {}
            () = output.stalled(&link) => {}
        }
        // A second for each 16 KiB, and a timeout.
        assert_eq!(begun.elapsed(), WRITE_TIMEOUT + Duration::from_secs(40));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_not_judged_while_its_connection_waits() {
        let ((mut body, output), link) = (body("hello"), Link::new());
        let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
        link.note_write_blocked(true);
        let stalled = tokio::time::timeout(10 * WRITE_TIMEOUT, output.stalled(&link)).await;
        assert!(stalled.is_err());
        drop(data);
    }
}
