//! Keys of tokens from a JWK set (RFC 7517) at a URL. The set is fetched at the start, at intervals, and when a token
//! names an unknown key.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Uri;
use hyper::body::Bytes;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::identity::key::{KeySet, NO_KEY, VerificationKey, parse_jwks};
use crate::metrics;
use crate::reload::{EMPTY_FOR, SetupError};
use crate::tls;

/// Largest set, in bytes.
const MAX_SET: usize = 1 << 20;

/// How long a fetch may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Shortest time between two fetches, whatever keys tokens name.
const MIN_INTERVAL: Duration = Duration::from_secs(2);

/// Time until a failed fetch is repeated.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// What was fetched so far.
#[derive(Debug, Default)]
struct Fetched {
    attempts: u64,
    /// When the last fetch succeeded, and its keys.
    last: Option<(Instant, KeySet)>,
    /// Since when the set holds no keys, though it held some before.
    empty_since: Option<Instant>,
}

impl Fetched {
    /// Counts an attempt. An error says why the known keys stay in use.
    fn record(&mut self, now: Instant, result: Result<Vec<VerificationKey>, String>) -> Result<(), String> {
        self.attempts += 1;
        let keys = result.inspect_err(|_| self.empty_since = None)?;
        if keys.is_empty() {
            // The issuer may be replacing its keys. Before the first keys there is nothing to revoke.
            let since = *self.empty_since.get_or_insert(now);
            if self.last.is_none() || now < since + EMPTY_FOR {
                return Err(NO_KEY.to_owned());
            }
        } else {
            self.empty_since = None;
        }
        self.last = Some((now, Arc::new(keys)));
        Ok(())
    }

    /// The known keys, if they are not older than this.
    fn keys(&self, max_age: Duration) -> Option<KeySet> {
        self.last.as_ref().filter(|(at, _)| at.elapsed() < max_age).map(|(_, keys)| Arc::clone(keys))
    }
}

/// A JWK set that is kept up to date.
#[derive(Debug)]
pub(super) struct Jwks {
    max_age: Duration,
    fetched: watch::Receiver<Fetched>,
    /// Wakes the task that fetches.
    wanted: Arc<Notify>,
}

type Https = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

impl Jwks {
    /// Starts the task that fetches. It ends when this is dropped.
    pub(super) fn watch(url: &str, refresh: Duration, max_age: Duration) -> Result<Self, SetupError> {
        let invalid = |reason: &str| SetupError(format!("--token-jwks-url {reason}"));
        let uri: Uri = url.parse().map_err(|_| invalid("is not a URL"))?;
        match (uri.scheme_str(), uri.authority()) {
            (Some("https" | "http"), Some(_)) => {}
            _ => {
                return Err(invalid("must begin with https:// (or with http://, over a trusted network)"));
            }
        }
        let config = tls::client_config().map_err(|reason| invalid(&format!("cannot be used: {reason}")))?;
        let connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
        let client = Client::builder(TokioExecutor::new()).build(connector.enable_http1().build());
        let (sender, fetched) = watch::channel(Fetched::default());
        let wanted = Arc::<Notify>::default();
        let fetch = async move || fetch(&client, &uri).await;
        tokio::spawn(keep_fetching(fetch, refresh, sender, Arc::clone(&wanted)));
        Ok(Self { max_age, fetched, wanted })
    }

    /// The keys of the last successful fetch. `None` if it was too long ago.
    pub(super) fn keys(&self) -> Option<KeySet> {
        self.fetched.borrow().keys(self.max_age)
    }

    /// Asks for a fetch and waits until it has succeeded or failed.
    pub(super) async fn refresh(&self) {
        let mut fetched = self.fetched.clone();
        fetched.mark_unchanged();
        self.wanted.notify_one();
        _ = timeout(MIN_INTERVAL + FETCH_TIMEOUT, fetched.changed()).await;
    }
}

/// Fetches until the last receiver is dropped. A fetch that panics has failed.
async fn keep_fetching(
    fetch: impl AsyncFn() -> Result<Vec<VerificationKey>, String>,
    refresh: Duration,
    sender: watch::Sender<Fetched>,
    wanted: Arc<Notify>,
) {
    loop {
        let begun = Instant::now();
        let result = AssertUnwindSafe(fetch()).catch_unwind().await;
        let result = result.unwrap_or_else(|_| Err("the fetch has panicked".to_owned()));
        let mut recorded = Ok(());
        sender.send_modify(|fetched| recorded = fetched.record(Instant::now(), result));
        metrics::JWKS_FETCHES[usize::from(recorded.is_err())].count();
        let pause = match recorded {
            Ok(()) => {
                tracing::debug!("the JWK set was fetched");
                refresh
            }
            Err(error) => {
                tracing::warn!(
                    error,
                    "--token-jwks-url cannot be used; the known keys stay in use for --token-jwks-max-age"
                );
                RETRY_INTERVAL.min(refresh)
            }
        };
        sleep_until(begun + MIN_INTERVAL.min(refresh)).await;
        tokio::select! {
            () = sleep(pause) => {}
            () = wanted.notified() => {}
            () = sender.closed() => return,
        }
    }
}

async fn fetch(client: &Https, uri: &Uri) -> Result<Vec<VerificationKey>, String> {
    let fetching = async {
        let response = client.get(uri.clone()).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
        })?;
        if !response.status().is_success() {
            return Err(format!("it answered {}", response.status()));
        }
        let body =
            Limited::new(response.into_body(), MAX_SET).collect().await.map_err(|error| error.to_string())?;
        let body = body.to_bytes();
        let text = std::str::from_utf8(&body).map_err(|_| "it is not text".to_owned())?;
        parse_jwks(text, false)
    };
    timeout(FETCH_TIMEOUT, fetching)
        .await
        .map_err(|_| format!("no answer within {} s", FETCH_TIMEOUT.as_secs()))?
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::identity::key::secret_key;

    const MAX_AGE: Duration = Duration::from_secs(100);

    fn one_key() -> Result<Vec<VerificationKey>, String> {
        secret_key(b"0123456789abcdef0123456789abcdef").map(|key| vec![key])
    }

    fn known(fetched: &Fetched) -> Option<usize> {
        fetched.keys(MAX_AGE).map(|keys| keys.len())
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_that_panics_has_failed_and_the_next_one_succeeds() {
        let (sender, mut fetched) = watch::channel(Fetched::default());
        let attempts = AtomicU32::new(0);
        let fetch = async move || {
            assert!(attempts.fetch_add(1, Ordering::Relaxed) != 1, "this panic is part of the test");
            one_key()
        };
        tokio::spawn(keep_fetching(fetch, MIN_INTERVAL, sender, Arc::default()));
        for attempt in 1..=3 {
            let state = fetched.wait_for(|fetched| fetched.attempts >= attempt).await.unwrap();
            assert_eq!((state.attempts, known(&state)), (attempt, Some(1)), "the known key stays in use");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_of_an_unreachable_set_prove_for_the_max_age() {
        let mut fetched = Fetched::default();
        fetched.record(Instant::now(), one_key()).unwrap();
        tokio::time::advance(MAX_AGE - Duration::from_secs(1)).await;
        fetched.record(Instant::now(), Err("unreachable".to_owned())).unwrap_err();
        assert_eq!(known(&fetched), Some(1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(known(&fetched), None);
        fetched.record(Instant::now(), one_key()).unwrap();
        assert_eq!((known(&fetched), fetched.attempts), (Some(1), 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_without_keys_revokes_once_it_has_stayed_so() {
        let mut fetched = Fetched::default();
        let record = |fetched: &mut Fetched, result| fetched.record(Instant::now(), result).is_ok();
        assert!(!record(&mut fetched, Ok(Vec::new())), "there is nothing to revoke");
        tokio::time::advance(EMPTY_FOR).await;
        assert!(!record(&mut fetched, Ok(Vec::new())));
        assert_eq!(known(&fetched), None);
        assert!(record(&mut fetched, one_key()) && !record(&mut fetched, Ok(Vec::new())));
        tokio::time::advance(EMPTY_FOR - Duration::from_secs(1)).await;
        assert!(!record(&mut fetched, Ok(Vec::new())));
        assert_eq!(known(&fetched), Some(1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(record(&mut fetched, Ok(Vec::new())));
        assert_eq!(known(&fetched), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_fetch_begins_the_wait_of_an_empty_set_anew() {
        let mut fetched = Fetched::default();
        fetched.record(Instant::now(), one_key()).unwrap();
        for result in [Ok(Vec::new()), Err("unreachable".to_owned()), Ok(Vec::new())] {
            fetched.record(Instant::now(), result).unwrap_err();
            tokio::time::advance(EMPTY_FOR - Duration::from_secs(1)).await;
        }
        assert_eq!(known(&fetched), Some(1));
    }
}
