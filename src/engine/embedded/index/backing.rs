//! Where the bodies of committed messages are: in memory, or on the disk.

use std::sync::Arc;

use crate::engine::Registration;
use crate::engine::embedded::index::pending_writes::{Floor, PendingWrites};
use crate::engine::embedded::index::recent::RecentPublications;
use crate::message::{Address, Publication, Seq, SessionId};
use crate::sync::shrink;
use crate::table::Table;

/// Where the bodies of committed messages are.
#[derive(Debug)]
pub(super) enum Backing {
    /// At level `memory`: here, from the append to the deletion.
    Memory(Table<Seq, Arc<Publication>>),
    /// On the disk; the newest ones also here.
    Disk { recent: RecentPublications, writes: PendingWrites },
}

impl Backing {
    pub(super) fn memory() -> Self {
        Self::Memory(Table::default())
    }

    pub(super) fn disk() -> Self {
        Self::Disk { recent: RecentPublications::default(), writes: PendingWrites::default() }
    }

    /// A message was appended.
    pub(super) fn append(&mut self, seq: Seq, publication: &Arc<Publication>) {
        if let Self::Memory(publications) = self {
            publications.insert(seq, Arc::clone(publication));
        }
    }

    /// A message was committed.
    pub(super) fn commit(&mut self, publication: &Arc<Publication>) {
        if let Self::Disk { recent, .. } = self {
            recent.push(publication);
        }
    }

    /// The body of a message, if it is in memory.
    pub(super) fn get(&self, seq: Seq) -> Option<&Arc<Publication>> {
        match self {
            Self::Memory(publications) => publications.get(&seq),
            Self::Disk { recent, .. } => recent.get(seq),
        }
    }

    /// A message has left its log; its receipt must be stored no later than it is deleted.
    pub(super) fn delete(&mut self, seq: Seq, receipt: Seq) {
        match self {
            Self::Memory(publications) => drop(publications.remove(&seq)),
            Self::Disk { writes, .. } => writes.note_delete(seq, receipt),
        }
    }

    /// Notes the floor of an address; see [`PendingWrites::note_floor`].
    pub(super) fn note_floor(&mut self, address: &Address, floor: Floor) -> Option<Seq> {
        match self {
            Self::Memory(_) => None,
            Self::Disk { writes, .. } => writes.note_floor(address, floor),
        }
    }

    pub(super) fn note_registration(&mut self, session: &SessionId, to: Option<Registration>) {
        if let Self::Disk { writes, .. } = self {
            writes.registrations.insert(session.clone(), to);
        }
    }

    /// What is to be written; `None` at level `memory`.
    pub(super) fn writes(&self) -> Option<&PendingWrites> {
        match self {
            Self::Memory(_) => None,
            Self::Disk { writes, .. } => Some(writes),
        }
    }

    pub(super) fn writes_mut(&mut self) -> Option<&mut PendingWrites> {
        match self {
            Self::Memory(_) => None,
            Self::Disk { writes, .. } => Some(writes),
        }
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
    use crate::engine::embedded::index::pending_writes::PendingDelete;
    use crate::message::{Message, MessageId, Outcome};

    fn publication(seq: Seq) -> Arc<Publication> {
        let address = Address::Session(SessionId::new("A").unwrap());
        let receipt = Message::receipt(&MessageId::new("1").unwrap(), Outcome::Expired, 1);
        Arc::new(Publication::encode(&address, Some(seq), &receipt))
    }

    #[test]
    fn in_memory_a_body_is_there_from_append_to_deletion_and_nothing_is_written() {
        let mut backing = Backing::memory();
        backing.append(Seq(1), &publication(Seq(1)));
        assert!(backing.get(Seq(1)).is_some());
        backing.delete(Seq(1), Seq::START);
        assert!(backing.get(Seq(1)).is_none() && backing.writes().is_none());
    }

    #[test]
    fn on_disk_a_body_is_there_once_committed_and_its_deletion_is_written() {
        let mut backing = Backing::disk();
        backing.append(Seq(1), &publication(Seq(1)));
        assert!(backing.get(Seq(1)).is_none());
        backing.commit(&publication(Seq(1)));
        assert!(backing.get(Seq(1)).is_some());
        backing.delete(Seq(1), Seq(7));
        let deletes = &backing.writes().unwrap().deletes;
        assert_eq!(deletes[..], [PendingDelete { seq: Seq(1), receipt: Seq(7) }]);
    }
}
