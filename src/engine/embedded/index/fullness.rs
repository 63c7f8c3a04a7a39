//! Whether the store or the queue is full: the first refusal is logged, and the health says so until there is room again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::EngineError;
use crate::log::Repeated;

/// A store that is now full, now not, is logged at most once in this time.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Something that has refused messages because it was full.
#[derive(Debug)]
struct Full {
    /// What it said when it refused; `None` once there is room.
    refusal: Option<Arc<str>>,
    reports: Repeated,
}

impl Full {
    const fn new() -> Self {
        Self { refusal: None, reports: Repeated::every(REPORT_INTERVAL) }
    }

    fn note(&mut self, refused: &EngineError) {
        if self.refusal.is_none() {
            let text: Arc<str> = refused.to_string().into();
            if let Some(unlogged) = self.reports.note(Instant::now()) {
                tracing::warn!(unlogged, "messages are refused: {text}");
            }
            self.refusal = Some(text);
        }
    }

    fn has_room(&mut self) {
        if self.refusal.take().is_some() {
            tracing::debug!("messages are taken again");
        }
    }
}

/// What is full.
#[derive(Debug)]
pub(super) struct Fullness {
    store: Full,
    queue: Full,
}

impl Default for Fullness {
    fn default() -> Self {
        Self { store: Full::new(), queue: Full::new() }
    }
}

impl Fullness {
    /// Notes why a message is refused.
    pub(super) fn note(&mut self, refused: &EngineError) {
        match refused {
            EngineError::StoreFull { .. } => self.store.note(refused),
            EngineError::Overloaded { .. } => self.queue.note(refused),
            _ => {}
        }
    }

    /// What is full: from a refusal until a fifth of the store, or half of the queue, is free. Clients may use nine tenths.
    pub(super) fn failing(&mut self, stored: (usize, usize), queue_is_half_full: bool) -> Vec<Arc<str>> {
        let (bytes, limit) = stored;
        if bytes <= limit - limit / 5 {
            self.store.has_room();
        }
        if !queue_is_half_full {
            self.queue.has_room();
        }
        [&self.store, &self.queue].into_iter().filter_map(|full| full.refusal.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::QueueBounds;

    #[test]
    fn a_store_is_full_from_a_refusal_until_a_fifth_is_free() {
        let mut fullness = Fullness::default();
        fullness.note(&EngineError::HistoryTooSmall { size: 9, limit: 1 });
        assert_eq!(fullness.failing((100, 100), true), []);
        fullness.note(&EngineError::StoreFull { limit: 100 });
        for stored in [100, 90, 81] {
            assert!(fullness.failing((stored, 100), false)[0].contains("100"), "{stored}");
        }
        assert_eq!(fullness.failing((80, 100), false), []);
        assert_eq!(fullness.failing((100, 100), false), [], "nothing was refused since");
    }

    #[test]
    fn a_queue_is_full_from_a_refusal_until_half_is_free() {
        let mut fullness = Fullness::default();
        let bounds = QueueBounds { messages: 4, bytes: 100 };
        fullness.note(&EngineError::Overloaded { messages: 4, bytes: 4, bounds });
        assert_eq!(fullness.failing((0, 100), true).len(), 1);
        assert_eq!(fullness.failing((0, 100), false), []);
    }
}
