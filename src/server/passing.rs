//! Connections on which no request is being answered go to the process that takes over.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::handover::IdleConnection;
use crate::link::Link;

/// Where idle connections go. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Passing(Arc<OnceLock<mpsc::UnboundedSender<IdleConnection>>>);

impl Passing {
    /// From now on connections are given away. They come out here.
    pub(super) fn begin(&self) -> mpsc::UnboundedReceiver<IdleConnection> {
        let (sender, connections) = mpsc::unbounded_channel();
        // It begins once.
        _ = self.0.set(sender);
        connections
    }

    /// Whether this connection is given away, once no request is being answered on it.
    pub(super) fn takes(&self, link: &Link) -> bool {
        self.0.get().is_some() && link.is_cleartext() && !link.is_write_blocked()
    }

    /// Gives a connection away, of whose next request this was read. `false` if it stays: then it is closed as at any stop.
    pub(super) fn pass(&self, link: &Link, input: Vec<u8>) -> bool {
        let Some(sender) = self.0.get() else { return false };
        let socket = link.give_away();
        socket.is_some_and(|socket| sender.send(IdleConnection { socket, input }).is_ok())
    }
}

/// Counts the requests of a connection that hyper answers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Busy(Arc<AtomicUsize>);

impl Busy {
    /// Counts a request as long as this lives.
    pub(super) fn begin(&self) -> BusyGuard {
        self.0.fetch_add(1, Ordering::AcqRel);
        BusyGuard(Arc::clone(&self.0))
    }

    /// Whether no request is being answered.
    pub(super) fn is_idle(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct BusyGuard(Arc<AtomicUsize>);

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The body of an answer. Its request is being answered until hyper drops it.
pub(super) struct BusyBody {
    body: Body,
    _busy: BusyGuard,
}

impl BusyBody {
    pub(super) fn new(body: Body, busy: BusyGuard) -> Self {
        Self { body, _busy: busy }
    }
}

impl HttpBody for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
