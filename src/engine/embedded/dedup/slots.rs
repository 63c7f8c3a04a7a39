//! The entries of the dedup window, and lists of them.

use crate::engine::embedded::dedup::{AuthorKey, ContentHash, DedupKey, SendId};
use crate::message::Seq;

/// No entry.
const NONE: u32 = u32::MAX;

/// How many entries there is room for before memory is given back.
const SPARE: usize = 256;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// One of the last ids of its author.
    Kept,
    /// Its author has sent so many since that it may go early.
    Surplus,
    /// Nothing: another id can have its place.
    Unused,
}

/// An id that is remembered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) key: DedupKey,
    pub(super) content: ContentHash,
    pub(super) seq: Seq,
    /// When it is forgotten, in the store's time.
    pub(super) until: u64,
    pub(super) author: AuthorKey,
    pub(super) state: State,
    by_time: Links,
    /// In the list of its author, or in that of surplus ids.
    in_group: Links,
}

impl Entry {
    pub(super) fn new(id: SendId, seq: Seq, until: u64) -> Self {
        let SendId { key, content, author } = id;
        let (by_time, in_group) = (Links::default(), Links::default());
        Self { key, content, seq, until, author, state: State::Kept, by_time, in_group }
    }

    fn links(&mut self, chain: Chain) -> &mut Links {
        match chain {
            Chain::Time => &mut self.by_time,
            Chain::Group => &mut self.in_group,
        }
    }
}

/// The neighbours of an entry in a list.
#[derive(Debug, Clone, Copy)]
struct Links {
    before: u32,
    after: u32,
}

impl Default for Links {
    fn default() -> Self {
        Self { before: NONE, after: NONE }
    }
}

/// Which of its two lists.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chain {
    Time,
    Group,
}

/// A list of entries, oldest first.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    first: u32,
    last: u32,
    len: u32,
}

impl Default for List {
    fn default() -> Self {
        Self { first: NONE, last: NONE, len: 0 }
    }
}

impl List {
    pub(super) fn first(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) fn push(&mut self, slots: &mut Slots, at: u32, chain: Chain) {
        *slots.0[at as usize].links(chain) = Links { before: self.last, after: NONE };
        match slots.0.get_mut(self.last as usize) {
            Some(last) => last.links(chain).after = at,
            None => self.first = at,
        }
        self.last = at;
        self.len += 1;
    }

    pub(super) fn remove(&mut self, slots: &mut Slots, at: u32, chain: Chain) {
        let Links { before, after } = *slots.0[at as usize].links(chain);
        self.link(slots, (before, after), chain);
        self.len -= 1;
    }

    /// An entry is at another place now.
    fn moved(&mut self, slots: &mut Slots, to: u32, chain: Chain) {
        let Links { before, after } = *slots.0[to as usize].links(chain);
        self.link(slots, (before, to), chain);
        self.link(slots, (to, after), chain);
    }

    /// Makes two entries neighbours.
    fn link(&mut self, slots: &mut Slots, (before, after): (u32, u32), chain: Chain) {
        match slots.0.get_mut(before as usize) {
            Some(entry) => entry.links(chain).after = after,
            None => self.first = after,
        }
        match slots.0.get_mut(after as usize) {
            Some(entry) => entry.links(chain).before = before,
            None => self.last = before,
        }
    }
}

/// The entries. An entry is named by its place.
#[derive(Debug, Default)]
pub(super) struct Slots(Vec<Entry>);

impl Slots {
    pub(super) fn reserve(&mut self, entries: usize) {
        self.0.reserve(entries);
    }

    pub(super) fn get(&self, at: u32) -> &Entry {
        &self.0[at as usize]
    }

    pub(super) fn set_state(&mut self, at: u32, state: State) {
        self.0[at as usize].state = state;
    }

    /// Puts an entry into an unused place, or into a new one.
    pub(super) fn insert(&mut self, unused: &mut List, entry: Entry) -> u32 {
        if let Some(at) = unused.first() {
            unused.remove(self, at, Chain::Time);
            self.0[at as usize] = entry;
            return at;
        }
        self.0.push(entry);
        u32::try_from(self.0.len() - 1).expect("the limits of ids are below 2^32")
    }

    /// An entry is not used any more. It is in no list.
    pub(super) fn release(&mut self, unused: &mut List, at: u32) {
        self.set_state(at, State::Unused);
        unused.push(self, at, Chain::Time);
    }

    /// Whether most places are unused.
    pub(super) fn is_sparse(&self, used: usize) -> bool {
        self.0.len() > 4 * used.max(SPARE)
    }

    /// Takes the last place away. Returns where its entry went, if it was used.
    pub(super) fn pop(&mut self, unused: &mut List) -> Option<u32> {
        let last = u32::try_from(self.0.len() - 1).expect("see `insert`");
        if self.get(last).state == State::Unused {
            unused.remove(self, last, Chain::Time);
            self.0.pop();
            return None;
        }
        let to = unused.first()?;
        unused.remove(self, to, Chain::Time);
        self.0[to as usize] = self.0.pop()?;
        Some(to)
    }

    /// Corrects the lists of an entry that has moved.
    pub(super) fn relink(&mut self, at: u32, by_time: &mut List, group: &mut List) {
        by_time.moved(self, at, Chain::Time);
        group.moved(self, at, Chain::Group);
    }

    /// Gives back memory that is not needed.
    pub(super) fn shrink(&mut self) {
        if self.0.capacity() > 4 * self.0.len().max(SPARE) {
            self.0.shrink_to(2 * self.0.len());
        }
    }
}
