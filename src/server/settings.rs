//! What the settings mean for the engine and the broker.

use std::time::Duration;

use crate::broker::Limits;
use crate::budget::{self, Budget};
use crate::clock::Clock;
use crate::config::{Auth, Config, Level};
use crate::engine::embedded::{Durability, Storage};
use crate::engine::{Bounds, QueueBounds, Settings};

/// Most bytes of messages that wait to be written to the disk, and at most a quarter of the memory budget.
const QUEUE_BYTES: usize = 64 << 20;

/// Most message ids of senders that are remembered.
const DEDUP_IDS: usize = 1_000_000;

/// The settings of the engine.
#[must_use]
pub fn engine_settings(config: &Config, clock: Clock) -> Settings {
    let bounds = |messages, bytes, age| Bounds { messages, bytes, age };
    Settings {
        mailbox: bounds(config.mailbox_messages, config.mailbox_bytes, config.ttl),
        history: bounds(config.topic_messages, config.topic_bytes, config.topic_age),
        total_bytes: config.store_limit.unwrap_or(match config.durability {
            Level::Memory => 1 << 30,
            Level::Fsync | Level::Os => 4 << 30,
        }),
        dedup_window: config.dedup_window(),
        dedup_ids: DEDUP_IDS,
        sessions_per_user: config.access.sessions_per_user,
        shares: config.access.auth == Auth::Token,
        queue: QueueBounds {
            messages: config.append_queue,
            bytes: QUEUE_BYTES.min(budget_bytes(config) / 4),
        },
        clock,
    }
}

/// The memory that all clients together may take.
pub(super) fn budget(config: &Config) -> Budget {
    Budget::new(budget_bytes(config))
}

pub(super) fn budget_bytes(config: &Config) -> usize {
    config.memory_budget.unwrap_or_else(budget::default_bytes)
}

/// Where messages are stored.
#[must_use]
pub fn storage(config: &Config) -> Storage {
    match config.durability {
        Level::Memory => Storage::Memory,
        Level::Fsync => Storage::Directory(config.data_dir.clone(), Durability::Fsync),
        Level::Os => Storage::Directory(config.data_dir.clone(), Durability::Os),
    }
}

/// How many streams of mailboxes a new cluster gets, and as many of topics.
#[cfg(feature = "nats")]
const SHARDS: usize = 8;

/// What a node is told about NATS.
#[cfg(feature = "nats")]
pub(crate) fn nats_options(config: &Config) -> crate::engine::nats::NatsOptions {
    let cluster = &config.cluster;
    crate::engine::nats::NatsOptions {
        url: cluster.nats_url.clone(),
        credentials: cluster.nats_creds.clone(),
        token: config.access.secrets.nats_token.as_ref().map(|token| token.0.clone()),
        node: cluster.nats_node.clone(),
        prefix: cluster.nats_prefix.clone(),
        replicas: cluster.nats_replicas,
        create: cluster.nats_create,
        shards: SHARDS,
        max_payload: config.max_payload,
        max_ttl: config.max_ttl,
    }
}

/// The limits of the broker.
#[must_use]
pub fn broker_limits(config: &Config) -> Limits {
    let secret_ids = config.access.auth == Auth::Token;
    // As long as an old `reply_to` is good: what is known of the session tells its next holder from its last one.
    let revoked_for = config.access.session_ttl.max(config.dedup_window());
    Limits {
        payload: config.max_payload,
        ttl: config.max_ttl,
        readers: config.access.max_connections_per_session(),
        // There are no tokens in `open` mode.
        revoked_for: if secret_ids { revoked_for } else { Duration::ZERO },
        reply_window: config.dedup_window(),
        secret_ids,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_larger_on_disk_unless_it_is_set() {
        let total = |durability, store_limit| {
            let config = Config { durability, store_limit, ..Config::default() };
            engine_settings(&config, Clock::Wall).total_bytes
        };
        assert_eq!(total(Level::Memory, None), 1 << 30);
        assert_eq!(total(Level::Fsync, None), 4 << 30);
        assert_eq!(total(Level::Os, Some(7)), 7);
    }

    #[test]
    fn the_level_decides_where_messages_are_stored() {
        let storage = |durability| storage(&Config { durability, ..Config::default() });
        assert!(matches!(storage(Level::Memory), Storage::Memory));
        assert!(matches!(storage(Level::Os), Storage::Directory(_, Durability::Os)));
        let Storage::Directory(directory, Durability::Fsync) = storage(Level::Fsync) else {
            panic!("fsync needs a directory");
        };
        assert_eq!(directory, Config::default().data_dir);
    }

    #[test]
    fn ids_are_secret_in_token_mode_only() {
        let mut config = Config::default();
        let limits = broker_limits(&config);
        assert_eq!((limits.secret_ids, limits.revoked_for), (false, Duration::ZERO));
        config.access.auth = Auth::Token;
        let limits = broker_limits(&config);
        assert!(limits.secret_ids);
        assert_eq!((limits.readers, limits.revoked_for), (64, config.access.session_ttl));
        config.access.session_ttl = Duration::from_secs(60);
        assert_eq!(broker_limits(&config).revoked_for, config.dedup_window());
    }
}
