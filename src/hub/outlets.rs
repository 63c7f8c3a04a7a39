//! The readers of one hub that lend their output, and the task that writes to them: see [`crate::hub::fanout`].

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::runtime::Handle;

/// Fewer readers than these are woken: that is cheaper then.
pub(super) const FEWEST: usize = 4;

/// So many readers are worth a further task, on another thread.
pub(super) const OF_ONE_TASK: usize = 256;

/// The readers of one hub that lend their output.
#[derive(Debug)]
pub(super) struct Outlets {
    /// How many they are.
    count: AtomicUsize,
    /// Whether a task writes to them. Changed under the lock of the hub's readers.
    is_running: AtomicBool,
    /// What runs that task. Messages are published by threads that have no runtime too.
    pub(super) runtime: Handle,
}

impl Outlets {
    /// None yet. The task runs in the runtime of this thread; `None` if it has none.
    pub(super) fn new() -> Option<Box<Self>> {
        let runtime = Handle::try_current().ok()?;
        let (count, is_running) = (AtomicUsize::new(0), AtomicBool::new(false));
        Some(Box::new(Self { count, is_running, runtime }))
    }

    /// One more reader lends its output.
    pub(super) fn add(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// One reader fewer lends its output.
    pub(super) fn remove(&self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether they are worth a task.
    pub(super) fn are_many(&self) -> bool {
        self.count.load(Ordering::Relaxed) >= FEWEST
    }

    /// How many tasks are worth their while besides the first one.
    pub(super) fn helpers(&self) -> usize {
        let tasks = self.count.load(Ordering::Relaxed) / OF_ONE_TASK;
        tasks.min(self.runtime.metrics().num_workers()).saturating_sub(1)
    }

    /// Whether a task writes to them.
    pub(super) fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Relaxed)
    }

    /// Begins the task. `false` if one runs already, which goes on with what is sent now.
    pub(super) fn begin(&self) -> bool {
        !self.is_running.swap(true, Ordering::Relaxed)
    }

    /// Ends the task, when nothing is left.
    pub(super) fn end(&self) {
        self.is_running.store(false, Ordering::Relaxed);
    }
}
