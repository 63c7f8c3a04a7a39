//! Keys of tokens from a JWK set (RFC 7517) at a URL. The set is fetched at the start, at intervals, and when a token
//! names an unknown key.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Uri;
use hyper::body::Bytes;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::identity::key::{KeySet, VerificationKey, parse_jwks};
use crate::reload::SetupError;
use crate::tls;

/// Largest set, in bytes.
const MAX_SET: usize = 1 << 20;

/// How long a fetch may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Shortest time between two fetches, whatever keys tokens name.
const MIN_INTERVAL: Duration = Duration::from_secs(2);

/// Time until a failed fetch is repeated.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The number of attempts so far, and the keys of the last success.
type Fetched = (u64, Option<KeySet>);

/// A JWK set that is kept up to date.
#[derive(Debug)]
pub(super) struct Jwks {
    fetched: watch::Receiver<Fetched>,
    /// Wakes the task that fetches.
    wanted: Arc<Notify>,
}

type Https = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

impl Jwks {
    /// Starts the task that fetches. It ends when this is dropped.
    pub(super) fn watch(url: &str, refresh: Duration) -> Result<Self, SetupError> {
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
        let (sender, fetched) = watch::channel((0, None));
        let wanted = Arc::<Notify>::default();
        tokio::spawn(keep_fetching(client, uri, refresh, sender, Arc::clone(&wanted)));
        Ok(Self { fetched, wanted })
    }

    /// The keys of the last successful fetch.
    pub(super) fn keys(&self) -> Option<KeySet> {
        self.fetched.borrow().1.clone()
    }

    /// Asks for a fetch and waits until it has succeeded or failed.
    pub(super) async fn refresh(&self) {
        let mut fetched = self.fetched.clone();
        fetched.mark_unchanged();
        self.wanted.notify_one();
        _ = timeout(MIN_INTERVAL + FETCH_TIMEOUT, fetched.changed()).await;
    }
}

/// Fetches until the last receiver is dropped.
async fn keep_fetching(
    client: Https,
    uri: Uri,
    refresh: Duration,
    sender: watch::Sender<Fetched>,
    wanted: Arc<Notify>,
) {
    loop {
        let begun = Instant::now();
        let pause = match fetch(&client, &uri).await {
            Ok(keys) => {
                tracing::debug!(keys = keys.len(), "the JWK set was fetched");
                sender.send_modify(|fetched| *fetched = (fetched.0 + 1, Some(Arc::new(keys))));
                refresh
            }
            Err(error) => {
                tracing::warn!(error, "--token-jwks-url cannot be fetched; the known keys stay in use");
                sender.send_modify(|fetched| fetched.0 += 1);
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
