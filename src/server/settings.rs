//! What the settings mean for the engine and the broker.

use crate::broker::Limits;
use crate::clock::Clock;
use crate::config::{Auth, Config, Level};
use crate::engine::embedded::{Durability, Storage};
use crate::engine::{Bounds, QueueBounds, Settings};

/// Most bytes of messages that wait to be written to the disk.
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
        dedup_window: config.dedup_window,
        dedup_ids: DEDUP_IDS,
        sessions_per_user: config.access.sessions_per_user,
        queue: QueueBounds { messages: config.append_queue, bytes: QUEUE_BYTES },
        clock,
    }
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

/// The limits of the broker.
#[must_use]
pub fn broker_limits(config: &Config) -> Limits {
    Limits {
        payload: config.max_payload,
        ttl: config.max_ttl,
        readers: config.access.max_connections_per_session(),
        revoked_for: config.access.revoked_for(),
        secret_ids: config.access.auth == Auth::Token,
    }
}
