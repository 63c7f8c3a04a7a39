//! Hands what was committed to the hubs, and tells who waits for it.

use crate::engine::arrivals::Arrivals;
use crate::engine::embedded::index::{PlannedChange, Published};
use crate::engine::embedded::publish_queue::PublishQueue;
use crate::hub::{EndReason, Hubs};
use crate::message::Address;

/// Hands what was committed to the hubs, and tells who waits for it.
#[derive(Debug)]
pub(super) struct Publisher {
    hubs: Hubs,
    arrivals: Arrivals,
    /// Committed on the disk and not published yet.
    pub(super) queue: PublishQueue,
}

impl Publisher {
    pub(super) fn new(hubs: Hubs, arrivals: Arrivals) -> Self {
        Self { hubs, arrivals, queue: PublishQueue::default() }
    }

    /// Publishes what was committed on the disk, and tells who waits for it.
    pub(super) fn publish_committed(&self) {
        self.queue.publish(|group| {
            self.publish(&group.publications);
            self.announce(&group.changes);
            group.tell();
        });
    }

    /// Publishes committed messages. The caller does so in commit order.
    pub(super) fn publish(&self, publications: &[Published]) {
        for Published { address, publication, prev } in publications {
            debug_assert!(publication.seq() > Some(*prev), "seqs of one address are published in order");
            self.hubs.publish(address, publication, *prev);
        }
    }

    /// Tells who waits for a session that is registered now, and the readers of one that has ended.
    fn announce(&self, changes: &[PlannedChange]) {
        for change in changes {
            match change {
                PlannedChange::Register { session, .. } => self.arrivals.wake(session),
                PlannedChange::End { session, .. } => {
                    self.hubs.end(&Address::Session(session.clone()), EndReason::SessionEnded);
                }
            }
        }
    }
}
