//! The last events of one hub.

use std::collections::VecDeque;

use crate::hub::HubEvent;

/// The last events of one hub, by how many came before them. Full, it drops the oldest one.
#[derive(Debug)]
pub(super) struct Ring {
    /// How many events came before the first one that is held.
    first: u64,
    events: VecDeque<HubEvent>,
    slots: usize,
    /// How many readers take events.
    readers: usize,
}

impl Ring {
    /// Has room for so many events.
    pub(super) fn new(slots: usize) -> Self {
        Self { first: 0, events: VecDeque::new(), slots: slots.max(1), readers: 0 }
    }

    /// How many events came before the first one that is held.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// How many events have come.
    pub(super) fn sent(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// How many readers take events.
    pub(super) fn readers(&self) -> usize {
        self.readers
    }

    /// Adds a reader of what comes from now on. Answers how many events came before.
    pub(super) fn join(&mut self) -> u64 {
        self.readers += 1;
        self.sent()
    }

    /// Removes a reader.
    pub(super) fn leave(&mut self) {
        self.readers -= 1;
    }

    /// Adds an event. Without readers it is counted and not held.
    pub(super) fn push(&mut self, event: HubEvent) {
        if self.readers == 0 {
            self.forget();
            self.first += 1;
            return;
        }
        if self.events.len() >= self.slots {
            self.events.pop_front();
            self.first += 1;
        }
        self.events.push_back(event);
    }

    /// The event that so many came before; `None` if it is not held.
    pub(super) fn get(&self, at: u64) -> Option<&HubEvent> {
        self.events.get(usize::try_from(at.checked_sub(self.first)?).ok()?)
    }

    /// Drops all events.
    pub(super) fn forget(&mut self) {
        self.first = self.sent();
        self.events.clear();
    }
}
