//! A part of the index with a lock of its own, which is taken last.

use std::sync::{Mutex, MutexGuard};

/// A part that all shards use for a moment. No shard is locked while it is, nor what waits for the writer.
#[derive(Debug, Default)]
pub(super) struct Part<T>(Mutex<T>);

impl<T> Part<T> {
    pub(super) fn new(part: T) -> Self {
        Self(Mutex::new(part))
    }

    /// Locks it. A panic under this lock is also one under that of a shard, or soon found by one: the store is broken by it.
    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("a part of the store is not used after a panic under its lock")
    }
}
