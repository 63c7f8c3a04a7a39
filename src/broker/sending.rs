//! A message on its way into one mailbox, or into several.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{JoinAll, join_all};

use crate::broker::receivers::Receivers;
use crate::broker::requests::{Asked, Asking, answered, may_request};
use crate::broker::{Broker, BrokerError};
use crate::directory::KnownMailboxes;
use crate::engine::{Append, Commit, EngineError, OverShare, Share};
use crate::grant::Grant;
use crate::message::{Address, Message, Publication, Seq};
use crate::protocol::{SendRequest, SendResult, To};

/// What a sender waits for. Resolves when the message is stored.
///
/// To a user, it succeeds if one mailbox has it and no mailbox refused it for a transient reason. Otherwise a retry
/// with the same id completes the send.
#[derive(Debug)]
pub enum Sending {
    /// One message to be stored.
    One(Commit),
    /// The message for the only session of a user.
    Only(Commit),
    /// The same message for each session of a user.
    Each(JoinAll<Commit>),
    /// The answer to a request, to be stored unless there is one.
    Reply(Commit),
    /// Handed to the current readers; if sent to a user, to those of so many sessions.
    Volatile(Option<usize>),
}

impl Sending {
    pub(super) fn each(commits: impl IntoIterator<Item = Commit>) -> Self {
        Self::Each(join_all(commits))
    }
}

impl Future for Sending {
    type Output = Result<SendResult, BrokerError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::One(commit) => {
                Pin::new(commit).poll(cx).map(|seq| Ok(SendResult { seq: Some(seq?), sessions: None }))
            }
            Self::Reply(commit) => Pin::new(commit).poll(cx).map(|seq| match seq {
                Ok(seq) => Ok(SendResult { seq: Some(seq), sessions: None }),
                Err(EngineError::IdReused { .. }) => Err(answered()),
                Err(EngineError::AnotherUser) => Err(BrokerError::RequesterGone),
                Err(error) => Err(error.into()),
            }),
            Self::Only(commit) => Pin::new(commit).poll(cx).map(|seq| {
                seq.map(|_| SendResult { seq: None, sessions: Some(1) }).map_err(BrokerError::from)
            }),
            Self::Volatile(sessions) => Poll::Ready(Ok(SendResult { seq: None, sessions: *sessions })),
            Self::Each(commits) => Pin::new(commits).poll(cx).map(to_user),
        }
    }
}

impl Broker {
    /// Takes a message. Its place in the order is taken when this returns; the answer says when it is stored.
    ///
    /// # Errors
    /// What is wrong with the message, or who does not exist.
    pub async fn send(&self, grant: &Grant, send: SendRequest) -> Result<Sending, BrokerError> {
        self.send_to(grant, send, KnownMailboxes::default()).await
    }

    /// The same, if something is known of the mailboxes that the message goes to.
    pub(crate) async fn send_to(
        &self,
        grant: &Grant,
        send: SendRequest,
        known: KnownMailboxes,
    ) -> Result<Sending, BrokerError> {
        if let To::Reply(reply_to) = &send.to {
            let asked = self.asked(grant, &send, reply_to)?;
            return self.reply(grant, asked, send).await;
        }
        self.check(grant, &send)?;
        let receivers = self.receivers(grant, &send.to, known).await?;
        let asking = self.asking(grant, &send, &receivers);
        let ttl = self.stored_for(&send);
        let SendRequest { id, payload, volatile, receipt, .. } = send;
        let (kind, from, ts) = (grant.kind(), grant.from(), self.clock.now());
        let message = Message { kind, from, payload, ts, reference: None };
        if volatile {
            return self.publish_volatile(receivers, &message, asking.as_ref());
        }
        let (author, payer) = (grant.author(), grant.payer());
        Ok(match receivers {
            Receivers::One(address, user) => {
                let message = match &asking {
                    Some(asking) => asking.message(self, &message, &address),
                    None => message,
                };
                let append = Append { address, message, author, id, ttl, receipt, payer, user, since: None };
                Sending::One(self.engine.append(append))
            }
            Receivers::Each(user, sessions) => {
                let mut mailboxes = sessions.into_iter().map(Address::Session);
                let Some(address) = mailboxes.next() else { return Err(BrokerError::NoSuchUser(user)) };
                let user = Some(user);
                let (receipt, since) = (false, None);
                let append = Append { address, message, author, id, ttl, receipt, payer, user, since };
                match &asking {
                    None if mailboxes.len() == 0 => Sending::Only(self.engine.append(append)),
                    None => Sending::each(self.engine.append_each(append, mailboxes.collect())),
                    Some(asking) => Sending::each(self.requests(asking, &append, mailboxes)),
                }
            }
        })
    }

    /// Stores a request in its mailbox and in each of these. Each of them has a `reply_to` of its own.
    fn requests(
        &self,
        asking: &Asking,
        append: &Append,
        others: impl Iterator<Item = Address>,
    ) -> Vec<Commit> {
        let mailboxes = std::iter::once(append.address.clone()).chain(others);
        let each = mailboxes.map(|address| {
            let message = asking.message(self, &append.message, &address);
            self.engine.append(Append { address, message, ..append.clone() })
        });
        each.collect()
    }

    /// Takes the answer to a request that [`Self::asked`] has checked, as [`Self::send`] does.
    ///
    /// # Errors
    /// Who may not answer, and whom no answer reaches any more.
    pub(crate) async fn reply(
        &self,
        grant: &Grant,
        asked: Asked,
        send: SendRequest,
    ) -> Result<Sending, BrokerError> {
        let volatile = send.volatile;
        let append = self.answer(grant, asked, send).await?;
        match volatile {
            true => self.publish_volatile(Receivers::One(append.address, None), &append.message, None),
            false => Ok(Sending::Reply(self.engine.append(append))),
        }
    }

    /// Checks what does not depend on the receiver.
    pub(super) fn check(&self, grant: &Grant, send: &SendRequest) -> Result<(), BrokerError> {
        let size = send.payload.get().len();
        if size > self.limits.payload {
            return Err(BrokerError::PayloadTooLarge { size, limit: self.limits.payload });
        }
        if send.ttl.is_some_and(|ttl| ttl > self.limits.ttl) {
            return Err(BrokerError::TtlTooLong { limit: self.limits.ttl.as_secs() });
        }
        grant.may_send(&send.to)?;
        if send.request {
            may_request(grant, send)?;
        }
        if send.receipt { may_have_receipt(grant, send) } else { Ok(()) }
    }

    /// All readers share one publication. Of a request, those of one mailbox.
    fn publish_volatile(
        &self,
        receivers: Receivers,
        message: &Message,
        asking: Option<&Asking>,
    ) -> Result<Sending, BrokerError> {
        let (addresses, count) = match receivers {
            Receivers::One(address, _) => (vec![address], None),
            Receivers::Each(_, sessions) => {
                let count = sessions.len();
                (sessions.into_iter().map(Address::Session).collect(), Some(count))
            }
        };
        let Some(first) = addresses.first() else { return Ok(Sending::Volatile(count)) };
        let has_room = match asking {
            None => {
                let publication = Arc::new(Publication::encode(first, None, message));
                addresses.iter().all(|address| self.engine.publish_volatile(address, &publication))
            }
            Some(asking) => addresses.iter().all(|address| {
                let request = asking.message(self, message, address);
                let publication = Arc::new(Publication::encode(address, None, &request));
                self.engine.publish_volatile(address, &publication)
            }),
        };
        if has_room { Ok(Sending::Volatile(count)) } else { Err(BrokerError::NoMemory) }
    }
}

/// Whether there can be a receipt: one reader acknowledges the message, and its sender can be told.
fn may_have_receipt(grant: &Grant, send: &SendRequest) -> Result<(), BrokerError> {
    let why = match send.to {
        To::Topic(_) => "is for messages to a session or a backend; nobody acknowledges a topic",
        To::User(_) => "is for messages to one session; a user may have several",
        To::Reply(_) => "is not for replies",
        _ if send.volatile => "and `volatile` exclude each other: what is not stored is not acknowledged",
        _ if send.id.is_none() => "needs an `id`, which the receipt is going to name",
        _ if grant.mailbox().is_none() => return Err(BrokerError::ReceiptForNobody),
        _ => return Ok(()),
    };
    Err(BrokerError::NoReceipt(why))
}

/// Whether the same send may succeed soon.
fn is_transient(error: &EngineError) -> bool {
    match error {
        EngineError::Overloaded { .. }
        | EngineError::Unavailable { .. }
        | EngineError::StoreFull { .. }
        | EngineError::Unreadable { .. }
        | EngineError::QuotaExceeded(OverShare {
            share: Share::Store | Share::Stored | Share::Queue, ..
        }) => true,
        EngineError::QuotaExceeded(OverShare { share: Share::Mailbox, .. })
        | EngineError::MailboxFull { .. }
        | EngineError::NoRoomForReceipt { .. }
        | EngineError::HistoryTooSmall { .. }
        | EngineError::TooManyTopics { .. }
        | EngineError::AnotherUser
        | EngineError::IdReused { .. } => false,
    }
}

/// Whether the send fails though other mailboxes have the message: the sender must hear of it.
fn fails_all(error: &EngineError) -> bool {
    is_transient(error) || matches!(error, EngineError::IdReused { .. })
}

/// What became of a message to a user, given what became of it in each mailbox.
fn to_user(commits: Vec<Result<Seq, EngineError>>) -> Result<SendResult, BrokerError> {
    let stored = commits.iter().filter(|commit| commit.is_ok()).count();
    let mut refusals: Vec<EngineError> = commits.into_iter().filter_map(Result::err).collect();
    match refusals.iter().position(fails_all) {
        Some(at) => Err(refusals.swap_remove(at).into()),
        None if stored > 0 => Ok(SendResult { seq: None, sessions: Some(stored) }),
        None => Err(refusals.swap_remove(0).into()),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::engine::Bounds;

    fn full() -> EngineError {
        let bounds = Bounds { messages: 1, bytes: 1, age: std::time::Duration::ZERO };
        EngineError::MailboxFull { messages: 1, bytes: 1, bounds }
    }

    fn send(commits: impl IntoIterator<Item = Result<Seq, EngineError>>) -> Result<SendResult, BrokerError> {
        Sending::each(commits.into_iter().map(Commit::done)).now_or_never().unwrap()
    }

    #[test]
    fn a_full_mailbox_of_a_user_does_not_fail_the_others() {
        let stored = send([Ok(Seq(1)), Err(full()), Ok(Seq(2))]).unwrap();
        assert_eq!((stored.seq, stored.sessions), (None, Some(2)));
        assert_eq!(send([Err(full())]).unwrap_err(), BrokerError::Engine(full()));
    }

    #[test]
    fn what_a_retry_completes_is_answered_as_failed() {
        let full_store = EngineError::StoreFull { limit: 1 };
        let failed = send([Ok(Seq(1)), Err(full()), Err(full_store.clone())]).unwrap_err();
        assert_eq!(failed, BrokerError::Engine(full_store));
        let reused = EngineError::IdReused { window: std::time::Duration::ZERO };
        assert_eq!(send([Ok(Seq(1)), Err(reused.clone())]).unwrap_err(), BrokerError::Engine(reused));
    }
}
