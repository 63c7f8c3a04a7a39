//! Where an address stands: its floor, its newest message, and what waits.

use std::cmp::Ordering;

use async_nats::Message;
use serde_json::json;

use crate::engine::Position;
use crate::engine::nats::envelope;
use crate::engine::nats::error::AskError;
use crate::engine::nats::link::{header, number};
use crate::engine::nats::names::Place;
use crate::engine::nats::node::Core;
use crate::engine::nats::reading::READ_MESSAGES;
use crate::message::{Address, Seq};

impl Core {
    /// The seq of the oldest message of an address.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn first(&self, place: &Place) -> Result<Seq, AskError> {
        let request = json!({ "seq": 1, "next_by_subj": place.stored });
        let answer = self.link.get_one(&self.names.stream(place.stream), &request).await?;
        Ok(answer.map_or(Seq::START, |answer| Seq(number(&answer, "Nats-Sequence"))))
    }

    /// The newest message of an address, as it is stored.
    async fn last(&self, place: &Place) -> Result<Seq, AskError> {
        let request = json!({ "last_by_subj": place.stored });
        let answer = self.link.get_one(&self.names.stream(place.stream), &request).await?;
        Ok(answer.map_or(Seq::START, |answer| Seq(number(&answer, "Nats-Sequence"))))
    }

    /// See [`crate::engine::Engine::position`].
    pub(super) async fn position(&self, address: &Address) -> Position {
        let place = self.place(address);
        let found = async {
            let newest = self.last(&place).await?;
            let (floor, _) = self.below(address, &place).await?;
            let (acked, hole) = (floor.acknowledged(), floor.newest_hole());
            Ok::<_, AskError>(match address.is_mailbox() {
                true => Position { floor: acked, expired: hole, newest: newest.max(acked).max(hole) },
                // As in a history of one node, whose oldest messages were dropped.
                false => Position { floor: acked, expired: acked, newest },
            })
        };
        found.await.unwrap_or_else(|error| {
            tracing::debug!(reason = %error.reason(), "where an address stands cannot be read now");
            let floor = self.floors.of(address).acknowledged();
            Position { floor, expired: Seq::START, newest: floor }
        })
    }

    /// See [`crate::engine::Engine::waiting`].
    pub(super) async fn waiting(&self, address: &Address) -> usize {
        let (place, now) = (self.place(address), self.now());
        let stream = self.names.stream(place.stream);
        let mut count = 0;
        let Ok(floor) = self.floor(address, &place).await else { return 0 };
        let mut at = floor.acknowledged();
        while let Ok(page) = self.page(&stream, &place.stored, at, READ_MESSAGES).await {
            for (seq, message) in &page.messages {
                at = *seq;
                let is_there = envelope::summary(&message.payload).is_some_and(|found| {
                    found.expires_at > now && self.compare_owner(address, found.owner) != Ordering::Less
                });
                count += usize::from(is_there);
            }
            if page.pending == 0 || page.messages.is_empty() {
                break;
            }
        }
        count
    }

    /// The message with this seq, as it is stored.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn message(&self, place: &Place, seq: Seq) -> Result<Option<Message>, AskError> {
        let stream = self.names.stream(place.stream);
        let answer = self.link.get_one(&stream, &json!({ "seq": seq.0 })).await?;
        Ok(answer.filter(|answer| header(answer, "Nats-Subject") == Some(place.stored.as_str())))
    }
}
