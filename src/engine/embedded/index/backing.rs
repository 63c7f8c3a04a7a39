//! Where the bodies of a shard's messages are: in memory, or on the disk.

use std::sync::Arc;

use crate::engine::embedded::index::noted::{Noted, SHARDS};
use crate::engine::embedded::index::pending_writes::{Floor, MAX_FLOORS};
use crate::message::{Address, Publication, Seq};
use crate::sync::shrink;
use crate::table::Table;

/// Where the bodies of a shard's messages are.
#[derive(Debug)]
pub(super) enum Backing {
    /// At level `memory`: here, from the append to the deletion.
    Memory(Table<Seq, Arc<Publication>>),
    /// On the disk. What is to be written besides messages waits here until the writer takes it.
    Disk(Notes),
}

/// What a shard has to write besides messages.
#[derive(Debug)]
pub(super) struct Notes {
    deletes: Vec<Seq>,
    floors: Table<Address, Floor>,
    /// How much all shards have noted.
    noted: Arc<Noted>,
}

impl Backing {
    pub(super) fn memory() -> Self {
        Self::Memory(Table::default())
    }

    pub(super) fn disk(noted: Arc<Noted>) -> Self {
        Self::Disk(Notes { deletes: Vec::new(), floors: Table::default(), noted })
    }

    /// A message was appended.
    pub(super) fn append(&mut self, seq: Seq, publication: &Arc<Publication>) {
        if let Self::Memory(publications) = self {
            publications.insert(seq, Arc::clone(publication));
        }
    }

    /// The body of a message, if they are all in memory.
    pub(super) fn get(&self, seq: Seq) -> Option<&Arc<Publication>> {
        match self {
            Self::Memory(publications) => publications.get(&seq),
            Self::Disk(_) => None,
        }
    }

    /// Messages have left their log. Returns whether they are the first to be written since the writer took all.
    pub(super) fn delete(&mut self, seqs: impl Iterator<Item = Seq>) -> bool {
        match self {
            Self::Memory(publications) => {
                seqs.for_each(|seq| _ = publications.remove(&seq));
                false
            }
            Self::Disk(notes) => {
                let before = notes.deletes.len();
                notes.deletes.extend(seqs);
                let more = notes.deletes.len() - before;
                more > 0 && notes.noted.add(more, 0)
            }
        }
    }

    /// A message has left its log, and its deletion is noted together with its receipt.
    pub(super) fn forget(&mut self, seq: Seq) {
        if let Self::Memory(publications) = self {
            publications.remove(&seq);
        }
    }

    /// Notes the floor of an address. If there are too many, all are dropped: returns the highest seq that they covered. And
    /// whether it is the first one to be written since the writer took all.
    pub(super) fn note_floor(&mut self, address: &Address, floor: Floor) -> (Option<Seq>, bool) {
        let Self::Disk(Notes { floors, noted, .. }) = self else { return (None, false) };
        if floors.insert(address.clone(), floor).is_some() {
            return (None, false);
        }
        let is_first = noted.add(0, 1);
        // Only a disk that takes nothing for long lets it come to this.
        if floors.len() <= MAX_FLOORS / SHARDS {
            return (None, is_first);
        }
        noted.remove(0, floors.len());
        let highest = floors.drain().map(|(_, floor)| floor.floor.max(floor.expired)).max();
        (highest, false)
    }

    /// Moves what is noted to these lists.
    pub(super) fn take_notes(&mut self, deletes: &mut Vec<Seq>, floors: &mut Table<Address, Floor>) {
        let Self::Disk(notes) = self else { return };
        if notes.deletes.is_empty() && notes.floors.is_empty() {
            return;
        }
        notes.noted.remove(notes.deletes.len(), notes.floors.len());
        deletes.append(&mut notes.deletes);
        floors.extend(notes.floors.drain());
        // A busy minute must not hold its memory for ever.
        notes.deletes.shrink_to(64);
        shrink(&mut notes.floors);
    }

    /// Gives back memory that is not needed any more.
    pub(super) fn shrink(&mut self) {
        if let Self::Memory(publications) = self {
            shrink(publications);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Message, MessageId, Outcome, SessionId};

    fn mailbox(n: usize) -> Address {
        Address::Session(SessionId::new(&n.to_string()).unwrap())
    }

    fn publication(seq: Seq) -> Arc<Publication> {
        let receipt = Message::receipt(&MessageId::new("1").unwrap(), Outcome::Expired, 1);
        Arc::new(Publication::encode(&mailbox(1), Some(seq), &receipt))
    }

    #[test]
    fn in_memory_a_body_is_there_from_append_to_deletion_and_nothing_is_written() {
        let mut backing = Backing::memory();
        for seq in [Seq(1), Seq(2)] {
            backing.append(seq, &publication(seq));
            assert!(backing.get(seq).is_some());
        }
        assert!(!backing.delete([Seq(1)].into_iter()));
        backing.forget(Seq(2));
        assert!(backing.get(Seq(1)).is_none() && backing.get(Seq(2)).is_none());
    }

    #[test]
    fn on_disk_what_is_to_be_written_is_noted_until_it_is_taken() {
        let noted = Arc::new(Noted::default());
        let mut backing = Backing::disk(Arc::clone(&noted));
        backing.append(Seq(1), &publication(Seq(1)));
        assert!(backing.get(Seq(1)).is_none());
        assert!(backing.delete([Seq(1), Seq(3)].into_iter()), "the first one");
        assert!(!backing.delete([Seq(4)].into_iter()) && !backing.delete([].into_iter()));
        let floor = Floor { floor: Seq(3), expired: Seq::START };
        assert_eq!(backing.note_floor(&mailbox(1), floor), (None, false));
        assert_eq!((noted.deletes(), noted.is_empty()), (3, false));
        let (mut deletes, mut floors) = (vec![], Table::default());
        backing.take_notes(&mut deletes, &mut floors);
        assert_eq!((deletes.len(), floors[&mailbox(1)], noted.is_empty()), (3, floor, true));
        assert_eq!(backing.note_floor(&mailbox(1), floor), (None, true));
    }

    #[test]
    fn too_many_floors_become_one_bound() {
        let noted = Arc::new(Noted::default());
        let mut backing = Backing::disk(Arc::clone(&noted));
        let floor = |seq: usize| Floor { floor: Seq(seq as u64), expired: Seq::START };
        for n in 1..=MAX_FLOORS / SHARDS {
            assert_eq!(backing.note_floor(&mailbox(n), floor(n)).0, None);
        }
        let one_more = Floor { floor: Seq(3), expired: Seq(70_000) };
        assert_eq!(backing.note_floor(&mailbox(0), one_more).0, Some(Seq(70_000)));
        assert!(noted.is_empty());
    }
}
