//! How much one may take: sends of a session in a second, and connections from one client address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::{Notify, Semaphore};

use crate::message::{SessionId, UserId};
use crate::sync::{lock, shrink};

/// Connections that wait for a place, of all addresses together.
const MOST_WAITING: usize = 1024;

/// Who is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Payer {
    /// A user, in all sessions together.
    User(UserId),
    /// The holder of a session.
    Session(SessionId),
    /// Somebody who did not say who he is, at this address.
    Address(IpAddr),
}

/// A token bucket for each sender.
#[derive(Debug)]
pub struct Rates {
    buckets: Option<DefaultKeyedRateLimiter<Payer>>,
    clock: DefaultClock,
    /// Sends in a second.
    rate: u32,
    /// Sends at once.
    burst: u32,
}

impl Rates {
    /// This many sends in a second, and this many at once; any number if there is no limit.
    #[must_use]
    pub fn new(limit: Option<(u32, u32)>) -> Self {
        let quota = limit.and_then(|(rate, burst)| {
            Some(Quota::per_second(NonZeroU32::new(rate)?).allow_burst(NonZeroU32::new(burst)?))
        });
        let (rate, burst) = limit.unwrap_or((0, 1));
        Self { buckets: quota.map(RateLimiter::keyed), clock: DefaultClock::default(), rate, burst }
    }

    /// Takes that many sends out of the bucket, at least one, and at most all that it holds when it is full.
    ///
    /// # Errors
    /// How long to wait until they are there.
    pub fn take(&self, payer: &Payer, sends: usize) -> Result<(), Duration> {
        let Some(buckets) = &self.buckets else { return Ok(()) };
        let sends = u32::try_from(sends).unwrap_or(u32::MAX).clamp(1, self.burst);
        let sends = NonZeroU32::new(sends).expect("at least one");
        match buckets.check_key_n(payer, sends) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(until)) => Err(until.wait_time_from(self.clock.now())),
            Err(_) => unreachable!("it is not more than the bucket holds"),
        }
    }

    /// Sends in a second; 0 if there is no limit.
    #[must_use]
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Forgets whose buckets are full. Run it now and then.
    pub fn sweep(&self) {
        if let Some(buckets) = &self.buckets {
            buckets.retain_recent();
            buckets.shrink_to_fit();
        }
    }
}

/// Who holds how many connections, by client address.
#[derive(Debug, Clone)]
pub struct Addresses {
    most: usize,
    /// Protects the counts; held for one of them. Addresses without connections are not in it.
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    /// Rung when a place becomes free for someone who waits.
    freed: Arc<Notify>,
    /// Bounds who waits: each is woken by every place that becomes free.
    turns: Arc<Semaphore>,
}

/// One connection that counts, until it is dropped.
#[derive(Debug)]
pub struct Place {
    addresses: Addresses,
    address: Option<IpAddr>,
}

/// Whoever has one address of IPv6 has a whole /64 network of them (RFC 6177).
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

impl Addresses {
    /// At most this many for each.
    #[must_use]
    pub fn new(most: usize) -> Self {
        let turns = Arc::new(Semaphore::new(MOST_WAITING));
        Self { most, counts: Arc::default(), freed: Arc::default(), turns }
    }

    /// The limit.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most
    }

    /// Takes a place; `None` if the address has as many as it may. One that is not known is not counted.
    #[must_use]
    pub fn take(&self, address: Option<IpAddr>) -> Option<Place> {
        let address = address.filter(|_| self.most < usize::MAX).map(counted);
        if let Some(address) = address {
            let mut counts = lock(&self.counts);
            let count = counts.entry(address).or_default();
            if *count >= self.most {
                return None;
            }
            *count += 1;
        }
        Some(Place { addresses: self.clone(), address })
    }

    /// Takes a place as soon as there is one; `None` at once if too many wait already.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn wait(&self, address: Option<IpAddr>) -> Option<Place> {
        let _turn = self.turns.try_acquire().ok()?;
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(place) = self.take(address) {
                return Some(place);
            }
            freed.await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut counts = lock(&self.addresses.counts);
        let Some(count) = counts.get_mut(&address) else { return };
        let was_full = *count == self.addresses.most;
        *count -= 1;
        if *count == 0 {
            counts.remove(&address);
            shrink(&mut counts);
        }
        drop(counts);
        if was_full {
            self.addresses.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_are_bounded_by_address_and_given_back() {
        let addresses = Addresses::new(2);
        let ip = |text: &str| Some(text.parse().unwrap());
        let first = addresses.take(ip("10.0.0.1")).unwrap();
        let _second = addresses.take(ip("::ffff:10.0.0.1")).unwrap();
        assert!(addresses.take(ip("10.0.0.1")).is_none());
        assert!(addresses.take(ip("10.0.0.2")).is_some() && addresses.take(None).is_some());
        let waiting = addresses.wait(ip("10.0.0.1"));
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(first);
        let third = waiting.await.unwrap();
        assert!(addresses.take(ip("10.0.0.1")).is_none());
        drop(third);
        let _net =
            [addresses.take(ip("fd00::1:0:0:0:1")).unwrap(), addresses.take(ip("fd00::1:0:0:0:2")).unwrap()];
        assert!(addresses.take(ip("fd00::1:9:9:9:9")).is_none());
    }

    #[test]
    fn a_bucket_has_its_burst_and_belongs_to_one() {
        let rates = Rates::new(Some((1, 3)));
        let payer = |name: &str| Payer::Session(SessionId::new(name).unwrap());
        for _ in 0..3 {
            rates.take(&payer("A"), 1).unwrap();
        }
        let wait = rates.take(&payer("A"), 1).unwrap_err();
        assert!(wait <= Duration::from_secs(1) && !wait.is_zero(), "{wait:?}");
        // More than it ever holds is all that it holds.
        rates.take(&payer("B"), 100).unwrap();
        rates.take(&payer("B"), 1).unwrap_err();
        Rates::new(None).take(&payer("A"), 1).unwrap();
    }
}
