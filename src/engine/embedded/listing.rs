//! Lists for operators.

use crate::engine::{Embedded, Stored};
use crate::message::{Address, FirstNames, Handle, NameRange, SessionId, TopicName, UserId};

/// How many registrations are looked at before the lock is given back.
const REGISTRATIONS: usize = 1_000;

impl Embedded {
    /// See [`crate::engine::Engine::users`].
    #[must_use]
    pub fn users(&self, range: NameRange<'_>, limit: usize) -> Vec<UserId> {
        self.shared.index.sessions(|sessions| sessions.users(range, limit)).unwrap_or_default()
    }

    /// See [`crate::engine::Engine::sessions_by_handle`].
    #[must_use]
    pub fn sessions_by_handle(&self, after: Option<Handle>, limit: usize) -> Vec<(Handle, SessionId)> {
        let now = self.shared.clock.now();
        self.shared.index.sessions(|sessions| sessions.by_handle(after, limit, now)).unwrap_or_default()
    }

    /// See [`crate::engine::Engine::sessions`].
    pub async fn sessions(&self, range: NameRange<'_>, limit: usize) -> Vec<SessionId> {
        let (index, mut first) = (&self.shared.index, FirstNames::new(range, limit));
        let mut number = 0;
        while index.offer_sessions(number, &mut first) {
            number += 1;
            tokio::task::yield_now().await;
        }
        let mut after = None;
        loop {
            let offer = |session: &SessionId| first.offer(session);
            after = index.sessions(|sessions| sessions.visit(after.as_ref(), REGISTRATIONS, offer)).flatten();
            if after.is_none() {
                return first.into_names();
            }
            tokio::task::yield_now().await;
        }
    }

    /// See [`crate::engine::Engine::topics`].
    #[must_use]
    pub fn topics(&self, range: NameRange<'_>, limit: usize) -> Vec<TopicName> {
        self.shared.index.topics(range, limit)
    }

    /// See [`crate::engine::Engine::stored`].
    #[expect(clippy::unused_async, reason = "engines of several machines ask the others")]
    pub async fn stored(&self, address: &Address) -> Stored {
        let usage = self.shared.index.stored(address);
        Stored { messages: usage.messages, bytes: Some(usage.bytes) }
    }
}
