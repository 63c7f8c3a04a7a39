//! Moves the store of one machine into the streams of a new cluster.
//!
//! The store is read only, and nobody else uses it meanwhile. The record of the cluster says that a move is under way, so that no
//! node starts on a part of it. An interrupted move is repeated from the beginning, and finds what is there already.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{try_join, try_join_all};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::interval;

use crate::clock::millis;
use crate::engine::embedded::export::Export;
use crate::engine::nats::directory::Entry;
use crate::engine::nats::error::{AskError, NatsError};
use crate::engine::nats::floors::Floor;
use crate::engine::nats::link::Link;
use crate::engine::nats::moved::{BATCH, MoveRecord, batch_subject, encode};
use crate::engine::nats::names::Names;
use crate::engine::nats::options::NatsOptions;
use crate::engine::nats::setup::{Record, Signals, make_setup, open, read_record, store};
use crate::engine::nats::streams::{DAY, StreamSpec, StreamState};
use crate::engine::{Registration, RegistrationSource, Settings};
use crate::message::{Address, Seq};

mod copying;
mod error;
mod occupied;
mod plan;
mod schedules;
mod walk;

pub use error::MigrateError;

use copying::{Outgoing, Target};
use plan::Plan;
use schedules::Schedules;
use walk::{Left, Walk};

/// Messages between the reader of the store and a stream.
const QUEUE: usize = 64;

/// How often the caller hears how far it is.
const REPORT: Duration = Duration::from_secs(1);

/// What was moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// What there is of each kind: its name, how much was to be moved, and how much NATS holds.
    pub counts: Vec<(&'static str, u64, u64)>,
    /// Messages that the store holds.
    pub stored: u64,
    /// Messages that were not moved because their time was over.
    pub expired: u64,
    /// Messages that were not moved because they were acknowledged.
    pub acknowledged: u64,
    /// The oldest messages of topics, beyond `--topic-messages`.
    pub beyond: u64,
    /// Receipts that were made for messages that were not moved.
    pub receipts: u64,
    /// Messages whose senders get a receipt.
    pub with_receipt: u64,
    /// How many of them NATS tells the nodes of when they expire, so that the receipt comes though nobody reads.
    pub scheduled: u64,
}

/// Moves the store in a directory into empty streams. Tells `progress` how many messages are stored, and of how many. If it fails,
/// the same call goes on where it stopped.
///
/// # Errors
/// [`MigrateError`] says what to change. The store stays as it is.
pub async fn migrate(
    dir: &Path,
    settings: Settings,
    mut options: NatsOptions,
    progress: impl Fn(u64, u64),
) -> Result<Migrated, MigrateError> {
    let export = Export::open(dir)?;
    let (link, has_schedules) = open(&options, &settings, &Signals::default()).await?;
    let (secret, newest) = (export.secret(), export.newest());
    let mut begun = Begun::find(&link, &export, &settings, &mut options).await?;
    let names = || Names::new(&options.prefix, options.shards, &secret);
    let (names, shared, began) = (names(), names(), begun.moved.began);
    let planned = blocking(move || {
        let walk = Walk::new(export, names, settings, began)?;
        let plan = Plan::new(&walk, 2 * options.shards)?;
        Ok::<_, MigrateError>((walk, plan))
    });
    let (walk, plan) = planned.await?;
    plan.check(&settings, &options)?;
    begun.moved.ids = walk.ids.len();
    begun.moved.ids_until = walk.ids.iter().map(|(_, _, until)| *until).max().unwrap_or_default();
    begun.note(&link, Record::new(secret, options.shards, Some(begun.moved.clone()))).await?;
    let mover = Mover { link: &link, names: &shared, settings: &settings, options: &options };
    let (specs, states) = mover.streams(newest).await?;
    let schedules = has_schedules.then(|| StreamSpec::schedules(&options));
    if let Some(spec) = &schedules {
        mover.stream(spec, newest).await?;
    }
    let origins: Vec<u64> = states.iter().map(|state| state.origin).collect();
    let others = mover.others(&walk, &plan, &origins, began);
    let mut wanted: Vec<u64> = (0..2 * options.shards).map(|stream| plan.messages(stream)).collect();
    wanted.extend(others.iter().map(|items| items.len() as u64));
    let stored = walk.messages();
    let streams = Streams { specs: &specs, states: &states, schedules: schedules.as_ref() };
    let expected = wanted.iter().sum::<u64>() + if has_schedules { plan.with_receipt } else { 0 };
    let scheduled = mover.fill(streams, (walk, others), &wanted, |done| progress(done, expected)).await?;
    let (migrated, ends) = mover.compare(&specs, &plan, &wanted, (stored, scheduled)).await?;
    let moved = MoveRecord { ends, ..begun.moved.clone() };
    let done = Record { complete: true, ..Record::new(secret, options.shards, Some(moved)) };
    begun.note(&link, done).await?;
    Ok(migrated)
}

/// A move that has begun, or is about to.
struct Begun {
    subject: String,
    moved: MoveRecord,
    /// The seq of the record of the cluster; 0 if there is none.
    revision: u64,
}

impl Begun {
    /// Finds out whether these streams may be filled, or were already begun with.
    async fn find(
        link: &Link,
        export: &Export,
        settings: &Settings,
        options: &mut NatsOptions,
    ) -> Result<Self, MigrateError> {
        let now = settings.clock.now();
        let (stream, subject) = make_setup(link, options, now).await?;
        let (epoch, commits) = export.fingerprint();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let (ids, ids_until, ends) = (0, 0, Vec::new());
        let moved = MoveRecord { epoch, commits, version, began: now, ids, ids_until, ends };
        let Some((record, revision)) = read_record(link, &stream, &subject).await? else {
            return Ok(Self { subject, moved, revision: 0 });
        };
        match record.moved.filter(|_| !record.complete) {
            Some(before) => {
                occupied::same(&before, &moved, options)?;
                options.shards = record.shards;
                Ok(Self { subject, moved: before, revision })
            }
            None => {
                occupied::remove_empty(link, settings, options, record.shards).await?;
                Ok(Self { subject, moved, revision })
            }
        }
    }

    /// Replaces the record of the cluster.
    async fn note(&mut self, link: &Link, record: Record) -> Result<(), MigrateError> {
        let stored = store(link, &self.subject, &record, self.revision).await;
        let failed = |error: AskError| NatsError::Request {
            what: "store the setup".to_owned(),
            reason: error.reason(),
        };
        self.revision = stored.map_err(failed)?;
        Ok(())
    }
}

/// Runs what waits for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// The streams that are filled.
struct Streams<'a> {
    /// Those of messages, and then those of floors, registrations and ids.
    specs: &'a [StreamSpec],
    states: &'a [StreamState],
    /// That of schedules, if the servers have them.
    schedules: Option<&'a StreamSpec>,
}

/// Where something is moved to.
struct Mover<'a> {
    link: &'a Link,
    names: &'a Names,
    settings: &'a Settings,
    options: &'a NatsOptions,
}

impl Mover<'_> {
    /// Makes the streams: of messages, then of floors, registrations and ids. Answers what they say of themselves.
    async fn streams(&self, newest: Seq) -> Result<(Vec<StreamSpec>, Vec<StreamState>), MigrateError> {
        let mut specs = StreamSpec::all(self.options, self.settings, self.options.shards);
        specs.push(StreamSpec::moved_ids(&self.options.prefix, self.options.replicas));
        let mut states = Vec::new();
        for spec in &specs {
            states.push(self.stream(spec, newest).await?);
        }
        Ok((specs, states))
    }

    /// Makes a stream, unless it is there. Answers what it says of itself.
    async fn stream(&self, spec: &StreamSpec, newest: Seq) -> Result<StreamState, MigrateError> {
        if let Some(state) = spec.verify(self.link).await? {
            return Ok(state);
        }
        // Cursors of the store are below all seqs of the streams.
        spec.create(self.link, self.settings.clock.now(), newest).await?;
        let state = spec.verify(self.link).await?;
        Ok(state.ok_or_else(|| NatsError::Missing { stream: spec.name.clone() })?)
    }

    /// What goes into the streams that hold no messages.
    fn others(&self, walk: &Walk, plan: &Plan, origins: &[u64], began: u64) -> [Vec<Outgoing>; 3] {
        let position = |address: &Address, before: Seq| {
            let stream = self.names.place(address).stream;
            plan.position(stream, origins[stream], before)
        };
        let mut floors: Vec<Outgoing> = plan
            .floors
            .iter()
            .filter_map(|(address, floor)| {
                let body = serde_json::to_vec(&Floor::acked(position(address, *floor))).ok()?;
                // Nothing below is stored.
                Some(Outgoing {
                    subject: self.names.place(address).floor?,
                    lasts: Some(DAY),
                    body: body.into(),
                })
            })
            .collect();
        floors.sort_by(|a, b| a.subject.cmp(&b.subject));
        let current =
            walk.registrations.iter().filter(|(_, known)| known.registers() || known.expires_at > began);
        let registrations = current.map(|(session, known)| {
            let address = Address::Session(session.clone());
            let source = match known.source {
                RegistrationSource::Former { through } => {
                    RegistrationSource::Former { through: position(&address, through) }
                }
                other => other,
            };
            // `since` stays: it is below all seqs here, as what it is about is gone, and old `reply_to`s name it.
            let known = Registration { source, ..known.clone() };
            let lasts = Duration::from_millis(known.expires_at.saturating_sub(began));
            let lasts = lasts.saturating_add(self.options.max_ttl).saturating_add(2 * DAY);
            let entry = Entry::new(session, &known, began.saturating_add(millis(lasts)));
            let body = serde_json::to_vec(&entry).expect("strings and numbers always encode").into();
            Outgoing { subject: self.names.registration(session), lasts: Some(lasts), body }
        });
        let registrations = registrations.collect();
        let ids: Vec<_> = walk
            .ids
            .iter()
            .map(|(id, before, until)| {
                // The message may be acknowledged and gone.
                (*id, plan.seq(origins, *before).unwrap_or(*before), *until)
            })
            .collect();
        let batches = ids.chunks(BATCH).enumerate().map(|(number, batch)| {
            let subject = batch_subject(&self.options.prefix, number);
            Outgoing { subject, lasts: None, body: encode(batch) }
        });
        [floors, registrations, batches.collect()]
    }

    /// Fills all streams at the same time. Answers how many schedules it stored.
    async fn fill(
        &self,
        Streams { specs, states, schedules }: Streams<'_>,
        (walk, others): (Walk, [Vec<Outgoing>; 3]),
        wanted: &[u64],
        progress: impl Fn(u64),
    ) -> Result<u64, MigrateError> {
        let done = AtomicU64::new(0);
        let (mut senders, mut targets) = (Vec::new(), Vec::new());
        for ((spec, state), wanted) in specs.iter().zip(states).zip(wanted) {
            let already = state.last.saturating_sub(state.origin);
            if already > *wanted {
                return Err(differs(&spec.name, "messages", already, *wanted));
            }
            let (sender, items) = mpsc::channel(QUEUE);
            let target =
                Target { link: self.link, stream: &spec.name, origin: state.origin, already, done: &done };
            targets.push(async move { target.fill(items).await });
            senders.push(sender);
        }
        let (sender, items) = mpsc::channel(QUEUE);
        let stream = schedules.map_or("", |spec| &spec.name);
        let scheduler = schedules.map(|_| sender);
        let scheduling = Schedules { link: self.link, stream, done: &done };
        let mut seqs: Vec<Seq> = states.iter().map(|state| Seq(state.origin)).collect();
        let reading = spawn_blocking(move || -> Result<Left, MigrateError> {
            // A closed channel: the stream takes nothing more, and says why.
            let left = walk.run(|moved| {
                let seq = &mut seqs[moved.stream];
                *seq = Seq(seq.0 + 1);
                let schedule = scheduler.as_ref().zip(walk.schedule(&moved, *seq));
                schedule.is_none_or(|(scheduler, schedule)| scheduler.blocking_send(schedule).is_ok())
                    && senders[moved.stream].blocking_send(moved.item).is_ok()
            })?;
            for (items, sender) in others.into_iter().zip(senders.drain(senders.len() - 3..)) {
                for item in items {
                    if sender.blocking_send(item).is_err() {
                        break;
                    }
                }
            }
            Ok(left)
        });
        let filling = try_join(try_join_all(targets), scheduling.fill(items));
        let reporting = async {
            let mut ticks = interval(REPORT);
            loop {
                ticks.tick().await;
                progress(done.load(Ordering::Relaxed));
            }
        };
        let filled = tokio::select! {
            filled = filling => filled,
            () = reporting => unreachable!("it has no end"),
        };
        let read = reading.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        progress(done.load(Ordering::Relaxed));
        let (_, scheduled) = filled?;
        read.map(|_| scheduled)
    }

    /// Compares what NATS holds with what was to be moved. Answers the newest seqs of the streams of messages too.
    async fn compare(
        &self,
        specs: &[StreamSpec],
        plan: &Plan,
        wanted: &[u64],
        (stored, scheduled): (u64, u64),
    ) -> Result<(Migrated, Vec<u64>), MigrateError> {
        let mut states = Vec::new();
        for (spec, wanted) in specs.iter().zip(wanted) {
            let state = spec.verify(self.link).await?;
            let state = state.ok_or_else(|| NatsError::Missing { stream: spec.name.clone() })?;
            for found in [state.last.saturating_sub(state.origin), state.messages] {
                if found != *wanted {
                    return Err(differs(&spec.name, "messages", found, *wanted));
                }
            }
            states.push(state);
        }
        let shards = self.options.shards;
        let sum = |states: &[StreamState], count: fn(&StreamState) -> u64| states.iter().map(count).sum();
        let (mailboxes, rest) = states.split_at(shards);
        let (topics, rest) = rest.split_at(shards);
        let counts = vec![
            ("mailboxes", plan.mailboxes() as u64, sum(mailboxes, |state| state.subjects)),
            ("topics", plan.topics.len() as u64, sum(topics, |state| state.subjects)),
            (
                "messages",
                wanted[..2 * shards].iter().sum(),
                sum(&states[..2 * shards], |state| state.messages),
            ),
            ("floors", wanted[2 * shards], rest[0].subjects),
            ("registrations", wanted[2 * shards + 1], rest[1].subjects),
            ("batches of ids", wanted[2 * shards + 2], rest[2].subjects),
        ];
        for (what, expected, found) in &counts {
            if found != expected {
                return Err(differs("(all)", what, *found, *expected));
            }
        }
        let ends = states[..2 * shards].iter().map(|state| state.last).collect();
        let Left { expired, acknowledged, beyond, receipts } = plan.left;
        let with_receipt = plan.with_receipt;
        let migrated =
            Migrated { counts, stored, expired, acknowledged, beyond, receipts, with_receipt, scheduled };
        Ok((migrated, ends))
    }
}

fn differs(stream: &str, what: &'static str, found: u64, expected: u64) -> MigrateError {
    MigrateError::Differs { stream: stream.to_owned(), what, found, expected }
}
