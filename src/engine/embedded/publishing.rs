//! The task that publishes what the writer commits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use tokio::runtime::Handle;

use crate::engine::embedded::publisher::Publisher;
use crate::engine::embedded::shared::Shared;
use crate::engine::embedded::writer::{DEFECT, stop_for_good};

/// The task. It does not keep the store from being closed.
struct Publishing {
    publisher: Arc<Publisher>,
    shared: Weak<Shared>,
}

impl Publishing {
    fn publish(&self) {
        let published = catch_unwind(AssertUnwindSafe(|| self.publisher.publish_committed()));
        if published.is_err()
            && let Some(shared) = self.shared.upgrade()
        {
            stop_for_good(&shared, DEFECT);
        }
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        self.publisher.queue.set_task(false);
        // The runtime may end before the engine: what was added meanwhile is published here.
        self.publish();
    }
}

/// Starts the task, if this thread has a runtime.
pub(super) fn start(shared: &Arc<Shared>) {
    let Ok(runtime) = Handle::try_current() else { return };
    let (publisher, shared) = (Arc::clone(&shared.publisher), Arc::downgrade(shared));
    publisher.queue.set_task(true);
    let publishing = Publishing { publisher, shared };
    runtime.spawn(async move {
        while publishing.publisher.queue.wait().await {
            publishing.publish();
        }
    });
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;
    use std::time::Duration;

    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::engine::Commit;
    use crate::engine::embedded::fixture::settings;
    use crate::engine::embedded::{Durability, Embedded};
    use crate::hub::{Hubs, Interest, Transport};
    use crate::message::{Address, Seq, SessionId};
    use crate::sync::lock;

    /// Notes the names of the threads that end sessions.
    #[derive(Debug, Default)]
    struct Threads(Mutex<Vec<Option<String>>>);

    impl Interest for Threads {
        fn first_reader(&self, _: &Address) {}

        fn last_reader_left(&self, _: &Address) {
            lock(&self.0).push(std::thread::current().name().map(str::to_owned));
        }
    }

    fn runtime() -> Runtime {
        Builder::new_current_thread().build().unwrap()
    }

    /// Ends a session that is read. Returns which thread has told its reader.
    fn publisher(dir: &Path, wait: impl Fn(Commit)) -> Option<String> {
        let (threads, session) = (Arc::new(Threads::default()), SessionId::new("A").unwrap());
        let hubs = Hubs::watched(2, threads.clone());
        let engine = Embedded::open(settings(), hubs.clone(), dir, Durability::Os).unwrap();
        let mailbox = Address::Session(session.clone());
        let _reader = hubs.join(&mailbox, Seq::START, Transport::Websocket, 9).unwrap();
        wait(engine.end(&session, Duration::ZERO));
        let mut threads = lock(&threads.0);
        assert_eq!(threads.len(), 1, "before the caller is told");
        threads.remove(0)
    }

    #[test]
    fn a_task_publishes_and_the_writer_does_where_there_is_no_runtime() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime();
        let wait = |commit: Commit| _ = runtime.block_on(commit).unwrap();
        assert_eq!(publisher(dir.path(), wait).as_deref(), Some("writer"));
        let own = std::thread::current().name().map(str::to_owned);
        let _guard = runtime.enter();
        assert_eq!(publisher(dir.path(), wait), own);
    }

    #[test]
    fn what_is_committed_is_told_though_the_runtime_has_ended() {
        let (dir, session) = (tempfile::tempdir().unwrap(), SessionId::new("A").unwrap());
        let ended = runtime();
        let guard = ended.enter();
        let engine = Embedded::open(settings(), Hubs::new(2), dir.path(), Durability::Os).unwrap();
        drop(guard);
        drop(ended);
        runtime().block_on(engine.end(&session, Duration::ZERO)).unwrap();
    }

    #[test]
    fn closing_publishes_what_the_task_did_not_get_to() {
        let (dir, session) = (tempfile::tempdir().unwrap(), SessionId::new("A").unwrap());
        let stopped = runtime();
        let guard = stopped.enter();
        let engine = Embedded::open(settings(), Hubs::new(2), dir.path(), Durability::Os).unwrap();
        drop(guard);
        let ended = engine.end(&session, Duration::ZERO);
        engine.close();
        runtime().block_on(ended).unwrap();
    }
}
