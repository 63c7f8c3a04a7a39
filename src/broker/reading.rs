//! Reading mailboxes and topics, and acknowledging.

use crate::broker::{Broker, BrokerError};
use crate::hub::Transport;
use crate::message::{Address, Epoch, Gap, GapReason, Seq, SessionId, TopicName};
use crate::protocol::Resume;
use crate::subscriber::Subscriber;

/// How a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// The ack floor of a mailbox; the newest seq of a topic.
    pub seq: Seq,
    /// Whether everything after the asked position is still there.
    pub recovered: bool,
}

impl Broker {
    /// The ack floor of a mailbox: acknowledged, though a slower reader may still be waited for.
    #[must_use]
    pub fn floor(&self, session: &SessionId) -> Seq {
        let address = Address::Session(session.clone());
        // The hub first: what it forgets when its last reader leaves, the engine knows by then.
        let acknowledged = self.hubs.acknowledged(&address);
        self.engine.position(&address).floor.max(acknowledged)
    }

    /// Reads a mailbox: from the ack floor, or after the cursor the reader brings.
    ///
    /// # Errors
    /// The session has too many readers, or was ended.
    pub fn mailbox(
        &self,
        session: &SessionId,
        resume: &Resume,
        transport: Transport,
    ) -> Result<(Subscriber, Opening), BrokerError> {
        let floor = self.floor(session);
        let address = Address::Session(session.clone());
        // Nothing is below a mailbox's start: 0 is where everyone begins.
        let after = resume.after.filter(|after| *after > Seq::START);
        let limit = self.limits.readers;
        let reader = (transport, limit);
        let (subscriber, recovered) = self
            .subscriber(&address, after, resume.epoch.as_ref(), floor, reader)
            .ok_or(BrokerError::TooManyReaders { limit })?;
        // It may have been ended while it was joined: who ended it did not see this reader.
        if self.engine.is_ended(session) {
            return Err(BrokerError::Ended);
        }
        Ok((subscriber, Opening { seq: floor, recovered }))
    }

    /// Reads a topic: from now on, or after the cursor the reader brings.
    #[must_use]
    pub fn topic(&self, topic: &TopicName, resume: &Resume, transport: Transport) -> (Subscriber, Opening) {
        let address = Address::Topic(topic.clone());
        let position = self.engine.position(&address);
        let (subscriber, known) = self
            .subscriber(
                &address,
                resume.after,
                resume.epoch.as_ref(),
                position.newest,
                (transport, usize::MAX),
            )
            .expect("a topic has any number of readers");
        let reaches = resume.after.is_none_or(|after| after >= position.floor.max(position.expired));
        (subscriber, Opening { seq: position.newest, recovered: known && reaches })
    }

    /// A reader after the given cursor, or after `otherwise` where there is none or it means nothing here.
    fn subscriber(
        &self,
        address: &Address,
        after: Option<Seq>,
        epoch: Option<&Epoch>,
        otherwise: Seq,
        reader: (Transport, usize),
    ) -> Option<(Subscriber, bool)> {
        let new = |cursor| Subscriber::new(&self.engine, &self.hubs, address, cursor, reader);
        Some(match after {
            None => (new(otherwise)?, true),
            Some(after) if self.is_ours(after, epoch) => (new(after)?, true),
            Some(after) => {
                // A foreign cursor says nothing: begin where the store begins, and say so.
                let to = self.engine.position(address).floor;
                let mut subscriber = new(to)?;
                subscriber.push_gap(Gap { from: after, to, reason: GapReason::Epoch });
                (subscriber, false)
            }
        })
    }

    /// Whether a cursor belongs to this incarnation of the store.
    #[must_use]
    pub fn is_ours(&self, cursor: Seq, epoch: Option<&Epoch>) -> bool {
        let known = cursor == Seq::START || cursor >= self.engine.origin() && cursor <= self.engine.newest();
        known && epoch.is_none_or(|epoch| epoch == self.engine.epoch())
    }

    /// Everything up to `seq` is received. Answers the new ack floor.
    ///
    /// It is deleted as soon as no attached reader of the session on this node is still behind it.
    ///
    /// # Errors
    /// The seq was never given, or belongs to another incarnation of the store.
    pub fn ack(&self, session: &SessionId, seq: Seq, epoch: Option<&Epoch>) -> Result<Seq, BrokerError> {
        if epoch.is_some_and(|epoch| epoch != self.engine.epoch()) {
            return Err(BrokerError::WrongEpoch { epoch: self.engine.epoch().clone() });
        }
        let newest = self.engine.newest();
        if seq > newest {
            return Err(BrokerError::AckBeyond { seq, newest });
        }
        let address = Address::Session(session.clone());
        if let Some(through) = self.hubs.acknowledge(&address, seq) {
            self.engine.trim(&address, through);
        }
        Ok(self.floor(session))
    }
}
