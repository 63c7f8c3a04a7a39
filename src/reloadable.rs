//! Values that a reload replaces while they are in use.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

/// A value that a reload replaces. Cheap to clone: all clones see the same value. Reading takes no lock.
#[derive(Debug)]
pub(crate) struct Reloadable<T>(Arc<ArcSwap<T>>);

impl<T> Clone for Reloadable<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Reloadable<T> {
    /// A value.
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(value)))
    }

    /// The current value, for a moment: not across an await.
    #[must_use]
    pub(crate) fn get(&self) -> Guard<Arc<T>> {
        self.0.load()
    }

    /// The current value, for longer.
    #[must_use]
    pub(crate) fn hold(&self) -> Arc<T> {
        self.0.load_full()
    }

    /// Replaces the value. Who holds the previous one keeps it.
    pub(crate) fn set(&self, value: T) {
        self.0.store(Arc::new(value));
    }
}
