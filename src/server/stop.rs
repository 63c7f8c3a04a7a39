//! The end of a server.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::server::error::ServeError;

/// How long the store may take to be closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long it may take after a second signal.
const HURRIED_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Closes the store. A disk that does not answer is not waited for any longer: the next start recovers the store.
///
/// # Errors
/// The store was not closed.
pub(super) async fn close_store(broker: Broker, hurry: &CancellationToken) -> Result<(), ServeError> {
    match in_time(tokio::task::spawn_blocking(move || broker.close()), hurry).await {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(ServeError::Store(format!("closing it has panicked ({error})").into())),
        None => {
            Err(ServeError::Store("the disk of --data-dir does not answer; the store was not closed".into()))
        }
    }
}

/// What this work on the store gives, if that does not take too long for a stop.
pub(super) async fn in_time<T>(work: impl Future<Output = T>, hurry: &CancellationToken) -> Option<T> {
    let hurried = async {
        hurry.cancelled().await;
        sleep(HURRIED_CLOSE_TIMEOUT).await;
    };
    tokio::select! {
        done = timeout(CLOSE_TIMEOUT, work) => done.ok(),
        () = hurried => None,
    }
}
