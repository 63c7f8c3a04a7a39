//! What each stream is going to hold, before anything is stored.

use std::collections::HashMap;
use std::time::Duration;

use crate::engine::Settings;
use crate::engine::embedded::OpenError;
use crate::engine::nats::migration::error::MigrateError;
use crate::engine::nats::migration::walk::{Left, Moved, Walk};
use crate::engine::nats::options::NatsOptions;
use crate::engine::nats::streams::parts;
use crate::message::{Address, Seq};

/// Bytes that NATS stores with a message: its length, seq, time, checksum and headers. Rather too many.
const OVERHEAD: usize = 160;

/// What the streams are going to hold.
#[derive(Debug)]
pub(super) struct Plan {
    streams: Vec<PlannedStream>,
    /// How many messages each mailbox gets.
    mailboxes: HashMap<Address, usize>,
    /// How far mailboxes had got before the first message that is moved.
    pub(super) floors: HashMap<Address, Seq>,
    /// How many topics have a history.
    pub(super) topics: HashMap<Address, usize>,
    pub(super) left: Left,
    /// Messages whose sender gets a receipt.
    pub(super) with_receipt: u64,
    largest: usize,
    longest: Duration,
}

#[derive(Debug, Default)]
struct PlannedStream {
    /// The seqs in the store of what it is going to hold, in order.
    seqs: Vec<u64>,
    /// How many messages it gets. Receipts that are made now come last.
    messages: u64,
    bytes: usize,
}

impl Plan {
    /// Goes through a store, for so many streams.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) fn new(walk: &Walk, streams: usize) -> Result<Self, OpenError> {
        let mut plan = Self {
            streams: (0..streams).map(|_| PlannedStream::default()).collect(),
            mailboxes: HashMap::new(),
            floors: walk.floors.clone(),
            topics: HashMap::new(),
            left: Left::default(),
            with_receipt: 0,
            largest: 0,
            longest: Duration::ZERO,
        };
        plan.floors.retain(|address, _| address.is_mailbox());
        plan.left = walk.run(|moved| {
            plan.count(&moved);
            true
        })?;
        Ok(plan)
    }

    fn count(&mut self, moved: &Moved<'_>) {
        let Moved { stream, address, before, payload, age, has_receipt, item } = moved;
        let planned = &mut self.streams[*stream];
        planned.messages += 1;
        planned.bytes += item.subject.len() + item.body.len() + OVERHEAD;
        planned.seqs.extend(before.map(|(seq, _)| seq.0));
        self.with_receipt += u64::from(*has_receipt);
        self.largest = self.largest.max(*payload);
        if !address.is_mailbox() {
            *self.topics.entry((*address).clone()).or_default() += 1;
            return;
        }
        self.longest = self.longest.max(*age);
        let count = self.mailboxes.entry((*address).clone()).or_default();
        *count += 1;
        if *count == 1
            && let Some((_, prev)) = before
        {
            let floor = self.floors.entry((*address).clone()).or_default();
            *floor = (*prev).max(*floor);
        }
    }

    /// How many mailboxes get a message.
    pub(super) fn mailboxes(&self) -> usize {
        self.mailboxes.len()
    }

    /// How many messages the stream with this number gets.
    pub(super) fn messages(&self, stream: usize) -> u64 {
        self.streams[stream].messages
    }

    /// Where a position in the store is in the stream with this number, which begins after `origin`.
    pub(super) fn position(&self, stream: usize, origin: u64, before: Seq) -> Seq {
        if before == Seq::START {
            return before;
        }
        let count = self.streams[stream].seqs.partition_point(|seq| *seq <= before.0);
        Seq(origin + count as u64)
    }

    /// Which seq a message gets that has this one in the store; `None` if it is not moved.
    pub(super) fn seq(&self, origins: &[u64], before: Seq) -> Option<Seq> {
        self.streams.iter().zip(origins).find_map(|(stream, origin)| {
            let at = stream.seqs.binary_search(&before.0).ok()?;
            Some(Seq(origin + 1 + at as u64))
        })
    }

    /// Whether streams with these settings have room for it.
    ///
    /// # Errors
    /// [`MigrateError::Limit`].
    pub(super) fn check(&self, settings: &Settings, options: &NatsOptions) -> Result<(), MigrateError> {
        let limit = |what: &str, needed: String, flag, is: String| {
            Err(MigrateError::Limit { what: what.to_owned(), needed, flag, is })
        };
        let fullest = self.mailboxes.values().copied().max().unwrap_or_default();
        if fullest > settings.mailbox.messages {
            let is = settings.mailbox.messages.to_string();
            let needed = format!("{fullest} messages");
            return limit("the fullest mailbox holds", needed, "--mailbox-messages", is);
        }
        if self.largest > options.max_payload {
            let is = options.max_payload.to_string();
            return limit("the largest payload has", format!("{} bytes", self.largest), "--max-payload", is);
        }
        if self.longest > options.max_ttl {
            let [needed, is] = [self.longest, options.max_ttl]
                .map(|time| humantime::format_duration(Duration::from_secs(time.as_secs())).to_string());
            return limit("a message is to be kept for", needed, "--max-ttl", is);
        }
        let (mailboxes, histories) = parts(settings.total_bytes, options.shards);
        for (number, stream) in self.streams.iter().enumerate() {
            let share = if number < options.shards { mailboxes } else { histories };
            if stream.bytes > share {
                let needed = format!("{} bytes, of {share} that it would get", stream.bytes);
                let is = settings.total_bytes.to_string();
                return limit("a stream needs", needed, "--store-limit", is);
            }
        }
        Ok(())
    }
}
