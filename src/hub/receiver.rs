//! What a reader gets from its hub.
//!
//! It waits without the list of waiters of the broadcast channel, which costs several locks for each wait, and for each
//! wait that is given up. A reader that finds nothing sets a flag. Who sends clears the flags, and wakes those readers.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::coop::cooperative;

use crate::hub::HubEvent;
use crate::hub::address_hub::Hub;
use crate::hub::channel::End;
use crate::hub::reader::AttachedReader;
use crate::message::Seq;

/// What a reader gets from its hub.
#[derive(Debug)]
pub struct HubReceiver {
    reader: Arc<AttachedReader>,
    hub: Arc<Hub>,
    /// How many events the hub had sent before the next one that is taken here, unless the reader was moved on.
    taken: u64,
    /// Its end of the channel; `None` until something was sent, and while it is where the hub has put it. What was written to
    /// the reader's connection meanwhile is still in it.
    end: Option<End>,
}

impl HubReceiver {
    pub(super) fn new(reader: Arc<AttachedReader>, hub: Arc<Hub>, end: Option<End>) -> Self {
        Self { taken: reader.at(), reader, hub, end }
    }

    /// The next event.
    ///
    /// # Errors
    /// Events are lost.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn recv(&mut self) -> Result<HubEvent, RecvError> {
        cooperative(poll_fn(|cx| self.poll_recv(cx))).await
    }

    /// Polls for the next event.
    ///
    /// # Errors
    /// Events are lost.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<HubEvent, RecvError>> {
        // Before the look: what is sent after it ends the wait.
        if !self.reader.wait(cx) {
            return Poll::Pending;
        }
        let found = match self.try_recv() {
            Ok(event) => Ok(event),
            Err(TryRecvError::Empty) => return Poll::Pending,
            Err(TryRecvError::Lagged(lost)) => Err(RecvError::Lagged(lost)),
            Err(TryRecvError::Closed) => Err(RecvError::Closed),
        };
        self.reader.stop_waiting();
        Poll::Ready(found)
    }

    /// The next event, if it is there. Takes no lock if nothing is there.
    ///
    /// # Errors
    /// Nothing is there, or events are lost.
    pub fn try_recv(&mut self) -> Result<HubEvent, TryRecvError> {
        if self.is_empty() {
            return Err(TryRecvError::Empty);
        }
        if self.end.is_none() {
            self.end = self.reader.take();
        }
        let at = self.reader.at();
        let found = self.end.as_mut().map_or(Err(TryRecvError::Empty), |end| end.take(at));
        if found.is_ok() {
            self.hub.timed.taken(at);
        }
        self.taken = at
            + match found {
                Ok(_) => 1,
                Err(TryRecvError::Lagged(lost)) => lost,
                Err(TryRecvError::Empty | TryRecvError::Closed) => 0,
            };
        self.reader.set_at(self.taken);
        found
    }

    /// Whether nothing is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hub.sent() == self.reader.at()
    }

    /// The seq of the newest stored message that was written to the reader's connection, if it was moved on since this was
    /// asked last: see [`crate::hub::Outlet`].
    pub(crate) fn moved_on(&mut self) -> Option<Seq> {
        let at = self.reader.at();
        (std::mem::replace(&mut self.taken, at) != at).then(|| self.reader.read())
    }

    /// Notes the seq of the newest stored message that the reader has taken, before it waits.
    pub(crate) fn note_read(&self, read: Seq) {
        self.reader.set_read(read);
    }
}
