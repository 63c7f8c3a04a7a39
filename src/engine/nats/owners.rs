//! For whom a mailbox, and a message in it, is.
//!
//! A node may store a message for a registration that another node has just ended: it hears of that only afterwards. So the message
//! says for which registration it is, and readers skip it if the session has a later one.

use std::cmp::Ordering;

use crate::engine::nats::envelope::Letter;
use crate::engine::nats::node::Core;
use crate::engine::{Append, EngineError};
use crate::message::{Address, Seq, SessionId};

/// Who has a mailbox, as this node knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Owner {
    /// What was stored up to here was for an earlier one.
    pub(super) since: Seq,
    /// Whether the session is registered. Otherwise the mailbox is for whoever comes.
    pub(super) is_registered: bool,
}

impl Owner {
    /// The registration that a message is for: what [`Letter::owner`] says.
    pub(super) fn registration(self) -> Option<Seq> {
        self.is_registered.then_some(self.since)
    }
}

impl Core {
    /// Who has the mailbox that the message is for. `None` if the directory has to be asked, or changed.
    pub(super) fn owner_at_hand(&self, append: &Append) -> Option<Owner> {
        let Some(session) = append.address.session() else { return Some(Owner::default()) };
        let has_expired = self.directory.lock().table.has_expired(session, self.now());
        if has_expired { None } else { self.known_owner(append, session) }
    }

    /// The same as this node knows, though the registration may have to be closed.
    fn known_owner(&self, append: &Append, session: &SessionId) -> Option<Owner> {
        let (now, directory) = (self.now(), self.directory.lock());
        let wanted = (append.user.as_ref(), append.since);
        let is_for = directory.table.is_for(&append.address, wanted, now);
        is_for.then(|| Owner {
            since: directory.since(session),
            is_registered: directory.table.get(session, now).is_some(),
        })
    }

    /// Checks for whom the message is, and answers who has the mailbox.
    ///
    /// # Errors
    /// [`EngineError::AnotherUser`], or the directory cannot be asked.
    pub(super) async fn check_owner(
        &self,
        append: &Append,
        session: &SessionId,
    ) -> Result<Owner, EngineError> {
        if self.directory.lock().table.has_expired(session, self.now()) {
            // What comes now is not for the former owner.
            self.close_registration(session).await?;
        }
        if let Some(owner) = self.known_owner(append, session) {
            return Ok(owner);
        }
        self.catch_up().await.map_err(|error| Self::unavailable(&error))?;
        self.known_owner(append, session).ok_or(EngineError::AnotherUser)
    }

    /// Compares the registration that a message is for with the one that the session has, as this node knows: a message for an
    /// earlier one is `Less`.
    pub(super) fn compare_owner(&self, address: &Address, owner: Option<Seq>) -> Ordering {
        match (address.session(), owner) {
            (Some(session), Some(owner)) => owner.cmp(&self.directory.lock().since(session)),
            _ => Ordering::Equal,
        }
    }

    /// Whether a message was for an earlier registration of its session than the one it has. Nobody reads it any more.
    pub(super) fn is_for_former(&self, address: &Address, letter: &Letter) -> bool {
        self.compare_owner(address, letter.owner) == Ordering::Less
    }
}
