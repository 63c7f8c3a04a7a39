//! What was committed on disk: on its way to the hubs, and to those who wait for it.
//!
//! A task of the runtime publishes it, not the writer's thread. To wake a task costs little on a thread of the runtime, and
//! a system call from elsewhere. So the writer wakes one task for each commit. Where there is no runtime, the writer
//! publishes.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::engine::embedded::index::{PlannedChange, Published, Waiter};
use crate::message::Seq;
use crate::sync::lock;

/// What one commit made visible.
#[derive(Debug, Default)]
pub(super) struct CommittedGroup {
    pub(super) publications: Vec<Published>,
    pub(super) changes: Vec<PlannedChange>,
    /// Who waits for a message, and its seq.
    pub(super) senders: Vec<(Seq, Waiter)>,
    /// Who waits for something else.
    pub(super) others: Vec<Waiter>,
    pub(super) newest: Seq,
}

impl CommittedGroup {
    /// Tells everybody who waits that it is stored. Nobody may wait any more.
    pub(super) fn tell(self) {
        for (seq, waiter) in self.senders {
            _ = waiter.send(Ok(seq));
        }
        for change in self.changes {
            change.tell(Ok(self.newest));
        }
        for waiter in self.others {
            _ = waiter.send(Ok(self.newest));
        }
    }
}

/// Committed groups that are not published yet.
#[derive(Debug, Default)]
pub(super) struct PublishQueue {
    /// In commit order.
    groups: Mutex<VecDeque<CommittedGroup>>,
    /// Held while a group is taken and published, so that groups are published in commit order.
    publishing: Mutex<()>,
    /// Whether a task publishes.
    has_task: AtomicBool,
    /// Wakes that task.
    ready: Notify,
    closed: AtomicBool,
}

impl PublishQueue {
    /// Adds a group, and wakes the task that publishes it. `false` if there is none: then the caller must.
    pub(super) fn add(&self, group: CommittedGroup) -> bool {
        lock(&self.groups).push_back(group);
        let has_task = self.has_task.load(Ordering::SeqCst);
        if has_task {
            self.ready.notify_one();
        }
        has_task
    }

    /// Publishes all groups. Afterwards everything is published that was added before.
    pub(super) fn publish(&self, publish: impl Fn(CommittedGroup)) {
        // Poison is ignored: a group is taken before it is published, and a panic drops it.
        let _publishing = lock(&self.publishing);
        loop {
            // The lock is not held while the group is published.
            let next = lock(&self.groups).pop_front();
            let Some(group) = next else { return };
            publish(group);
        }
    }

    /// A task publishes from now on, or does not any more.
    pub(super) fn set_task(&self, has_task: bool) {
        self.has_task.store(has_task, Ordering::SeqCst);
    }

    /// Waits until there is something to publish. `false` once it is closed.
    pub(super) async fn wait(&self) -> bool {
        self.ready.notified().await;
        !self.closed.load(Ordering::SeqCst)
    }

    /// Ends the task.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.ready.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    fn group(newest: u64) -> CommittedGroup {
        CommittedGroup { newest: Seq(newest), ..CommittedGroup::default() }
    }

    fn published(queue: &PublishQueue) -> Vec<u64> {
        let seqs = Mutex::new(Vec::new());
        queue.publish(|group| lock(&seqs).push(group.newest.0));
        seqs.into_inner().unwrap()
    }

    #[test]
    fn groups_are_published_once_and_in_their_order() {
        let queue = PublishQueue::default();
        assert!(!queue.add(group(1)) && !queue.add(group(2)), "there is no task");
        assert_eq!(published(&queue), [1, 2]);
        queue.set_task(true);
        assert!(queue.wait().now_or_never().is_none());
        assert!(queue.add(group(3)) && queue.add(group(4)));
        assert_eq!(queue.wait().now_or_never(), Some(true));
        assert_eq!(published(&queue), [3, 4]);
        assert!(queue.wait().now_or_never().is_none(), "woken once");
        queue.close();
        assert_eq!(queue.wait().now_or_never(), Some(false));
    }

    #[test]
    fn a_panic_fails_the_waiters_of_its_group_only() {
        let (queue, (waiter, mut failed), (other, mut told)) =
            (PublishQueue::default(), oneshot::channel(), oneshot::channel());
        queue.add(CommittedGroup { others: vec![waiter], ..group(1) });
        queue.add(CommittedGroup { others: vec![other], ..group(2) });
        let publish = || queue.publish(|_| panic!("a defect, for the test"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(publish)).is_err());
        queue.publish(CommittedGroup::tell);
        assert!(failed.try_recv().is_err());
        assert_eq!(told.try_recv().unwrap(), Ok(Seq(2)));
    }
}
