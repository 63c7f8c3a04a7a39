//! Wakes up who waits for a session to be registered.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::message::SessionId;

/// Waiters are spread over so many notifications; those of other sessions are woken in vain now and then.
const BUCKETS: usize = 256;

/// Tells that the registration of a session changed in this node's copy of the directory. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Arrivals {
    buckets: Arc<[Notify; BUCKETS]>,
    hash: RandomState,
}

impl Arrivals {
    pub(crate) fn new() -> Self {
        Self { buckets: Arc::new([const { Notify::const_new() }; BUCKETS]), hash: RandomState::new() }
    }

    fn bucket(&self, session: &SessionId) -> &Notify {
        let buckets = BUCKETS as u64;
        let bucket =
            usize::try_from(self.hash.hash_one(session) % buckets).expect("below the number of buckets");
        &self.buckets[bucket]
    }

    /// Wakes up who waits for this session.
    pub(crate) fn wake(&self, session: &SessionId) {
        self.bucket(session).notify_waiters();
    }

    /// Resolves with the next wake-up. It counts from when the future is enabled.
    pub(crate) fn next(&self, session: &SessionId) -> Notified<'_> {
        self.bucket(session).notified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_registration_wakes_who_waits_for_its_session() {
        let arrivals = Arrivals::new();
        let session = SessionId::new("A").unwrap();
        let mut waiting = std::pin::pin!(arrivals.next(&session));
        assert!(!waiting.as_mut().enable());
        arrivals.clone().wake(&session);
        waiting.await;
        let mut again = std::pin::pin!(arrivals.next(&session));
        assert!(futures::poll!(&mut again).is_pending(), "each wake-up counts once");
    }
}
