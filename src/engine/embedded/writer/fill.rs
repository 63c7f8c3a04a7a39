//! Lets a group fill before it is committed.
//!
//! Senders that wait for their answers send again once they are told of a commit. A commit that begins before that takes only
//! what came during the last one. So the senders fall into two halves, and each message pays twice its share of a commit.
//! Hence the writer waits after a commit until as many messages are there as were on their way: at most as long as that
//! commit took.
//!
//! Senders that do not wait for their answers also send during a commit. Where messages came during one, a wait is tried once
//! in a while: the two halves become one by it, and then none come.

use std::time::{Duration, Instant};

/// Fewer messages are not waited for: there is little to share.
const FEW: usize = 4;

/// The longest wait.
const MOST: Duration = Duration::from_millis(2);

/// After tries in vain, so many groups at most are committed without one.
const MOST_SKIPPED: u32 = 64;

/// What is known of the last commit.
#[derive(Debug, Default)]
pub(super) struct Fill {
    /// How many messages were on their way when it ended: those that were told, and those that came meanwhile.
    expected: usize,
    /// Until when they are waited for. `None` if the next group does not wait.
    until: Option<Instant>,
    /// How many groups are still committed before the next try.
    skipped: u32,
    /// How many that were, the last time.
    pause: u32,
}

impl Fill {
    /// A commit of so many messages has ended, while so many others were queued.
    pub(super) fn committed(&mut self, messages: usize, queued: usize, took: Duration, now: Instant) {
        self.expected = messages + queued;
        let waits = if self.expected < FEW {
            false
        } else if queued <= messages / 4 {
            // They wait for their answers.
            (self.skipped, self.pause) = (0, 0);
            true
        } else if self.skipped == 0 {
            self.pause = (2 * self.pause).clamp(1, MOST_SKIPPED);
            self.skipped = self.pause;
            true
        } else {
            self.skipped -= 1;
            false
        };
        self.until = waits.then(|| now + took.min(MOST));
    }

    /// How long the next group may still fill, and with how many messages it is full. `None` if it is to be committed.
    pub(super) fn wait(&mut self, queued: usize, now: Instant) -> Option<(Duration, usize)> {
        let left = self.until?.saturating_duration_since(now);
        if queued >= self.expected || left.is_zero() {
            self.until = None;
            return None;
        }
        Some((left, self.expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_micros(500);

    #[test]
    fn a_group_fills_until_all_are_there_or_the_time_is_over() {
        let (mut fill, now) = (Fill::default(), Instant::now());
        assert_eq!(fill.wait(1, now), None, "nothing was committed");
        fill.committed(60, 4, TOOK, now);
        assert_eq!(fill.wait(4, now), Some((TOOK, 64)));
        assert_eq!(fill.wait(63, now + TOOK / 2), Some((TOOK / 2, 64)));
        assert_eq!(fill.wait(64, now + TOOK / 2), None);
        assert_eq!(fill.wait(1, now + TOOK / 2), None, "it is full once");
        fill.committed(64, 0, TOOK, now);
        assert_eq!(fill.wait(63, now + TOOK), None);
        fill.committed(64, 0, Duration::from_secs(9), now);
        assert_eq!(fill.wait(0, now), Some((MOST, 64)));
    }

    #[test]
    fn a_lone_sender_and_a_few_do_not_wait() {
        let (mut fill, now) = (Fill::default(), Instant::now());
        for messages in 1..FEW {
            fill.committed(messages, 0, TOOK, now);
            assert_eq!(fill.wait(1, now), None);
        }
    }

    #[test]
    fn where_messages_come_during_commits_a_wait_is_tried_seldom() {
        let (mut fill, now) = (Fill::default(), Instant::now());
        let mut waits = |group: &u32| {
            fill.committed(32, 32, TOOK, now);
            let waits = fill.wait(32, now).is_some();
            assert_eq!(waits, fill.until.is_some(), "{group}");
            waits
        };
        let tried: Vec<u32> = (0..200).filter(|group| waits(group)).collect();
        assert_eq!(tried, [0, 2, 5, 10, 19, 36, 69, 134, 199]);
        // All have become one group: from here on, each is waited for.
        for _ in 0..3 {
            fill.committed(64, 0, TOOK, now);
            assert_eq!(fill.wait(63, now), Some((TOOK, 64)));
        }
        fill.committed(32, 32, TOOK, now);
        assert!(fill.wait(32, now).is_some(), "tried at once");
    }
}
