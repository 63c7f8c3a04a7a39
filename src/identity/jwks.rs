//! Keys of tokens from a JWK set (RFC 7517) at a URL: fetched at the start, now and then, and when a token names a
//! key that is not among them.

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

use crate::identity::key::{KeySet, VerificationKey, read_jwks};
use crate::reload::SetupError;
use crate::tls;

/// Largest set, in bytes.
const LARGEST: usize = 1 << 20;

/// How long a fetch may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long fetches are apart at least, whatever tokens name.
const APART: Duration = Duration::from_secs(2);

/// How long to wait after a fetch that failed.
const AGAIN: Duration = Duration::from_secs(5);

/// What was fetched last; `None` before the first success. The number counts attempts.
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
    /// Begins to fetch. Ends with the runtime, or when this is dropped.
    pub(super) fn watch(url: &str, refresh: Duration) -> Result<Self, SetupError> {
        let told = |why: &str| SetupError(format!("--token-jwks-url {why}"));
        let uri: Uri = url.parse().map_err(|_| told("is not a URL"))?;
        match (uri.scheme_str(), uri.authority()) {
            (Some("https" | "http"), Some(_)) => {}
            _ => {
                return Err(told(
                    "must begin with https:// (or http://, for a server that is trusted with the way)",
                ));
            }
        }
        let config = tls::client_config().map_err(|why| told(&format!("cannot be used: {why}")))?;
        let connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
        let client = Client::builder(TokioExecutor::new()).build(connector.enable_http1().build());
        let (sender, fetched) = watch::channel((0, None));
        let wanted = Arc::<Notify>::default();
        tokio::spawn(keep(client, uri, refresh, sender, Arc::clone(&wanted)));
        Ok(Self { fetched, wanted })
    }

    /// The keys, if they were ever fetched.
    pub(super) fn keys(&self) -> Option<KeySet> {
        self.fetched.borrow().1.clone()
    }

    /// Waits until the set was fetched anew, or that has failed.
    pub(super) async fn ask(&self) {
        let mut fetched = self.fetched.clone();
        fetched.mark_unchanged();
        self.wanted.notify_one();
        _ = timeout(APART + PATIENCE, fetched.changed()).await;
    }
}

async fn keep(
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
                tracing::warn!(error, "--token-jwks-url cannot be fetched; the keys known so far stay good");
                sender.send_modify(|fetched| fetched.0 += 1);
                AGAIN.min(refresh)
            }
        };
        sleep_until(begun + APART.min(refresh)).await;
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
            Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| error.to_string())?;
        let body = body.to_bytes();
        let text = std::str::from_utf8(&body).map_err(|_| "it is not text".to_owned())?;
        read_jwks(text, false)
    };
    timeout(PATIENCE, fetching).await.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?
}
