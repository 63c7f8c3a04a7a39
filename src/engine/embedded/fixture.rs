//! Stores on disk for the unit tests of what reads them.

use std::path::Path;
use std::time::Duration;

use serde_json::value::RawValue;

use crate::clock::Clock;
use crate::engine::embedded::disk::CommitGroup;
use crate::engine::embedded::index::Pending;
use crate::engine::embedded::recovery::{self, Opened};
use crate::engine::embedded::rows::from_sql_int;
use crate::engine::embedded::storage::{Durability, OpenError};
use crate::engine::{Bounds, QueueBounds, Settings};
use crate::message::{Address, Kind, Message, Publication, Seq, SessionId};

pub(super) fn settings() -> Settings {
    let bounds = Bounds { messages: 1000, bytes: 1 << 20, age: Duration::from_secs(60) };
    Settings {
        mailbox: bounds,
        history: bounds,
        total_bytes: 16 << 20,
        dedup_window: Duration::from_secs(120),
        dedup_ids: 1000,
        sessions_per_user: 8,
        shares: false,
        queue: QueueBounds { messages: 1000, bytes: 16 << 20 },
        clock: Clock::Wall,
    }
}

/// Opens a store, or makes one.
pub(super) fn open(dir: &Path) -> Result<Opened, OpenError> {
    recovery::open(dir, Durability::Fsync, settings())
}

fn pending(seq: Seq) -> Pending {
    let address = Address::Session(SessionId::new("A").unwrap());
    let payload = RawValue::from_string(format!("\"{}\"", "x".repeat(500))).unwrap();
    let message = Message { kind: Kind::Message, from: None, payload, ts: 7, reference: None };
    let publication = Publication::encode(&address, Some(seq), &message).into();
    Pending { publication, prev: Seq(seq.0 - 1), expires_at: u64::MAX >> 1, ..Pending::sample(seq) }
}

/// Commits messages with the next seqs, one by one, and deletes others. Returns the seqs.
pub(super) fn commit(opened: &mut Opened, messages: usize, deletes: &[Seq]) -> Vec<Seq> {
    let newest = u64::try_from(opened.disk.totals().newest).unwrap();
    let seqs: Vec<Seq> = (1..=messages as u64).map(|n| Seq(newest + n)).collect();
    for seq in &seqs {
        let group = CommitGroup {
            remembered: 0,
            cleaned: Vec::new(),
            appends: vec![pending(*seq)],
            deletes: deletes.to_vec(),
            floors: Vec::new(),
            registrations: Vec::new(),
            waiters: Vec::new(),
            changes: Vec::new(),
            newest: *seq,
            forgotten: Seq::START,
            now: 0,
            until: 0,
            clock: None,
        };
        opened.disk.write(&group).unwrap();
    }
    seqs
}

/// The seqs of all stored messages.
pub(super) fn stored(opened: &Opened) -> Vec<Seq> {
    let mut statement = opened.disk.connection().prepare("SELECT seq FROM message ORDER BY seq").unwrap();
    let seqs = statement.query_map([], |row| row.get::<_, i64>(0)).unwrap();
    seqs.map(|seq| Seq(from_sql_int(seq.unwrap()))).collect()
}

/// Where the damaged files of a store were put.
pub(super) fn aside(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("damaged-")).collect()
}
