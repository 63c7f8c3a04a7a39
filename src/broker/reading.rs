//! Reading mailboxes and topics, and acknowledging.

use crate::broker::{Broker, BrokerError};
use crate::engine::{EngineError, Lookup};
use crate::hub::Transport;
use crate::message::{Address, Epoch, Gap, GapReason, Seq, SessionId, TopicName};
use crate::protocol::Resume;
use crate::subscriber::{Start, Subscriber};

/// How a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// The ack floor of a mailbox; the newest seq of a topic.
    pub seq: Seq,
    /// Whether everything after the asked position is still there.
    pub recovered: bool,
}

/// Where a reader is going to begin.
struct StartPoint {
    address: Address,
    start: Start,
    /// What the reader is told first.
    gap: Option<Gap>,
    opening: Opening,
}

impl StartPoint {
    fn subscribe(self, broker: &Broker, transport: Transport, most: usize) -> Option<Subscriber> {
        let Self { address, start, gap, .. } = self;
        let mut subscriber =
            Subscriber::new(&broker.engine, &broker.hubs, &address, start, (transport, most))?;
        if let Some(gap) = gap {
            subscriber.push_gap(gap);
        }
        Some(subscriber)
    }
}

impl Broker {
    /// The ack floor of a mailbox. What is acknowledged is below it, though a slower reader may still need it.
    pub async fn floor(&self, mailbox: impl Into<Address>) -> Seq {
        self.floor_of(&mailbox.into()).await
    }

    async fn floor_of(&self, address: &Address) -> Seq {
        // The hub first: when its last reader leaves, the engine knows what the hub forgets.
        let acknowledged = self.hubs.acknowledged(address);
        self.engine.position(address).await.floor.max(acknowledged)
    }

    /// Reads a mailbox: from the ack floor, or after the cursor that the reader brings.
    ///
    /// # Errors
    /// [`BrokerError::TooManyReaders`], [`BrokerError::Ended`].
    pub async fn mailbox(
        &self,
        mailbox: impl Into<Address>,
        resume: &Resume,
        transport: Transport,
    ) -> Result<(Subscriber, Opening), BrokerError> {
        let address = mailbox.into();
        let session = address.session().cloned();
        // The epoch first: if it changes meanwhile, the subscriber begins again.
        let epoch = self.engine.epoch();
        let floor = self.floor_of(&address).await;
        // 0 is where every mailbox starts.
        let after = resume.after.filter(|after| *after > Seq::START);
        let from = self.start_point(address, after, resume.epoch.as_ref(), (floor, epoch)).await;
        let (opening, limit) = (from.opening, self.limits.readers);
        let subscriber =
            from.subscribe(self, transport, limit).ok_or(BrokerError::TooManyReaders { limit })?;
        // If the session was ended before the reader joined the hub, the end did not reach the reader.
        match session {
            Some(session) if self.is_ended(&session).await => Err(BrokerError::Ended),
            _ => Ok((subscriber, opening)),
        }
    }

    /// Whether a session was ended. What this node knows of that may be out of date.
    async fn is_ended(&self, session: &SessionId) -> bool {
        if !self.engine.is_revoked(session) {
            return false;
        }
        self.engine.confirm(Lookup::Session(session)).await;
        self.engine.is_revoked(session)
    }

    /// Reads a topic: from now on, or after the cursor that the reader brings.
    pub async fn topic(
        &self,
        topic: &TopicName,
        resume: &Resume,
        transport: Transport,
    ) -> (Subscriber, Opening) {
        let address = Address::Topic(topic.clone());
        let epoch = self.engine.epoch();
        let position = self.engine.position(&address).await;
        let mut from =
            self.start_point(address, resume.after, resume.epoch.as_ref(), (position.newest, epoch)).await;
        let reaches = resume.after.is_none_or(|after| after >= position.floor.max(position.expired));
        from.opening.recovered &= reaches;
        let opening = from.opening;
        let subscriber =
            from.subscribe(self, transport, usize::MAX).expect("a topic has any number of readers");
        (subscriber, opening)
    }

    /// After the given cursor, or at `newest` (of this epoch) if there is none. A cursor of another epoch says
    /// nothing: such a reader begins at the ack floor, and is told.
    async fn start_point(
        &self,
        address: Address,
        after: Option<Seq>,
        cursor_epoch: Option<&Epoch>,
        (otherwise, epoch): (Seq, Epoch),
    ) -> StartPoint {
        let (cursor, gap) = match after {
            None => (otherwise, None),
            // While nobody can tell, a cursor is believed: a gap that is wrong would make the reader begin again.
            Some(after) if self.is_valid(&address, after, cursor_epoch).await.unwrap_or(true) => {
                (after, None)
            }
            Some(after) => {
                let to = self.engine.position(&address).await.floor;
                (to, Some(Gap { from: after, to, reason: GapReason::Epoch }))
            }
        };
        let opening = Opening { seq: otherwise, recovered: gap.is_none() };
        StartPoint { address, start: Start { cursor, epoch }, gap, opening }
    }

    /// Whether a cursor of this mailbox belongs to this incarnation of the store.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`]: nobody can tell now.
    pub(crate) async fn is_ours(
        &self,
        mailbox: impl Into<Address>,
        cursor: Seq,
        epoch: Option<&Epoch>,
    ) -> Result<bool, EngineError> {
        self.is_valid(&mailbox.into(), cursor, epoch).await
    }

    async fn is_valid(
        &self,
        address: &Address,
        cursor: Seq,
        epoch: Option<&Epoch>,
    ) -> Result<bool, EngineError> {
        if epoch.is_some_and(|epoch| *epoch != self.engine.epoch()) {
            return Ok(false);
        }
        Ok(cursor == Seq::START
            || cursor >= self.engine.origin(address) && cursor <= self.engine.newest(address, cursor).await?)
    }

    /// Acknowledges everything up to `seq`. Answers the new ack floor.
    ///
    /// # Errors
    /// Those of [`Self::acknowledge`].
    pub async fn ack(
        &self,
        mailbox: impl Into<Address>,
        seq: Seq,
        epoch: Option<&Epoch>,
    ) -> Result<Seq, BrokerError> {
        let address = mailbox.into();
        self.acknowledge(&address, seq, epoch).await?;
        Ok(self.floor_of(&address).await)
    }

    /// Acknowledges everything up to `seq`.
    ///
    /// It is deleted as soon as no attached reader of the session on this node is still behind it. A slower reader holds
    /// back no more than [`crate::engine::Engine::held_too_long`] says.
    ///
    /// # Errors
    /// [`BrokerError::AckBeyond`], [`BrokerError::WrongEpoch`], [`BrokerError::Engine`].
    pub async fn acknowledge(
        &self,
        address: &Address,
        seq: Seq,
        epoch: Option<&Epoch>,
    ) -> Result<(), BrokerError> {
        if let Some(epoch) = epoch
            && *epoch != self.engine.epoch()
        {
            return Err(BrokerError::WrongEpoch { epoch: self.engine.epoch() });
        }
        self.check_acknowledgement(address, seq).await?;
        self.acknowledged(address, seq, self.hubs.acknowledge(address, seq));
        Ok(())
    }

    /// The same for the reader of a mailbox, whose hub need not be looked up.
    ///
    /// # Errors
    /// [`BrokerError::AckBeyond`], [`BrokerError::Engine`].
    pub(crate) async fn acknowledge_as(&self, reader: &Subscriber, seq: Seq) -> Result<(), BrokerError> {
        self.check_acknowledgement(reader.address(), seq).await?;
        self.acknowledged(reader.address(), seq, reader.acknowledge(seq));
        Ok(())
    }

    async fn check_acknowledgement(&self, address: &Address, seq: Seq) -> Result<(), BrokerError> {
        let newest = self.engine.newest(address, seq).await?;
        if seq > newest { Err(BrokerError::AckBeyond { seq, newest }) } else { Ok(()) }
    }

    /// Deletes what an acknowledgement allows to.
    fn acknowledged(&self, address: &Address, seq: Seq, trimmable: Option<Seq>) {
        if let Some(through) = trimmable {
            self.engine.trim(address, through);
        }
        if trimmable < Some(seq) {
            self.release_held(address);
        }
    }

    /// Deletes what a slower reader holds back beyond what it may. It is told a gap when it reads on.
    fn release_held(&self, address: &Address) {
        let Some(acknowledged) = self.hubs.held(address) else { return };
        let through = self.engine.held_too_long(address, acknowledged);
        if let Some(through) = self.hubs.release(address, through) {
            self.engine.trim(address, through);
        }
    }
}
