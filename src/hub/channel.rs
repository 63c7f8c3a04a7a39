//! The end of the channel of a hub.
//!
//! An event carries how many events the hub was sent before it: what was written to all readers at once never goes through
//! the channel.

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::TryRecvError;

use crate::hub::HubEvent;

/// An event, and how many events were sent to the hub before it.
#[derive(Debug, Clone)]
pub(super) struct Numbered {
    pub(super) number: u64,
    pub(super) event: HubEvent,
}

/// One end of the channel of a hub.
#[derive(Debug)]
pub(super) struct End {
    receiver: broadcast::Receiver<Numbered>,
    /// Was taken out, and comes after something that is lost. Boxed, since this is rare.
    next: Option<Box<Numbered>>,
}

impl End {
    /// An end for what is sent from now on.
    pub(super) fn new(channel: &broadcast::Sender<Numbered>) -> Self {
        Self { receiver: channel.subscribe(), next: None }
    }

    /// The event after the first `at` ones. Those before it that are still there are dropped.
    ///
    /// # Errors
    /// Nothing is there, or so many events from that one on are lost.
    pub(super) fn take(&mut self, at: u64) -> Result<HubEvent, TryRecvError> {
        loop {
            let next = match self.next.take() {
                Some(next) => *next,
                None => match self.receiver.try_recv() {
                    Ok(next) => next,
                    // The number of the next one tells what is lost.
                    Err(TryRecvError::Lagged(_)) => continue,
                    Err(error) => return Err(error),
                },
            };
            match next.number.checked_sub(at) {
                None => {}
                Some(0) => return Ok(next.event),
                Some(lost) => {
                    self.next = Some(Box::new(next));
                    return Err(TryRecvError::Lagged(lost));
                }
            }
        }
    }
}

/// An end whose events are taken some at a time.
#[derive(Debug)]
pub(super) struct Tail {
    end: End,
    /// How many events were sent before the next one that comes out of the end.
    taken: u64,
    /// Was taken out, and belongs to what comes next.
    next: Option<HubEvent>,
}

impl Tail {
    /// The events after the first `at` ones.
    pub(super) fn new(end: End, at: u64) -> Self {
        Self { end, taken: at, next: None }
    }

    /// How many events were sent before the next one that is taken.
    pub(super) fn at(&self) -> u64 {
        self.taken - u64::from(self.next.is_some())
    }

    /// The next events in a row, without those that are lost. Ends before the first one that is not `taken`.
    pub(super) fn take_while(&mut self, mut taken: impl FnMut(&HubEvent) -> bool) -> Vec<HubEvent> {
        let mut events = Vec::new();
        loop {
            let event = match self.take() {
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

    fn take(&mut self) -> Result<HubEvent, TryRecvError> {
        if let Some(event) = self.next.take() {
            return Ok(event);
        }
        let taken = self.end.take(self.taken);
        self.taken += match taken {
            Ok(_) => 1,
            Err(TryRecvError::Lagged(lost)) => lost,
            Err(TryRecvError::Empty | TryRecvError::Closed) => 0,
        };
        taken
    }
}
