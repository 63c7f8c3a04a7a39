//! Which ids are remembered, and for how long.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use crate::engine::IdLimits;
use crate::engine::embedded::dedup::slots::{Chain, Entry, List, Slots, State};
use crate::engine::embedded::dedup::{AuthorKey, DedupKey, IdentityHasher, SameContent, SendId};
use crate::message::Seq;
use crate::sync::shrink;

/// How many ids that are over one send forgets. The janitor forgets the rest soon: until then they count.
const FORGET_ON_SEND: usize = 64;

/// The ids of the dedup window, the seqs that they got, and the content that they were for.
///
/// Invariant: each id in `known` has one entry, which is in `by_time`, and in the list of its author or in `surplus`. No
/// author's list is empty.
#[derive(Debug)]
pub(crate) struct Dedup {
    known: HashMap<DedupKey, u32, BuildHasherDefault<IdentityHasher>>,
    slots: Slots,
    /// Oldest first.
    by_time: List,
    /// The last ids of each author.
    authors: HashMap<AuthorKey, List, BuildHasherDefault<IdentityHasher>>,
    /// Ids that are not the last ones of their author.
    surplus: List,
    unused: List,
    window: u64,
    limits: IdLimits,
}

impl Dedup {
    /// Remembers ids for `window` milliseconds.
    pub(crate) fn new(window: u64, limits: IdLimits) -> Self {
        Self {
            known: HashMap::default(),
            slots: Slots::default(),
            by_time: List::default(),
            authors: HashMap::default(),
            surplus: List::default(),
            unused: List::default(),
            window,
            limits,
        }
    }

    /// Forgets expired ids, and those beyond the limits: at most so many, since other senders wait meanwhile. Returns
    /// whether there are more.
    pub(crate) fn forget(&mut self, now: u64, most: usize) -> bool {
        for _ in 0..most {
            let Some(at) = self.next_to_forget(now) else { break };
            self.remove(at);
        }
        self.give_back(most);
        self.next_to_forget(now).is_some()
    }

    fn next_to_forget(&self, now: u64) -> Option<u32> {
        let oldest = self.by_time.first()?;
        let is_over = self.slots.get(oldest).until <= now || self.known.len() > self.limits.hard;
        if is_over {
            return Some(oldest);
        }
        self.surplus.first().filter(|_| self.known.len() > self.limits.all)
    }

    /// A busy minute must not hold its memory for ever.
    fn give_back(&mut self, most: usize) {
        for _ in 0..most {
            if !self.slots.is_sparse(self.known.len()) {
                break;
            }
            if let Some(at) = self.slots.pop(&mut self.unused) {
                let Entry { key, author, state, .. } = *self.slots.get(at);
                self.known.insert(key, at);
                let group = match state {
                    State::Surplus => &mut self.surplus,
                    _ => self.authors.entry(author).or_default(),
                };
                self.slots.relink(at, &mut self.by_time, group);
            }
        }
        self.slots.shrink();
        if self.known.capacity() > 4 * self.known.len().max(256) {
            self.known.shrink_to(2 * self.known.len());
        }
    }

    /// The seq of the message that was sent with this id before, and whether it was this one.
    pub(crate) fn get(&mut self, id: SendId, now: u64) -> Option<(Seq, SameContent)> {
        self.forget(now, FORGET_ON_SEND);
        let entry = self.slots.get(*self.known.get(&id.key)?);
        Some((entry.seq, SameContent(entry.content.matches(id.content))))
    }

    /// Whether this id of a message is remembered.
    pub(crate) fn remembers(&self, key: DedupKey, seq: Seq) -> bool {
        self.known.get(&key).is_some_and(|at| self.slots.get(*at).seq == seq)
    }

    /// How many ids are remembered.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// Remembers an id for the window.
    pub(crate) fn remember(&mut self, id: SendId, seq: Seq, now: u64) {
        self.restore(id, seq, now.saturating_add(self.window));
    }

    /// Reserves memory for ids that are restored.
    pub(crate) fn reserve(&mut self, ids: usize) {
        self.known.reserve(ids.min(self.limits.all));
        self.slots.reserve(ids.min(self.limits.all));
    }

    /// Remembers an id until the given time.
    pub(crate) fn restore(&mut self, id: SendId, seq: Seq, until: u64) {
        let at = self.slots.insert(&mut self.unused, Entry::new(id, seq, until));
        if let Some(before) = self.known.insert(id.key, at) {
            self.unlink(before);
        }
        self.by_time.push(&mut self.slots, at, Chain::Time);
        let of_author = self.authors.entry(id.author).or_default();
        of_author.push(&mut self.slots, at, Chain::Group);
        if of_author.len() > self.limits.of_author.max(1)
            && let Some(oldest) = of_author.first()
        {
            of_author.remove(&mut self.slots, oldest, Chain::Group);
            self.slots.set_state(oldest, State::Surplus);
            self.surplus.push(&mut self.slots, oldest, Chain::Group);
        }
    }

    /// A message was not stored: its retry is a first send.
    pub(crate) fn revoke(&mut self, key: DedupKey) {
        if let Some(at) = self.known.remove(&key) {
            self.unlink(at);
        }
    }

    fn remove(&mut self, at: u32) {
        self.known.remove(&self.slots.get(at).key);
        self.unlink(at);
    }

    /// Removes an entry that `known` no longer has.
    fn unlink(&mut self, at: u32) {
        let Entry { author, state, .. } = *self.slots.get(at);
        self.by_time.remove(&mut self.slots, at, Chain::Time);
        if state == State::Surplus {
            self.surplus.remove(&mut self.slots, at, Chain::Group);
        } else if let Some(of_author) = self.authors.get_mut(&author) {
            of_author.remove(&mut self.slots, at, Chain::Group);
            if of_author.len() == 0 {
                self.authors.remove(&author);
                shrink(&mut self.authors);
            }
        }
        self.slots.release(&mut self.unused, at);
    }
}

#[cfg(test)]
mod tests;
