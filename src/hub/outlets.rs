//! The readers of one hub that lend their output, and the task that writes to them: see [`crate::hub::fanout`].

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tokio::runtime::Handle;

/// Fewer readers than these are woken: that is cheaper then.
pub(super) const FEWEST: usize = 4;

/// The readers of one hub that lend their output.
#[derive(Debug)]
pub(super) struct Outlets {
    /// How many they are.
    count: AtomicUsize,
    /// Whether a task writes to them.
    is_running: AtomicBool,
    /// How many events were offered to all readers.
    offered: AtomicU64,
    /// What runs that task. Messages are published by threads that have no runtime too.
    pub(super) runtime: Handle,
}

impl Outlets {
    /// None yet. The task runs in the runtime of this thread; `None` if it has none.
    pub(super) fn new() -> Option<Box<Self>> {
        let runtime = Handle::try_current().ok()?;
        let (count, is_running, offered) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicU64::new(0));
        Some(Box::new(Self { count, is_running, offered, runtime }))
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

    /// Begins the task. `false` if one runs already, which goes on with what was counted before this call.
    ///
    /// Sequentially consistent, as [`Self::end`] and the count of what was sent are.
    pub(super) fn begin(&self) -> bool {
        !self.is_running.swap(true, Ordering::SeqCst)
    }

    /// Ends the task. Whether anything was sent meanwhile is to be looked at after it.
    pub(super) fn end(&self) {
        self.is_running.store(false, Ordering::SeqCst);
    }

    /// How many events were offered to all readers.
    pub(super) fn offered(&self) -> u64 {
        self.offered.load(Ordering::Relaxed)
    }

    pub(super) fn set_offered(&self, offered: u64) {
        self.offered.store(offered, Ordering::Relaxed);
    }
}
