//! The thread of the writer.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::engine::embedded::index::Stop;
use crate::engine::embedded::shared::Shared;
use crate::sync::lock;

/// Ends the writer when dropped, and waits for it.
#[derive(Debug)]
pub(super) struct WriterThread {
    shared: Arc<Shared>,
    /// Taken by the first one that closes the store.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl WriterThread {
    /// There is no thread yet.
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), thread: Mutex::new(None) }
    }

    /// This thread ends with it.
    pub(super) fn set(&self, thread: JoinHandle<()>) {
        *lock(&self.thread) = Some(thread);
    }

    /// Ends the thread, and waits for it. Afterwards everything is published that was committed.
    pub(super) fn stop(&self, how: Stop) {
        if let Some(mut intake) = self.shared.intake() {
            match how {
                Stop::InOrder => drop(intake.stop.get_or_insert(how)),
                Stop::AtOnce => intake.stop = Some(how),
            }
        }
        self.shared.index.intake.wake();
        // Poison is ignored: taking the handle is one step.
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the writer of the store has panicked");
        }
        self.shared.publisher.publish_committed();
        self.shared.publisher.queue.close();
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.stop(Stop::InOrder);
    }
}
