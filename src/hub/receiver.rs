//! What a reader gets from its hub.
//!
//! It waits without the list of waiters of the broadcast channel, which costs several locks for each wait, and for each
//! wait that is given up. A reader that finds nothing sets a flag. Who sends clears the flags, and wakes those readers.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::coop::cooperative;

use crate::hub::HubEvent;
use crate::hub::address_hub::Hub;
use crate::hub::reader::AttachedReader;

/// What a reader gets from its hub.
#[derive(Debug)]
pub struct HubReceiver {
    reader: Arc<AttachedReader>,
    hub: Arc<Hub>,
    /// How many events the hub had sent before the next one that is taken here.
    taken: u64,
    /// Its end of the channel; `None` until something was sent, and while it is where the hub has put it.
    end: Option<broadcast::Receiver<HubEvent>>,
}

impl HubReceiver {
    pub(super) fn new(
        reader: Arc<AttachedReader>,
        (hub, taken): (Arc<Hub>, u64),
        end: Option<broadcast::Receiver<HubEvent>>,
    ) -> Self {
        Self { reader, hub, taken, end }
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
        let found = match self.look() {
            Ok(event) => Ok(event),
            Err(TryRecvError::Empty) => return Poll::Pending,
            Err(TryRecvError::Lagged(lost)) => Err(RecvError::Lagged(lost)),
            Err(TryRecvError::Closed) => Err(RecvError::Closed),
        };
        self.reader.stop_waiting();
        Poll::Ready(found)
    }

    /// The next event, if it is there.
    ///
    /// # Errors
    /// Nothing is there, or events are lost.
    pub fn try_recv(&mut self) -> Result<HubEvent, TryRecvError> {
        self.look()
    }

    /// Whether nothing is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hub.sent() == self.taken
    }

    /// Takes no lock if nothing is there.
    fn look(&mut self) -> Result<HubEvent, TryRecvError> {
        if self.is_empty() {
            return Err(TryRecvError::Empty);
        }
        if self.end.is_none() {
            self.end = self.reader.take();
        }
        let found = self.end.as_mut().map_or(Err(TryRecvError::Empty), broadcast::Receiver::try_recv);
        self.taken += match found {
            Ok(_) => 1,
            Err(TryRecvError::Lagged(lost)) => lost,
            Err(TryRecvError::Empty | TryRecvError::Closed) => 0,
        };
        found
    }
}
