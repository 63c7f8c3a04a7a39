//! What libraries log: a client that breaks the rules of HTTP/2 on one connection after the other must not fill the log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::log::repeated::Repeated;
use crate::sync::lock;

/// Where the lines of this crate come from.
const OURS: &str = env!("CARGO_CRATE_NAME");

/// How often each warning of a library is logged at most.
const INTERVAL: Duration = Duration::from_secs(10);

/// Lets each warning and error of a library pass once in [`INTERVAL`], and says how many did not. Lines of lower levels are
/// logged as they come: somebody has asked for them.
#[derive(Debug, Default, Clone)]
pub(super) struct Libraries {
    /// One for each place in the code of a library.
    warnings: Arc<Mutex<HashMap<Identifier, Repeated>>>,
}

impl<S: Subscriber> Layer<S> for Libraries {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::WARN || metadata.target().starts_with(OURS) {
            return true;
        }
        let noted = {
            let mut warnings = lock(&self.warnings);
            let warning = warnings.entry(metadata.callsite()).or_insert(Repeated::every(INTERVAL));
            warning.note(Instant::now())
        };
        // An event within an event: it is logged by a global subscriber, as here. One of a thread would ignore it.
        if let Some(unlogged @ 1..) = noted {
            let library = metadata.target();
            tracing::warn!(
                library,
                unlogged,
                "the next line was due that many times more, and was not logged"
            );
        }
        noted.is_some()
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::log::Queue;

    #[test]
    fn a_warning_of_a_library_is_logged_once_for_many_connections() {
        let (queue, libraries) = (Queue::default(), Libraries::default());
        let lines = queue.clone();
        let log = tracing_subscriber::fmt().with_writer(move || lines.clone()).with_ansi(false).finish();
        let flood = || {
            for connection in 0..100 {
                tracing::warn!(target: "h2::proto", connection, "reset");
                tracing::warn!(connection, "ours");
                tracing::info!(target: "h2::proto", connection, "asked for");
            }
        };
        tracing::subscriber::with_default(log.with(libraries.clone()), || {
            tracing::error!(target: "hyper", "another one");
            flood();
            let unlogged = |warning: &Repeated| warning.unlogged;
            assert_eq!(lock(&libraries.warnings).values().map(unlogged).max(), Some(99));
            // As if the interval were over.
            lock(&libraries.warnings).values_mut().for_each(|warning| warning.logged_at = None);
            flood();
        });
        let text = String::from_utf8(queue.take()).unwrap();
        let count = |wanted| text.lines().filter(|line| line.contains(wanted)).count();
        assert_eq!((count("reset connection="), count("ours connection=")), (2, 200), "{text}");
        assert_eq!((count("asked for connection="), count("another one")), (200, 1));
    }
}
