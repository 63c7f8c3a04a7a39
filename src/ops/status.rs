//! What the broker does, in one word.

use std::sync::Arc;

use crate::edge::Gateway;

/// What the broker does, in one word.
pub(super) fn status_word(gateway: &Gateway, failing: &[Arc<str>]) -> &'static str {
    match gateway.shutdown.is_cancelled() {
        true => "draining",
        false if failing.is_empty() => "ok",
        false => "degraded",
    }
}
