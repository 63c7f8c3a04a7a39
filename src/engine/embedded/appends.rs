//! Appends: a message is encoded before anything is locked. One for several mailboxes is encoded, and its payload hashed, once.

use tokio::sync::oneshot;

use crate::engine::embedded::Embedded;
use crate::engine::embedded::index::{Appended, PreparedAppend};
use crate::engine::embedded::outbox::Filled;
use crate::engine::{Append, Commit};
use crate::message::Address;

impl Embedded {
    /// See [`crate::engine::Engine::append`].
    pub fn append(&self, append: Append) -> Commit {
        let index = &self.shared.index;
        let id = self.shared.hasher.id_of(&append);
        // A full queue refuses most appends: then nothing is encoded in vain.
        if index.queue_may_refuse() {
            let size = append.message.payload.get().len();
            if let Some(refused) = index.refuses(&append.address, id, append.payer.as_ref(), size) {
                return Commit::done(Err(refused));
            }
        }
        self.append_prepared(PreparedAppend::new(append, id, index.committed()))
    }

    fn append_prepared(&self, append: PreparedAppend) -> Commit {
        let (waiter, commit) = match self.shared.disk {
            Some(_) => {
                let (waiter, commit) = oneshot::channel();
                (Some(waiter), Some(commit))
            }
            None => (None, None),
        };
        let mut filled = Filled::default();
        let appended = self.shared.index.append(append, waiter, &mut filled);
        self.shared.publish(filled);
        match (appended, commit) {
            (Ok(Appended::New(_) | Appended::Repeat(_)), Some(commit)) => Commit::accepted(commit),
            (appended, _) => Commit::done(appended.map(Appended::seq)),
        }
    }

    /// See [`crate::engine::Engine::append_each`].
    pub fn append_each(&self, append: Append, others: Vec<Address>) -> Vec<Commit> {
        // Where a queue is full, most of them are refused: `append` looks before it encodes.
        if self.shared.index.queue_may_refuse() {
            return append.into_each(others).map(|append| self.append(append)).collect();
        }
        let id_of = self.shared.hasher.ids_of(&append);
        let ids: Vec<_> = others.iter().map(&id_of).collect();
        let id = id_of(&append.address);
        drop(id_of);
        let first = PreparedAppend::new(append, id, self.shared.index.committed());
        let others =
            others.into_iter().zip(ids).map(|(mailbox, id)| first.to(mailbox, id)).collect::<Vec<_>>();
        std::iter::once(first).chain(others).map(|append| self.append_prepared(append)).collect()
    }
}
