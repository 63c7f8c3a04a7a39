//! What happens seldom on a connection: its tick, and the end of the server.
//!
//! Both are polled only if one of them has woken the task. To poll them costs locks that all connections share, and a
//! connection is woken for each message.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;
use tokio::time::{Instant, Sleep};

use crate::transport::websocket::event::Event;

/// The tick and the end of the server.
pub(super) struct Seldom<'a, S> {
    tick: Pin<&'a mut Sleep>,
    shutdown: Pin<&'a mut S>,
    woken: Arc<Woken>,
    /// The same, for those two.
    waker: Waker,
}

#[derive(Debug)]
struct Woken {
    /// Whether the two are to be polled.
    is_due: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_due.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<'a, S: Future<Output = ()>> Seldom<'a, S> {
    pub(super) fn new(tick: Pin<&'a mut Sleep>, shutdown: Pin<&'a mut S>) -> Self {
        let woken = Arc::new(Woken { is_due: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { tick, shutdown, waker: Arc::clone(&woken).into(), woken }
    }

    /// When the tick is, or was, due.
    pub(super) fn tick(&self) -> Instant {
        self.tick.deadline()
    }

    /// Makes the tick due at this time, or earlier.
    pub(super) fn set_tick(&mut self, tick: Instant) {
        // A tick that comes early does nothing, and sets the next one. Most connections end before.
        if self.tick.is_elapsed() || self.tick.deadline() > tick {
            self.tick.as_mut().reset(tick);
            self.woken.is_due.store(true, Ordering::Release);
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        self.woken.task.register(cx.waker());
        if !self.woken.is_due.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let cx = &mut Context::from_waker(&self.waker);
        let event = match (self.tick.as_mut().poll(cx), self.shutdown.as_mut().poll(cx)) {
            (_, Poll::Ready(())) => Event::Shutdown,
            (Poll::Ready(()), Poll::Pending) => Event::Tick,
            (Poll::Pending, Poll::Pending) => return Poll::Pending,
        };
        Poll::Ready(event)
    }
}
