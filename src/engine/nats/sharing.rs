//! Shares of authors in mailboxes and in the store: a node counts what it has to, before it refuses.

use std::sync::Arc;

use async_nats::HeaderMap;
use bytes::Bytes;

use crate::engine::nats::allowance::BESIDE;
use crate::engine::nats::envelope;
use crate::engine::nats::error::AskError;
use crate::engine::nats::lanes::Outgoing;
use crate::engine::nats::link::Stored;
use crate::engine::nats::node::Core;
use crate::engine::nats::reading::READ_MESSAGES;
use crate::engine::nats::tallies::{Count, Payer};
use crate::engine::{Append, EngineError};
use crate::message::{Address, Seq};

impl Core {
    /// Takes room for an append whose author is within its shares for sure.
    pub(super) fn take_room(&self, append: &Append, outgoing: &Outgoing) -> bool {
        if !self.settings.shares {
            return true;
        }
        let floor = self.floors.of(&append.address).acknowledged();
        let has_room = !append.address.is_mailbox() || self.tallies.send_if_sure(append, (floor, self.now()));
        has_room
            && self
                .take_bytes(append, outgoing)
                .inspect_err(|_| self.decided((&append.address, &append.payer), None))
                .is_ok()
    }

    fn take_bytes(&self, append: &Append, outgoing: &Outgoing) -> Result<(), EngineError> {
        let bytes = outgoing.body.len() + BESIDE;
        self.allowances.take(outgoing.place.stream, append.payer.as_ref(), bytes)
    }

    /// Notes what became of an append for which room was taken.
    pub(super) fn decided(&self, (address, payer): (&Address, &Payer), stored: Option<Seq>) {
        if self.settings.shares && address.is_mailbox() {
            self.tallies.decided((address, payer), stored);
        }
    }

    /// Takes room for an append, after what has to be counted is counted. A retry of what is stored needs none.
    ///
    /// # Errors
    /// The answer to it: it is not sent.
    pub(super) async fn find_room(
        self: &Arc<Self>,
        append: &Append,
        outgoing: &Outgoing,
    ) -> Result<(), Result<Seq, EngineError>> {
        if !self.settings.shares || self.take_room(append, outgoing) {
            return Ok(());
        }
        let taken = match append.address.is_mailbox() {
            true => match self.count_mailbox(&append.address, outgoing).await {
                Ok(()) => self.tallies.send(append),
                Err(error) => return Err(Err(Self::unavailable(&error))),
            },
            false => Ok(()),
        };
        let taken = taken.and_then(|()| {
            self.take_bytes(append, outgoing)
                .inspect_err(|_| self.decided((&append.address, &append.payer), None))
        });
        let Err(refused) = taken else { return Ok(()) };
        if append.id.is_none() {
            return Err(Err(refused));
        }
        Err(match self.find_stored(outgoing).await {
            Ok(Some(stored)) => self.as_known(append, outgoing, stored).await,
            Ok(None) => Err(refused),
            Err(error) => Err(Self::unavailable(&error)),
        })
    }

    /// Counts the messages of a mailbox, and if it is more than half full, those of each author.
    async fn count_mailbox(&self, address: &Address, outgoing: &Outgoing) -> Result<(), AskError> {
        let place = &outgoing.place;
        let stream = self.names.stream(place.stream);
        let count = self.tallies.to_count(address);
        if count == Count::Nothing {
            return Ok(());
        }
        let floor = self.floor(address, place).await?.acknowledged();
        let mut after = match count {
            Count::Each(complete) => complete.max(floor),
            _ => {
                let first = self.page(&stream, &place.stored, floor, 1).await?;
                let messages = first.messages.len() + first.pending;
                if !self.tallies.counted(address, messages) {
                    return Ok(());
                }
                floor
            }
        };
        loop {
            let _permit = self.reads.acquire().await;
            let page = self.page(&stream, &place.stored, after, READ_MESSAGES).await?;
            if let Some((last, _)) = page.messages.last() {
                after = *last;
            }
            let messages = page.messages.iter().filter_map(|(seq, message)| {
                envelope::summary(&message.payload).map(|found| (*seq, found.payer, found.expires_at))
            });
            self.tallies.add(address, messages.collect(), after);
            if page.messages.is_empty() || page.pending == 0 {
                break;
            }
        }
        self.tallies.complete(address, (floor, self.now()));
        Ok(())
    }

    /// Where a message with this id is stored. NATS looks for the id before it finds that it has to refuse the message.
    async fn find_stored(&self, outgoing: &Outgoing) -> Result<Option<Stored>, AskError> {
        // Streams begin far above seq 1, and no id is as short as this one.
        let (refused_for, expected) = match (self.options.replicas, self.has_schedules) {
            // A single server checks the seq first.
            (1, _) => ("Nats-Expected-Last-Msg-Id", "-"),
            // Several would take the id for one that is being stored if they refused another one.
            (_, true) => ("Nats-Expected-Last-Sequence", "1"),
            // Those before 2.12 do so here too.
            (_, false) => return Ok(None),
        };
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", outgoing.id.as_str());
        headers.insert(refused_for, expected);
        match self.link.store(&outgoing.place.stored, headers, Bytes::new()).await {
            Ok(stored) => Ok(stored.is_known.then_some(stored)),
            Err(AskError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
