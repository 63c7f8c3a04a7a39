//! The leases of one transport, without their lock: which readers a mailbox has, and which of them are idle.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::link::Link;
use crate::message::Seq;
use crate::subscriber::Subscriber;
use crate::sync::shrink;
use crate::table::Table;

/// How long a lease lasts after a poll ends.
pub(crate) const GRACE: Duration = Duration::from_secs(15);

/// The leases of one transport. `T` is the state that the transport keeps for each reader, `K` names a mailbox: that of a
/// session, or any.
#[derive(Debug)]
pub(super) struct LeaseTable<T, K> {
    next_id: u64,
    /// Mailboxes with at least one lease.
    mailboxes: Table<K, MailboxLeases<T>>,
    /// When to check the leases, the next one on top.
    checks: BinaryHeap<Check<K>>,
}

/// When to check whether a lease has ended. Polls come much more often, so a lease has one check and not one for each poll.
#[derive(Debug)]
struct Check<K> {
    at: Instant,
    mailbox: K,
    id: u64,
}

impl<K> Ord for Check<K> {
    /// The earliest one is the greatest, as a heap has it on top.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.id).cmp(&(self.at, self.id))
    }
}

impl<K> PartialOrd for Check<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> PartialEq for Check<K> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<K> Eq for Check<K> {}

#[derive(Debug)]
struct MailboxLeases<T> {
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
    /// The connection of the poll that holds the reader, if its peer closes it when it goes.
    link: Option<Arc<Link>>,
    /// Whether it is going to be checked.
    has_check: bool,
}

/// A subscriber, and the transport's state of it.
#[derive(Debug)]
pub(super) struct Reader<T> {
    pub(super) subscriber: Subscriber,
    pub(super) state: T,
}

/// A reader between two polls.
#[derive(Debug)]
pub(crate) struct IdleReader<T> {
    pub(super) reader: Box<Reader<T>>,
    /// When its last poll ended.
    pub(super) since: Instant,
    /// The peer aborted its last poll: it probably does not come back.
    pub(super) aborted: bool,
}

/// How far the other readers of a mailbox are.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// Since when the last one is waited for; `None` if all are ready.
    pub(super) waiting_since: Option<Instant>,
    /// The nearest position of those that are ahead.
    pub(super) ahead: Option<Seq>,
}

/// What a claim takes out of the table.
#[derive(Debug)]
pub(super) struct Taken<T> {
    /// Readers whose session was ended. They are dropped without the lock of the table.
    pub(super) ended: Vec<IdleReader<T>>,
    /// The id of a lease, its reader, and what is notified when the readers of the mailbox change.
    pub(super) best: Option<(u64, IdleReader<T>, Arc<Notify>)>,
}

impl<T> Default for Taken<T> {
    fn default() -> Self {
        Self { ended: Vec::new(), best: None }
    }
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
        &self.reader.subscriber
    }

    /// The transport's state of this reader.
    #[must_use]
    pub(crate) fn state(&self) -> &T {
        &self.reader.state
    }

    /// The attached subscriber and the transport's state.
    pub(crate) fn parts(&mut self) -> (&mut Subscriber, &mut T) {
        (&mut self.reader.subscriber, &mut self.reader.state)
    }

    /// When its last poll ended.
    #[must_use]
    pub(crate) fn since(&self) -> Instant {
        self.since
    }
}

impl<T> MailboxLeases<T> {
    /// Takes the idle reader with the highest score.
    fn take_best<S: Ord>(
        &mut self,
        link: Option<&Arc<Link>>,
        score: impl Fn(Seq, &IdleReader<T>) -> Option<S>,
    ) -> Option<(u64, IdleReader<T>)> {
        let scored = self.leases.iter_mut().filter_map(|lease| {
            let score = score(lease.position, lease.idle.as_ref()?)?;
            Some((score, lease))
        });
        let (_, lease) = scored.max_by(|(a, _), (b, _)| a.cmp(b))?;
        lease.link = link.cloned();
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

impl<T, K> Default for LeaseTable<T, K> {
    fn default() -> Self {
        Self { next_id: 0, mailboxes: Table::default(), checks: BinaryHeap::new() }
    }
}

impl<T, K: Clone + Eq + Hash> LeaseTable<T, K> {
    /// Whether no mailbox has a lease.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.mailboxes.is_empty()
    }

    /// How many leases a mailbox has.
    pub(super) fn readers_of(&self, mailbox: &K) -> usize {
        self.mailboxes.get(mailbox).map_or(0, |entry| entry.leases.len())
    }

    /// The idle readers of a mailbox.
    pub(super) fn idle_readers(&mut self, mailbox: &K) -> impl Iterator<Item = &mut IdleReader<T>> {
        let leases = self.mailboxes.get_mut(mailbox).map(|entry| entry.leases.iter_mut());
        leases.into_iter().flatten().filter_map(|lease| lease.idle.as_mut())
    }

    /// The idle readers of all mailboxes.
    pub(super) fn all_idle_readers(&mut self) -> impl Iterator<Item = (&K, &mut IdleReader<T>)> {
        self.mailboxes.iter_mut().flat_map(|(mailbox, entry)| {
            entry.leases.iter_mut().filter_map(move |lease| Some((mailbox, lease.idle.as_mut()?)))
        })
    }

    /// Takes the idle readers of a mailbox whose session was ended: a new session of the same name begins without them. Of the others,
    /// takes the one with the highest score.
    pub(super) fn take_best<S: Ord>(
        &mut self,
        mailbox: &K,
        link: Option<&Arc<Link>>,
        score: impl Fn(Seq, &IdleReader<T>) -> Option<S>,
    ) -> Taken<T> {
        let Some(entry) = self.mailboxes.get_mut(mailbox) else { return Taken::default() };
        let is_ended = |lease: &mut Lease<T>| {
            lease.idle.as_ref().is_some_and(|idle| idle.subscriber().ended().is_some())
        };
        let ended: Vec<_> = entry.leases.extract_if(.., is_ended).filter_map(|lease| lease.idle).collect();
        let best = entry.take_best(link, score);
        let best = best.map(|(id, idle)| (id, idle, Arc::clone(&entry.changed)));
        if !ended.is_empty() {
            self.remove_if_empty(mailbox);
        }
        Taken { ended, best }
    }

    /// Adds the lease of a reader that a poll holds. Returns its id, and what is notified when the readers of the mailbox
    /// change.
    pub(super) fn insert(
        &mut self,
        mailbox: &K,
        link: Option<&Arc<Link>>,
        position: Seq,
    ) -> (u64, Arc<Notify>) {
        let id = self.next_id;
        self.next_id += 1;
        let entry = self
            .mailboxes
            .entry(mailbox.clone())
            // Most mailboxes have one reader.
            .or_insert_with(|| MailboxLeases { leases: Vec::with_capacity(1), changed: Arc::default() });
        entry.leases.push(Lease { id, position, idle: None, link: link.cloned(), has_check: false });
        (id, Arc::clone(&entry.changed))
    }

    /// What is notified when the readers of a mailbox change. `None` if it has none.
    pub(super) fn changed(&self, mailbox: &K) -> Option<Arc<Notify>> {
        self.mailboxes.get(mailbox).map(|entry| Arc::clone(&entry.changed))
    }

    /// The connections of the polls that hold readers of a mailbox.
    pub(super) fn links(&self, mailbox: &K) -> Vec<Arc<Link>> {
        let leases = self.mailboxes.get(mailbox).map(|entry| entry.leases.iter());
        leases.into_iter().flatten().filter_map(|lease| lease.link.clone()).collect()
    }

    /// Makes the reader of a lease idle, for [`GRACE`] at most.
    pub(super) fn make_idle(&mut self, mailbox: &K, id: u64, idle: IdleReader<T>) {
        if let Some(lease) = self.mailboxes.get_mut(mailbox).and_then(|entry| entry.lease_mut(id)) {
            if !std::mem::replace(&mut lease.has_check, true) {
                self.checks.push(Check { at: idle.since + GRACE, mailbox: mailbox.clone(), id });
            }
            (lease.idle, lease.link) = (Some(idle), None);
        }
    }

    /// Notes the last seq that the reader of a lease is answered with.
    pub(super) fn set_position(&mut self, mailbox: &K, id: u64, position: Seq) {
        if let Some(lease) = self.mailboxes.get_mut(mailbox).and_then(|entry| entry.lease_mut(id)) {
            lease.position = position;
        }
    }

    /// Removes the reader of a mailbox that is idle the longest.
    pub(super) fn evict_longest_idle(&mut self, mailbox: &K) -> Option<IdleReader<T>> {
        let entry = self.mailboxes.get_mut(mailbox)?;
        let since = |lease: &Lease<T>| lease.idle.as_ref().map(|idle| idle.since);
        let oldest = entry.leases.iter().filter_map(since).min()?;
        let evicted = entry.evict(|lease| since(lease) == Some(oldest));
        self.remove_if_empty(mailbox);
        evicted
    }

    /// Removes the readers that are idle for [`GRACE`].
    pub(super) fn evict_expired(&mut self, now: Instant) -> Vec<(K, IdleReader<T>)> {
        let mut expired = Vec::new();
        while self.checks.peek().is_some_and(|check| check.at <= now)
            && let Some(Check { mailbox, id, .. }) = self.checks.pop()
        {
            let Some(entry) = self.mailboxes.get_mut(&mailbox) else { continue };
            let Some(lease) = entry.lease_mut(id) else { continue };
            match lease.idle.as_ref().map(|idle| idle.since + GRACE) {
                Some(at) if at > now => self.checks.push(Check { at, mailbox, id }),
                Some(_) => {
                    let idle = entry.evict(|lease| lease.id == id);
                    entry.changed.notify_waiters();
                    self.remove_if_empty(&mailbox);
                    expired.extend(idle.map(|idle| (mailbox, idle)));
                }
                // A poll holds it. The next check is made when that ends.
                None => lease.has_check = false,
            }
        }
        shrink(&mut self.mailboxes);
        if self.checks.capacity() > 8192 && self.checks.len() < self.checks.capacity() / 8 {
            self.checks.shrink_to(2 * self.checks.len());
        }
        expired
    }

    fn remove_if_empty(&mut self, mailbox: &K) {
        if self.readers_of(mailbox) == 0 {
            self.mailboxes.remove(mailbox);
        }
    }

    /// Compares the other readers of a mailbox with `next`. A peer that is behind the reader of lease `id` and in a poll
    /// counts as waited for since `called`.
    pub(super) fn peers(&self, mailbox: &K, id: u64, next: Seq, called: Instant) -> Peers {
        let mut peers = Peers::default();
        let Some(entry) = self.mailboxes.get(mailbox) else { return peers };
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
