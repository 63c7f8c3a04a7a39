//! Limits how many wrong proofs one client address may show: tokens, API keys and ids of sessions.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::limits::counted_as;
use crate::message::SessionId;
use crate::sync::{lock, shrink};

/// Wrong proofs that an address may show at once.
pub(crate) const BURST: u32 = 20;

/// The time after which it may show one more.
const REFILL: Duration = Duration::from_secs(1);

/// How long the id of a session is known to be right where it was shown: two of the longest polls.
const KNOWN_FOR: Duration = Duration::from_secs(120);

/// The address has shown too many wrong proofs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooManyWrong;

/// A token bucket of wrong proofs for each client address.
#[derive(Debug, Default)]
pub(crate) struct FailedProofs {
    /// When each bucket is full again. Held for one look-up. A full bucket has no entry.
    full_at: Mutex<HashMap<IpAddr, Instant>>,
    /// Until when an id is known to be right at an address, as a hash. Held for one look-up.
    known: Mutex<HashMap<(IpAddr, u64), Instant>>,
    hasher: RandomState,
}

impl FailedProofs {
    /// Counts a wrong proof.
    ///
    /// # Errors
    /// The address has shown too many.
    pub(crate) fn charge(&self, address: Option<IpAddr>) -> Result<(), TooManyWrong> {
        let Some(address) = address.map(counted_as) else { return Ok(()) };
        let (mut full_at, now) = (lock(&self.full_at), Instant::now());
        let full = full_at.get(&address).map_or(now, |full| now.max(*full)) + REFILL;
        if full > now + REFILL * BURST {
            return Err(TooManyWrong);
        }
        full_at.insert(address, full);
        Ok(())
    }

    /// Begins to look up the id of a session. It counts as wrong until [`Attempt::forgive`] or [`Attempt::succeed`]: many at
    /// the same time are not more than one after the other. An id that was right at this address a moment ago is free, so
    /// that a neighbour who guesses does not lock its holder out.
    ///
    /// # Errors
    /// The address has shown too many wrong proofs.
    pub(crate) fn begin(
        &self,
        address: Option<IpAddr>,
        session: &SessionId,
    ) -> Result<Attempt<'_>, TooManyWrong> {
        let place = address.map(|address| (counted_as(address), self.hasher.hash_one(session)));
        let is_known = place
            .is_some_and(|place| lock(&self.known).get(&place).is_some_and(|until| *until > Instant::now()));
        if !is_known {
            self.charge(address)?;
        }
        Ok(Attempt { proofs: self, place, charged: !is_known })
    }

    /// Forgets what counts no longer. The server calls it periodically.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        let mut full_at = lock(&self.full_at);
        full_at.retain(|_, full| *full > now);
        shrink(&mut full_at);
        drop(full_at);
        let mut known = lock(&self.known);
        known.retain(|_, until| *until > now);
        shrink(&mut known);
    }
}

/// The look-up of an id, which counts as a wrong proof so far.
#[derive(Debug)]
#[must_use]
pub(crate) struct Attempt<'a> {
    proofs: &'a FailedProofs,
    place: Option<(IpAddr, u64)>,
    charged: bool,
}

impl Attempt<'_> {
    /// It was not a guess.
    pub(crate) fn forgive(self) {
        let Some((address, _)) = self.place.filter(|_| self.charged) else { return };
        if let Some(full) = lock(&self.proofs.full_at).get_mut(&address) {
            *full = full.checked_sub(REFILL).unwrap_or(*full);
        }
    }

    /// The id is right.
    pub(crate) fn succeed(self) {
        if let Some(place) = self.place {
            lock(&self.proofs.known).insert(place, Instant::now() + KNOWN_FOR);
        }
        self.forgive();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn session(name: &str) -> SessionId {
        SessionId::new(name).unwrap()
    }

    fn spend(proofs: &FailedProofs, address: Option<IpAddr>) {
        let spent = (0..BURST).all(|_| proofs.charge(address).is_ok());
        assert!(spent && proofs.charge(address) == Err(TooManyWrong));
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_shows_so_many_wrong_proofs_at_once_and_one_a_second() {
        let proofs = FailedProofs::default();
        spend(&proofs, ip("10.0.0.1"));
        assert_eq!(proofs.charge(ip("::ffff:10.0.0.1")), Err(TooManyWrong), "the same address");
        assert_eq!((proofs.charge(ip("10.0.0.2")), proofs.charge(None)), (Ok(()), Ok(())));
        tokio::time::advance(REFILL).await;
        assert_eq!(proofs.charge(ip("10.0.0.1")), Ok(()));
        assert_eq!(proofs.charge(ip("10.0.0.1")), Err(TooManyWrong));
        tokio::time::advance(REFILL * BURST).await;
        proofs.sweep();
        assert!(lock(&proofs.full_at).is_empty());
        spend(&proofs, ip("10.0.0.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_ipv6_network_is_one_address() {
        let proofs = FailedProofs::default();
        spend(&proofs, ip("2001:db8::1"));
        assert_eq!(proofs.charge(ip("2001:db8::ffff:2")), Err(TooManyWrong));
        assert_eq!(proofs.charge(ip("2001:db8:0:1::1")), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_right_id_costs_nothing_and_is_free_for_a_while() {
        let (proofs, address) = (FailedProofs::default(), ip("10.0.0.1"));
        for _ in 0..3 * BURST {
            proofs.begin(address, &session("right")).unwrap().succeed();
            proofs.begin(address, &session("another")).unwrap().forgive();
        }
        spend(&proofs, address);
        let again = |name: &str, at| proofs.begin(at, &session(name)).map(Attempt::succeed);
        assert_eq!(again("right", address), Ok(()));
        assert_eq!(again("other", address), Err(TooManyWrong), "it may be a guess");
        spend(&proofs, ip("10.0.0.2"));
        assert_eq!(again("right", ip("10.0.0.2")), Err(TooManyWrong), "it was not right there");
        assert_eq!(again("right", None), Ok(()));
        tokio::time::advance(KNOWN_FOR * 2).await;
        proofs.sweep();
        spend(&proofs, address);
        assert_eq!(again("right", address), Err(TooManyWrong), "that was long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn look_ups_at_the_same_time_count_together() {
        let (proofs, address) = (FailedProofs::default(), ip("10.0.0.1"));
        let attempts: Vec<_> =
            (0..BURST).map(|n| proofs.begin(address, &session(&n.to_string())).unwrap()).collect();
        assert!(proofs.begin(address, &session("x")).is_err());
        attempts.into_iter().for_each(Attempt::forgive);
        assert!(proofs.begin(address, &session("x")).is_ok());
    }
}
