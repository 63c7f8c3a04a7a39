//! The streams of one HTTP/2 connection: how many are open, and the end of those whose peer takes nothing.
//!
//! hyper runs each stream in a task of its own. This is the executor of these tasks: it sees every stream begin and end,
//! WebSockets included, and ends a stream by dropping its task, which resets the stream and drops what it still holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::response::Response;
use hyper::rt::Executor;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::limits::ConnectionPermit;
use crate::link::Link;

mod output;

pub(super) use output::TrackedBody;

use output::Output;

tokio::task_local! {
    /// The output of the stream that runs in this task.
    static OUTPUT: Arc<Output>;
}

/// The open streams of a connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    link: Arc<Link>,
    open: Arc<Open>,
}

#[derive(Debug, Default)]
struct Open {
    count: AtomicUsize,
    /// Notified when the first stream begins, and when the last one ends.
    changed: Notify,
}

/// Counts one stream while it lives.
struct OpenStream(Arc<Open>);

impl OpenStream {
    fn new(open: &Arc<Open>) -> Self {
        if open.count.fetch_add(1, Ordering::SeqCst) == 0 {
            open.changed.notify_waiters();
        }
        Self(Arc::clone(open))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

impl Streams {
    /// The streams of this connection: none yet.
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link, open: Arc::default() }
    }

    /// Waits until the connection has had no stream for so long.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let mut changed = std::pin::pin!(self.open.changed.notified());
            changed.as_mut().enable();
            let limit = if self.open.count.load(Ordering::SeqCst) == 0 { limit } else { Duration::MAX };
            if timeout(limit, changed).await.is_err() {
                return;
            }
        }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let open = OpenStream::new(&self.open);
        let link = Arc::clone(&self.link);
        // What is executed by a stream is its continuation as a WebSocket: it keeps what the stream has.
        let output = OUTPUT.try_with(Arc::clone).unwrap_or_default();
        tokio::spawn(async move {
            let running = OUTPUT.scope(Arc::clone(&output), stream);
            tokio::select! {
                _ = running => {}
                () = output.stalled(&link) => tracing::debug!("a stream is reset: its peer took nothing"),
            }
            drop(open);
        });
    }
}

/// Keeps a permit until the stream of this task has ended.
pub(super) fn keep(permit: ConnectionPermit) {
    // Outside of a stream, as in unit tests, the permit is dropped.
    _ = OUTPUT.try_with(|output| output.keep(permit));
}

/// Tracks how much of this response the peer takes.
pub(super) fn track(response: Response) -> hyper::Response<TrackedBody> {
    let output = OUTPUT.try_with(Arc::clone).unwrap_or_default();
    response.map(|body| TrackedBody::new(body, output))
}
