//! The leases of one transport, without their lock: which readers a session has, and which of them are idle.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::message::{Seq, SessionId};
use crate::subscriber::Subscriber;
use crate::sync::shrink;

/// How long a lease lasts after a poll ends.
pub(crate) const GRACE: Duration = Duration::from_secs(15);

/// The leases of one transport. `T` is the state that the transport keeps for each reader.
#[derive(Debug)]
pub(super) struct LeaseTable<T> {
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
    pub(super) subscriber: Subscriber,
    /// The transport's state of this reader.
    pub(crate) state: T,
    /// When its last poll ended.
    pub(super) since: Instant,
    /// The peer aborted its last poll: it probably does not come back.
    pub(super) aborted: bool,
}

/// How far the other readers of a session are.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// Since when the last one is waited for; `None` if all are ready.
    pub(super) waiting_since: Option<Instant>,
    /// The nearest position of those that are ahead.
    pub(super) ahead: Option<Seq>,
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

    fn lease_mut(&mut self, id: u64) -> Option<&mut Lease<T>> {
        self.leases.iter_mut().find(|lease| lease.id == id)
    }

    /// Removes an idle lease.
    fn evict(&mut self, is_evicted: impl Fn(&Lease<T>) -> bool) -> Option<IdleReader<T>> {
        let at = self.leases.iter().position(is_evicted)?;
        self.leases.swap_remove(at).idle
    }
}

impl<T> Default for LeaseTable<T> {
    fn default() -> Self {
        Self { next_id: 0, sessions: HashMap::new(), deadlines: VecDeque::new() }
    }
}

impl<T> LeaseTable<T> {
    /// Whether no session has a lease.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// How many leases a session has.
    pub(super) fn readers_of(&self, session: &SessionId) -> usize {
        self.sessions.get(session).map_or(0, |entry| entry.leases.len())
    }

    /// The idle readers of a session.
    pub(super) fn idle_readers(&mut self, session: &SessionId) -> impl Iterator<Item = &mut IdleReader<T>> {
        let leases = self.sessions.get_mut(session).map(|entry| entry.leases.iter_mut());
        leases.into_iter().flatten().filter_map(|lease| lease.idle.as_mut())
    }

    /// Takes the idle reader of a session with the highest score; with the id of its lease, and what is notified when
    /// the readers of the session change.
    pub(super) fn take_best<S: Ord>(
        &mut self,
        session: &SessionId,
        score: impl Fn(Seq, &IdleReader<T>) -> Option<S>,
    ) -> Option<(u64, IdleReader<T>, Arc<Notify>)> {
        let entry = self.sessions.get_mut(session)?;
        let (id, idle) = entry.take_best(score)?;
        Some((id, idle, Arc::clone(&entry.changed)))
    }

    /// Adds the lease of a reader that a poll holds. Returns its id, and what is notified when the readers of the session
    /// change.
    pub(super) fn insert(&mut self, session: &SessionId, position: Seq) -> (u64, Arc<Notify>) {
        let id = self.next_id;
        self.next_id += 1;
        let entry = self
            .sessions
            .entry(session.clone())
            .or_insert_with(|| SessionLeases { leases: Vec::new(), changed: Arc::default() });
        entry.leases.push(Lease { id, position, idle: None });
        (id, Arc::clone(&entry.changed))
    }

    /// Makes the reader of a lease idle, for [`GRACE`] at most.
    pub(super) fn make_idle(&mut self, session: &SessionId, id: u64, idle: IdleReader<T>) {
        if let Some(lease) = self.sessions.get_mut(session).and_then(|entry| entry.lease_mut(id)) {
            self.deadlines.push_back((idle.since + GRACE, session.clone(), id));
            lease.idle = Some(idle);
        }
    }

    /// Notes the last seq that the reader of a lease is answered with.
    pub(super) fn set_position(&mut self, session: &SessionId, id: u64, position: Seq) {
        if let Some(lease) = self.sessions.get_mut(session).and_then(|entry| entry.lease_mut(id)) {
            lease.position = position;
        }
    }

    /// Removes the reader of a session that is idle the longest.
    pub(super) fn evict_longest_idle(&mut self, session: &SessionId) -> Option<IdleReader<T>> {
        let entry = self.sessions.get_mut(session)?;
        let since = |lease: &Lease<T>| lease.idle.as_ref().map(|idle| idle.since);
        let oldest = entry.leases.iter().filter_map(since).min()?;
        let evicted = entry.evict(|lease| since(lease) == Some(oldest));
        self.remove_if_empty(session);
        evicted
    }

    /// Removes the idle readers of a session that was ended. A new session of the same name begins without them.
    pub(super) fn evict_ended(&mut self, session: &SessionId) -> Vec<IdleReader<T>> {
        let Some(entry) = self.sessions.get_mut(session) else { return Vec::new() };
        let is_ended =
            |lease: &mut Lease<T>| lease.idle.as_ref().is_some_and(|idle| idle.subscriber.ended().is_some());
        let ended = entry.leases.extract_if(.., is_ended).filter_map(|lease| lease.idle).collect();
        self.remove_if_empty(session);
        ended
    }

    /// Removes the readers that are idle for [`GRACE`].
    pub(super) fn evict_expired(&mut self, now: Instant) -> Vec<(SessionId, IdleReader<T>)> {
        let mut expired = Vec::new();
        while let Some((deadline, ..)) = self.deadlines.front()
            && *deadline <= now
        {
            let Some((deadline, session, id)) = self.deadlines.pop_front() else { break };
            if let Some(idle) = self.evict_idle_since(&session, id, deadline - GRACE) {
                expired.push((session, idle));
            }
        }
        shrink(&mut self.sessions);
        expired
    }

    /// Removes a lease if its reader is idle since `since`.
    fn evict_idle_since(&mut self, session: &SessionId, id: u64, since: Instant) -> Option<IdleReader<T>> {
        let entry = self.sessions.get_mut(session)?;
        let is_expired =
            |lease: &Lease<T>| lease.id == id && lease.idle.as_ref().is_some_and(|idle| idle.since <= since);
        let idle = entry.evict(is_expired)?;
        entry.changed.notify_waiters();
        self.remove_if_empty(session);
        Some(idle)
    }

    fn remove_if_empty(&mut self, session: &SessionId) {
        if self.readers_of(session) == 0 {
            self.sessions.remove(session);
        }
    }

    /// Compares the other readers of a session with `next`. A peer that is behind the reader of lease `id` and in a poll
    /// counts as waited for since `called`.
    pub(super) fn peers(&self, session: &SessionId, id: u64, next: Seq, called: Instant) -> Peers {
        let mut peers = Peers::default();
        let Some(entry) = self.sessions.get(session) else { return peers };
        let own = entry.leases.iter().find(|lease| lease.id == id).map_or(next, |lease| lease.position);
        for lease in entry.leases.iter().filter(|lease| lease.id != id) {
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
