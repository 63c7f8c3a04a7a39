//! How far mailboxes are acknowledged, until that is stored and what is acknowledged is deleted.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::message::{Address, Seq};
use crate::sync::{lock, shrink};

/// An acknowledged mailbox is purged after so many acknowledgements, though the window in which its ids count is not over.
const ACKS_BEFORE_PURGE: usize = 256;

/// Most holes that a record tells.
pub(super) const MOST_HOLES: usize = 64;

/// What is gone from a mailbox: its record in the stream of floors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Floor {
    /// Everything up to here is acknowledged.
    #[serde(rename = "floor")]
    acked: u64,
    /// Where messages above that have expired and were deleted: the newest of those that followed each other. In order.
    #[serde(default)]
    holes: Vec<u64>,
}

impl Floor {
    /// Everything up to here is acknowledged.
    pub(super) fn acked(through: Seq) -> Self {
        Self { acked: through.0, holes: Vec::new() }
    }

    /// These have expired, each with those before it that nothing else stands between.
    pub(super) fn expired(holes: &[Seq]) -> Self {
        Self { acked: 0, holes: holes.iter().map(|hole| hole.0).collect() }
    }

    /// Up to where everything is acknowledged.
    pub(super) fn acknowledged(&self) -> Seq {
        Seq(self.acked)
    }

    /// The newest seq that has expired and is not acknowledged.
    pub(super) fn newest_hole(&self) -> Seq {
        self.holes.last().copied().map_or(Seq::START, Seq)
    }

    /// The newest hole between two positions, the second one not included.
    pub(super) fn hole_between(&self, after: Seq, before: Seq) -> Option<Seq> {
        let end = self.holes.partition_point(|hole| *hole < before.0);
        self.holes[..end].last().filter(|hole| **hole > after.0).copied().map(Seq)
    }

    /// What both together say.
    pub(super) fn max(mut self, other: &Self) -> Self {
        self.acked = self.acked.max(other.acked);
        self.holes.extend(&other.holes);
        self.holes.retain(|hole| *hole > self.acked);
        self.holes.sort_unstable();
        self.holes.dedup();
        let most = self.holes.len().saturating_sub(MOST_HOLES);
        self.holes.drain(..most);
        self
    }
}

/// The floors that this node raised and still has to do something for.
#[derive(Debug, Default)]
pub(super) struct Floors {
    raised: Mutex<Raised>,
    /// Notified when a floor is stored.
    stored: Notify,
}

#[derive(Debug, Default)]
struct Raised {
    floors: HashMap<Address, LocalFloor>,
    /// Which mailboxes may be purged when. In the order of the times, since all wait equally long.
    due: VecDeque<(Instant, Address)>,
}

#[derive(Debug)]
struct LocalFloor {
    floor: Floor,
    /// The record in the stream and its seq, as far as is known.
    stored: Option<(Floor, u64)>,
    /// Whether somebody stores it.
    is_being_stored: bool,
    /// Acknowledgements since the last purge.
    acks: usize,
    /// When the newest of them came.
    raised: Instant,
}

/// What follows a raised floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Raise {
    /// Whether the caller has to see to it that the floor is stored.
    pub(super) store: bool,
    /// Whether the mailbox holds so much that is acknowledged that it is to be purged now.
    pub(super) purge: bool,
}

impl Floors {
    /// Raises a floor, whose mailbox may be purged after `window`. `None` if it is as high already.
    pub(super) fn raise(&self, address: &Address, to: &Floor, window: Duration) -> Option<Raise> {
        let (now, mut raised) = (Instant::now(), lock(&self.raised));
        let raised = &mut *raised;
        let mut is_new = false;
        let known = raised.floors.entry(address.clone()).or_insert_with(|| {
            is_new = true;
            LocalFloor { floor: Floor::default(), stored: None, is_being_stored: false, acks: 0, raised: now }
        });
        let to = known.floor.clone().max(to);
        if to == known.floor {
            return None;
        }
        (known.floor, known.raised) = (to, now);
        known.acks += 1;
        let purge = known.acks > ACKS_BEFORE_PURGE;
        if purge {
            known.acks = 0;
        }
        let store = !std::mem::replace(&mut known.is_being_stored, true);
        if is_new {
            raised.due.push_back((now + window, address.clone()));
        }
        Some(Raise { store, purge })
    }

    /// The floor as this node knows it.
    pub(super) fn of(&self, address: &Address) -> Floor {
        lock(&self.raised).floors.get(address).map_or_else(Floor::default, |known| known.floor.clone())
    }

    /// The floor to store, and the record that it replaces with its seq, if that is known.
    pub(super) fn to_store(&self, address: &Address) -> Option<(Floor, Option<(Floor, u64)>)> {
        lock(&self.raised).floors.get(address).map(|known| (known.floor.clone(), known.stored.clone()))
    }

    /// Notes that a floor is stored by a record with this seq. Answers whether it is still the newest one.
    pub(super) fn stored(&self, address: &Address, floor: &Floor, revision: u64) -> bool {
        let mut raised = lock(&self.raised);
        let Some(known) = raised.floors.get_mut(address) else { return true };
        known.is_being_stored = known.floor != *floor;
        known.stored = Some((floor.clone(), revision));
        let is_done = !known.is_being_stored;
        if is_done {
            self.stored.notify_waiters();
        }
        is_done
    }

    /// Waits until all floors are stored.
    pub(super) async fn all_stored(&self) {
        loop {
            let mut stored = std::pin::pin!(self.stored.notified());
            stored.as_mut().enable();
            if !lock(&self.raised).floors.values().any(|known| known.is_being_stored) {
                return;
            }
            stored.await;
        }
    }

    /// Notes that the record is another one than this node knows.
    pub(super) fn doubt(&self, address: &Address) {
        if let Some(known) = lock(&self.raised).floors.get_mut(address) {
            known.stored = None;
        }
    }

    /// Notes what is stored.
    pub(super) fn learn(&self, address: &Address, floor: Floor, revision: u64) {
        if let Some(known) = lock(&self.raised).floors.get_mut(address) {
            known.floor = std::mem::take(&mut known.floor).max(&floor);
            known.stored = Some((floor, revision));
        }
    }

    /// A mailbox whose window is over since its last acknowledgement, and its floor.
    pub(super) fn next_due(&self, window: Duration) -> Option<(Address, Floor)> {
        let (now, mut raised) = (Instant::now(), lock(&self.raised));
        let raised = &mut *raised;
        while let Some((due, _)) = raised.due.front()
            && *due <= now
        {
            let (_, address) = raised.due.pop_front()?;
            let Some(known) = raised.floors.get(&address) else { continue };
            if known.is_being_stored || known.raised + window > now {
                // Not before the others, whose order is that of their times.
                let again = (known.raised + window).max(now);
                let again = raised.due.back().map_or(again, |(last, _)| again.max(*last));
                raised.due.push_back((again, address));
                if again <= now {
                    return None;
                }
                continue;
            }
            let floor = known.floor.clone();
            return Some((address, floor));
        }
        None
    }

    /// Tries a mailbox again later that could not be purged.
    pub(super) fn retry(&self, address: &Address, window: Duration) {
        lock(&self.raised).due.push_back((Instant::now() + window, address.clone()));
    }

    /// Forgets a mailbox that is purged up to this floor. Answers the seq of its record, if it was not raised since.
    pub(super) fn forget(&self, address: &Address, floor: &Floor, window: Duration) -> Option<u64> {
        let mut raised = lock(&self.raised);
        let known = raised.floors.get(address)?;
        if known.floor != *floor {
            raised.due.push_back((Instant::now() + window, address.clone()));
            return None;
        }
        let revision = known.stored.as_ref().map(|(_, revision)| *revision);
        raised.floors.remove(address);
        shrink(&mut raised.floors);
        revision
    }

    /// All mailboxes that may hold something acknowledged, and their floors.
    pub(super) fn all(&self) -> Vec<(Address, Floor)> {
        lock(&self.raised)
            .floors
            .iter()
            .map(|(address, known)| (address.clone(), known.floor.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::SessionId;

    fn floor(through: u64) -> Floor {
        Floor::acked(Seq(through))
    }

    fn mailbox() -> Address {
        Address::Session(SessionId::new("A").unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_floor_only_grows_and_is_stored_by_one() {
        let (floors, window) = (Floors::default(), Duration::from_secs(10));
        let raise = |to| floors.raise(&mailbox(), &floor(to), window);
        assert_eq!(raise(3), Some(Raise { store: true, purge: false }));
        assert_eq!(raise(2), None);
        assert_eq!(raise(5), Some(Raise { store: false, purge: false }));
        assert!(!floors.stored(&mailbox(), &floor(3), 1), "it grew meanwhile");
        assert_eq!(floors.to_store(&mailbox()), Some((floor(5), Some((floor(3), 1)))));
        assert!(floors.stored(&mailbox(), &floor(5), 2));
        floors.learn(&mailbox(), floor(4), 3);
        assert_eq!(floors.of(&mailbox()), floor(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_mailbox_is_due_when_its_window_is_over_since_the_last_ack() {
        let (floors, window) = (Floors::default(), Duration::from_secs(10));
        floors.raise(&mailbox(), &floor(3), window);
        floors.stored(&mailbox(), &floor(3), 1);
        tokio::time::advance(Duration::from_secs(9)).await;
        floors.raise(&mailbox(), &floor(4), window);
        floors.stored(&mailbox(), &floor(4), 2);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(floors.next_due(window), None);
        tokio::time::advance(Duration::from_secs(8)).await;
        assert_eq!(floors.next_due(window), Some((mailbox(), floor(4))));
        assert_eq!(floors.forget(&mailbox(), &floor(4), window), Some(2));
        assert!(floors.all().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn many_acknowledgements_purge_before_that() {
        let floors = Floors::default();
        let purges = |to| floors.raise(&mailbox(), &floor(to), Duration::from_secs(10)).unwrap().purge;
        let purged: Vec<u64> = (1..=600).filter(|to| purges(*to)).collect();
        assert_eq!(purged, [257, 514]);
    }

    #[test]
    fn holes_are_told_above_what_is_acknowledged_only() {
        let floor = Floor::acked(Seq(4)).max(&Floor::expired(&[Seq(3), Seq(6), Seq(9)]));
        assert_eq!((floor.acknowledged(), floor.newest_hole()), (Seq(4), Seq(9)));
        assert_eq!(floor.hole_between(Seq(4), Seq(7)), Some(Seq(6)));
        assert_eq!(floor.hole_between(Seq(6), Seq(9)), None);
        let text = serde_json::to_string(&floor).unwrap();
        assert_eq!(text, r#"{"floor":4,"holes":[6,9]}"#);
        let many: Vec<Seq> = (1..=100).map(Seq).collect();
        assert_eq!(Floor::default().max(&Floor::expired(&many)).holes.len(), MOST_HOLES);
    }
}
