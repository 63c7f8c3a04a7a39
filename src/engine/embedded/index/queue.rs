//! Messages that have a seq and are not committed yet.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::engine::embedded::dedup::SendId;
use crate::engine::{EngineError, QueueBounds};
use crate::message::{Address, MessageId, Publication, Seq, SessionId};

/// What a stored message costs besides its frame, in bytes: table entries and reference counts.
const OVERHEAD: usize = 256;

/// Tells the caller of an append what became of it.
pub(crate) type Waiter = oneshot::Sender<Result<Seq, EngineError>>;

/// What a message with a frame of this length counts against the bounds, in bytes.
pub(super) fn frame_cost(frame: usize) -> usize {
    frame + OVERHEAD
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
    /// The session that gets a receipt, and its id for the message.
    pub(crate) receipt: Option<(SessionId, MessageId)>,
    /// `None` for a receipt, which has no waiter and must not be refused.
    pub(crate) waiter: Option<Waiter>,
}

/// The messages to commit next, in seq order.
///
/// Invariant: `bytes` is the sum of their costs. The bounds are checked before an append; receipts may exceed them.
#[derive(Debug)]
pub(super) struct CommitQueue {
    bounds: QueueBounds,
    pending: VecDeque<Pending>,
    bytes: usize,
    /// Senders that repeated a message before it was committed.
    repeats: Vec<(Seq, Waiter)>,
}

impl CommitQueue {
    pub(super) fn new(bounds: QueueBounds) -> Self {
        Self { bounds, pending: VecDeque::new(), bytes: 0, repeats: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether another message may come.
    pub(super) fn check_room(&self) -> Result<(), EngineError> {
        let (messages, bytes, bounds) = (self.pending.len(), self.bytes, self.bounds);
        if messages >= bounds.messages || bytes >= bounds.bytes {
            return Err(EngineError::Overloaded { messages, bytes, bounds });
        }
        Ok(())
    }

    pub(super) fn push(&mut self, pending: Pending) {
        self.bytes += cost(&pending.publication);
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
            taken_bytes += cost(&pending.publication);
            end += 1;
        }
        self.bytes -= taken_bytes;
        let taken = self.pending.drain(..end).collect();
        if self.pending.is_empty() && self.pending.capacity() > 1024 {
            self.pending.shrink_to(256);
        }
        taken
    }

    /// Takes the waiters for repeats of messages up to and including `through`.
    pub(super) fn take_repeats(&mut self, through: Seq) -> Vec<(Seq, Waiter)> {
        self.repeats.extract_if(.., |(seq, _)| *seq <= through).collect()
    }

    /// Empties the queue and takes all waiters.
    pub(super) fn give_up(&mut self) -> Vec<Waiter> {
        self.bytes = 0;
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
    use crate::message::{Message, Outcome};

    fn pending(seq: u64, waiter: Option<Waiter>) -> Pending {
        let address = Address::Session(SessionId::new("A").unwrap());
        let message = Message::receipt(&MessageId::new("1").unwrap(), Outcome::Expired, 1);
        let publication = Arc::new(Publication::encode(&address, Some(Seq(seq)), &message));
        let (prev, expires_at, ts) = (Seq::START, 9, 1);
        Pending {
            seq: Seq(seq),
            prev,
            expires_at,
            ts,
            address,
            publication,
            send_id: None,
            receipt: None,
            waiter,
        }
    }

    fn queue(messages: u64) -> CommitQueue {
        let mut queue = CommitQueue::new(QueueBounds { messages: 3, bytes: 1 << 20 });
        (1..=messages).for_each(|seq| queue.push(pending(seq, None)));
        queue
    }

    #[test]
    fn a_full_queue_has_no_room_until_something_is_taken() {
        let mut queue = queue(3);
        assert!(matches!(queue.check_room(), Err(EngineError::Overloaded { messages: 3, .. })));
        assert_eq!(queue.take(1, usize::MAX).len(), 1);
        assert_eq!(queue.check_room(), Ok(()));
    }

    #[test]
    fn bytes_count_too_and_add_up() {
        let one = cost(&pending(1, None).publication);
        let mut queue = CommitQueue::new(QueueBounds { messages: 9, bytes: one + 1 });
        queue.push(pending(1, None));
        assert_eq!(queue.check_room(), Ok(()));
        queue.push(pending(2, None));
        assert!(matches!(queue.check_room(), Err(EngineError::Overloaded { bytes, .. }) if bytes == 2 * one));
        queue.take(9, usize::MAX);
        assert_eq!((queue.bytes, queue.len()), (0, 0));
    }

    #[test]
    fn a_group_is_bounded_in_messages_and_bytes_and_never_empty() {
        let mut queue = queue(3);
        let seqs = |taken: Vec<Pending>| taken.iter().map(|pending| pending.seq.0).collect::<Vec<_>>();
        assert_eq!(seqs(queue.take(9, 0)), [1], "one message always fits");
        assert_eq!(queue.first(), Some(Seq(2)));
        assert_eq!(seqs(queue.take(1, usize::MAX)), [2]);
        assert_eq!(seqs(queue.take(9, usize::MAX)), [3]);
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
