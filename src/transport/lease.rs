//! Leases of subscriptions: they keep a polling reader attached between its polls.
//!
//! A polling reader is away for a moment between two polls. Its lease keeps the subscriber attached to the hub
//! meanwhile. So an acknowledgement by another tab deletes nothing that this reader has not got, and volatile messages
//! are kept for it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::message::{Seq, SessionId};
use crate::subscriber::Subscriber;
use crate::sync::{lock, shrink};

/// How long a lease lasts after a poll ends.
pub(crate) const GRACE: Duration = Duration::from_secs(15);

/// Most leases of one session. A new reader evicts the one that is idle the longest.
pub(crate) const MAX_READERS: usize = 64;

/// The leases of all sessions of one transport. `T` is the state that the transport keeps for each reader.
#[derive(Debug)]
pub(crate) struct Leases<T> {
    /// Protects the leases. Held for look-ups only: neither across an await nor while a subscriber is made or dropped,
    /// which takes the locks of its hub.
    table: Mutex<LeaseTable<T>>,
}

#[derive(Debug)]
struct LeaseTable<T> {
    next_id: u64,
    /// Sessions with at least one lease.
    sessions: HashMap<SessionId, SessionLeases<T>>,
    /// When to check an idle lease, in order of time. Entries may be out of date.
    deadlines: VecDeque<(Instant, SessionId, u64)>,
}

#[derive(Debug)]
struct SessionLeases<T> {
    leases: Vec<Lease<T>>,
    /// Notified when a reader comes, goes or moves.
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Lease<T> {
    id: u64,
    /// The last seq that this reader was answered with.
    position: Seq,
    /// `None` while a poll holds the reader.
    idle: Option<IdleReader<T>>,
}

/// A reader between two polls.
#[derive(Debug)]
pub(crate) struct IdleReader<T> {
    subscriber: Subscriber,
    /// The transport's state of this reader.
    pub state: T,
    /// When its last poll ended.
    since: Instant,
    /// The peer aborted its last poll: it probably does not come back.
    aborted: bool,
}

impl<T> IdleReader<T> {
    /// Whether the reader probably does not come back: its poll was aborted, or it is idle for longer than `timeout`.
    #[must_use]
    pub(crate) fn is_gone(&self, timeout: Duration) -> bool {
        self.aborted || self.since.elapsed() > timeout
    }

    /// The attached subscriber.
    #[must_use]
    pub(crate) fn subscriber(&self) -> &Subscriber {
        &self.subscriber
    }

    /// The attached subscriber and the transport's state.
    pub(crate) fn parts(&mut self) -> (&mut Subscriber, &mut T) {
        (&mut self.subscriber, &mut self.state)
    }

    /// When its last poll ended.
    #[must_use]
    pub(crate) fn since(&self) -> Instant {
        self.since
    }
}

/// A reader in use by one poll. Dropping it makes the reader idle again, also if the poll is aborted.
#[derive(Debug)]
pub(crate) struct Claim<T> {
    leases: Arc<Leases<T>>,
    session: SessionId,
    id: u64,
    /// `None` only during the drop.
    held: Option<(Subscriber, T)>,
    /// Whether the poll has its answer.
    answered: bool,
    changed: Arc<Notify>,
}

/// Why a poll gets no reader.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ClaimError<E> {
    /// [`MAX_READERS`] polls of the session are waiting.
    TooManyPolls,
    /// There is no idle reader, and a new one cannot be made.
    NoNewReader(E),
}

impl<T> Default for Leases<T> {
    fn default() -> Self {
        let table = LeaseTable { next_id: 0, sessions: HashMap::new(), deadlines: VecDeque::new() };
        Self { table: Mutex::new(table) }
    }
}

impl<T> SessionLeases<T> {
    /// Takes the idle reader with the highest score.
    fn take_best<S: Ord>(
        &mut self,
        score: impl Fn(Seq, &IdleReader<T>) -> Option<S>,
    ) -> Option<(u64, IdleReader<T>)> {
        let scored = self.leases.iter_mut().filter_map(|lease| {
            let score = score(lease.position, lease.idle.as_ref()?)?;
            Some((score, lease))
        });
        let (_, lease) = scored.max_by(|(a, _), (b, _)| a.cmp(b))?;
        Some((lease.id, lease.idle.take()?))
    }

    /// Removes the reader that is idle the longest.
    fn evict_longest_idle(&mut self) -> Option<IdleReader<T>> {
        let idle = self.leases.iter().enumerate();
        let longest = idle.filter_map(|(at, lease)| Some((lease.idle.as_ref()?.since, at))).min();
        longest.and_then(|(_, at)| self.leases.swap_remove(at).idle)
    }

    /// Removes the readers of a session that was ended; a new session of the same name begins without them.
    fn remove_ended(&mut self) -> Vec<Lease<T>> {
        let ended =
            |lease: &mut Lease<T>| lease.idle.as_ref().is_some_and(|idle| idle.subscriber.has_ended());
        self.leases.extract_if(.., ended).collect()
    }
}

impl<T> LeaseTable<T> {
    fn remove_if_empty(&mut self, session: &SessionId) {
        if self.sessions.get(session).is_some_and(|entry| entry.leases.is_empty()) {
            self.sessions.remove(session);
        }
    }
}

impl<T> Leases<T> {
    /// Claims the idle reader with the highest score, or a new one if no idle reader has a score.
    ///
    /// `score` is given the position of a reader's last answer. While `new` fails, idle readers of the session are
    /// evicted one by one, since the session may be at its limit of readers.
    ///
    /// # Errors
    /// [`ClaimError`] says why there is no reader.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, except that idle readers may have been evicted.
    pub(crate) async fn claim<S: Ord, E, F: Future<Output = Result<(Subscriber, T), E>>>(
        self: &Arc<Self>,
        session: &SessionId,
        score: impl Fn(Seq, &IdleReader<T>) -> Option<S>,
        new: impl Fn() -> F,
    ) -> Result<Claim<T>, ClaimError<E>> {
        if let Some(claim) = self.claim_idle(session, score) {
            return Ok(claim);
        }
        if self.readers_of(session) >= MAX_READERS {
            drop(self.evict_longest_idle(session).ok_or(ClaimError::TooManyPolls)?);
        }
        loop {
            match new().await {
                Ok((subscriber, state)) => return Ok(self.insert(session, subscriber, state)),
                Err(error) => {
                    let evicted = self.evict_longest_idle(session);
                    drop(evicted.ok_or(ClaimError::NoNewReader(error))?);
                }
            }
        }
    }

    fn claim_idle<S: Ord>(
        self: &Arc<Self>,
        session: &SessionId,
        score: impl Fn(Seq, &IdleReader<T>) -> Option<S>,
    ) -> Option<Claim<T>> {
        let mut table = lock(&self.table);
        let entry = table.sessions.get_mut(session)?;
        let ended = entry.remove_ended();
        let best = entry.take_best(score);
        let changed = Arc::clone(&entry.changed);
        table.remove_if_empty(session);
        drop(table);
        drop(ended);
        changed.notify_waiters();
        let (id, IdleReader { subscriber, state, .. }) = best?;
        Some(self.claimed(session, id, (subscriber, state), changed))
    }

    /// Adds the lease of a new reader.
    fn insert(self: &Arc<Self>, session: &SessionId, subscriber: Subscriber, state: T) -> Claim<T> {
        let mut table = lock(&self.table);
        let id = table.next_id;
        table.next_id += 1;
        let entry = table
            .sessions
            .entry(session.clone())
            .or_insert_with(|| SessionLeases { leases: Vec::new(), changed: Arc::default() });
        entry.leases.push(Lease { id, position: subscriber.sent_through(), idle: None });
        let changed = Arc::clone(&entry.changed);
        drop(table);
        changed.notify_waiters();
        self.claimed(session, id, (subscriber, state), changed)
    }

    fn claimed(
        self: &Arc<Self>,
        session: &SessionId,
        id: u64,
        held: (Subscriber, T),
        changed: Arc<Notify>,
    ) -> Claim<T> {
        let (leases, session) = (Arc::clone(self), session.clone());
        Claim { leases, session, id, held: Some(held), answered: false, changed }
    }

    fn readers_of(&self, session: &SessionId) -> usize {
        lock(&self.table).sessions.get(session).map_or(0, |entry| entry.leases.len())
    }

    fn evict_longest_idle(&self, session: &SessionId) -> Option<IdleReader<T>> {
        let mut table = lock(&self.table);
        let evicted = table.sessions.get_mut(session)?.evict_longest_idle();
        table.remove_if_empty(session);
        evicted
    }

    /// Calls `visit` with each idle reader of a session.
    pub(crate) fn each_idle(&self, session: &SessionId, mut visit: impl FnMut(&mut IdleReader<T>)) {
        if let Some(entry) = lock(&self.table).sessions.get_mut(session) {
            entry.leases.iter_mut().filter_map(|lease| lease.idle.as_mut()).for_each(&mut visit);
        }
    }

    /// Drops the readers that are idle for [`GRACE`], and returns their state. The server calls it every second.
    pub(crate) fn sweep(&self) -> Vec<(SessionId, T)> {
        let now = Instant::now();
        let mut expired = Vec::new();
        let mut table = lock(&self.table);
        while let Some((deadline, ..)) = table.deadlines.front()
            && *deadline <= now
        {
            let Some((deadline, session, id)) = table.deadlines.pop_front() else { break };
            if let Some(idle) = table.expire(&session, id, deadline) {
                expired.push((session, idle));
            }
        }
        shrink(&mut table.sessions);
        drop(table);
        expired.into_iter().map(|(session, idle)| (session, idle.state)).collect()
    }
}

impl<T> LeaseTable<T> {
    /// Removes a lease if its reader is idle since [`GRACE`] before `deadline`.
    fn expire(&mut self, session: &SessionId, id: u64, deadline: Instant) -> Option<IdleReader<T>> {
        let entry = self.sessions.get_mut(session)?;
        let expired = |lease: &Lease<T>| {
            lease.id == id && lease.idle.as_ref().is_some_and(|idle| idle.since + GRACE <= deadline)
        };
        let at = entry.leases.iter().position(expired)?;
        let idle = entry.leases.swap_remove(at).idle;
        entry.changed.notify_waiters();
        self.remove_if_empty(session);
        idle
    }
}

impl<T> Claim<T> {
    /// The claimed reader.
    pub(crate) fn subscriber(&mut self) -> &mut Subscriber {
        self.parts().0
    }

    /// The claimed reader, and the transport's state of it.
    pub(crate) fn parts(&mut self) -> (&mut Subscriber, &mut T) {
        let (subscriber, state) = self.held.as_mut().expect("held until dropped");
        (subscriber, state)
    }

    /// Notes that the poll has its answer. A claim that is dropped before counts as aborted.
    pub(crate) fn answered(&mut self) {
        self.answered = true;
    }

    /// Notes the last seq that this reader is answered with.
    pub(crate) fn set_position(&self, position: Seq) {
        let mut table = lock(&self.leases.table);
        let leases = table.sessions.get_mut(&self.session).map(|entry| entry.leases.as_mut_slice());
        if let Some(lease) = leases.unwrap_or_default().iter_mut().find(|lease| lease.id == self.id) {
            lease.position = position;
        }
        drop(table);
        self.changed.notify_waiters();
    }

    /// Waits until each other reader of this session can be answered with `next` as well, or was answered with it. An
    /// idle reader is waited for until it is idle for `timeout`. No wait lasts beyond `deadline`.
    ///
    /// Returns the nearest position of those that were answered with `next` or more: the answer must end there.
    ///
    /// This keeps readers that cannot be told apart, like the tabs of one browser, at the same position. So it does not
    /// matter which tab claims which reader.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub(crate) async fn wait_for_peers(
        &self,
        next: Seq,
        timeout: Duration,
        deadline: Instant,
    ) -> Option<Seq> {
        let called = Instant::now();
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let peers = self.peers(next, called);
            match peers.waiting_since.map(|since| (since + timeout).min(deadline)) {
                Some(until) if until > Instant::now() => _ = timeout_at(until, changed).await,
                _ => return peers.ahead,
            }
        }
    }

    /// The other readers of this session, compared with `next`. A peer that is behind this reader and in a poll counts
    /// as waited for since `called`.
    fn peers(&self, next: Seq, called: Instant) -> Peers {
        let table = lock(&self.leases.table);
        let Some(entry) = table.sessions.get(&self.session) else { return Peers::default() };
        let own = entry.leases.iter().find(|lease| lease.id == self.id).map_or(next, |lease| lease.position);
        let mut peers = Peers::default();
        for lease in entry.leases.iter().filter(|lease| lease.id != self.id) {
            if lease.position >= next {
                peers.ahead = Some(peers.ahead.map_or(lease.position, |ahead| ahead.min(lease.position)));
                continue;
            }
            let since = match &lease.idle {
                Some(idle) => (!idle.aborted).then_some(idle.since),
                None => (lease.position < own).then_some(called),
            };
            peers.waiting_since = peers.waiting_since.max(since);
        }
        peers
    }
}

/// How far the other readers of a session are.
#[derive(Debug, Default)]
struct Peers {
    /// Since when the last one is waited for; `None` if all are ready.
    waiting_since: Option<Instant>,
    /// The nearest position of those that are ahead.
    ahead: Option<Seq>,
}

impl<T> Drop for Claim<T> {
    fn drop(&mut self) {
        let Some((subscriber, state)) = self.held.take() else { return };
        let since = Instant::now();
        let idle = IdleReader { subscriber, state, since, aborted: !self.answered };
        let mut table = lock(&self.leases.table);
        let LeaseTable { sessions, deadlines, .. } = &mut *table;
        let lease = sessions
            .get_mut(&self.session)
            .and_then(|entry| entry.leases.iter_mut().find(|lease| lease.id == self.id));
        if let Some(lease) = lease {
            lease.idle = Some(idle);
            deadlines.push_back((since + GRACE, self.session.clone(), self.id));
        }
        drop(table);
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
