//! Tells that an engine cannot go on, and why.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// Set once, when an engine cannot go on. The process has to end then: its next start recovers what is stored. Cheap
/// to clone.
#[derive(Debug, Clone, Default)]
pub struct Fatal {
    reason: Arc<OnceLock<Arc<str>>>,
    declared: CancellationToken,
}

impl Fatal {
    /// The engine cannot go on. The first reason counts.
    pub(crate) fn declare(&self, reason: &str) {
        if self.reason.set(reason.into()).is_ok() {
            tracing::error!(reason, "the store cannot go on");
        }
        self.declared.cancel();
    }

    /// Why the engine cannot go on; `None` if it can.
    #[must_use]
    pub fn reason(&self) -> Option<Arc<str>> {
        self.reason.get().cloned()
    }

    /// Waits until the engine cannot go on. Returns why.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn declared(&self) -> Arc<str> {
        self.declared.cancelled().await;
        self.reason().expect("the reason is set first")
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_first_reason_is_told_to_all_who_wait() {
        let fatal = Fatal::default();
        assert!(fatal.reason().is_none() && fatal.declared().now_or_never().is_none());
        let other = fatal.clone();
        let waiting = tokio::spawn(async move { other.declared().await });
        fatal.declare("first");
        fatal.declare("second");
        assert_eq!((&*waiting.await.unwrap(), fatal.reason().as_deref()), ("first", Some("first")));
    }
}
