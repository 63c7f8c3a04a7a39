//! Appends on their way. Those to one address are sent in the order of the calls, without waiting for the answers before.
//!
//! An append that is refused, or whose outcome is not known, holds its lane: later ones to its address wait until it is
//! decided, so that a retry never overtakes.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::engine::nats::error::AskError;
use crate::engine::nats::in_flight::InFlight;
use crate::engine::nats::link::Stored;
use crate::engine::nats::load::Load;
use crate::engine::nats::names::Place;
use crate::engine::{Append, EngineError, QueueBounds, Usage};
use crate::message::{Address, Seq};
use crate::sync::{lock, shrink};

/// An append on its way, and who waits for it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) append: Append,
    /// When it was accepted.
    pub(super) since: Instant,
    pub(super) answer: oneshot::Sender<Result<Seq, EngineError>>,
}

/// What is made of an append before it is sent.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub(super) place: Place,
    /// What makes a retry known.
    pub(super) id: String,
    /// When it expires, in Unix milliseconds.
    pub(super) expires_at: u64,
    /// How long NATS keeps it, in seconds.
    pub(super) ttl: u64,
    pub(super) body: bytes::Bytes,
}

/// An append that was sent.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) job: Job,
    pub(super) outgoing: Outgoing,
    /// The newest seq of its stream that this node knew before: its own is above.
    pub(super) after: Seq,
}

/// An append that was refused, or whose outcome is not known.
#[derive(Debug)]
pub(super) struct Undecided {
    pub(super) number: u64,
    pub(super) sent: Sent,
    pub(super) failure: AskError,
}

/// The newest append of an address that is known to be stored: its number, and its seq.
pub(super) type Newest = Option<(u64, Seq)>;

/// What an answer is followed by.
#[derive(Debug, Default)]
pub(super) struct Answered {
    /// This append is stored.
    pub(super) stored: Option<(Sent, Stored)>,
    /// Somebody has to run the lane of this address.
    pub(super) run: Option<Address>,
}

/// What becomes of an append that is pushed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It was sent, or waits for others.
    Queued,
    /// It waits, and somebody has to run the lane of its address.
    Run,
}

/// What is to be done next in a lane that is held.
#[derive(Debug)]
pub(super) enum Step {
    /// These are to be decided, in this order. Nothing else of the lane is on its way.
    Settle(Vec<Undecided>, Newest),
    /// This one is to be sent.
    Send(Job),
    /// Nothing, or not before answers come.
    Stop,
}

/// All appends on their way.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    all: Mutex<All>,
    /// Notified when something is sent while nothing was on its way.
    pub(super) busy: Notify,
}

#[derive(Debug, Default)]
struct All {
    lanes: HashMap<Address, Lane>,
    in_flight: InFlight<Sent>,
    load: Load,
}

/// The appends of one address. Invariant: without any there is no lane.
#[derive(Debug, Default)]
struct Lane {
    /// How many were sent and are not answered.
    in_flight: usize,
    newest: Newest,
    undecided: Vec<Undecided>,
    waiting: VecDeque<Job>,
    /// Later ones wait.
    is_held: bool,
    /// Somebody runs it.
    is_run: bool,
}

impl Lane {
    fn is_empty(&self) -> bool {
        self.in_flight == 0 && self.waiting.is_empty() && self.undecided.is_empty() && !self.is_held
    }
}

impl Lanes {
    /// Takes an append. It is sent at once, by `send`, if nothing before it waits and it has a outgoing, and otherwise later. `send`
    /// gets its number, and answers whether it could.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`], [`EngineError::QuotaExceeded`].
    pub(super) fn push(
        &self,
        job: Job,
        outgoing: Option<(Outgoing, Seq)>,
        (bounds, until): (QueueBounds, Instant),
        send: impl FnOnce(u64, &Append, &Outgoing) -> bool,
    ) -> Result<Pushed, EngineError> {
        let mut all = lock(&self.all);
        let All { lanes, in_flight, load } = &mut *all;
        load.add(&job.append, bounds)?;
        let lane = match lanes.entry(job.append.address.clone()) {
            Entry::Occupied(lane) => lane.into_mut(),
            Entry::Vacant(place) => place.insert(Lane::default()),
        };
        if lane.is_held {
            lane.waiting.push_back(job);
            return Ok(Pushed::Queued);
        }
        let job = match outgoing {
            Some((outgoing, after)) if send(in_flight.next(), &job.append, &outgoing) => {
                let was_idle = in_flight.is_empty();
                in_flight.push(Sent { job, outgoing, after }, until);
                lane.in_flight += 1;
                if was_idle {
                    self.busy.notify_one();
                }
                return Ok(Pushed::Queued);
            }
            _ => job,
        };
        lane.waiting.push_back(job);
        (lane.is_held, lane.is_run) = (true, true);
        Ok(Pushed::Run)
    }

    /// Notes the answer to the append with this number.
    pub(super) fn answered(&self, number: u64, outcome: Result<Stored, AskError>) -> Answered {
        let mut all = lock(&self.all);
        match all.in_flight.take(number) {
            Some(sent) => all.decide(number, sent, outcome),
            // It came too late.
            None => Answered::default(),
        }
    }

    /// Notes that there is no answer to those that were sent too long ago.
    pub(super) fn expire(&self, now: Instant) -> Vec<Address> {
        let (mut all, mut run) = (lock(&self.all), Vec::new());
        while let Some((number, sent)) = all.in_flight.pop_expired(now) {
            let unknown = AskError::Unknown("NATS does not answer".into());
            run.extend(all.decide(number, sent, Err(unknown)).run);
        }
        run
    }

    /// When the next one may expire.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        lock(&self.all).in_flight.oldest()
    }

    /// What is to be done next in the lane of an address, for who runs it.
    pub(super) fn next(&self, address: &Address) -> Step {
        let mut all = lock(&self.all);
        let Some(lane) = all.lanes.get_mut(address) else { return Step::Stop };
        if !lane.undecided.is_empty() {
            if lane.in_flight > 0 {
                // The last answer is followed by another run.
                lane.is_run = false;
                return Step::Stop;
            }
            let mut undecided = std::mem::take(&mut lane.undecided);
            undecided.sort_by_key(|undecided| undecided.number);
            return Step::Settle(undecided, lane.newest);
        }
        if let Some(job) = lane.waiting.pop_front() {
            return Step::Send(job);
        }
        (lane.is_held, lane.is_run) = (false, false);
        all.forget_empty(address);
        Step::Stop
    }

    /// Notes that one is going to be sent by who runs the lane, and answered by then, and returns its number. It waits again, first of all, if one
    /// before it is not decided.
    pub(super) fn begin(&self, sent: Sent, until: Instant) -> Option<u64> {
        let mut all = lock(&self.all);
        let All { lanes, in_flight, .. } = &mut *all;
        let lane = lanes.get_mut(&sent.job.append.address)?;
        if !lane.undecided.is_empty() {
            lane.waiting.push_front(sent.job);
            return None;
        }
        lane.in_flight += 1;
        if in_flight.is_empty() {
            self.busy.notify_one();
        }
        Some(in_flight.push(sent, until))
    }

    /// How many messages of this node are not stored yet, and their bytes.
    pub(super) fn load(&self) -> Usage {
        lock(&self.all).load.used()
    }

    /// Notes that one was decided by who runs the lane.
    pub(super) fn done(&self, append: &Append) {
        lock(&self.all).load.remove(append);
    }
}

impl All {
    fn decide(&mut self, number: u64, sent: Sent, outcome: Result<Stored, AskError>) -> Answered {
        let Self { lanes, load, .. } = self;
        let address = sent.job.append.address.clone();
        let Some(lane) = lanes.get_mut(&address) else { return Answered::default() };
        lane.in_flight -= 1;
        let stored = match outcome {
            Ok(stored) => {
                lane.newest = lane.newest.max(Some((number, Seq(stored.seq))));
                load.remove(&sent.job.append);
                Some((sent, stored))
            }
            Err(failure) => {
                lane.is_held = true;
                lane.undecided.push(Undecided { number, sent, failure });
                None
            }
        };
        let runs = lane.in_flight == 0 && !lane.undecided.is_empty() && !lane.is_run;
        lane.is_run |= runs;
        if lane.is_empty() {
            lanes.remove(&address);
            shrink(lanes);
        }
        Answered { stored, run: runs.then_some(address) }
    }

    fn forget_empty(&mut self, address: &Address) {
        if self.lanes.get(address).is_some_and(Lane::is_empty) {
            self.lanes.remove(address);
            shrink(&mut self.lanes);
        }
    }
}

#[cfg(test)]
mod tests;
