//! The streams, and whether they have the settings that the engine needs.

use std::time::Duration;

use serde_json::{Value, json};

use crate::engine::Settings;
use crate::engine::nats::error::{AskError, NatsError};
use crate::engine::nats::link::Link;
use crate::engine::nats::options::NatsOptions;
use crate::message::Seq;

/// NATS keeps a message for so much longer than its time to live. The nodes end it; NATS cleans up.
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// When the seqs of a stream would have begun at 1: 2026-01-01, in Unix seconds.
const FIRST_SECOND: u64 = 1_767_225_600;

/// How many bits of a seq count messages. The others are seconds, so that seqs of a later stream are above.
const COUNT_BITS: u32 = 16;

/// Histories get this part of the store, and mailboxes the rest.
const HISTORIES: usize = 4;

/// A server that a leader heard from within this time follows it. Followers elect another leader 4 s after they heard from it, at the
/// earliest.
pub(super) const HEARD: Duration = Duration::from_secs(3);

/// The number of NATS' error for a stream that is not there.
pub(super) const NOT_FOUND: u64 = 10_059;

/// A stream: its name, and its settings as NATS names them.
#[derive(Debug, Clone)]
pub(super) struct StreamSpec {
    pub(super) name: String,
    settings: Value,
    /// Whether it has an incarnation, and seqs that begin with the time.
    is_versioned: bool,
    /// Whether it is made anew if it is missing.
    pub(super) is_dispensable: bool,
}

/// What a stream says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StreamState {
    /// Tells this incarnation of the stream from others.
    pub(super) id: String,
    /// The seq before its first one.
    pub(super) origin: u64,
    /// Its newest seq.
    pub(super) last: u64,
    /// How many bytes it holds.
    pub(super) bytes: usize,
    /// How many messages it holds.
    pub(super) messages: u64,
    /// How many subjects they have.
    pub(super) subjects: u64,
    /// Whether its leader has heard from a majority of its servers lately. A leader that is cut off from the others answers for a
    /// while, and does not know what they store meanwhile.
    pub(super) has_majority: bool,
    /// The server that leads it; `None` if no other one could.
    pub(super) leader: Option<String>,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(i64::MAX.unsigned_abs())
}

fn base(subject: &str, replicas: usize) -> Value {
    json!({
        "subjects": [subject], "retention": "limits", "storage": "file", "num_replicas": replicas,
        "allow_direct": true,
    })
}

fn with(base: Value, more: Value) -> Value {
    match (base, more) {
        (Value::Object(mut base), Value::Object(more)) => {
            base.extend(more);
            Value::Object(base)
        }
        (base, _) => base,
    }
}

/// What each stream of mailboxes, and each of histories, may take of a store of this size, in bytes. NATS reserves it. A history
/// drops its oldest messages, and a mailbox refuses: it gets more.
pub(super) fn parts(total: usize, shards: usize) -> (usize, usize) {
    let histories = total / HISTORIES / shards;
    ((total / shards).saturating_sub(histories), histories)
}

impl StreamSpec {
    /// The record of the cluster.
    pub(super) fn setup(name: String, subject: &str, replicas: usize) -> Self {
        let settings = with(base(subject, replicas), json!({ "discard": "old", "max_msgs_per_subject": 1 }));
        Self { name, settings, is_versioned: false, is_dispensable: false }
    }

    /// The streams that hold messages, floors and registrations.
    pub(super) fn all(options: &NatsOptions, settings: &Settings, shards: usize) -> Vec<Self> {
        let NatsOptions { prefix, replicas, max_ttl, .. } = options;
        let (bytes, histories) = parts(settings.total_bytes, shards);
        let window = |age: Duration| nanos(settings.dedup_window.min(age));
        let mailboxes = (0..shards).map(|shard| {
            let age = *max_ttl + DAY;
            let own = json!({
                "discard": "new", "discard_new_per_subject": true, "max_bytes": bytes,
                "max_msgs_per_subject": settings.mailbox.messages, "max_age": nanos(age),
                "allow_msg_ttl": true, "duplicate_window": window(age),
                "republish": {
                    "src": format!("{prefix}.m.{shard}.>"), "dest": format!("{prefix}.l.{shard}.>")
                },
            });
            let settings = with(base(&format!("{prefix}.m.{shard}.>"), *replicas), own);
            Self { name: format!("{prefix}_M{shard}"), settings, is_versioned: true, is_dispensable: false }
        });
        let topics = (0..shards).map(|shard| {
            let age = settings.history.age;
            let own = json!({
                // One more than readers see: it tells that nothing is missing before the others.
                "discard": "old", "max_bytes": histories,
                "max_msgs_per_subject": settings.history.messages + 1,
                "max_age": nanos(age), "allow_msg_ttl": true, "duplicate_window": window(age),
                "republish": {
                    "src": format!("{prefix}.t.{shard}.>"), "dest": format!("{prefix}.lt.{shard}.>")
                },
            });
            let settings = with(base(&format!("{prefix}.t.{shard}.>"), *replicas), own);
            Self { name: format!("{prefix}_T{shard}"), settings, is_versioned: true, is_dispensable: false }
        });
        let floors = json!({
            "discard": "old", "max_msgs_per_subject": 1, "max_age": nanos(*max_ttl + 2 * DAY),
            "allow_msg_ttl": true,
        });
        let floors = with(base(&format!("{prefix}.f.>"), *replicas), floors);
        let directory = json!({
            "discard": "old", "max_msgs_per_subject": 1, "allow_msg_ttl": true,
            "republish": { "src": format!("{prefix}.d.>"), "dest": format!("{prefix}.ld.>") },
        });
        let directory = with(base(&format!("{prefix}.d.>"), *replicas), directory);
        let others = [("F", floors), ("D", directory)].map(|(name, settings)| Self {
            name: format!("{prefix}_{name}"),
            settings,
            is_versioned: false,
            is_dispensable: false,
        });
        mailboxes.chain(topics).chain(others).collect()
    }

    /// The stream of schedules, for servers that have them.
    pub(super) fn schedules(options: &NatsOptions) -> Self {
        let NatsOptions { prefix, replicas, max_ttl, .. } = options;
        let own = json!({
            "subjects": [format!("{prefix}.s.>"), format!("{prefix}.due.>")], "discard": "old",
            "max_age": nanos(*max_ttl + 2 * DAY), "allow_msg_ttl": true, "allow_msg_schedules": true,
        });
        let settings = with(base(prefix, *replicas), own);
        Self { name: format!("{prefix}_S"), settings, is_versioned: false, is_dispensable: true }
    }

    /// The ids of senders that were known in a store that was moved here.
    pub(super) fn moved_ids(prefix: &str, replicas: usize) -> Self {
        let own = json!({ "discard": "old", "max_age": nanos(DAY) });
        let settings = with(base(&format!("{prefix}.i.>"), replicas), own);
        Self { name: format!("{prefix}_I"), settings, is_versioned: false, is_dispensable: false }
    }

    /// Makes the stream, whose seqs begin above `above`. One that is there stays as it is.
    ///
    /// # Errors
    /// NATS refuses.
    pub(super) async fn create(&self, link: &Link, now: u64, above: Seq) -> Result<(), NatsError> {
        let mut settings = with(self.settings.clone(), json!({ "name": self.name }));
        if self.is_versioned {
            let seconds = (now / 1000).saturating_sub(FIRST_SECOND);
            let mut id = [0; 16];
            getrandom::fill(&mut id).map_err(|error| request("make a random id", error.to_string()))?;
            let id = format!("{:032x}", u128::from_le_bytes(id));
            let own = json!({
                "first_seq": (seconds << COUNT_BITS).max(above.0 + 1),
                "metadata": { "x0.id": id, "x0.format": "1" },
            });
            settings = with(settings, own);
        }
        match link.api(&format!("STREAM.CREATE.{}", self.name), &settings).await {
            // Another node was faster, or it has other settings, which are compared next.
            Err(error) if error.is(10_058) => Ok(()),
            Err(error) => Err(request(&format!("make stream {}", self.name), error.reason())),
            Ok(_) => Ok(()),
        }
    }

    /// What the stream says of itself, if it has these settings. `None` if it is not there.
    ///
    /// # Errors
    /// [`NatsError::Setting`], or it does not answer.
    pub(super) async fn verify(&self, link: &Link) -> Result<Option<StreamState>, NatsError> {
        let info = match info(link, &self.name).await {
            Err(error) if error.is(NOT_FOUND) => return Ok(None),
            Err(error) => return Err(request(&format!("look at stream {}", self.name), error.reason())),
            Ok(info) => info,
        };
        let config = &info["config"];
        let wanted = self.settings.as_object().into_iter().flatten();
        for (setting, wanted) in wanted {
            let is = &config[setting];
            let is_same = match wanted {
                Value::Object(fields) => fields.iter().all(|(name, value)| is[name] == *value),
                Value::Bool(false) => is.is_null() || *is == Value::Bool(false),
                wanted => is == wanted,
            };
            if !is_same {
                return Err(NatsError::Setting {
                    stream: self.name.clone(),
                    setting: setting.clone(),
                    is: if is.is_null() { "not set".to_owned() } else { is.to_string() },
                    wanted: wanted.to_string(),
                });
            }
        }
        Ok(Some(state(&info)))
    }
}

fn request(what: &str, reason: impl Into<std::sync::Arc<str>>) -> NatsError {
    NatsError::Request { what: what.to_owned(), reason: reason.into() }
}

/// What a stream answers about itself.
///
/// # Errors
/// [`AskError`].
pub(super) async fn info(link: &Link, stream: &str) -> Result<Value, AskError> {
    link.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await
}

/// On how many servers the stream is that answers so.
fn replicas(info: &Value) -> u64 {
    info["config"]["num_replicas"].as_u64().unwrap_or(1)
}

/// The leader of the stream; `None` if it is on one server, or if the one that answers knows no leader.
fn leader(info: &Value) -> Option<&str> {
    info["cluster"]["leader"].as_str().filter(|leader| !leader.is_empty() && replicas(info) > 1)
}

/// Whether what answers so is the leader and has a majority of the servers. A server without a leader answers for a moment too, and one
/// that has just lost its part in the group answers as if the stream were on it alone.
fn has_majority(info: &Value) -> bool {
    if replicas(info) == 1 {
        return true;
    }
    let others = info["cluster"]["replicas"].as_array().map_or(&[][..], Vec::as_slice);
    let heard = others.iter().filter(|other| other["active"].as_u64().is_some_and(|ago| ago < nanos(HEARD)));
    leader(info).is_some() && 2 * (heard.count() as u64 + 1) > replicas(info)
}

/// The state in such an answer.
pub(super) fn state(info: &Value) -> StreamState {
    StreamState {
        id: info["config"]["metadata"]["x0.id"].as_str().unwrap_or_default().to_owned(),
        origin: info["config"]["first_seq"].as_u64().unwrap_or_default().saturating_sub(1),
        last: info["state"]["last_seq"].as_u64().unwrap_or_default(),
        bytes: info["state"]["bytes"]
            .as_u64()
            .and_then(|bytes| usize::try_from(bytes).ok())
            .unwrap_or_default(),
        messages: info["state"]["messages"].as_u64().unwrap_or_default(),
        subjects: info["state"]["num_subjects"].as_u64().unwrap_or_default(),
        has_majority: has_majority(info),
        leader: leader(info).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_hears_from_too_few_has_no_majority() {
        let answer = |ages: &[u64], replicas: u64| {
            let others: Vec<Value> = ages.iter().map(|ms| json!({ "active": ms * 1_000_000 })).collect();
            let cluster = json!({ "leader": "n0", "replicas": others });
            state(&json!({ "config": { "num_replicas": replicas }, "cluster": cluster }))
        };
        let leads = |ages: &[u64]| answer(ages, ages.len() as u64 + 1).has_majority;
        let alone = state(&json!({}));
        assert!(alone.has_majority && alone.leader.is_none(), "a single server");
        assert!(leads(&[]) && leads(&[100, 200]) && leads(&[2_999, 60_000]) && leads(&[1, 1, 9_000, 9_000]));
        assert!(!leads(&[3_000, 60_000]) && !leads(&[1, 9_000, 9_000, 9_000]) && !leads(&[5_000]));
        let left = answer(&[], 3);
        assert!(!left.has_majority && left.leader.as_deref() == Some("n0"), "it names no other server");
        let others = |others: Value, leader: Option<&str>| {
            let cluster = json!({ "leader": leader, "replicas": others });
            state(&json!({ "config": { "num_replicas": 3 }, "cluster": cluster })).has_majority
        };
        assert!(!others(json!([{ "offline": true }, { "offline": true }]), Some("n0")));
        // As NATS 2.15.1 answers while a stream has no leader.
        let seen = json!([{ "name": "n0", "active": 2_251_652_026_u64 }, { "name": "n1", "active": 0 }, { "name": "n2", "active": 0 }]);
        assert!(!others(seen, None));
    }
}
