//! One reader: catches up from the engine, then takes what the hub brings. The only code that joins the two.
//!
//! First attach, reconnect, lag and polls are one path: join the hub first, read the engine from the cursor,
//! go live when a read comes back shorter than its limit. A live publication is handed over only if the
//! reader has everything before it; otherwise the engine is read until that publication is met.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use crate::engine::{Batch, Engine};
use crate::hub::{HubEvent, Hubs, ReaderHandle, Transport};
use crate::message::{Address, Gap, Item, Seq};

/// How many items one read of the engine asks for.
const READ: usize = 64;

/// How long to wait before reading again an engine that does not have yet what the hub announced.
const STALE_PAUSE: Duration = Duration::from_millis(20);

/// A reader of one address.
#[derive(Debug)]
pub struct Subscriber {
    engine: Engine,
    handle: ReaderHandle,
    receiver: broadcast::Receiver<HubEvent>,
    /// The seq of the newest stored message put into `backlog` so far.
    read: Seq,
    /// The seq of the newest stored message handed over so far.
    delivered: Seq,
    /// Read, but not handed over: at most one read of the engine and what the hub had ready.
    backlog: VecDeque<Item>,
    state: ReadState,
    /// A read of the engine that is under way: it goes on although this reader is asked for something else.
    reading: Option<Reading>,
}

/// The mutex is never contended: it makes the future shareable, as everything is that a handler holds.
struct Reading(Mutex<BoxFuture<'static, Batch>>);

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reading")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadState {
    /// Everything up to `read` was read; the hub brings the rest.
    Live,
    /// Read the engine, at least until this seq is met; [`Seq::START`] when no seq is known.
    Behind(Seq),
    /// The address has ended: nothing more comes.
    Closed,
}

impl Subscriber {
    /// A reader of everything after `cursor`; `None` if the address has `most` readers already.
    #[must_use]
    pub fn new(
        engine: &Engine,
        hubs: &Hubs,
        address: &Address,
        cursor: Seq,
        (transport, most): (Transport, usize),
    ) -> Option<Self> {
        let (handle, receiver) = hubs.join(address, cursor, transport, most)?;
        Some(Self {
            engine: engine.clone(),
            handle,
            receiver,
            read: cursor,
            delivered: cursor,
            backlog: VecDeque::new(),
            state: ReadState::Behind(Seq::START),
            reading: None,
        })
    }

    /// Whether the address has ended: nothing more comes.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.handle.has_ended()
    }

    /// What is read.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.handle.address()
    }

    /// The newest seq handed over.
    #[must_use]
    pub fn delivered(&self) -> Seq {
        self.delivered
    }

    /// The newest seq known to have been passed on: what comes after it can be handed over again.
    #[must_use]
    pub fn sent_through(&self) -> Seq {
        self.handle.position()
    }

    /// Notes that everything up to `seq` was passed on, so that an acknowledgement may delete it.
    pub fn mark_sent(&mut self, seq: Seq) {
        if let Some(through) = self.handle.advance(seq) {
            self.engine.trim(self.handle.address(), through);
        }
    }

    /// Goes back (or on) to `cursor`: what is stored after it is handed over again.
    ///
    /// Volatile messages that wait to be handed over stay.
    pub fn seek(&mut self, cursor: Seq) {
        if cursor == self.delivered {
            // What the hub kept while nobody was there may have ended meanwhile: the engine knows.
            if self.state == ReadState::Live && self.backlog.is_empty() && !self.receiver.is_empty() {
                self.state = ReadState::Behind(Seq::START);
            }
            return;
        }
        self.backlog.retain(|item| matches!(item, Item::Message(message) if message.seq().is_none()));
        self.read = cursor;
        self.delivered = cursor;
        self.state = ReadState::Behind(Seq::START);
        self.reading = None;
    }

    /// Puts a hole in front of everything else.
    pub fn push_gap(&mut self, gap: Gap) {
        self.backlog.push_front(Item::Gap(gap));
    }

    /// The next item; waits until there is one. `None` when the address has ended.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped: an item is taken only when it is returned.
    pub async fn next(&mut self) -> Option<Item> {
        loop {
            // What is left is nobody's any more.
            if self.has_ended() {
                return None;
            }
            if let Some(item) = self.try_next() {
                return Some(item);
            }
            match self.state {
                ReadState::Closed => return None,
                ReadState::Behind(target) => self.catch_up(target).await,
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
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn ready(&mut self) {
        while let ReadState::Behind(target) = self.state
            && !self.backlog.iter().any(|item| matches!(item, Item::Message(_)))
        {
            self.catch_up(target).await;
        }
    }

    /// The next item if one is at hand.
    pub fn try_next(&mut self) -> Option<Item> {
        self.fill(1);
        let item = self.backlog.pop_front()?;
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
        let (prev, publication) = match event {
            HubEvent::Publication { prev, publication } => (prev, publication),
            HubEvent::Ended => return self.state = ReadState::Closed,
        };
        match publication.seq() {
            None => self.backlog.push_back(Item::Message(publication)),
            Some(seq) if seq <= self.read => {}
            Some(seq) if prev <= self.read => {
                self.read = seq;
                self.backlog.push_back(Item::Message(publication));
            }
            Some(seq) => self.state = ReadState::Behind(seq),
        }
    }

    /// One read of the engine.
    async fn catch_up(&mut self, target: Seq) {
        let reading = self.reading.get_or_insert_with(|| {
            let (engine, address, after) = (self.engine.clone(), self.handle.address().clone(), self.read);
            Reading(Mutex::new(Box::pin(async move { engine.read(&address, after, READ).await })))
        });
        let batch = reading.0.get_mut().unwrap_or_else(PoisonError::into_inner).await;
        self.reading = None;
        self.read = self.read.max(batch.cursor);
        let batch_is_empty = batch.items.is_empty();
        self.backlog.extend(batch.items);
        if batch.more {
            return;
        }
        if self.read >= target {
            self.state = ReadState::Live;
        } else if batch_is_empty {
            // Stale: the engine will have it soon. Everybody else goes on meanwhile.
            tokio::time::sleep(STALE_PAUSE).await;
        }
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
