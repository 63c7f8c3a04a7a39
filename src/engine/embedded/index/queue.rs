//! Messages that have a seq and are not committed yet.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use crate::budget::SMALL;
use crate::engine::embedded::dedup::SendId;
use crate::engine::embedded::index::payers::{PayerId, Tally};
use crate::engine::{EngineError, QueueBounds, Share, Usage};
use crate::message::{Address, MessageId, Publication, Seq};

/// What a stored message costs besides its frame, in bytes: table entries and reference counts.
const OVERHEAD: usize = 256;

/// Tells the caller of an append what became of it.
pub(crate) type Waiter = oneshot::Sender<Result<Seq, EngineError>>;

/// What a message with a frame of this length counts against the bounds, in bytes.
pub(super) fn frame_cost(frame: usize) -> usize {
    frame + OVERHEAD
}

/// The size of the frame of a message that costs so much.
pub(super) fn frame_of(cost: usize) -> usize {
    cost.saturating_sub(OVERHEAD)
}

/// What a message counts against the bounds, in bytes.
pub(super) fn cost(publication: &Publication) -> usize {
    frame_cost(publication.frame().as_str().len())
}

/// What a message that is read back from the disk counts, in bytes: its payload, its names, the rest of its frame.
pub(crate) fn stored_cost(payload: usize, names: usize) -> usize {
    payload + names + 64 + OVERHEAD
}

/// A message that has a seq and is not committed yet.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) seq: Seq,
    /// The seq before it at its address, also if that message is gone.
    pub(crate) prev: Seq,
    /// In Unix milliseconds.
    pub(crate) expires_at: u64,
    /// In Unix milliseconds.
    pub(crate) ts: u64,
    pub(crate) address: Address,
    pub(crate) publication: Arc<Publication>,
    pub(crate) send_id: Option<SendId>,
    /// The mailbox that gets a receipt, and the sender's id for the message.
    pub(crate) receipt: Option<(Address, MessageId)>,
    /// `None` for a receipt, which has no waiter and must not be refused.
    pub(crate) waiter: Option<Waiter>,
    /// Who pays for it.
    pub(crate) payer: PayerId,
    /// Since when it waits.
    pub(crate) since: Instant,
}

impl Pending {
    /// A message without an id, that nobody waits for or pays for. `times`: when it expires, and when it was sent.
    pub(super) fn new(
        (seq, prev): (Seq, Seq),
        (expires_at, ts): (u64, u64),
        address: Address,
        publication: Arc<Publication>,
    ) -> Self {
        let (send_id, receipt, waiter, payer) = (None, None, None, PayerId::NONE);
        let since = Instant::now();
        Self { seq, prev, expires_at, ts, address, publication, send_id, receipt, waiter, payer, since }
    }
}

#[cfg(test)]
use crate::message::{Message, Outcome, SessionId};

#[cfg(test)]
impl Pending {
    /// A small message to session `A`.
    pub(crate) fn sample(seq: Seq) -> Self {
        let address = Address::Session(SessionId::new("A").unwrap());
        let message = Message::receipt(&MessageId::new("1").unwrap(), Outcome::Expired, 1);
        let publication = Publication::encode(&address, Some(seq), &message).into();
        Self::new((seq, Seq::START), (9, 1), address, publication)
    }
}

/// The messages to commit next, in seq order.
///
/// Invariants: `bytes` is the sum of their costs, and `tally` that for each author. The bounds are checked before an
/// append; receipts may exceed them.
#[derive(Debug)]
pub(super) struct CommitQueue {
    bounds: QueueBounds,
    pending: VecDeque<Pending>,
    bytes: usize,
    tally: Tally,
    /// Senders that repeated a message before it was committed.
    repeats: Vec<(Seq, Waiter)>,
}

impl CommitQueue {
    pub(super) fn new(bounds: QueueBounds) -> Self {
        Self { bounds, pending: VecDeque::new(), bytes: 0, tally: Tally::default(), repeats: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// The bytes of all of them, with their envelopes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether another message may come, of this size and author. `None` is a backend, or somebody in `open` mode. A quarter of
    /// the bytes is for small messages, so that large ones do not keep them out.
    pub(super) fn check_room(&self, payer: Option<PayerId>, size: usize) -> Result<(), EngineError> {
        let (messages, bytes) = (self.pending.len(), self.bytes);
        let whole = Usage { messages: self.bounds.messages, bytes: self.bounds.bytes };
        let mut most = whole;
        if let Some(payer) = payer {
            // The size of the message does not count: it is not encoded yet.
            let (used, more) = (Usage { messages, bytes }, Usage { messages: 1, bytes: 0 });
            Share::Queue.check(whole, used, self.tally.usage(payer), more)?;
            most = whole.for_authors();
        }
        if size > SMALL {
            most.bytes = most.bytes / 4 * 3;
        }
        if messages >= most.messages || bytes >= most.bytes {
            let bounds = QueueBounds { messages: most.messages, bytes: most.bytes };
            return Err(EngineError::Overloaded { messages, bytes, bounds });
        }
        Ok(())
    }

    /// Whether it may refuse somebody.
    pub(super) fn may_refuse(&self) -> bool {
        match self.tally.is_empty() {
            true => self.check_room(None, usize::MAX).is_err(),
            false => self.is_half_full(),
        }
    }

    pub(super) fn is_half_full(&self) -> bool {
        self.pending.len() >= self.bounds.messages / 2 || self.bytes >= self.bounds.bytes / 2
    }

    pub(super) fn push(&mut self, pending: Pending) {
        let bytes = cost(&pending.publication);
        self.bytes += bytes;
        self.tally.add(pending.payer, bytes);
        self.pending.push_back(pending);
    }

    /// The same message was appended again: its sender waits for the first one.
    pub(super) fn push_repeat(&mut self, seq: Seq, waiter: Waiter) {
        self.repeats.push((seq, waiter));
    }

    /// Takes messages to commit, oldest first: at most `messages`, and none more once they exceed `bytes`.
    pub(super) fn take(&mut self, messages: usize, bytes: usize) -> Vec<Pending> {
        let mut taken_bytes = 0;
        let mut end = 0;
        for pending in self.pending.iter().take(messages) {
            if taken_bytes > bytes {
                break;
            }
            let cost = cost(&pending.publication);
            taken_bytes += cost;
            self.tally.remove(pending.payer, cost);
            end += 1;
        }
        self.bytes -= taken_bytes;
        let taken = self.pending.drain(..end).collect();
        self.shrink();
        taken
    }

    fn shrink(&mut self) {
        if self.pending.is_empty() && self.pending.capacity() > 1024 {
            self.pending.shrink_to(256);
        }
    }

    /// Takes the waiters for repeats of messages up to and including `through`.
    pub(super) fn take_repeats(&mut self, through: Seq) -> Vec<(Seq, Waiter)> {
        self.repeats.extract_if(.., |(seq, _)| *seq <= through).collect()
    }

    /// Empties the queue and takes all waiters.
    pub(super) fn give_up(&mut self) -> Vec<Waiter> {
        self.bytes = 0;
        self.tally.clear();
        let waiters = self.pending.drain(..).filter_map(|pending| pending.waiter);
        waiters.chain(self.repeats.drain(..).map(|(_, waiter)| waiter)).collect()
    }

    /// The first seq of the queue.
    pub(super) fn first(&self) -> Option<Seq> {
        self.pending.front().map(|first| first.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::OverShare;
    use crate::engine::embedded::index::payers::Payers;
    use crate::message::SenderName;

    fn pending(seq: u64, waiter: Option<Waiter>) -> Pending {
        Pending { waiter, ..Pending::sample(Seq(seq)) }
    }

    fn queue(messages: u64) -> CommitQueue {
        let mut queue = CommitQueue::new(QueueBounds { messages: 3, bytes: 1 << 20 });
        (1..=messages).for_each(|seq| queue.push(pending(seq, None)));
        queue
    }

    #[test]
    fn large_messages_leave_room_for_small_ones() {
        let one = cost(&pending(1, None).publication);
        let mut queue = CommitQueue::new(QueueBounds { messages: 99, bytes: 8 * one });
        (1..=6).for_each(|seq| queue.push(pending(seq, None)));
        assert!(matches!(queue.check_room(None, SMALL + 1), Err(EngineError::Overloaded { .. })));
        assert!(queue.may_refuse() && queue.check_room(None, SMALL).is_ok());
        (7..=8).for_each(|seq| queue.push(pending(seq, None)));
        assert!(queue.check_room(None, SMALL).is_err());
    }

    #[test]
    fn a_full_queue_has_no_room_until_something_is_taken() {
        let mut queue = queue(3);
        assert!(matches!(queue.check_room(None, 1), Err(EngineError::Overloaded { messages: 3, .. })));
        assert_eq!(queue.take(1, usize::MAX).len(), 1);
        assert_eq!(queue.check_room(None, 1), Ok(()));
    }

    #[test]
    fn bytes_count_too_and_add_up() {
        let one = cost(&pending(1, None).publication);
        let mut queue = CommitQueue::new(QueueBounds { messages: 9, bytes: one + 1 });
        queue.push(pending(1, None));
        assert_eq!(queue.check_room(None, 1), Ok(()));
        queue.push(pending(2, None));
        assert!(
            matches!(queue.check_room(None, 1), Err(EngineError::Overloaded { bytes, .. }) if bytes == 2 * one)
        );
        queue.take(9, usize::MAX);
        assert_eq!((queue.bytes, queue.len()), (0, 0));
    }

    #[test]
    fn a_group_is_bounded_in_messages_and_bytes_and_never_empty() {
        let mut queue = queue(3);
        let seqs = |taken: Vec<Pending>| taken.iter().map(|pending| pending.seq.0).collect::<Vec<_>>();
        assert_eq!(seqs(queue.take(9, 0)), [1], "one message always fits");
        assert_eq!(queue.first(), Some(Seq(2)));
        assert_eq!(seqs(queue.take(9, usize::MAX)), [2, 3]);
        assert!(queue.take(9, usize::MAX).is_empty() && queue.bytes == 0);
    }

    #[test]
    fn an_author_takes_its_share_and_others_go_on_up_to_the_reserve() {
        let mut payers = Payers::default();
        let [ann, bob, cid] =
            ["ann", "bob", "cid"].map(|name| payers.enter(&SenderName::new(name).unwrap(), 1));
        let mut queue = CommitQueue::new(QueueBounds { messages: 40, bytes: 1 << 20 });
        let fill = |queue: &mut CommitQueue, payer: Option<PayerId>| loop {
            if let Err(refused) = queue.check_room(payer, 1) {
                return (queue.tally.usage(payer.unwrap_or_default()).messages, refused);
            }
            queue.push(Pending { payer: payer.unwrap_or_default(), ..pending(queue.len() as u64 + 1, None) });
        };
        let is_share = |refused: &EngineError| {
            matches!(refused, EngineError::QuotaExceeded(OverShare { share: Share::Queue, .. }))
        };
        let (count, refused) = fill(&mut queue, Some(ann));
        assert!(count == 20 && is_share(&refused) && queue.may_refuse(), "{count} {refused}");
        let (count, refused) = fill(&mut queue, Some(bob));
        assert!(count == 5 && is_share(&refused), "{count} {refused}");
        queue.take(20, usize::MAX);
        assert_eq!(queue.tally.usage(ann), Usage::default());
        assert!(!queue.may_refuse());
        for payer in [ann, bob, cid] {
            fill(&mut queue, Some(payer));
        }
        let (_, refused) = fill(&mut queue, None);
        assert!(matches!(refused, EngineError::Overloaded { messages: 40, .. }), "{refused}");
        queue.give_up();
        assert!(queue.tally.is_empty());
    }

    #[test]
    fn a_tenth_of_the_queue_is_kept_for_backends() {
        let mut payers = Payers::default();
        let mut queue = CommitQueue::new(QueueBounds { messages: 10, bytes: 1 << 20 });
        for n in 0..9 {
            let payer = payers.enter(&SenderName::new(&format!("user {n}")).unwrap(), 1);
            assert_eq!(queue.check_room(Some(payer), 1), Ok(()));
            queue.push(Pending { payer, ..pending(n + 1, None) });
        }
        let refused = queue.check_room(Some(PayerId::NONE), 1).unwrap_err();
        assert!(matches!(refused, EngineError::Overloaded { messages: 9, .. }), "{refused}");
        assert_eq!(queue.check_room(None, 1), Ok(()));
    }

    #[test]
    fn repeats_wait_for_the_first_one() {
        let mut queue = queue(2);
        let (waiters, told): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel()).unzip();
        for (seq, waiter) in [1, 2, 1].into_iter().zip(waiters) {
            queue.push_repeat(Seq(seq), waiter);
        }
        let repeats: Vec<_> = queue.take_repeats(Seq(1)).into_iter().map(|(seq, _)| seq.0).collect();
        assert_eq!(repeats, [1, 1]);
        assert_eq!(queue.take_repeats(Seq(1)).len(), 0);
        drop(told);
    }

    #[test]
    fn giving_up_returns_everybody_who_waits() {
        let mut queue = queue(1);
        queue.push(pending(2, Some(oneshot::channel().0)));
        queue.push_repeat(Seq(1), oneshot::channel().0);
        assert_eq!(queue.give_up().len(), 2);
        assert_eq!((queue.len(), queue.bytes), (0, 0));
    }
}
