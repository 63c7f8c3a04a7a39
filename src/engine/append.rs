//! A message on its way into an engine.

use std::time::Duration;

use crate::message::{Address, Author, Message, MessageId, SenderName, Seq, UserId};

/// A message to store.
#[derive(Debug, Clone)]
pub struct Append {
    /// The mailbox or history that it goes to.
    pub address: Address,
    /// The message.
    pub message: Message,
    /// Who sends it. The author and the id tell a retry from another message.
    pub author: Author,
    /// The sender's id for it.
    pub id: Option<MessageId>,
    /// How long it is kept; the bounds' age when absent.
    pub ttl: Option<Duration>,
    /// Whether its author (who must have a mailbox, and an id for it) gets a receipt when it leaves.
    pub receipt: bool,
    /// The author whose shares it counts against: the name that receivers see. `None` where there are no shares: for a
    /// backend, and in `open` mode.
    pub payer: Option<SenderName>,
    /// The user that it is for: the session of its mailbox must be registered for this user when it is stored. `None` if it
    /// is for whoever has the session.
    pub user: Option<UserId>,
    /// The registration that it is for, by its [`Registration::since`](crate::engine::Registration::since). `None` if it is for
    /// any registration of the session.
    pub since: Option<Seq>,
}

impl Append {
    /// A message without an id and without a receipt, kept for the bounds' age, for whoever has the mailbox, and paid by nobody.
    #[must_use]
    pub fn new(address: Address, message: Message, author: Author) -> Self {
        let (id, ttl, receipt, payer, user, since) = (None, None, false, None, None, None);
        Self { address, message, author, id, ttl, receipt, payer, user, since }
    }

    /// The same message for its mailbox, and then for each of these.
    pub(super) fn into_each(self, others: Vec<Address>) -> impl Iterator<Item = Self> {
        let copies: Vec<_> = others.into_iter().map(|address| Self { address, ..self.clone() }).collect();
        std::iter::once(self).chain(copies)
    }
}
