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
            let Some((earliest, _)) = self.by_expiry.first() else { break };
            if *earliest > now {
                break;
            }
            let Some((_, address)) = self.by_expiry.pop_first() else { break };
            dropped += self.expire_log(&address, now);
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

    fn expire_log(&mut self, address: &Address, now: u64) -> usize {
        let committed = self.committed;
        let Some(log) = self.logs.get_mut(address) else { return 0 };
        let mut ended = Vec::new();
        let mut kept = VecDeque::with_capacity(log.entries.len());
        let mut last_ended = Seq::START;
        let mut earliest = u64::MAX;
        for mut entry in std::mem::take(&mut log.entries) {
            if entry.expires_at <= now && entry.seq <= committed {
                last_ended = entry.seq;
                log.bytes -= entry.bytes as usize;
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
            earliest = earliest.min(entry.expires_at.max(now + 1));
            kept.push_back(entry);
        }
        log.entries = kept;
        log.earliest_expiry = earliest;
        if let Some(last) = ended.last() {
            log.position.expired = log.position.expired.max(last.seq);
        }
        if earliest < u64::MAX {
            self.by_expiry.insert((earliest, address.clone()));
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
