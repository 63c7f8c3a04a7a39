//! What has outlived its time: messages, and registrations.

use super::*;

/// How many messages one slice of expiry drops while it holds the lock, and those of one address more.
pub(super) const EXPIRY_SLICE: usize = 512;

impl Index {
    /// Drops at most [`EXPIRY_SLICE`] messages whose time is over, and the rest of the last mailbox, and as many
    /// registrations; answers how many of both.
    pub(in crate::engine::embedded) fn expire_slice(&mut self) -> usize {
        let now = self.settings.clock.now();
        let mut dropped = 0;
        while dropped < EXPIRY_SLICE {
            let Some((soonest, _)) = self.soonest.first() else { break };
            if *soonest > now {
                break;
            }
            let Some((_, address)) = self.soonest.pop_first() else { break };
            dropped += self.expire_shelf(&address, now);
        }
        self.expired += dropped;
        for _ in 0..EXPIRY_SLICE {
            let Some(session) = self.directory.ended(now) else { break };
            self.set_registration(&session, None);
            dropped += 1;
        }
        self.directory.shrink();
        dropped
    }

    fn expire_shelf(&mut self, address: &Address, now: u64) -> usize {
        let committed = self.committed;
        let Some(shelf) = self.shelves.get_mut(address) else { return 0 };
        let mut ended = Vec::new();
        let mut kept = VecDeque::with_capacity(shelf.entries.len());
        let mut last_ended = Seq::START;
        let mut soonest = u64::MAX;
        for mut entry in std::mem::take(&mut shelf.entries) {
            if entry.ends <= now && entry.seq <= committed {
                last_ended = entry.seq;
                shelf.bytes -= entry.bytes as usize;
                ended.push(entry);
                continue;
            }
            if last_ended > Seq::START {
                entry.hole = true;
                let hole = self.holes.entry(entry.seq).or_default();
                *hole = last_ended.max(*hole);
                last_ended = Seq::START;
            }
            // What is due and not committed yet is looked at again later, not at once.
            soonest = soonest.min(entry.ends.max(now + 1));
            kept.push_back(entry);
        }
        shelf.entries = kept;
        shelf.soonest = soonest;
        if let Some(last) = ended.last() {
            shelf.position.expired = shelf.position.expired.max(last.seq);
        }
        if soonest < u64::MAX {
            self.soonest.insert((soonest, address.clone()));
        }
        for entry in &ended {
            self.drop_entry(entry, Outcome::Expired);
        }
        if !ended.is_empty() {
            self.note_floor(address);
            self.list_if_empty(address);
        }
        ended.len()
    }

    /// How many messages expired since this was asked last.
    pub(in crate::engine::embedded) fn take_expired(&mut self) -> usize {
        self.dedup.forget(self.settings.clock.now());
        std::mem::take(&mut self.expired)
    }
}
