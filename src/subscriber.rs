//! One reader: catches up from the engine, then takes what the hub brings. The only code that joins the two.
//!
//! First attach, reconnect, lag and polls are one path: join the hub first, read the engine from the cursor, go live
//! when a read comes back shorter than its limit. A live publication is delivered only if the reader has everything
//! before it. Otherwise the engine is read until that publication is met.
//!
//! When the epoch changes, the reader drops what it read, reports a gap and begins at the ack floor.

use std::collections::VecDeque;
use std::time::Duration;

use futures::future::BoxFuture;
use sync_wrapper::SyncWrapper;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use crate::budget::Permit;
use crate::engine::{Batch, Engine, EngineError};
use crate::hub::{EndReason, HubEvent, Hubs, ReaderHandle, Transport};
use crate::message::{Address, Epoch, Gap, GapReason, Item, Seq};

mod ahead;
mod held;
mod read;

use ahead::Ahead;

/// How many items one read of the engine asks for.
const READ: usize = 64;

/// Pause before the engine is read again that does not find yet what the hub announced.
const STALE_PAUSE: Duration = Duration::from_millis(20);

/// Pause before the engine is read again after a failure.
const FAILURE_PAUSE: Duration = Duration::from_millis(500);

/// A reader of one address.
#[derive(Debug)]
pub struct Subscriber {
    engine: Engine,
    handle: ReaderHandle,
    receiver: broadcast::Receiver<HubEvent>,
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

/// What a read of the engine found.
struct ReadResult {
    batch: Batch,
    /// The epoch now, and the ack floor where reading began, if the epoch has changed.
    restart: Option<(Epoch, Seq)>,
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
            failure_told: false,
            ahead: None,
        })
    }

    /// Why the address has ended; `None` while it has not.
    #[must_use]
    pub(crate) fn ended(&self) -> Option<EndReason> {
        self.handle.ended()
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
        self.reading = None;
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
        loop {
            if self.ended().is_some() {
                return None;
            }
            if let Some(item) = self.try_next_if(&admits) {
                return Some(Ok(item));
            }
            match self.state {
                ReadState::Closed => return None,
                _ if !self.backlog.is_empty() => {
                    if let Some(passing) = self.hold().await {
                        return Some(Ok(passing));
                    }
                }
                ReadState::Behind(target) => match self.catch_up(target).await {
                    Ok(()) => {}
                    Err(error) if !self.failure_told => {
                        self.failure_told = true;
                        return Some(Err(error));
                    }
                    Err(_) => tokio::time::sleep(FAILURE_PAUSE).await,
                },
                ReadState::Live => match self.receiver.recv().await {
                    Ok(live) => self.accept(live),
                    Err(RecvError::Lagged(_)) => self.state = ReadState::Behind(Seq::START),
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
            self.catch_up(target).await?;
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
        self.fill(1);
        if !self.backlog.front().is_some_and(admits) {
            return None;
        }
        let item = self.backlog.pop_front()?;
        if self.backlog.is_empty() {
            self.room = None;
        }
        match &item {
            Item::Message(message) => self.delivered = self.delivered.max(message.seq().unwrap_or_default()),
            Item::Gap(gap) => self.delivered = self.delivered.max(gap.to),
        }
        Some(item)
    }

    /// Moves what is at hand into the backlog, up to `limit` items, and answers how many wait there.
    pub fn fill(&mut self, limit: usize) -> usize {
        while self.state == ReadState::Live && self.backlog.len() < limit {
            match self.receiver.try_recv() {
                Ok(live) => self.accept(live),
                Err(TryRecvError::Lagged(_)) => self.state = ReadState::Behind(Seq::START),
                Err(TryRecvError::Closed) => self.state = ReadState::Closed,
                Err(TryRecvError::Empty) => break,
            }
        }
        self.backlog.len()
    }

    fn accept(&mut self, event: HubEvent) {
        match event {
            HubEvent::Volatile(publication) => self.backlog.push_back(Item::Message(publication)),
            HubEvent::Stored { prev, publication } => match publication.seq() {
                Some(seq) if seq > self.read && prev <= self.read => {
                    self.read = seq;
                    self.backlog.push_back(Item::Message(publication));
                }
                Some(seq) if seq > self.read => self.state = ReadState::Behind(seq),
                _ => {}
            },
            HubEvent::Available(seq) if seq > self.read => self.state = ReadState::Behind(seq),
            HubEvent::Available(_) => {}
            HubEvent::EpochChanged => self.state = ReadState::Behind(Seq::START),
            HubEvent::Ended(_) => self.state = ReadState::Closed,
        }
    }

    /// One read of the engine.
    async fn catch_up(&mut self, target: Seq) -> Result<(), EngineError> {
        let ReadResult { batch, restart } = self.read_engine().await?;
        self.failure_told = false;
        let restarted = restart.is_some();
        if !restarted && let Some(gap) = self.released_gap(&batch) {
            self.backlog.push_back(Item::Gap(gap));
        }
        if let Some((epoch, floor)) = restart {
            self.restart(epoch, floor);
        }
        self.read = self.read.max(batch.cursor);
        let found_nothing = batch.items.is_empty();
        self.backlog.extend(batch.items);
        self.room = batch.room;
        if batch.more {
            return Ok(());
        }
        if restarted || self.read >= target {
            self.state = ReadState::Live;
        } else if found_nothing {
            // Stale: the engine will find it soon. Other readers go on meanwhile.
            tokio::time::sleep(STALE_PAUSE).await;
        }
        Ok(())
    }

    /// The gap before a first read that finds messages gone which came after this reader. The engine reports none: it
    /// takes a reader without a position for a new one.
    fn released_gap(&self, batch: &Batch) -> Option<Gap> {
        if self.read > Seq::START {
            return None;
        }
        let to = self.handle.released()?;
        let found = batch.items.first().and_then(Item::seq).unwrap_or(batch.cursor);
        (found > to || batch.items.is_empty() && found == to).then_some(Gap {
            from: self.read,
            to,
            reason: GapReason::Acknowledged,
        })
    }

    /// Begins at the ack floor of another epoch.
    fn restart(&mut self, epoch: Epoch, floor: Seq) {
        self.drop_stored();
        self.ahead = None;
        self.backlog.push_back(Item::Gap(Gap { from: self.delivered, to: floor, reason: GapReason::Epoch }));
        self.epoch = epoch;
        self.read = floor;
        self.delivered = floor;
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
