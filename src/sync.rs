//! Locks and tables that the whole process uses, and the order in which locks are taken.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a std mutex and ignores poison. Only for critical sections that cannot leave half-done state.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees the memory of a table that is almost empty; cheap if it is not.
pub(crate) fn shrink<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    if table.capacity() > 8192 && table.len() < table.capacity() / 8 {
        table.shrink_to(2 * table.len());
    }
}
