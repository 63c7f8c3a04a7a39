//! Leases of subscriptions: they keep a polling reader attached between its polls.
//!
//! A polling reader is away for a moment between two polls. Its lease keeps the subscriber attached to the hub
//! meanwhile. So an acknowledgement by another tab deletes nothing that this reader has not got, and volatile messages
//! are kept for it.

use std::hash::Hash;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::broker::BrokerError;
use crate::edge::Refusal;
use crate::link::Link;
use crate::message::{Seq, SessionId};
use crate::protocol::Code;
use crate::subscriber::Subscriber;
use crate::sync::lock;

mod table;

pub(crate) use table::IdleReader;

#[cfg(test)]
pub(crate) use table::GRACE;

use table::{LeaseTable, Reader};

/// Most leases of one mailbox. A new reader evicts the one that is idle the longest.
pub(crate) const MAX_READERS: usize = 64;

/// How long a poll is waited for that ends, since its peer has closed its connection.
const ENDING_TIMEOUT: Duration = Duration::from_secs(1);

/// The leases of all mailboxes of one transport. `T` is the state that the transport keeps for each reader, `K` names a
/// mailbox: that of a session, or any.
#[derive(Debug)]
pub(crate) struct Leases<T, K: Clone + Eq + Hash = SessionId> {
    /// Protects the leases. Held for look-ups only: neither across an await nor while a subscriber is made or dropped,
    /// which takes the locks of its hub.
    table: Mutex<LeaseTable<T, K>>,
}

/// A reader in use by one poll. Dropping it makes the reader idle again, also if the poll is aborted.
#[derive(Debug)]
pub(crate) struct Claim<T, K: Clone + Eq + Hash = SessionId> {
    leases: Arc<Leases<T, K>>,
    mailbox: K,
    id: u64,
    /// `None` only during the drop. Boxed: a waiting poll and the table both have a place for it.
    held: Option<Box<Reader<T>>>,
    /// Whether the reader was made for this poll.
    is_new: bool,
    /// Whether the poll has its answer.
    answered: bool,
    /// Notified when a reader of the mailbox comes, goes or moves.
    changed: Arc<Notify>,
}

/// Why a poll gets no reader.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ClaimError<E> {
    /// [`MAX_READERS`] polls of the mailbox are waiting.
    TooManyPolls,
    /// There is no idle reader, and a new one cannot be made.
    NoNewReader(E),
}

/// The refusal of a poll that gets no reader.
pub(crate) fn no_reader(error: ClaimError<BrokerError>) -> Refusal {
    match error {
        ClaimError::NoNewReader(error) => error.into(),
        ClaimError::TooManyPolls => {
            let text =
                format!("{MAX_READERS} polls of this mailbox wait already, the most allowed; end some first");
            Refusal::new(Code::Overloaded, text)
        }
    }
}

impl<T, K: Clone + Eq + Hash> Default for Leases<T, K> {
    fn default() -> Self {
        Self { table: Mutex::default() }
    }
}

impl<T, K: Clone + Eq + Hash> Leases<T, K> {
    /// Claims the idle reader with the highest score, or a new one if no idle reader has a score.
    ///
    /// `score` is given the position of a reader's last answer. While `new` fails, idle readers of the mailbox are
    /// evicted one by one, since the mailbox may be at its limit of readers.
    ///
    /// `link` is the connection of the poll that claims, if its peer closes it when it goes. A page that is loaded again may be here
    /// before the end of its connection is seen: its reader is waited for. Otherwise it would get a second one, and the next page
    /// might continue the first one, which gets again what the second one has acknowledged.
    ///
    /// # Errors
    /// [`ClaimError`] says why there is no reader.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, except that idle readers may have been evicted.
    pub(crate) async fn claim<S: Ord, E, F: Future<Output = Result<(Subscriber, T), E>>>(
        self: &Arc<Self>,
        mailbox: &K,
        link: Option<&Arc<Link>>,
        score: impl Fn(Seq, &IdleReader<T>) -> Option<S>,
        new: impl Fn() -> F,
    ) -> Result<Claim<T, K>, ClaimError<E>> {
        let take_best = || {
            let taken = lock(&self.table).take_best(mailbox, link, &score);
            drop(taken.ended);
            taken.best
        };
        let mut best = take_best();
        if best.is_none() && link.is_some() && Box::pin(self.wait_for_ending(mailbox)).await {
            best = take_best();
        }
        if let Some((id, IdleReader { reader, .. }, changed)) = best {
            return Ok(self.claimed(mailbox, (id, reader, changed), false));
        }
        // Two claims that began at the same time may have made one reader too many: then more than one goes.
        while lock(&self.table).readers_of(mailbox) >= MAX_READERS {
            drop(self.evict_longest_idle(mailbox).ok_or(ClaimError::TooManyPolls)?);
        }
        loop {
            match new().await {
                Ok((subscriber, state)) => {
                    let (id, changed) = lock(&self.table).insert(mailbox, link, subscriber.sent_through());
                    let reader = Box::new(Reader { subscriber, state });
                    return Ok(self.claimed(mailbox, (id, reader, changed), true));
                }
                Err(error) => {
                    let evicted = self.evict_longest_idle(mailbox);
                    drop(evicted.ok_or(ClaimError::NoNewReader(error))?);
                }
            }
        }
    }

    /// Waits for a poll of this mailbox that ends, since its peer has closed its connection. Returns whether there was one.
    async fn wait_for_ending(&self, mailbox: &K) -> bool {
        let Some(changed) = lock(&self.table).changed(mailbox) else { return false };
        let deadline = Instant::now() + ENDING_TIMEOUT;
        let mut waited = false;
        loop {
            let mut notified = pin!(changed.notified());
            notified.as_mut().enable();
            let links = lock(&self.table).links(mailbox);
            // Not under the lock: it asks the socket.
            if !links.iter().any(|link| link.peer_closed()) || timeout_at(deadline, notified).await.is_err() {
                return waited;
            }
            waited = true;
        }
    }

    fn evict_longest_idle(&self, mailbox: &K) -> Option<IdleReader<T>> {
        lock(&self.table).evict_longest_idle(mailbox)
    }

    fn claimed(
        self: &Arc<Self>,
        mailbox: &K,
        (id, reader, changed): (u64, Box<Reader<T>>, Arc<Notify>),
        is_new: bool,
    ) -> Claim<T, K> {
        changed.notify_waiters();
        let (leases, mailbox) = (Arc::clone(self), mailbox.clone());
        Claim { leases, mailbox, id, held: Some(reader), is_new, answered: false, changed }
    }

    /// Calls `visit` with each idle reader of a mailbox.
    pub(crate) fn each_idle(&self, mailbox: &K, visit: impl FnMut(&mut IdleReader<T>)) {
        lock(&self.table).idle_readers(mailbox).for_each(visit);
    }

    /// Calls `visit` with each idle reader of each mailbox.
    pub(crate) fn each_idle_of_all(&self, mut visit: impl FnMut(&K, &mut IdleReader<T>)) {
        lock(&self.table).all_idle_readers().for_each(|(mailbox, idle)| visit(mailbox, idle));
    }

    /// Drops the readers whose lease is over, and returns their state. The server calls it every second.
    pub(crate) fn sweep(&self) -> Vec<(K, T)> {
        let expired = lock(&self.table).evict_expired(Instant::now());
        expired.into_iter().map(|(mailbox, idle)| (mailbox, idle.reader.state)).collect()
    }
}

impl<T, K: Clone + Eq + Hash> Claim<T, K> {
    /// The claimed reader.
    pub(crate) fn subscriber(&mut self) -> &mut Subscriber {
        self.parts().0
    }

    /// The claimed reader, and the transport's state of it.
    pub(crate) fn parts(&mut self) -> (&mut Subscriber, &mut T) {
        let Reader { subscriber, state } = &mut **self.held.as_mut().expect("held until dropped");
        (subscriber, state)
    }

    /// Whether the reader was made for this poll: it was not attached before.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Notes that the poll has its answer. A claim that is dropped before counts as aborted.
    pub(crate) fn answered(&mut self) {
        self.answered = true;
    }

    /// Notes the last seq that this reader is answered with.
    pub(crate) fn set_position(&self, position: Seq) {
        lock(&self.leases.table).set_position(&self.mailbox, self.id, position);
        self.changed.notify_waiters();
    }

    /// Waits until each other reader of this mailbox can be answered with `next` as well, or was answered with it. An
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
            let peers = lock(&self.leases.table).peers(&self.mailbox, self.id, next, called);
            match peers.waiting_since.map(|since| (since + timeout).min(deadline)) {
                Some(until) if until > Instant::now() => _ = timeout_at(until, changed).await,
                _ => return peers.ahead,
            }
        }
    }
}

impl<T, K: Clone + Eq + Hash> Drop for Claim<T, K> {
    fn drop(&mut self) {
        let Some(reader) = self.held.take() else { return };
        let idle = IdleReader { reader, since: Instant::now(), aborted: !self.answered };
        lock(&self.leases.table).make_idle(&self.mailbox, self.id, idle);
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
