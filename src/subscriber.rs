//! One reader: catches up from the engine, then takes what the hub brings. The only code that joins the two.
//!
//! First attach, reconnect, lag and polls are one path: join the hub first, read the engine from the cursor, go live
//! when a read comes back shorter than its limit. A live publication is delivered only if the reader has everything
//! before it. Otherwise the engine is read until that publication is met.
//!
//! When the epoch changes, the reader drops what it read, reports a gap and begins at the ack floor.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use sync_wrapper::SyncWrapper;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::coop::cooperative;
use tokio::time::{Sleep, sleep};

use crate::budget::Permit;
use crate::engine::{Engine, EngineError};
use crate::hub::{EndReason, HubEvent, HubReceiver, Hubs, ReaderHandle, Transport};
use crate::message::{Address, Epoch, Gap, Item, Seq};
use crate::metrics;

mod ahead;
mod catch_up;
mod held;
mod lending;
mod reading;

use ahead::Ahead;
use reading::ReadResult;

/// Pause before the engine is read again after a failure.
const FAILURE_PAUSE: Duration = Duration::from_millis(500);

/// A reader of one address.
#[derive(Debug)]
pub struct Subscriber {
    engine: Engine,
    handle: ReaderHandle,
    receiver: HubReceiver,
    /// What the seqs below belong to.
    epoch: Epoch,
    /// The seq of the newest stored message put into `backlog`.
    read: Seq,
    /// The seq of the newest stored message delivered to the caller.
    delivered: Seq,
    /// Read and not delivered: at most one read of the engine, and what the hub had ready.
    backlog: VecDeque<Item>,
    /// The share of the small messages in `backlog` in the memory budget.
    room: Option<Permit>,
    state: ReadState,
    /// A read of the engine that is under way. It goes on when the caller drops the future that waits for it. The
    /// wrapper makes it shareable, as everything is that a handler holds.
    reading: Option<SyncWrapper<BoxFuture<'static, Result<ReadResult, EngineError>>>>,
    /// Lasts until the engine is read again that failed, or did not find yet what the hub announced.
    pause: Option<Pin<Box<Sleep>>>,
    /// Whether the caller was told that the engine cannot be read.
    failure_told: bool,
    /// What is behind an item that is not admitted.
    ahead: Option<Box<Ahead>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadState {
    /// Everything up to `read` was read. The hub brings the rest.
    Live,
    /// Read the engine, at least until this seq is met; [`Seq::START`] when no seq is known.
    Behind(Seq),
    /// The address has ended.
    Closed,
}

/// Where a reader begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Everything after this seq is read.
    pub cursor: Seq,
    /// What the cursor belongs to.
    pub epoch: Epoch,
}

impl Subscriber {
    /// A reader of everything after a cursor; `None` if the address has `most` readers already.
    #[must_use]
    pub fn new(
        engine: &Engine,
        hubs: &Hubs,
        address: &Address,
        Start { cursor, epoch }: Start,
        (transport, most): (Transport, usize),
    ) -> Option<Self> {
        let (handle, receiver) = hubs.join(address, cursor, transport, most)?;
        Some(Self {
            engine: engine.clone(),
            handle,
            receiver,
            epoch,
            read: cursor,
            delivered: cursor,
            backlog: VecDeque::new(),
            room: None,
            state: ReadState::Behind(Seq::START),
            reading: None,
            pause: None,
            failure_told: false,
            ahead: None,
        })
    }

    /// Why the address has ended; `None` while it has not.
    #[must_use]
    pub(crate) fn ended(&self) -> Option<EndReason> {
        self.handle.ended()
    }

    /// Whether everything that is stored was read, so that the hub brings what is next.
    #[must_use]
    pub(crate) fn is_live(&self) -> bool {
        self.state == ReadState::Live
    }

    /// What the seqs of delivered messages belong to.
    #[must_use]
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// The address that is read.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.handle.address()
    }

    /// The newest seq delivered.
    #[must_use]
    pub fn delivered(&self) -> Seq {
        self.delivered
    }

    /// The newest seq marked as sent. What comes after it can be delivered again.
    #[must_use]
    pub(crate) fn sent_through(&self) -> Seq {
        self.handle.position()
    }

    /// Notes that everything up to `seq` was sent, so that an acknowledgement may delete it.
    pub fn mark_sent(&mut self, seq: Seq) {
        if let Some(through) = self.handle.advance(seq) {
            self.engine.trim(self.handle.address(), through);
        }
    }

    /// Notes an acknowledgement of the address. Answers up to where the engine may delete now.
    #[must_use]
    pub(crate) fn acknowledge(&self, seq: Seq) -> Option<Seq> {
        self.handle.acknowledge(seq)
    }

    /// Goes back (or on) to `cursor`: what is stored after it is delivered again. Volatile messages stay.
    pub(crate) fn seek(&mut self, cursor: Seq) {
        if cursor == self.delivered {
            // What the hub kept while nobody read may have expired: the engine knows.
            if self.state == ReadState::Live && self.backlog.is_empty() && !self.receiver.is_empty() {
                self.state = ReadState::Behind(Seq::START);
            }
            return;
        }
        self.drop_stored();
        self.ahead = None;
        self.read = cursor;
        self.delivered = cursor;
        self.state = ReadState::Behind(Seq::START);
        (self.reading, self.pause) = (None, None);
    }

    /// Keeps only volatile messages.
    fn drop_stored(&mut self) {
        self.backlog.retain(|item| matches!(item, Item::Message(message) if message.seq().is_none()));
    }

    /// Puts a gap in front of everything else.
    pub(crate) fn push_gap(&mut self, gap: Gap) {
        self.backlog.push_front(Item::Gap(gap));
    }

    /// The next item; waits until there is one, also while the engine cannot be read. `None` when the address has ended.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped: an item is taken only when it is returned.
    pub async fn next(&mut self) -> Option<Item> {
        loop {
            if let Ok(item) = self.next_or_failure().await? {
                return Some(item);
            }
        }
    }

    /// The same, but tells once when the engine cannot be read. The next call waits until it can.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn next_or_failure(&mut self) -> Option<Result<Item, EngineError>> {
        self.next_if(|_| true).await
    }

    /// The same, if the next item is admitted. One that is not stays. Meanwhile volatile messages pass it, and so do copies of
    /// receipts and replies, without their seqs.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn next_if(
        &mut self,
        admits: impl Fn(&Item) -> bool,
    ) -> Option<Result<Item, EngineError>> {
        cooperative(poll_fn(|cx| self.poll_next_if(cx, &admits))).await
    }

    /// Polls for the same.
    pub(crate) fn poll_next_if(
        &mut self,
        cx: &mut Context<'_>,
        admits: impl Fn(&Item) -> bool,
    ) -> Poll<Option<Result<Item, EngineError>>> {
        loop {
            if self.ended().is_some() {
                return Poll::Ready(None);
            }
            if let Some(item) = self.try_next_if(&admits) {
                return Poll::Ready(Some(Ok(item)));
            }
            match self.state {
                ReadState::Closed => return Poll::Ready(None),
                _ if !self.backlog.is_empty() => {
                    if let Some(passing) = ready!(self.poll_hold(cx)) {
                        return Poll::Ready(Some(Ok(passing)));
                    }
                }
                ReadState::Behind(target) => {
                    if let Err(error) = ready!(self.poll_catch_up(cx, target)) {
                        self.pause = Some(Box::pin(sleep(FAILURE_PAUSE)));
                        if !std::mem::replace(&mut self.failure_told, true) {
                            return Poll::Ready(Some(Err(error)));
                        }
                    }
                }
                ReadState::Live => match ready!(self.poll_hub(cx)) {
                    Ok(live) => {
                        if let Some(item) = self.accept(live)
                            && let Some(item) = self.admit(item, &admits)
                        {
                            return Poll::Ready(Some(Ok(item)));
                        }
                    }
                    Err(RecvError::Lagged(_)) => self.lag(),
                    Err(RecvError::Closed) => self.state = ReadState::Closed,
                },
            }
        }
    }

    /// Reads what the store has, without waiting for anything new, until a message is at hand.
    ///
    /// # Errors
    /// The engine cannot be read now.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn ready(&mut self) -> Result<(), EngineError> {
        while let ReadState::Behind(target) = self.state
            && !self.backlog.iter().any(|item| matches!(item, Item::Message(_)))
        {
            poll_fn(|cx| self.poll_catch_up(cx, target)).await?;
        }
        Ok(())
    }

    /// The next item if one is at hand.
    pub fn try_next(&mut self) -> Option<Item> {
        self.try_next_if(|_| true)
    }

    /// The next item if one is at hand and admitted.
    pub(crate) fn try_next_if(&mut self, admits: impl Fn(&Item) -> bool) -> Option<Item> {
        // What is left is for a session that was ended, or for another owner.
        if self.ended().is_some() {
            return None;
        }
        if self.backlog.is_empty() {
            let item = self.try_live()?;
            return self.admit(item, admits);
        }
        if !self.backlog.front().is_some_and(admits) {
            return None;
        }
        let item = self.backlog.pop_front()?;
        if self.backlog.is_empty() {
            // A reader at rest holds no memory.
            (self.backlog, self.room) = (VecDeque::new(), None);
        }
        Some(self.deliver(item))
    }

    /// Delivers the next item, if it is admitted. Otherwise it waits in the backlog, which is empty.
    fn admit(&mut self, item: Item, admits: impl Fn(&Item) -> bool) -> Option<Item> {
        if admits(&item) {
            return Some(self.deliver(item));
        }
        self.backlog.push_back(item);
        None
    }

    fn deliver(&mut self, item: Item) -> Item {
        let through = match &item {
            Item::Message(message) => message.seq().unwrap_or_default(),
            Item::Gap(gap) => {
                metrics::GAPS[gap.reason as usize].count();
                gap.to
            }
        };
        self.delivered = self.delivered.max(through);
        item
    }

    /// Moves what is at hand into the backlog, up to `limit` items, and answers how many wait there.
    pub fn fill(&mut self, limit: usize) -> usize {
        while self.backlog.len() < limit
            && let Some(item) = self.try_live()
        {
            self.backlog.push_back(item);
        }
        self.backlog.len()
    }

    /// The next item of the hub, if one is at hand.
    fn try_live(&mut self) -> Option<Item> {
        self.note_moved();
        while self.state == ReadState::Live {
            match self.receiver.try_recv() {
                Ok(live) => {
                    if let Some(item) = self.accept(live) {
                        return Some(item);
                    }
                }
                Err(TryRecvError::Lagged(_)) => self.lag(),
                Err(TryRecvError::Closed) => self.state = ReadState::Closed,
                Err(TryRecvError::Empty) => break,
            }
        }
        None
    }

    /// The hub has overtaken this reader, which reads the engine then.
    fn lag(&mut self) {
        metrics::LAGGED.count();
        self.state = ReadState::Behind(Seq::START);
    }

    /// Notes an event of the hub. Its item, if this is the next one.
    fn accept(&mut self, event: HubEvent) -> Option<Item> {
        match event {
            HubEvent::Volatile(publication) => return Some(Item::Message(publication)),
            HubEvent::Stored { prev, publication } => match publication.seq() {
                Some(seq) if seq > self.read && prev <= self.read => {
                    self.read = seq;
                    return Some(Item::Message(publication));
                }
                Some(seq) if seq > self.read => self.state = ReadState::Behind(seq),
                _ => {}
            },
            HubEvent::Available(seq) if seq > self.read => self.state = ReadState::Behind(seq),
            HubEvent::Available(_) => {}
            HubEvent::EpochChanged => self.state = ReadState::Behind(Seq::START),
            HubEvent::Ended(_) => self.state = ReadState::Closed,
        }
        None
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        if let Some(through) = self.handle.detach() {
            self.engine.trim(self.handle.address(), through);
        }
        self.handle.leave();
    }
}

#[cfg(test)]
mod tests;
