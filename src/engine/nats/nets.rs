//! The nets of the feed: what finds messages that NATS did not bring. Tests turn them off one by one.

#[cfg(test)]
use std::sync::{Arc, Mutex};

#[cfg(test)]
use tokio::sync::watch;

/// Why readers look for what did not come here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Net {
    /// A message names the seq before it.
    Previous,
    /// There is a new connection.
    Connected,
    /// A subscription was full.
    Overflow,
    /// A stream has another leader.
    Leader,
    /// The newest seqs are compared every few seconds.
    Compared,
    /// An append has no answer: a stream may be missing.
    Unanswered,
}

/// The nets of a node. All work, except in tests.
#[derive(Debug, Clone, Default)]
pub(in crate::engine) struct Nets {
    #[cfg(test)]
    trial: Arc<Trial>,
}

#[cfg(not(test))]
#[allow(clippy::unused_self, clippy::unused_async)]
impl Nets {
    /// Whether this net works.
    pub(super) fn works(&self, _: Net) -> bool {
        true
    }

    /// Whether a message that NATS brought is to be lost.
    pub(super) fn loses(&self) -> bool {
        false
    }

    /// Waits while messages are to wait in their subscription.
    pub(super) async fn released(&self) {}
}

/// What a test does to the feed of a node.
#[cfg(test)]
#[derive(Debug, Default)]
struct Trial {
    /// The only nets that work; all if this is `None`.
    only: Mutex<Option<Vec<Net>>>,
    /// Nets that were asked whether they work, in order.
    asked: watch::Sender<Vec<Net>>,
    loses: watch::Sender<bool>,
    /// How many messages were lost.
    lost: watch::Sender<usize>,
    holds: watch::Sender<bool>,
}

#[cfg(test)]
impl Nets {
    pub(super) fn works(&self, net: Net) -> bool {
        self.trial.asked.send_modify(|asked| asked.push(net));
        crate::sync::lock(&self.trial.only).as_ref().is_none_or(|only| only.contains(&net))
    }

    pub(super) fn loses(&self) -> bool {
        let loses = *self.trial.loses.borrow();
        if loses {
            self.trial.lost.send_modify(|lost| *lost += 1);
        }
        loses
    }

    pub(super) async fn released(&self) {
        // The sender is not dropped meanwhile.
        _ = self.trial.holds.subscribe().wait_for(|holds| !holds).await;
    }

    /// Only these nets work from now on.
    pub(in crate::engine) fn only(&self, nets: &[Net]) {
        *crate::sync::lock(&self.trial.only) = Some(nets.to_vec());
    }

    /// Loses what NATS brings from now on, or no longer.
    pub(in crate::engine) fn lose(&self, loses: bool) {
        self.trial.loses.send_replace(loses);
    }

    /// Waits until one more message was lost.
    pub(in crate::engine) async fn lost_again(&self) {
        let mut lost = self.trial.lost.subscribe();
        let before = *lost.borrow_and_update();
        _ = lost.wait_for(|lost| *lost > before).await;
    }

    /// Lets messages wait in their subscriptions from now on, or no longer.
    pub(in crate::engine) fn hold(&self, holds: bool) {
        self.trial.holds.send_replace(holds);
    }

    /// Waits until this net was asked for once more, whether it works or not.
    pub(in crate::engine) async fn asked_again(&self, net: Net) {
        let mut asked = self.trial.asked.subscribe();
        let count = |asked: &[Net]| asked.iter().filter(|one| **one == net).count();
        let before = count(&asked.borrow_and_update());
        _ = asked.wait_for(|asked| count(asked) > before).await;
    }
}
