//! One message for several mailboxes: it is encoded, and its payload hashed, once.

use crate::engine::embedded::index::PreparedAppend;
use crate::engine::embedded::store::BROKEN;
use crate::engine::embedded::{Embedded, unavailable};
use crate::engine::{Append, Commit};
use crate::message::Address;

impl Embedded {
    /// See [`crate::engine::Engine::append_each`].
    pub fn append_each(&self, append: Append, others: Vec<Address>) -> Vec<Commit> {
        // Where a queue is full, most of them are refused: `append` looks before it encodes.
        if self.shared.queue_may_refuse() {
            return append.into_each(others).map(|append| self.append(append)).collect();
        }
        let id_of = self.shared.hasher.ids_of(&append);
        let ids: Vec<_> = others.iter().map(&id_of).collect();
        let id = id_of(&append.address);
        drop(id_of);
        let first = PreparedAppend::new(append, id, self.shared.newest());
        let others =
            others.into_iter().zip(ids).map(|(mailbox, id)| first.to(mailbox, id)).collect::<Vec<_>>();
        std::iter::once(first).chain(others).map(|append| self.append_prepared(append)).collect()
    }

    pub(super) fn append_prepared(&self, append: PreparedAppend) -> Commit {
        let Some(store) = self.shared.store.lock() else { return unavailable(BROKEN) };
        match self.shared.disk {
            Some(_) => self.append_to_disk(store, append),
            None => self.append_in_memory(store, append),
        }
    }
}
