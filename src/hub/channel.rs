//! The end of the channel of a hub.

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::TryRecvError;

use crate::hub::HubEvent;

/// One end of the channel of a hub.
#[derive(Debug)]
pub(super) struct End {
    receiver: broadcast::Receiver<HubEvent>,
    /// How many events the hub had sent before the next one that comes out here.
    at: u64,
}

impl End {
    /// An end for what is sent after the first `at` events, which were sent already.
    pub(super) fn new(channel: &broadcast::Sender<HubEvent>, at: u64) -> Self {
        Self { receiver: channel.subscribe(), at }
    }

    /// The event after the first `at` ones. Those before it that are still there are dropped.
    ///
    /// # Errors
    /// Nothing is there, or so many events from that one on are lost.
    pub(super) fn take(&mut self, at: u64) -> Result<HubEvent, TryRecvError> {
        loop {
            match self.receiver.try_recv() {
                Ok(event) => {
                    self.at += 1;
                    if self.at > at {
                        return Ok(event);
                    }
                }
                Err(TryRecvError::Lagged(lost)) => {
                    self.at += lost;
                    if self.at > at {
                        return Err(TryRecvError::Lagged(self.at - at));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// An end whose events are taken some at a time.
#[derive(Debug)]
pub(super) struct Tail {
    end: End,
    /// Was taken out, and belongs to what comes next.
    next: Option<HubEvent>,
}

impl From<End> for Tail {
    fn from(end: End) -> Self {
        Self { end, next: None }
    }
}

impl Tail {
    /// How many events were sent before the next one that is taken.
    pub(super) fn at(&self) -> u64 {
        self.end.at - u64::from(self.next.is_some())
    }

    /// The next events in a row, without those that are lost. Ends before the first one that is not `taken`.
    pub(super) fn take_while(&mut self, mut taken: impl FnMut(&HubEvent) -> bool) -> Vec<HubEvent> {
        let mut events = Vec::new();
        loop {
            let event = match self.next.take().map_or_else(|| self.end.take(self.end.at), Ok) {
                Ok(event) => event,
                Err(TryRecvError::Lagged(_)) if events.is_empty() => continue,
                Err(_) => return events,
            };
            if !taken(&event) {
                self.next = Some(event);
                return events;
            }
            events.push(event);
        }
    }
}
