//! Limits on how much one client may take: sends per second, and connections from one client address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::message::{SessionId, UserId};
use crate::reloadable::Reloadable;
use crate::sync::{lock, shrink};
use crate::table::Table;

mod failed_proofs;

pub(crate) use failed_proofs::FailedProofs;

/// Most connections that may wait for a permit, over all addresses together.
const MAX_WAITING: usize = 1024;

/// How long an address counts as proved after a proof: two polls, and the time between them.
const PROVED_FOR: Duration = Duration::from_secs(60);

/// The sender that a send is charged to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum RateKey {
    /// A user, over all its sessions.
    User(UserId),
    /// A session without a known user.
    Session(SessionId),
    /// An anonymous sender at this client address.
    Address(IpAddr),
}

/// Bytes are counted in units of so many.
const UNIT: usize = 256;

/// What a sender has too much of in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rated {
    /// Messages, one for each mailbox.
    Messages,
    /// Bytes of payloads, once for each mailbox.
    Bytes,
}

/// A sender is above its rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooFast {
    /// How long the sender has to wait.
    pub wait: Duration,
    /// What it has to wait for.
    pub of: Rated,
}

/// A token bucket for each sender.
#[derive(Debug)]
struct Buckets {
    limiter: DefaultKeyedRateLimiter<RateKey>,
    /// Tokens that come in a second.
    rate: u32,
    /// Tokens of a full bucket.
    burst: u32,
}

impl Buckets {
    /// `None` if one of both is 0.
    fn new((rate, burst): (u32, u32)) -> Option<Self> {
        let quota = Quota::per_second(NonZeroU32::new(rate)?).allow_burst(NonZeroU32::new(burst)?);
        Some(Self { limiter: RateLimiter::keyed(quota), rate, burst })
    }

    /// Takes tokens out of a sender's bucket: at least one, at most a full bucket.
    fn charge(&self, key: &RateKey, tokens: usize, clock: &DefaultClock) -> Result<(), Duration> {
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX).clamp(1, self.burst);
        let tokens = NonZeroU32::new(tokens).expect("at least one");
        match self.limiter.check_key_n(key, tokens) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(until)) => Err(until.wait_time_from(clock.now())),
            Err(_) => unreachable!("`tokens` is at most the size of a bucket"),
        }
    }
}

/// How many messages, and bytes of them, each sender may send in a second.
#[derive(Debug)]
pub(crate) struct Rates {
    limits: Reloadable<RateLimits>,
    clock: DefaultClock,
}

#[derive(Debug)]
struct RateLimits {
    /// `None` if there is no limit.
    messages: Option<Buckets>,
    /// In units of [`UNIT`]. `None` if there is no limit.
    bytes: Option<Buckets>,
}

impl RateLimits {
    fn new(messages: Option<(u32, u32)>, bytes: Option<usize>) -> Self {
        let units = |bytes: usize| u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let bytes = bytes.map(|bytes| (units(bytes), units(bytes.saturating_mul(10))));
        Self { messages: messages.and_then(Buckets::new), bytes: bytes.and_then(Buckets::new) }
    }
}

impl Rates {
    /// Rates with a limit of `messages` (in a second, and at once), and of `bytes` in a second: ten times as many at once.
    /// No limit where it is `None` or 0.
    #[must_use]
    pub(crate) fn new(messages: Option<(u32, u32)>, bytes: Option<usize>) -> Self {
        Self { limits: Reloadable::new(RateLimits::new(messages, bytes)), clock: DefaultClock::default() }
    }

    /// Sets other limits, as of [`Self::new`]. What senders have sent so far is forgotten.
    pub(crate) fn set(&self, messages: Option<(u32, u32)>, bytes: Option<usize>) {
        self.limits.set(RateLimits::new(messages, bytes));
    }

    /// Charges a sender for a message with a payload of `bytes` that goes to so many mailboxes. A message that costs more
    /// than a full bucket empties it.
    ///
    /// # Errors
    /// What the sender has too much of.
    pub(crate) fn charge(&self, key: &RateKey, mailboxes: usize, bytes: usize) -> Result<(), TooFast> {
        // Bytes last: what is refused for its bytes has cost the fewest tokens.
        let units = bytes.div_ceil(UNIT).saturating_mul(mailboxes);
        let limits = self.limits.get();
        let costs = [(&limits.messages, mailboxes, Rated::Messages), (&limits.bytes, units, Rated::Bytes)];
        for (buckets, tokens, of) in costs {
            if let Some(buckets) = buckets {
                buckets.charge(key, tokens, &self.clock).map_err(|wait| TooFast { wait, of })?;
            }
        }
        Ok(())
    }

    /// How many messages, and bytes of them, each sender may send in a second now. `None` means no limit.
    pub(crate) fn in_a_second(&self) -> (Option<u64>, Option<u64>) {
        let limits = self.limits.get();
        let rate = |buckets: &Option<Buckets>| buckets.as_ref().map(|buckets| u64::from(buckets.rate));
        (rate(&limits.messages), rate(&limits.bytes).map(|units| units * UNIT as u64))
    }

    /// Whether there is a limit.
    #[must_use]
    pub(crate) fn are_limited(&self) -> bool {
        let limits = self.limits.get();
        limits.messages.is_some() || limits.bytes.is_some()
    }

    /// Drops full buckets, which hold no information. The server calls it periodically.
    pub(crate) fn sweep(&self) {
        let limits = self.limits.hold();
        for buckets in [&limits.messages, &limits.bytes].into_iter().flatten() {
            buckets.limiter.retain_recent();
            buckets.limiter.shrink_to_fit();
        }
    }
}

/// Counts the open connections of each client address, and refuses those above the limit. Cheap to clone: each permit has one.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionLimiter(Arc<CountedConnections>);

#[derive(Debug)]
struct CountedConnections {
    /// Most connections of one address. A reload changes it.
    limit: AtomicUsize,
    /// Protects the counts; held for one look-up. An address without connections has no entry.
    counts: Mutex<Table<IpAddr, usize>>,
    /// Notified when an address that was at its limit releases a permit.
    released: Notify,
    /// Bounds the waiting connections, since each release wakes all of them.
    waiting: Semaphore,
    /// Bounds the connections that are served without a permit.
    extra: Arc<Semaphore>,
}

/// One counted connection; dropping it releases the count.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    limiter: ConnectionLimiter,
    /// `None` if the connection is not counted.
    address: Option<IpAddr>,
}

/// A connection that is above the limit of its address; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct ExtraPlace(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit);

/// The address under which a client is counted. One IPv6 customer holds a whole /64 network (RFC 6177).
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

impl ConnectionLimiter {
    /// A limiter that allows `limit` connections for each address; `usize::MAX` disables counting.
    #[must_use]
    pub(crate) fn new(limit: usize) -> Self {
        Self::with(limit, MAX_WAITING)
    }

    fn with(limit: usize, waiting: usize) -> Self {
        let (waiting, extra) = (Semaphore::new(waiting), Semaphore::new(waiting).into());
        let counted = CountedConnections {
            limit: limit.into(),
            counts: Mutex::default(),
            released: Notify::new(),
            waiting,
            extra,
        };
        Self(Arc::new(counted))
    }

    /// A limiter with the same limit, in which at most this many connections wait for a permit, and as many have none, over
    /// all addresses together.
    #[must_use]
    pub(crate) fn with_waiting(self, most: usize) -> Self {
        Self::with(self.limit(), most.min(MAX_WAITING))
    }

    /// The most connections of one address.
    #[must_use]
    pub(crate) fn limit(&self) -> usize {
        self.0.limit.load(Ordering::Relaxed)
    }

    /// Changes the most connections of one address. Those that are open stay open.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.0.limit.store(limit, Ordering::Relaxed);
        self.0.released.notify_waiters();
    }

    /// A permit, or `None` if the address is at its limit. An unknown address is not counted.
    #[must_use]
    pub(crate) fn try_acquire(&self, address: Option<IpAddr>) -> Option<ConnectionPermit> {
        let limit = self.limit();
        let address = address.filter(|_| limit < usize::MAX).map(counted_as);
        if let Some(address) = address {
            let mut counts = lock(&self.0.counts);
            let count = counts.entry(address).or_default();
            if *count >= limit {
                return None;
            }
            *count += 1;
        }
        Some(ConnectionPermit { limiter: self.clone(), address })
    }

    /// A place without a permit, for a connection of an address that is at its limit. `None` if too many have one.
    #[must_use]
    pub(crate) fn try_extra(&self) -> Option<ExtraPlace> {
        Arc::clone(&self.0.extra).try_acquire_owned().ok().map(ExtraPlace)
    }

    /// Waits for a permit; `None` at once if too many connections wait already.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(crate) async fn acquire(&self, address: Option<IpAddr>) -> Option<ConnectionPermit> {
        let _waiting = self.0.waiting.try_acquire().ok()?;
        loop {
            let released = self.0.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            if let Some(permit) = self.try_acquire(address) {
                return Some(permit);
            }
            released.await;
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut counts = lock(&self.limiter.0.counts);
        let Some(count) = counts.get_mut(&address) else { return };
        let was_full = *count >= self.limiter.limit();
        *count -= 1;
        if *count == 0 {
            counts.remove(&address);
            shrink(&mut counts);
        }
        drop(counts);
        if was_full {
            self.limiter.0.released.notify_waiters();
        }
    }
}

/// The client addresses from which registered sessions of x0 pages poll.
#[derive(Debug, Default)]
pub(crate) struct ProvedAddresses {
    /// Until when each counts. Held for one look-up.
    until: Mutex<HashMap<IpAddr, Instant>>,
}

impl ProvedAddresses {
    /// Notes that a proof came from this address.
    pub(crate) fn note(&self, address: Option<IpAddr>) {
        if let Some(address) = address {
            lock(&self.until).insert(counted_as(address), Instant::now() + PROVED_FOR);
        }
    }

    /// Whether a proof came from this address a moment ago.
    #[must_use]
    pub(crate) fn contains(&self, address: Option<IpAddr>) -> bool {
        let until = address.and_then(|address| lock(&self.until).get(&counted_as(address)).copied());
        until.is_some_and(|until| until > Instant::now())
    }

    /// Forgets old proofs. The server calls it periodically.
    pub(crate) fn sweep(&self) {
        let (mut until, now) = (lock(&self.until), Instant::now());
        until.retain(|_, until| *until > now);
        shrink(&mut until);
    }
}

#[cfg(test)]
mod tests;
