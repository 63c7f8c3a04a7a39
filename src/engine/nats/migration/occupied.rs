//! Whether the streams of a prefix may be filled.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::engine::Settings;
use crate::engine::nats::error::NatsError;
use crate::engine::nats::link::Link;
use crate::engine::nats::migration::error::MigrateError;
use crate::engine::nats::moved::MoveRecord;
use crate::engine::nats::options::NatsOptions;
use crate::engine::nats::peers::Answer;
use crate::engine::nats::streams::{StreamSpec, info, state};

/// How long nodes may take to answer.
const NODES: Duration = Duration::from_millis(500);

/// Whether an interrupted move was of the same store in the same state.
///
/// # Errors
/// [`MigrateError::AnotherMove`].
pub(super) fn same(before: &MoveRecord, now: &MoveRecord, options: &NatsOptions) -> Result<(), MigrateError> {
    let text = |record: &MoveRecord| {
        let MoveRecord { epoch, commits, version, .. } = record;
        format!("store {epoch} after {commits} commits, by version {version}")
    };
    let (before, now) = (text(before), text(now));
    match before == now {
        true => Ok(()),
        false => Err(MigrateError::AnotherMove { before, now, prefix: options.prefix.clone() }),
    }
}

/// Removes the streams of a cluster that holds nothing and has no node: their secret is another one.
///
/// # Errors
/// [`MigrateError::Occupied`], [`MigrateError::InUse`].
pub(super) async fn remove_empty(
    link: &Link,
    settings: &Settings,
    options: &NatsOptions,
    shards: usize,
) -> Result<(), MigrateError> {
    let prefix = &options.prefix;
    let failed = |what: String, reason| NatsError::Request { what, reason };
    let hello = Answer { node: "migrate".to_owned(), ..Answer::default() };
    let hello = serde_json::to_vec(&hello).expect("strings always encode").into();
    let asked = link.ask(format!("{prefix}.ctl.node"), None, hello, 256).await;
    let mut answers = asked.map_err(|error| failed("look for nodes".to_owned(), error.reason()))?;
    let (until, mut nodes) = (Instant::now() + NODES, 0);
    while let Ok(Some(answer)) = timeout_at(until, answers.recv()).await {
        nodes += usize::from(!answer.payload.is_empty());
    }
    if nodes > 0 {
        return Err(MigrateError::InUse { nodes, prefix: prefix.clone() });
    }
    let mut specs = StreamSpec::all(options, settings, shards);
    specs.push(StreamSpec::moved_ids(prefix, options.replicas));
    let mut found = Vec::new();
    for StreamSpec { name: stream, .. } in specs {
        let info = match info(link, &stream).await {
            Err(error) if error.is(crate::engine::nats::streams::NOT_FOUND) => continue,
            info => info.map_err(|error| failed(format!("look at stream {stream}"), error.reason()))?,
        };
        let messages = state(&info).messages;
        if messages > 0 {
            return Err(MigrateError::Occupied { stream, messages });
        }
        found.push(stream);
    }
    for stream in found {
        let deleted = link.api(&format!("STREAM.DELETE.{stream}"), &Value::Null).await;
        deleted.map_err(|error| failed(format!("delete stream {stream}"), error.reason()))?;
    }
    Ok(())
}
