//! Subscriptions that outlive a poll: a reader that asks again within the grace time goes on where it was.
//!
//! Between two polls a reader is away for a moment. Its subscriber stays at the hub meanwhile, so that an
//! acknowledgement by another tab does not delete what this one has not seen, and volatile messages wait.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::hub::lock;
use crate::message::SessionId;
use crate::subscriber::Subscriber;

/// How long a subscription is kept between two polls.
pub const GRACE: Duration = Duration::from_secs(15);

/// Most readers of one session that are remembered; beyond that the longest idle one gives way.
const MOST_READERS: usize = 64;

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
}

impl<T> Idle<T> {
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
    changed: Arc<Notify>,
}

impl<T> Default for Leases<T> {
    fn default() -> Self {
        let sessions = Sessions { next_id: 0, readers: HashMap::new(), deadlines: VecDeque::new() };
        Self { sessions: Mutex::new(sessions) }
    }
}

impl<T> Leases<T> {
    /// Takes the idle reader with the highest score, or a new one where none has a score.
    pub fn claim<S: Ord>(
        self: &Arc<Self>,
        session: &SessionId,
        score: impl Fn(&Idle<T>) -> Option<S>,
        new: impl FnOnce() -> (Subscriber, T),
    ) -> Claim<T> {
        let mut sessions = lock(&self.sessions);
        let next_id = sessions.next_id;
        let entry = sessions
            .readers
            .entry(session.clone())
            .or_insert_with(|| Session { slots: Vec::new(), changed: Arc::default() });
        let best = entry
            .slots
            .iter_mut()
            .filter_map(|slot| Some((slot.idle.as_ref().and_then(&score)?, slot)))
            .max_by(|(a, _), (b, _)| a.cmp(b))
            .map(|(_, slot)| slot);
        let changed = Arc::clone(&entry.changed);
        changed.notify_waiters();
        let (id, held) = match best.and_then(|slot| Some((slot.id, slot.idle.take()?))) {
            Some((id, idle)) => (id, (idle.subscriber, idle.state)),
            None => {
                if entry.slots.len() >= MOST_READERS {
                    let idle = entry
                        .slots
                        .iter()
                        .enumerate()
                        .filter_map(|(at, slot)| Some((slot.idle.as_ref()?.since, at)));
                    if let Some((_, at)) = idle.min() {
                        entry.slots.swap_remove(at);
                    }
                }
                entry.slots.push(Slot { id: next_id, idle: None });
                sessions.next_id += 1;
                (next_id, new())
            }
        };
        Claim { leases: Arc::clone(self), session: session.clone(), id, held: Some(held), changed }
    }

    /// Lets a transport look at, and change, what it remembers of the idle readers of a session.
    pub fn each_idle(&self, session: &SessionId, mut look: impl FnMut(&mut Idle<T>)) {
        if let Some(entry) = lock(&self.sessions).readers.get_mut(session) {
            entry.slots.iter_mut().filter_map(|slot| slot.idle.as_mut()).for_each(&mut look);
        }
    }

    /// Drops the readers that did not come back within [`GRACE`]. Run it every second.
    pub fn sweep(&self) {
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
            gone.push(entry.slots.swap_remove(at));
            entry.changed.notify_waiters();
            if entry.slots.is_empty() {
                sessions.readers.remove(&session);
            }
        }
        // Leaving a hub takes other locks: not under this one.
        drop(sessions);
        drop(gone);
    }

    /// How many readers are known, waiting or idle.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.sessions).readers.values().map(|entry| entry.slots.len()).sum()
    }

    /// Whether no reader is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Claim<T> {
    /// The reader.
    pub fn subscriber(&mut self) -> &mut Subscriber {
        &mut self.parts().0
    }

    /// What the transport remembers of it.
    pub fn state(&mut self) -> &mut T {
        &mut self.parts().1
    }

    /// Both at once.
    pub fn parts(&mut self) -> &mut (Subscriber, T) {
        self.held.as_mut().expect("held until dropped")
    }

    /// Waits until no other reader of this session is about to come back: all are waiting here too, or have
    /// been away for longer than `patience`.
    ///
    /// Readers of one session that are answered together are all at the same position, so it does not matter
    /// which of them takes up which subscription next time.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    pub async fn together(&self, patience: Duration) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let Some(until) = self.others_away_since().map(|since| since + patience) else { return };
            if until <= Instant::now() || tokio::time::timeout_at(until, changed).await.is_err() {
                // A slot may have become idle just now; look once more.
                if self.others_away_since().is_none_or(|since| since + patience <= Instant::now()) {
                    return;
                }
            }
        }
    }

    /// Since when the other reader is away that left last; `None` if all are here.
    fn others_away_since(&self) -> Option<Instant> {
        let sessions = lock(&self.leases.sessions);
        let slots = &sessions.readers.get(&self.session)?.slots;
        slots.iter().filter_map(|slot| Some(slot.idle.as_ref()?.since)).max()
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
            slot.idle = Some(Idle { subscriber, state, since });
            deadlines.push_back((since + GRACE, self.session.clone(), self.id));
            self.changed.notify_waiters();
        }
    }
}
