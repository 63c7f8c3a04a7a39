//! What a reader and its hub share: how far the reader is, and whether it waits.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Waker};

use futures::task::AtomicWaker;

use crate::hub::channel::End;
use crate::hub::{Outlet, Transport};
use crate::message::Seq;
use crate::sync::lock;

/// What a reader and its hub share.
#[derive(Debug)]
pub(super) struct AttachedReader {
    /// How many events the hub had sent before the next one that this reader takes. While its output is lent, who writes there
    /// moves it on.
    at: AtomicU64,
    /// The seq of the newest stored message that it has taken, with the same rule.
    read: AtomicU64,
    /// Whether it found nothing, and nothing has come since.
    waits: AtomicBool,
    /// Whether its output is lent for what its hub is sent.
    lends: AtomicBool,
    /// Whether the next message may be written to its connection: see [`crate::hub::direct`]. This and the next one are changed
    /// by its task, or by who writes there while its output is lent.
    takes_one: AtomicBool,
    /// The size of the frame of the stored message that was written so; zero if none was.
    written: AtomicUsize,
    /// Whether something that was acknowledged waited for that to be written.
    unsettled: AtomicBool,
    pub(super) transport: Transport,
    waker: AtomicWaker,
    /// The output of its connection.
    outlet: OnceLock<Arc<dyn Outlet>>,
    /// Its end of a channel that was made after it joined, until it takes it.
    end: Mutex<Option<End>>,
    /// Up to where it has sent messages.
    pub(super) position: AtomicU64,
}

impl AttachedReader {
    pub(super) fn new(position: u64, transport: Transport, at: u64) -> Self {
        Self {
            at: AtomicU64::new(at),
            read: AtomicU64::new(position),
            waits: AtomicBool::new(false),
            lends: AtomicBool::new(false),
            takes_one: AtomicBool::new(false),
            written: AtomicUsize::new(0),
            unsettled: AtomicBool::new(false),
            transport,
            waker: AtomicWaker::new(),
            outlet: OnceLock::new(),
            end: Mutex::default(),
            position: AtomicU64::new(position),
        }
    }

    /// Gives it its end of a channel.
    pub(super) fn give(&self, end: End) {
        *lock(&self.end) = Some(end);
    }

    /// Takes its end of a channel.
    pub(super) fn take(&self) -> Option<End> {
        lock(&self.end).take()
    }

    /// How many events the hub had sent before the next one that it takes.
    pub(super) fn at(&self) -> u64 {
        self.at.load(Ordering::Relaxed)
    }

    pub(super) fn set_at(&self, at: u64) {
        self.at.store(at, Ordering::Relaxed);
    }

    /// The seq of the newest stored message that it has taken.
    pub(super) fn read(&self) -> Seq {
        Seq(self.read.load(Ordering::Relaxed))
    }

    pub(super) fn set_read(&self, read: Seq) {
        self.read.store(read.0, Ordering::Relaxed);
    }

    /// The output of its connection.
    pub(super) fn outlet(&self) -> Option<&dyn Outlet> {
        self.outlet.get().map(AsRef::as_ref)
    }

    pub(super) fn set_outlet(&self, outlet: Arc<dyn Outlet>) {
        _ = self.outlet.set(outlet);
    }

    /// Whether its output is lent for what its hub is sent.
    pub(super) fn lends(&self) -> bool {
        self.lends.load(Ordering::Relaxed)
    }

    pub(super) fn note_lent(&self) {
        self.lends.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_takes_one(&self, takes_one: bool) {
        self.takes_one.store(takes_one, Ordering::Relaxed);
    }

    /// Whether the next message may be written to its connection.
    pub(super) fn takes_one(&self) -> bool {
        self.takes_one.load(Ordering::Relaxed)
    }

    /// The same, once.
    pub(super) fn take_one(&self) -> bool {
        let takes_one = self.takes_one();
        self.set_takes_one(false);
        takes_one
    }

    /// Notes the size of the frame of a stored message that was written to its connection.
    pub(super) fn note_written(&self, size: usize) {
        self.written.store(size, Ordering::Relaxed);
    }

    /// That size, once.
    pub(super) fn take_written(&self) -> Option<usize> {
        let written = self.written.load(Ordering::Relaxed);
        if written > 0 {
            self.note_written(0);
        }
        (written > 0).then_some(written)
    }

    /// Whether something that was acknowledged waited for a message that was written to its connection.
    pub(super) fn is_unsettled(&self) -> bool {
        self.unsettled.load(Ordering::Relaxed)
    }

    pub(super) fn set_unsettled(&self, unsettled: bool) {
        self.unsettled.store(unsettled, Ordering::Relaxed);
    }

    /// Waits, with this waker. `false` if it waits already, and nothing has come.
    ///
    /// Sequentially consistent, as [`Self::waits`] is: either that one sees the wait, or who waits sees the count of what
    /// was sent.
    pub(super) fn wait(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        if self.waits() {
            return false;
        }
        self.waits.store(true, Ordering::SeqCst);
        true
    }

    /// Whether it found nothing, and nothing has come since.
    pub(super) fn waits(&self) -> bool {
        self.waits.load(Ordering::SeqCst)
    }

    /// Waits no more: something is there.
    pub(super) fn stop_waiting(&self) {
        self.waits.store(false, Ordering::SeqCst);
    }

    /// Ends its wait, after an event was counted. Its waker, if it has waited.
    pub(super) fn end_wait(&self) -> Option<Waker> {
        let waits = self.waits() && self.waits.swap(false, Ordering::SeqCst);
        if waits { self.waker.take() } else { None }
    }
}
