//! Brings what other nodes store to the readers of this one.
//!
//! What NATS republishes may be missed. Three nets catch that: a message names the seq before it; after a new connection, an
//! overflow or an election, and every few seconds, the newest seqs of all addresses that are read here are compared.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::Message;
use futures::StreamExt;
use futures::future::join_all;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::engine::nats::envelope;
use crate::engine::nats::error::{AskError, NatsError};
use crate::engine::nats::link::{header, number, status};
use crate::engine::nats::nets::Net;
use crate::engine::nats::node::{Core, Trouble};
use crate::engine::nats::setup::check_server;
use crate::message::{Address, Seq};
use crate::sync::lock;

/// Under what NATS tells that a stream has another leader. The last part is the name of the stream.
pub(super) const LEADERS: &str = "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED";

/// How often the newest seqs are compared.
const COMPARE: Duration = Duration::from_secs(5);

/// Pause after a check, however much asks for the next one.
const CHECK_PAUSE: Duration = Duration::from_millis(200);

/// How long a copy of a stream may be behind, at least.
const RECENT: Duration = Duration::from_secs(30);

/// How long a stream may be without a leader before senders are refused at once.
const ELECTION: Duration = Duration::from_secs(10);

/// Most addresses of one comparison: the servers answer no more than 1,024.
const COMPARED: usize = 1_000;

impl Core {
    /// Publishes a message to the readers here.
    pub(super) fn carry(&self, address: &Address, stream: usize, message: &Message) {
        if self.signals.nets.loses() {
            return;
        }
        match header(message, "Nats-Stream") {
            None => {
                if let Some(publication) = envelope::decode_volatile(address, &message.payload) {
                    // Without room in the memory budget it is lost, as it may be.
                    _ = self.hubs.publish_volatile(address, &publication);
                }
            }
            Some(_) => {
                let (seq, prev) = (number(message, "Nats-Sequence"), number(message, "Nats-Last-Sequence"));
                self.note_newest(stream, seq);
                match envelope::decode(address, Seq(seq), &message.payload) {
                    Some(letter) => {
                        self.note_read(address, (Seq(prev), Seq(seq)), &letter);
                        if self.compare_owner(address, letter.owner) != Ordering::Equal {
                            // A read finds out for whom it is.
                            return self.hubs.wake(address, Seq(seq));
                        }
                        let prev = if self.signals.nets.works(Net::Previous) { prev } else { 0 };
                        self.hubs.publish(address, &letter.publication, Seq(prev));
                    }
                    None => self.hubs.wake(address, Seq(seq)),
                }
            }
        }
    }

    /// Keeps the copy of the directory up to date.
    pub(super) async fn run_directory(self: Arc<Self>, mut changes: async_nats::Subscriber) {
        while let Some(change) = changes.next().await {
            let seq = number(&change, "Nats-Sequence");
            self.apply(seq, &change.payload);
            let is_next = {
                let mut directory = self.directory.lock();
                let is_next = directory.applied + 1 >= seq;
                if is_next {
                    directory.applied = directory.applied.max(seq);
                }
                is_next
            };
            if !is_next && let Err(error) = self.catch_up_to(seq).await {
                tracing::debug!(reason = %error.reason(), "the directory is read later");
            }
        }
    }

    /// Looks for what was missed when a stream gets another leader: the last one may have stored messages that it did not bring.
    pub(super) async fn run_leaders(self: Arc<Self>, mut elections: async_nats::Subscriber) {
        let streams = format!("{LEADERS}.{}_", self.options.prefix);
        while let Some(election) = elections.next().await {
            if election.subject.starts_with(&streams) {
                self.signals.may_have_missed(Net::Leader);
            }
        }
    }

    /// Looks after the connection, compares the newest seqs, and checks the streams.
    pub(super) async fn run_checks(core: Weak<Self>) {
        let Some(signals) = core.upgrade().map(|core| core.signals.clone()) else { return };
        let (mut ticks, mut aged) = (interval(COMPARE), Instant::now());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    if !signals.nets.works(Net::Compared) {
                        continue;
                    }
                }
                () = signals.missed.notified() => {}
            }
            let Some(core) = core.upgrade() else { return };
            if core.link.is_up() {
                core.check().await;
                sleep(CHECK_PAUSE).await;
            }
            if aged.elapsed() > RECENT {
                core.recent.age();
                aged = Instant::now();
            }
        }
    }

    async fn check(&self) {
        let (checked, answers) = match check_server(self.link.client(), self.options.max_payload) {
            Ok(()) => tokio::join!(self.check_streams(), self.has_leader()),
            wrong => (wrong, true),
        };
        // What is wrong with a server or a setting is wrong elsewhere too.
        let is_failing = matches!(checked, Err(NatsError::Request { .. }));
        self.note_trouble(checked.err());
        self.leave_if_cut_off(is_failing, answers).await;
        if !answers {
            // Nor would anything else be answered.
            return self.signals.missed.notify_one();
        }
        let compared = self.compare().await;
        if let Err(error) = compared.and(self.catch_up().await) {
            tracing::debug!(reason = %error.reason(), "what was missed is looked for later");
        }
    }

    fn note_trouble(&self, error: Option<NatsError>) {
        let mut trouble = lock(&self.trouble);
        let Some(error) = error else { return *trouble = None };
        tracing::warn!(reason = %error, "NATS cannot be used now");
        let now = Instant::now();
        let refuses_from = match (&error, &*trouble) {
            (NatsError::Request { .. }, Some(known)) => known.refuses_from,
            (NatsError::Request { .. }, None) => now + ELECTION,
            _ => now,
        };
        *trouble = Some(Trouble { reason: error.to_string().into(), refuses_from });
    }

    /// Checks the streams of messages.
    ///
    /// # Errors
    /// What is wrong with them.
    async fn check_streams(&self) -> Result<(), NatsError> {
        let mut states = Vec::with_capacity(self.specs.len());
        for spec in &self.specs {
            let state = spec.verify(&self.link).await?;
            states.push(state.ok_or_else(|| NatsError::Missing { stream: spec.name.clone() })?);
        }
        if self.note_states(states) {
            tracing::warn!("stored messages were lost: a stream of NATS began anew");
            self.hubs.change_epoch();
        }
        Ok(())
    }

    /// Tells the readers here up to where their addresses have messages.
    async fn compare(&self) -> Result<(), AskError> {
        let mut streams: HashMap<usize, Vec<(Address, String)>> = HashMap::new();
        for address in self.feeds.all() {
            let place = self.place(&address);
            streams.entry(place.stream).or_default().push((address, place.stored));
        }
        // All at once: where one stream does not answer, others may.
        let compared = streams.into_iter().map(async |(stream, addresses)| {
            for addresses in addresses.chunks(COMPARED) {
                self.compare_some(stream, addresses).await?;
            }
            Ok(())
        });
        join_all(compared).await.into_iter().collect()
    }

    async fn compare_some(&self, stream: usize, addresses: &[(Address, String)]) -> Result<(), AskError> {
        let subjects: Vec<&str> = addresses.iter().map(|(_, subject)| subject.as_str()).collect();
        let by_subject: HashMap<&str, &Address> =
            addresses.iter().map(|(address, subject)| (subject.as_str(), address)).collect();
        let request = json!({ "multi_last": subjects });
        let mut answers = self.link.get(&self.names.stream(stream), &request, addresses.len()).await?;
        loop {
            let answer = answers.next().await?;
            match status(&answer) {
                0 => {}
                204 | 404 => return Ok(()),
                code => {
                    let text = answer.description.as_deref().unwrap_or("refused").into();
                    return Err(AskError::Refused { code: code.into(), text });
                }
            }
            let seq = number(&answer, "Nats-Sequence");
            self.note_newest(stream, seq);
            let subject = header(&answer, "Nats-Subject").unwrap_or_default();
            if let Some(address) = by_subject.get(subject) {
                self.hubs.wake(address, Seq(seq));
            }
        }
    }
}
