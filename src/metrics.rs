//! Counts of what happens, for `/metrics`. They are of the whole process.
//!
//! What happens for each message is counted by each thread in cells of its own ([`per_thread`]): no locked instruction, and
//! no cache line that two cores write. The rest has one atomic number each. Nothing here takes a lock.
//!
//! What is known elsewhere, like how much is stored, is not counted here again. `ops` looks it up when metrics are read.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::message::GapReason;
use crate::protocol::{Code, Transport};

mod histogram;
mod labels;
mod per_thread;

pub(crate) use histogram::{Histogram, Snapshot};
pub(crate) use labels::{Limit, Rejected, SentBy};
pub(crate) use per_thread::{
    accepted, commit_wait, count_accepted, count_delivered, delivered, delivery, observe_commit_wait,
    observe_delivery,
};

/// A number that only grows.
#[derive(Debug)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts one more.
    pub(crate) fn count(&self) {
        self.add(1);
    }

    /// Counts so many more.
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many were counted.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Messages that their readers acknowledged, and that left their mailboxes.
pub(crate) static ACKNOWLEDGED: Counter = Counter::new();

/// Messages that left their mailboxes because their time to live was over.
pub(crate) static EXPIRED: Counter = Counter::new();

/// Readers that the channel of their hub has overtaken, and that read from the store again.
pub(crate) static LAGGED: Counter = Counter::new();

/// Gaps that readers were told, by the number of their reason.
pub(crate) static GAPS: [Counter; GapReason::ALL.len()] = [const { Counter::new() }; GapReason::ALL.len()];

/// Messages in all commits.
pub(crate) static COMMITTED: Counter = Counter::new();

/// What whole commits took.
pub(crate) static COMMIT: Histogram = Histogram::new();

/// What the last step of a commit took: at level `fsync` that waits for the disk.
pub(crate) static SYNC: Histogram = Histogram::new();

/// Commits that failed.
pub(crate) static FAILED_COMMITS: Counter = Counter::new();

/// Fetches of the JWK set: those that succeeded, and those that failed.
pub(crate) static JWKS_FETCHES: [Counter; 2] = [const { Counter::new() }; 2];

/// Times when an address had appends that NATS did not answer in time, and that are sent again.
#[cfg(feature = "nats")]
pub(crate) static NATS_UNANSWERED: Counter = Counter::new();

/// When the certificate of the server ends, in Unix seconds; 0 without one.
pub(crate) static CERTIFICATE_END: AtomicI64 = AtomicI64::new(0);

static REDELIVERED: [Counter; 2] = [const { Counter::new() }; 2];

/// Answers to polls whose messages are delivered again, since nothing showed that they arrived. With another transport the client
/// begins a new connection, of which nobody knows what the one before was sent.
pub(crate) fn redelivered(poll: Transport) -> &'static Counter {
    &REDELIVERED[usize::from(poll == Transport::Legacy)]
}

static WAITING_POLLS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// A poll that waits for something; of today's x0 client or a native one. It takes no memory.
#[derive(Debug)]
pub(crate) struct WaitingPoll<const LEGACY: bool>(());

impl<const LEGACY: bool> WaitingPoll<LEGACY> {
    /// It begins to wait, until this is dropped.
    pub(crate) fn begin() -> Self {
        WAITING_POLLS[usize::from(LEGACY)].fetch_add(1, Ordering::Relaxed);
        Self(())
    }

    /// How many wait now.
    pub(crate) fn count() -> u64 {
        WAITING_POLLS[usize::from(LEGACY)].load(Ordering::Relaxed)
    }
}

impl<const LEGACY: bool> Drop for WaitingPoll<LEGACY> {
    fn drop(&mut self) {
        WAITING_POLLS[usize::from(LEGACY)].fetch_sub(1, Ordering::Relaxed);
    }
}

static REFUSED_SENDS: [[Counter; Code::ALL.len()]; SentBy::ALL.len()] =
    [const { [const { Counter::new() }; Code::ALL.len()] }; SentBy::ALL.len()];
static REFUSED: [[Counter; Code::ALL.len()]; SentBy::ALL.len()] =
    [const { [const { Counter::new() }; Code::ALL.len()] }; SentBy::ALL.len()];
static LIMITED: [Counter; Limit::ALL.len()] = [const { Counter::new() }; Limit::ALL.len()];
static REJECTED: [Counter; Rejected::ALL.len()] = [const { Counter::new() }; Rejected::ALL.len()];

/// Messages that were refused.
pub(crate) fn refused_sends(by: SentBy, code: Code) -> &'static Counter {
    &REFUSED_SENDS[by as usize][code as usize]
}

/// Requests and frames of all kinds that were refused.
pub(crate) fn refused(by: SentBy, code: Code) -> &'static Counter {
    &REFUSED[by as usize][code as usize]
}

/// What a limit or a share has refused.
pub(crate) fn limited(limit: Limit) -> &'static Counter {
    &LIMITED[limit as usize]
}

/// Credentials that were not accepted.
pub(crate) fn rejected(why: Rejected) -> &'static Counter {
    &REJECTED[why as usize]
}

/// Counts a message whose sender is answered now.
pub(crate) fn count_answer(by: SentBy, refused: Option<Code>) {
    match refused {
        None => count_accepted(by),
        Some(code) => refused_sends(by, code).count(),
    }
}
