//! Subscriptions that outlive a poll: a reader that asks again within the grace time goes on where it was.
//!
//! Between two polls a reader is away for a moment. Its subscriber stays at the hub meanwhile, so that an
//! acknowledgement by another tab does not delete what this one has not seen, and volatile messages wait.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::message::{Seq, SessionId};
use crate::subscriber::Subscriber;
use crate::sync::{lock, shrink};

/// How long a subscription is kept between two polls.
pub const GRACE: Duration = Duration::from_secs(15);

/// Most readers of one session that are remembered; beyond that the longest idle one gives way.
pub const MOST_READERS: usize = 64;

/// The readers of all sessions of one transport. `T` is what the transport remembers of each.
#[derive(Debug)]
pub struct Leases<T> {
    /// Protects who is here; held for a look-up, never across an await.
    sessions: Mutex<Sessions<T>>,
}

#[derive(Debug)]
struct Sessions<T> {
    next_id: u64,
    readers: HashMap<SessionId, Session<T>>,
    /// When to look whether an idle reader came back; in order of time, since the grace is always the same.
    deadlines: VecDeque<(Instant, SessionId, u64)>,
}

#[derive(Debug)]
struct Session<T> {
    slots: Vec<Slot<T>>,
    /// Rung whenever a reader comes or goes.
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Slot<T> {
    id: u64,
    /// Up to where this reader was answered.
    at: Seq,
    /// `None` while a poll holds it.
    idle: Option<Idle<T>>,
}

/// A reader between two polls.
#[derive(Debug)]
pub struct Idle<T> {
    subscriber: Subscriber,
    /// What the transport remembers of it.
    pub state: T,
    since: Instant,
    /// Its last poll was cut off by its peer: it is not expected back.
    cut: bool,
}

impl<T> Idle<T> {
    /// Whether it is not expected back: cut off, or away for longer than `patience`.
    #[must_use]
    pub fn is_gone(&self, patience: Duration) -> bool {
        self.cut || self.since.elapsed() > patience
    }

    /// The waiting subscriber.
    #[must_use]
    pub fn subscriber(&self) -> &Subscriber {
        &self.subscriber
    }

    /// The waiting subscriber and what is remembered with it.
    pub fn parts(&mut self) -> (&mut Subscriber, &mut T) {
        (&mut self.subscriber, &mut self.state)
    }

    /// When its last poll ended.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }
}

/// A reader in use by one poll; it goes back when dropped, also when the poll is cut off.
#[derive(Debug)]
pub struct Claim<T> {
    leases: Arc<Leases<T>>,
    session: SessionId,
    id: u64,
    /// `None` only while being dropped.
    held: Option<(Subscriber, T)>,
    /// Whether its poll has its answer.
    answered: bool,
    changed: Arc<Notify>,
}

impl<T> Default for Leases<T> {
    fn default() -> Self {
        let sessions = Sessions { next_id: 0, readers: HashMap::new(), deadlines: VecDeque::new() };
        Self { sessions: Mutex::new(sessions) }
    }
}

impl<T> Leases<T> {
    /// Takes the idle reader with the highest score, or a new one where none has a score. `None` if there is no new
    /// one, or if too many readers of this session are waiting already.
    pub fn claim<S: Ord>(
        self: &Arc<Self>,
        session: &SessionId,
        score: impl Fn(Seq, &Idle<T>) -> Option<S>,
        mut new: impl FnMut() -> Option<(Subscriber, T)>,
    ) -> Option<Claim<T>> {
        let mut sessions = lock(&self.sessions);
        let next_id = sessions.next_id;
        let entry = sessions
            .readers
            .entry(session.clone())
            .or_insert_with(|| Session { slots: Vec::new(), changed: Arc::default() });
        // A session that begins anew under an old name has nothing to do with the one that was ended.
        entry.slots.retain(|slot| !slot.idle.as_ref().is_some_and(|idle| idle.subscriber.has_ended()));
        let best = entry
            .slots
            .iter_mut()
            .filter_map(|slot| Some((score(slot.at, slot.idle.as_ref()?)?, slot)))
            .max_by(|(a, _), (b, _)| a.cmp(b))
            .map(|(_, slot)| slot);
        let changed = Arc::clone(&entry.changed);
        changed.notify_waiters();
        let (id, held) = match best.and_then(|slot| Some((slot.id, slot.idle.take()?))) {
            Some((id, idle)) => (id, (idle.subscriber, idle.state)),
            None => {
                // Leaving a hub takes other locks, as joining it does; nobody takes this one under those.
                let give_way = |slots: &mut Vec<Slot<T>>| {
                    let idle = slots.iter().enumerate();
                    let longest = idle.filter_map(|(at, slot)| Some((slot.idle.as_ref()?.since, at))).min();
                    longest.map(|(_, at)| drop(slots.swap_remove(at)))
                };
                if entry.slots.len() >= MOST_READERS {
                    give_way(&mut entry.slots)?;
                }
                let held = loop {
                    match new() {
                        Some(held) => break held,
                        // The session may have no more readers: one that is away makes room for one that is there.
                        None if give_way(&mut entry.slots).is_some() => {}
                        None => {
                            if entry.slots.is_empty() {
                                sessions.readers.remove(session);
                            }
                            return None;
                        }
                    }
                };
                entry.slots.push(Slot { id: next_id, at: held.0.sent_through(), idle: None });
                sessions.next_id += 1;
                (next_id, held)
            }
        };
        drop(sessions);
        let (leases, session) = (Arc::clone(self), session.clone());
        Some(Claim { leases, session, id, held: Some(held), answered: false, changed })
    }

    /// Lets a transport look at, and change, what it remembers of the idle readers of a session.
    pub fn each_idle(&self, session: &SessionId, mut look: impl FnMut(&mut Idle<T>)) {
        if let Some(entry) = lock(&self.sessions).readers.get_mut(session) {
            entry.slots.iter_mut().filter_map(|slot| slot.idle.as_mut()).for_each(&mut look);
        }
    }

    /// Drops the readers that did not come back within [`GRACE`], and answers what was remembered of them. Run
    /// it every second.
    pub fn sweep(&self) -> Vec<(SessionId, T)> {
        let now = Instant::now();
        let mut gone = Vec::new();
        let mut sessions = lock(&self.sessions);
        while let Some((deadline, ..)) = sessions.deadlines.front()
            && *deadline <= now
        {
            let Some((deadline, session, id)) = sessions.deadlines.pop_front() else { break };
            let Some(entry) = sessions.readers.get_mut(&session) else { continue };
            let over = |slot: &Slot<T>| {
                slot.id == id && slot.idle.as_ref().is_some_and(|idle| idle.since + GRACE <= deadline)
            };
            let Some(at) = entry.slots.iter().position(over) else { continue };
            let idle = entry.slots.swap_remove(at).idle;
            entry.changed.notify_waiters();
            if entry.slots.is_empty() {
                sessions.readers.remove(&session);
            }
            gone.extend(idle.map(|idle| (session, idle)));
        }
        shrink(&mut sessions.readers);
        // Leaving a hub takes other locks: not under this one.
        drop(sessions);
        gone.into_iter().map(|(session, idle)| (session, idle.state)).collect()
    }
}

impl<T> Claim<T> {
    /// The reader.
    pub fn subscriber(&mut self) -> &mut Subscriber {
        &mut self.parts().0
    }

    /// The reader, and what the transport remembers of it.
    pub fn parts(&mut self) -> &mut (Subscriber, T) {
        self.held.as_mut().expect("held until dropped")
    }

    /// Notes that the poll has its answer: a claim dropped before was cut off.
    pub fn answered(&mut self) {
        self.answered = true;
    }

    /// Notes up to where this reader was answered.
    pub fn stand(&self, at: Seq) {
        let mut sessions = lock(&self.leases.sessions);
        let slots = sessions.readers.get_mut(&self.session).map(|entry| entry.slots.as_mut_slice());
        if let Some(slot) = slots.unwrap_or_default().iter_mut().find(|slot| slot.id == self.id) {
            slot.at = at;
        }
        self.changed.notify_waiters();
    }

    /// Waits until the other readers of this session are ready to be answered with `next` as well, or have been
    /// answered with it; for each at most until it has been away for `patience`, and at most until `deadline`.
    /// Answers how far the others have got, if further: this reader's answer must end there.
    ///
    /// Readers that cannot be told apart, as the tabs of one browser cannot, are thus all at the same position
    /// whenever they come back, and it does not matter which of them takes up which subscription.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn together(&self, next: Seq, patience: Duration, deadline: Instant) -> Option<Seq> {
        let called = Instant::now();
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (wait, ahead) = self.others(next, called);
            match wait.map(|since| (since + patience).min(deadline)) {
                Some(until) if until > Instant::now() => _ = timeout_at(until, changed).await,
                _ => return ahead,
            }
        }
    }

    /// Since when the last one of those is being waited for that are not ready for `next`, and the nearest
    /// position of those that have it.
    fn others(&self, next: Seq, called: Instant) -> (Option<Instant>, Option<Seq>) {
        let sessions = lock(&self.leases.sessions);
        let Some(entry) = sessions.readers.get(&self.session) else { return (None, None) };
        let own = entry.slots.iter().find(|slot| slot.id == self.id).map_or(next, |slot| slot.at);
        let others = || entry.slots.iter().filter(|slot| slot.id != self.id);
        let wait = others().filter(|slot| slot.at < next).filter_map(|slot| match &slot.idle {
            Some(idle) => (!idle.cut).then_some(idle.since),
            None => (slot.at < own).then_some(called),
        });
        (wait.max(), others().map(|slot| slot.at).filter(|at| *at >= next).min())
    }
}

impl<T> Drop for Claim<T> {
    fn drop(&mut self) {
        let Some((subscriber, state)) = self.held.take() else { return };
        let since = Instant::now();
        let mut sessions = lock(&self.leases.sessions);
        let Sessions { readers, deadlines, .. } = &mut *sessions;
        if let Some(entry) = readers.get_mut(&self.session)
            && let Some(slot) = entry.slots.iter_mut().find(|slot| slot.id == self.id)
        {
            slot.idle = Some(Idle { subscriber, state, since, cut: !self.answered });
            deadlines.push_back((since + GRACE, self.session.clone(), self.id));
            self.changed.notify_waiters();
        }
    }
}
