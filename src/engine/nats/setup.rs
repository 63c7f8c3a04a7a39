//! Connects a node, checks the servers and the streams, and makes them at the first start of a cluster.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, HeaderMap};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::engine::Settings;
use crate::engine::nats::error::{AskError, NO_MESSAGE, NatsError};
use crate::engine::nats::link::Link;
use crate::engine::nats::moved::{MoveRecord, MovedIds};
use crate::engine::nats::names::setup_stream;
use crate::engine::nats::nets::{Net, Nets};
use crate::engine::nats::options::NatsOptions;
use crate::engine::nats::streams::{StreamSpec, StreamState};
use crate::engine::nats::urls::{login, without_password};
use crate::message::Seq;

/// The oldest version of a server that knows what the engine needs.
const OLDEST: (i64, i64, i64) = (2, 11, 0);

/// What a message takes beside its payload, in bytes.
const ENVELOPE: usize = 4096;

/// Longest pause before the connection is tried again.
const RECONNECT: Duration = Duration::from_millis(500);

/// How often the server is pinged. A connection ends with the third ping without an answer: a server that hangs closes none.
const PING: Duration = Duration::from_secs(2);

/// Messages of one subscription that wait to be taken, at least: the answers to all appends that may be on their way have room.
const SUBSCRIPTION: usize = 4096;

/// The level of the interface of servers that have schedules: 2.12.
const SCHEDULES: u64 = 2;

/// The format of what is stored.
const FORMAT: u64 = 1;

/// The number of NATS' error for a record that another node has changed.
const WRONG_SEQ: u64 = 10_071;

/// The record of the cluster.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) format: u64,
    pub(super) secret: String,
    pub(super) shards: usize,
    /// Whether all streams were made, and hold all that was moved here.
    pub(super) complete: bool,
    /// The store that was moved here, or is being moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) moved: Option<MoveRecord>,
}

impl Record {
    /// The record of a cluster whose streams are not made yet.
    pub(super) fn new(secret: [u8; 16], shards: usize, moved: Option<MoveRecord>) -> Self {
        Self { format: FORMAT, secret: STANDARD.encode(secret), shards, complete: false, moved }
    }
}

/// A connection to servers with all streams.
pub(super) struct Prepared {
    pub(super) link: Link,
    pub(super) secret: [u8; 16],
    pub(super) shards: usize,
    /// The streams of messages, in the order of their numbers.
    pub(super) states: Vec<StreamState>,
    /// The streams of messages, for later checks.
    pub(super) specs: Vec<StreamSpec>,
    /// The senders' ids of a store that was moved here.
    pub(super) moved: Option<MovedIds>,
    /// Whether the servers send messages at a given time.
    pub(super) has_schedules: bool,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prepared")
    }
}

/// What the connection tells a node.
#[derive(Debug, Clone, Default)]
pub(super) struct Signals {
    /// Something may have been missed.
    pub(super) missed: Arc<Notify>,
    /// What looks for it.
    pub(super) nets: Nets,
}

impl Signals {
    /// Notes that something may have been missed.
    pub(super) fn may_have_missed(&self, net: Net) {
        if self.nets.works(net) {
            self.missed.notify_one();
        }
    }
}

/// Connects.
///
/// # Errors
/// [`NatsError::Connect`], [`NatsError::Credentials`].
async fn connect(options: &NatsOptions, appends: usize, signals: &Signals) -> Result<Client, NatsError> {
    let failed = |reason: String| NatsError::Connect { url: without_password(&options.url), reason };
    let signals = signals.clone();
    let mut connect = ConnectOptions::new()
        .name("x0-msg-server")
        .subscription_capacity(SUBSCRIPTION.max(appends))
        .ping_interval(PING)
        .reconnect_delay_callback(|attempts| {
            let most = RECONNECT.min(Duration::from_millis(50 * u64::try_from(attempts).unwrap_or(10)));
            most.mul_f64(0.5 + f64::from(random_byte()) / 512.0)
        })
        .event_callback(move |event| {
            let signals = signals.clone();
            async move {
                tracing::info!(%event, "NATS");
                match event {
                    async_nats::Event::Connected => signals.may_have_missed(Net::Connected),
                    async_nats::Event::SlowConsumer(_) => signals.may_have_missed(Net::Overflow),
                    _ => {}
                }
            }
        });
    if let Some(token) = &options.token {
        connect = connect.token(token.clone());
    }
    if let Some(path) = &options.credentials {
        connect = connect.credentials_file(path).await.map_err(|error| NatsError::Credentials {
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
    }
    // The library does not read them there.
    if let Some((name, password)) = login(&options.url) {
        connect = connect.user_and_password(name, password);
    }
    let urls: Vec<&str> = options.url.split(',').map(str::trim).filter(|url| !url.is_empty()).collect();
    connect.connect(urls).await.map_err(|error| failed(error.to_string()))
}

fn random_byte() -> u8 {
    let mut byte = [0];
    // Without it the pauses are not spread.
    _ = getrandom::fill(&mut byte);
    byte[0]
}

/// Checks the server that this node is connected to.
///
/// # Errors
/// [`NatsError::TooOld`], [`NatsError::Payload`].
pub(super) fn check_server(client: &Client, max_payload: usize) -> Result<(), NatsError> {
    let info = client.server_info();
    if version(&info.version) < OLDEST {
        return Err(NatsError::TooOld { name: info.server_name, version: info.version });
    }
    let needed = max_payload + ENVELOPE;
    if info.max_payload < needed {
        return Err(NatsError::Payload { is: info.max_payload, needed });
    }
    Ok(())
}

fn version(text: &str) -> (i64, i64, i64) {
    let mut parts = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

/// Connects to servers that can be used, and finds or makes the streams.
///
/// # Errors
/// [`NatsError`].
pub(super) async fn prepare(
    options: &NatsOptions,
    settings: &Settings,
    signals: &Signals,
) -> Result<Prepared, NatsError> {
    let (link, has_schedules) = open(options, settings, signals).await?;
    let now = settings.clock.now();
    let (stream, subject) = make_setup(&link, options, now).await?;
    let (mut record, seq) = record(&link, &stream, &subject, options.shards).await?;
    let unreadable = |reason: &str| NatsError::Setup { stream: stream.clone(), reason: reason.to_owned() };
    if record.format > FORMAT {
        return Err(unreadable("it was made by a later version of this program"));
    }
    if record.moved.is_some() && !record.complete {
        return Err(NatsError::Moving { prefix: options.prefix.clone() });
    }
    let secret: Option<[u8; 16]> =
        STANDARD.decode(&record.secret).ok().and_then(|secret| secret.try_into().ok());
    let secret = secret.ok_or_else(|| unreadable("its secret is damaged"))?;
    let shards = record.shards;
    if !(1..=256).contains(&shards) {
        return Err(unreadable("its number of shards is damaged"));
    }
    if !has_schedules {
        tracing::info!("receipts of messages that expire where nobody reads them need NATS 2.12 or later");
    }
    let mut specs = StreamSpec::all(options, settings, shards);
    specs.extend(has_schedules.then(|| StreamSpec::schedules(options)));
    let mut states = Vec::new();
    for spec in &specs {
        let mut state = spec.verify(&link).await?;
        if state.is_none() && (options.create || !record.complete || spec.is_dispensable) {
            spec.create(&link, now, Seq::START).await?;
            state = spec.verify(&link).await?;
        }
        states.push(state.ok_or_else(|| NatsError::Missing { stream: spec.name.clone() })?);
    }
    states.truncate(2 * shards);
    if !record.complete {
        record.complete = true;
        match store(&link, &subject, &record, seq).await {
            // Another node was faster.
            Err(error) if error.is(WRONG_SEQ) => {}
            Err(error) => return Err(failed("note that all streams were made", &error)),
            Ok(_) => {}
        }
    }
    let specs = specs.into_iter().take(2 * shards).collect();
    let moved = match record.moved.filter(|moved| moved.ids_until > now) {
        Some(moved) => Some(MovedIds::load(&link, &options.prefix, &secret, &moved).await?),
        None => None,
    };
    Ok(Prepared { link, secret, shards, states, specs, moved, has_schedules })
}

/// Connects to servers that can be used. Answers too whether they send messages at a given time.
///
/// # Errors
/// [`NatsError`].
pub(super) async fn open(
    options: &NatsOptions,
    settings: &Settings,
    signals: &Signals,
) -> Result<(Link, bool), NatsError> {
    let client = connect(options, settings.queue.messages, signals).await?;
    check_server(&client, options.max_payload)?;
    let link = Link::new(client).await.map_err(|error| NatsError::Connect {
        url: without_password(&options.url),
        reason: error.to_string(),
    })?;
    let account = link.api("INFO", &Value::Null).await;
    let account = account.map_err(|error| NatsError::NoJetStream { reason: error.reason() })?;
    Ok((link, account["api"]["level"].as_u64() >= Some(SCHEDULES)))
}

/// Makes the stream of the record if it is not there. Answers its name, and the subject of the record.
///
/// # Errors
/// [`NatsError`].
pub(super) async fn make_setup(
    link: &Link,
    options: &NatsOptions,
    now: u64,
) -> Result<(String, String), NatsError> {
    let (stream, subject) = setup_stream(&options.prefix);
    let spec = StreamSpec::setup(stream.clone(), &subject, options.replicas);
    if spec.verify(link).await?.is_none() {
        spec.create(link, now, Seq::START).await?;
    }
    Ok((stream, subject))
}

/// The record of the cluster, and its seq. The first node makes it.
async fn record(link: &Link, stream: &str, subject: &str, shards: usize) -> Result<(Record, u64), NatsError> {
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).map_err(|error| NatsError::Request {
        what: "make a secret".to_owned(),
        reason: error.to_string().into(),
    })?;
    let made = Record::new(secret, shards, None);
    match store(link, subject, &made, 0).await {
        Err(error) if !error.is(WRONG_SEQ) => return Err(failed("store the setup", &error)),
        _ => {}
    }
    let found = read_record(link, stream, subject).await?;
    found.ok_or_else(|| NatsError::Setup { stream: stream.to_owned(), reason: "it is gone".to_owned() })
}

/// The record of the cluster, and its seq; `None` if there is none.
///
/// # Errors
/// [`NatsError`].
pub(super) async fn read_record(
    link: &Link,
    stream: &str,
    subject: &str,
) -> Result<Option<(Record, u64)>, NatsError> {
    let question = json!({ "last_by_subj": subject });
    let answer = match link.api(&format!("STREAM.MSG.GET.{stream}"), &question).await {
        Err(error) if error.is(NO_MESSAGE) => return Ok(None),
        answer => answer.map_err(|error| failed("read the setup", &error))?,
    };
    let unreadable = |reason: String| NatsError::Setup { stream: stream.to_owned(), reason };
    let data = STANDARD.decode(answer["message"]["data"].as_str().unwrap_or_default());
    let data = data.map_err(|error| unreadable(error.to_string()))?;
    let record = serde_json::from_slice(&data).map_err(|error| unreadable(error.to_string()))?;
    Ok(Some((record, answer["message"]["seq"].as_u64().unwrap_or_default())))
}

/// Stores the record, if the one that is stored has this seq. Answers its own.
///
/// # Errors
/// [`AskError`].
pub(super) async fn store(link: &Link, subject: &str, record: &Record, seq: u64) -> Result<u64, AskError> {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", seq.to_string());
    let body = serde_json::to_vec(record).expect("strings and numbers always encode");
    link.store(subject, headers, body.into()).await.map(|stored| stored.seq)
}

fn failed(what: &str, error: &AskError) -> NatsError {
    NatsError::Request { what: what.to_owned(), reason: error.reason() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(version("2.9.10") < OLDEST && version("2.10.26") < OLDEST);
        assert!(version("2.11.0-RC.1") >= OLDEST && version("2.15.1") >= OLDEST);
    }
}
