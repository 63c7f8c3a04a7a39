//! Lists for operators: what this node's copy of the directory knows.

use crate::engine::Stored;
use crate::engine::nats::Nats;
use crate::message::{Address, FirstNames, Handle, NameRange, SessionId, TopicName, UserId};

/// How many registrations are looked at before the lock is given back.
const REGISTRATIONS: usize = 1_000;

impl Nats {
    /// See [`crate::engine::Engine::users`].
    #[must_use]
    pub fn users(&self, range: NameRange<'_>, limit: usize) -> Vec<UserId> {
        self.core().directory.lock().table.users(range, limit)
    }

    /// See [`crate::engine::Engine::sessions_by_handle`].
    #[must_use]
    pub fn sessions_by_handle(&self, after: Option<Handle>, limit: usize) -> Vec<(Handle, SessionId)> {
        self.core().directory.lock().table.by_handle(after, limit, self.core().now())
    }

    /// See [`crate::engine::Engine::sessions`].
    pub async fn sessions(&self, range: NameRange<'_>, limit: usize) -> Vec<SessionId> {
        let (mut first, mut after) = (FirstNames::new(range, limit), None);
        loop {
            let offer = |session: &SessionId| first.offer(session);
            after = self.core().directory.lock().table.visit(after.as_ref(), REGISTRATIONS, offer);
            if after.is_none() {
                return first.into_names();
            }
            tokio::task::yield_now().await;
        }
    }

    /// See [`crate::engine::Engine::topics`]. Subjects in NATS are digests, which do not name their topics.
    #[must_use]
    pub fn topics(&self, _: NameRange<'_>, _: usize) -> Vec<TopicName> {
        Vec::new()
    }

    /// See [`crate::engine::Engine::stored`].
    pub async fn stored(&self, address: &Address) -> Stored {
        Stored { messages: self.waiting(address).await, bytes: None }
    }
}
