//! Receipts: what became of a message whose sender asked for it.
//!
//! The id of a receipt is that of its message, so that two nodes, or one after a restart, make it once.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::clock::millis;
use crate::engine::nats::appending::lifetime;
use crate::engine::nats::envelope::{self, Letter};
use crate::engine::nats::error::AskError;
use crate::engine::nats::lanes::Outgoing;
use crate::engine::nats::names::Place;
use crate::engine::nats::node::Core;
use crate::engine::{Append, EngineError};
use crate::message::{Address, Author, Message, Outcome, Seq};

/// A receipt for a mailbox that is full is tried so often, with a pause between.
const ATTEMPTS: u32 = 60;
const PAUSE: Duration = Duration::from_secs(1);

/// Why messages leave a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    /// They are acknowledged, as far as they had not expired.
    Acknowledged,
    /// Only those that have expired leave.
    Expired,
    /// The session was ended, or has another owner.
    Ended,
}

impl Leaving {
    /// What the sender of a message is told, that has expired or not. `None` if it stays.
    fn outcome(self, is_expired: bool) -> Option<Outcome> {
        match (self, is_expired) {
            (Self::Acknowledged, false) => Some(Outcome::Acknowledged),
            (Self::Expired, false) => None,
            (Self::Ended, false) | (_, true) => Some(Outcome::Expired),
        }
    }
}

impl Core {
    /// Stores the receipts for the messages of a mailbox that leave it between two positions.
    ///
    /// # Errors
    /// [`AskError`]: some may not be stored. The same call makes them again, each once.
    pub(super) fn emit_receipts<'a>(
        self: &'a Arc<Self>,
        address: &'a Address,
        place: &'a Place,
        (after, through): (Seq, Seq),
        leaving: Leaving,
    ) -> Pin<Box<dyn Future<Output = Result<(), AskError>> + Send + 'a>> {
        // Boxed: room for a receipt may be made by what emits receipts.
        Box::pin(async move {
            let (stream, now) = (self.names.stream(place.stream), self.now());
            let mut at = after;
            while at < through {
                let page = self.page(&stream, &place.stored, at, usize::MAX).await?;
                for (seq, message) in page.messages.iter().filter(|(seq, _)| *seq <= through) {
                    let letter = envelope::decode(address, *seq, &message.payload);
                    if let Some(letter) = letter.filter(|letter| letter.receipt.is_some())
                        && let Some(outcome) =
                            leaving.outcome(letter.expires_at <= now || self.is_for_former(address, &letter))
                    {
                        self.emit_receipt(&letter, (&stream, *seq), outcome).await?;
                        self.unschedule(place, *seq);
                    }
                }
                let Some((last, _)) = page.messages.last() else { return Ok(()) };
                if page.pending == 0 {
                    return Ok(());
                }
                at = *last;
            }
            Ok(())
        })
    }

    /// Stores the receipt for a message.
    ///
    /// # Errors
    /// [`AskError`]: it may not be stored.
    pub(super) async fn emit_receipt(
        self: &Arc<Self>,
        letter: &Letter,
        (stream, seq): (&str, Seq),
        outcome: Outcome,
    ) -> Result<(), AskError> {
        let Some((mailbox, id)) = &letter.receipt else { return Ok(()) };
        let message = Message::receipt(id, outcome, self.now());
        let age = self.settings.mailbox.age;
        let append = Append::new(mailbox.clone(), message, Author::Anonymous);
        let id = self.names.message_id(&[b"receipt", stream.as_bytes(), &seq.0.to_le_bytes()]);
        let expires_at = self.now().saturating_add(millis(age));
        let body = envelope::encode(&append, expires_at, None);
        let outgoing = Outgoing { place: self.place(mailbox), id, expires_at, ttl: lifetime(age), body };
        match self.send(mailbox, &outgoing).await {
            Ok(stored) => {
                self.note_newest(outgoing.place.stream, stored.seq);
                Ok(())
            }
            Err(EngineError::MailboxFull { .. }) => {
                tokio::spawn(Arc::clone(self).insist(mailbox.clone(), outgoing));
                Ok(())
            }
            Err(error) => Err(AskError::Unknown(error.to_string().into())),
        }
    }

    /// Tries again to store a receipt whose mailbox is full.
    async fn insist(self: Arc<Self>, mailbox: Address, outgoing: Outgoing) {
        for _ in 0..ATTEMPTS {
            sleep(PAUSE).await;
            if self.send(&mailbox, &outgoing).await.is_ok() {
                return;
            }
        }
        tracing::warn!("a receipt is lost: the mailbox of its sender is full");
    }
}
