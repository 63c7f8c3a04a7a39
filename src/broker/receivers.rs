//! Who gets a message.

use crate::broker::{Broker, BrokerError};
use crate::directory::KnownMailboxes;
use crate::grant::Grant;
use crate::message::{Address, SessionId, UserId};
use crate::protocol::To;

/// Who gets a message.
pub(super) enum Receivers {
    /// A topic, or one session; of this user, if the sender may name the session only as its user.
    One(Address, Option<UserId>),
    /// The sessions of a user.
    Each(UserId, Vec<SessionId>),
}

impl Broker {
    /// Who gets a message to this address. What is known of that already is not looked up again.
    pub(super) async fn receivers(
        &self,
        grant: &Grant,
        to: &To,
        known: KnownMailboxes,
    ) -> Result<Receivers, BrokerError> {
        // A client may name the sessions of its own user by their ids.
        let one = |session, name: &SessionId| {
            let user = grant.client().filter(|_| session == *name).and_then(|client| client.user.clone());
            Receivers::One(Address::Session(session), user)
        };
        match to {
            To::Session(name) => {
                let session = self.directory.find(grant, name).await.ok_or(BrokerError::NoSuchSession)?;
                Ok(one(session, name))
            }
            To::Topic(topic) => Ok(Receivers::One(Address::Topic(topic.clone()), None)),
            To::Backend(backend) => Ok(Receivers::One(Address::Backend(backend.clone()), None)),
            To::User(user) if !known.sessions.is_empty() => Ok(Receivers::Each(user.clone(), known.sessions)),
            To::User(user) => self.each_session_of(user.clone()).await,
            To::Peer(name) => match self.directory.find(grant, name).await {
                Some(session) => Ok(one(session, name)),
                None => {
                    let user = UserId::from(name);
                    self.each_session_of(user).await.map_err(|_| BrokerError::NoSuchSession)
                }
            },
            // Whom an answer goes to, its request says.
            To::Reply(_) => Err(BrokerError::NoSuchSession),
        }
    }

    async fn each_session_of(&self, user: UserId) -> Result<Receivers, BrokerError> {
        match self.directory.sessions_of(&user).await {
            none if none.is_empty() => Err(BrokerError::NoSuchUser(user)),
            sessions => Ok(Receivers::Each(user, sessions)),
        }
    }
}
