//! What a reader and its hub share: how far the reader is, and whether it waits.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Waker};

use futures::task::AtomicWaker;
use tokio::sync::broadcast;

use crate::hub::{HubEvent, Transport};
use crate::sync::lock;

/// What a reader and its hub share.
#[derive(Debug)]
pub(super) struct AttachedReader {
    /// Up to where it has sent messages.
    pub(super) position: AtomicU64,
    pub(super) transport: Transport,
    /// Whether it found nothing, and nothing has come since.
    waits: AtomicBool,
    waker: AtomicWaker,
    /// Its end of a channel that was made after it joined, until it takes it.
    end: Mutex<Option<broadcast::Receiver<HubEvent>>>,
}

impl AttachedReader {
    pub(super) fn new(position: u64, transport: Transport) -> Self {
        Self {
            position: AtomicU64::new(position),
            transport,
            waits: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            end: Mutex::default(),
        }
    }

    /// Gives it its end of a channel.
    pub(super) fn give(&self, end: broadcast::Receiver<HubEvent>) {
        *lock(&self.end) = Some(end);
    }

    /// Takes its end of a channel.
    pub(super) fn take(&self) -> Option<broadcast::Receiver<HubEvent>> {
        lock(&self.end).take()
    }

    /// Waits, with this waker. `false` if it waits already, and nothing has come.
    ///
    /// Sequentially consistent, as [`Self::end_wait`] is: either that one sees the wait, or who waits sees the count of what
    /// was sent.
    pub(super) fn wait(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        if self.waits.load(Ordering::SeqCst) {
            return false;
        }
        self.waits.store(true, Ordering::SeqCst);
        true
    }

    /// Waits no more: something is there.
    pub(super) fn stop_waiting(&self) {
        self.waits.store(false, Ordering::SeqCst);
    }

    /// Ends its wait, after an event was counted. Its waker, if it has waited.
    pub(super) fn end_wait(&self) -> Option<Waker> {
        let waits = self.waits.load(Ordering::SeqCst) && self.waits.swap(false, Ordering::SeqCst);
        if waits { self.waker.take() } else { None }
    }
}
