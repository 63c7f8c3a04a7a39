//! Messages leave: acknowledged, expired, or because their history is full.

use std::sync::atomic::Ordering;

use crate::engine::embedded::index::address_log::LogEntry;
use crate::engine::embedded::index::noted::SHARDS;
use crate::engine::embedded::index::shards::Shard;
use crate::engine::embedded::index::{FollowUp, Index};
use crate::engine::embedded::outbox::Filled;
use crate::hub::Hubs;
use crate::message::{Address, Outcome, Seq};
use crate::metrics;

/// How many messages one slice of expiry removes, and the rest of one address more. Each shard is locked by itself.
pub(super) const EXPIRY_SLICE: usize = 512;

impl Index {
    /// See [`crate::engine::Engine::trim`]. Looks at `most_looks` empty logs of the same shard, as [`Self::forget_empty`] does.
    pub(in crate::engine::embedded) fn trim(
        &self,
        address: &Address,
        through: Seq,
        forget: (&Hubs, usize, usize),
    ) -> Filled {
        let mut follow = FollowUp::default();
        if let Some(mut shard) = self.shards.lock(address) {
            let through = through.min(self.committed_in(&shard));
            if let Some(removed) = shard.logs.trim(address, through) {
                metrics::ACKNOWLEDGED.add(removed.len() as u64);
                self.drop_entries(&mut shard, address, &removed, Outcome::Acknowledged, &mut follow);
            }
            self.forget_in(&mut shard, forget);
        }
        self.follow_up(follow)
    }

    /// Messages have left the log of an address: their receipts are to come, and their bodies are deleted.
    pub(super) fn drop_entries(
        &self,
        shard: &mut Shard,
        address: &Address,
        entries: &[LogEntry],
        outcome: Outcome,
        follow: &mut FollowUp,
    ) {
        let plain = entries.iter().filter(|entry| !entry.receipt()).map(|entry| entry.seq);
        follow.noted |= shard.backing.delete(plain);
        for entry in entries.iter().filter(|entry| entry.receipt()) {
            shard.backing.forget(entry.seq);
            follow.receipts.push((entry.seq, outcome));
        }
        self.note_floor_if_empty(shard, address, follow);
    }

    pub(super) fn note_floor_if_empty(&self, shard: &mut Shard, address: &Address, follow: &mut FollowUp) {
        if shard.logs.list_if_empty(address) {
            self.note_floor(shard, address, follow);
        }
    }

    /// The next commit writes the floor of this address, if there is a disk.
    pub(super) fn note_floor(&self, shard: &mut Shard, address: &Address, follow: &mut FollowUp) {
        if self.is_on_disk
            && let Some(floor) = shard.logs.floor(address)
        {
            let (covered, is_first) = shard.backing.note_floor(address, floor);
            follow.noted |= is_first;
            if let Some(covered) = covered {
                shard.logs.forget_through(covered);
                self.note_forgotten(shard);
            }
        }
    }

    /// Forgets empty logs beyond `keep` in each shard; see [`super::logs::AddressLogs::forget_empty`].
    pub(in crate::engine::embedded) fn forget_empty(&self, hubs: &Hubs, keep: usize, most_looks: usize) {
        for mut shard in self.shards.each() {
            self.forget_in(&mut shard, (hubs, keep, most_looks));
        }
    }

    fn forget_in(&self, shard: &mut Shard, (hubs, keep, most_looks): (&Hubs, usize, usize)) {
        shard.logs.forget_empty(keep / SHARDS, most_looks, |address| hubs.is_read(address));
        shard.backing.shrink();
        self.note_forgotten(shard);
    }

    /// Removes at most [`EXPIRY_SLICE`] expired messages, the rest of the last mailbox, and as many registrations.
    ///
    /// Returns how many of both, and what is to be published.
    pub(in crate::engine::embedded) fn expire_slice(&self, hubs: &Hubs) -> (usize, Filled) {
        let (now, mut follow) = (self.clock.now(), FollowUp::default());
        let messages = self.expire_messages(now, &mut follow);
        let mut registrations = 0;
        while registrations < EXPIRY_SLICE {
            let Some(session) = self.sessions.read().ended(now) else { break };
            let Some(shard) = self.shards.lock(&Address::Session(session.clone())) else { break };
            // Another one may have come first.
            if self.sessions.has_expired(&session, now) {
                let is_read = |address: &Address| hubs.is_read(address);
                self.expire_registration(&shard, &session, now, is_read, &mut follow);
            }
            registrations += 1;
        }
        self.sessions.change(|table| table.shrink());
        (messages + registrations, self.follow_up(follow))
    }

    /// Removes at most [`EXPIRY_SLICE`] expired messages, and the rest of the last mailbox. Returns how many it has looked for.
    pub(super) fn expire_messages(&self, now: u64, follow: &mut FollowUp) -> usize {
        let mut messages = 0;
        for mut shard in self.shards.each() {
            while messages < EXPIRY_SLICE {
                let committed = self.committed_in(&shard);
                let Some((address, expired)) = shard.logs.expire_next(now, committed) else { break };
                // A look at a log counts, too: it may have become empty since.
                messages += expired.len().max(1);
                self.drop_expired(&mut shard, &address, &expired, follow);
            }
        }
        messages
    }

    /// Removes what has expired at an address.
    pub(super) fn expire_at(&self, shard: &mut Shard, address: &Address, now: u64, follow: &mut FollowUp) {
        let expired = shard.logs.expire(address, now, self.committed_in(shard));
        self.drop_expired(shard, address, &expired, follow);
    }

    fn drop_expired(
        &self,
        shard: &mut Shard,
        address: &Address,
        expired: &[LogEntry],
        follow: &mut FollowUp,
    ) {
        if !expired.is_empty() {
            self.count_expired(expired.len());
            self.drop_entries(shard, address, expired, Outcome::Expired, follow);
            self.note_floor(shard, address, follow);
        }
    }

    pub(super) fn count_expired(&self, messages: usize) {
        self.expired.fetch_add(messages, Ordering::Relaxed);
    }

    /// How many messages expired since the last call.
    pub(in crate::engine::embedded) fn take_expired(&self) -> usize {
        self.expired.swap(0, Ordering::Relaxed)
    }

    /// Removes what is committed below the floor of an ended address. Returns how many messages.
    pub(super) fn remove_ended(&self, shard: &mut Shard, address: &Address, follow: &mut FollowUp) -> usize {
        let removed = shard.logs.remove_ended(address, self.committed_in(shard));
        self.drop_entries(shard, address, &removed, Outcome::Expired, follow);
        removed.len()
    }
}
