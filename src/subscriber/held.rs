//! A reader whose next item is not admitted: the window of its connection is full.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::broadcast::error::RecvError;

use crate::hub::HubEvent;
use crate::message::{Item, Seq};
use crate::metrics;
use crate::subscriber::ahead::Ahead;
use crate::subscriber::reading::READ;
use crate::subscriber::{ReadState, Subscriber};

/// Bytes of messages beyond which a reader that is admitted nothing gives back what it has read.
pub(super) const HELD_BYTES: usize = 64 * 1024;

impl Subscriber {
    /// Waits for what the hub brings while the next item is not admitted. What does not fit is read from the engine later.
    ///
    /// Returns what need not wait for its turn: a volatile message, or a copy of a receipt or reply without its seq. The
    /// receipt or reply itself comes in its place.
    pub(super) fn poll_hold(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        self.give_back();
        if let Some(volatile) = self.take_volatile() {
            return Poll::Ready(Some(volatile));
        }
        let has_room = self.state == ReadState::Live && self.backlog.len() < READ;
        let delivered = self.delivered;
        let ahead = self.ahead.get_or_insert_with(|| Box::new(Ahead::after(delivered)));
        if let Some(found) = ahead.take(delivered) {
            return Poll::Ready(Some(Item::Message(Arc::new(found.without_seq()))));
        }
        if ahead.is_behind() {
            return ahead.poll_read(cx, &self.engine, self.handle.address()).map(|()| None);
        }
        let event = ready!(self.receiver.poll_recv(cx));
        match &event {
            Ok(event) => ahead.note(event),
            Err(RecvError::Lagged(_)) => ahead.missed(Seq::START),
            Err(RecvError::Closed) => {}
        }
        match event {
            Ok(HubEvent::Volatile(publication)) => return Poll::Ready(Some(Item::Message(publication))),
            Ok(HubEvent::Stored { publication, .. }) if !has_room => {
                self.fall_behind(publication.seq().unwrap_or_default());
            }
            Ok(HubEvent::Available(seq)) if !has_room => self.fall_behind(seq),
            Ok(HubEvent::EpochChanged) => {
                self.ahead = None;
                self.state = ReadState::Behind(Seq::START);
            }
            Ok(event) => {
                let item = self.accept(event);
                self.backlog.extend(item);
            }
            Err(RecvError::Lagged(_)) => {
                metrics::LAGGED.count();
                self.fall_behind(Seq::START);
            }
            Err(RecvError::Closed) => self.state = ReadState::Closed,
        }
        Poll::Ready(None)
    }

    /// A volatile message that waits behind the next item.
    fn take_volatile(&mut self) -> Option<Item> {
        let is_volatile = |item: &Item| matches!(item, Item::Message(message) if message.seq().is_none());
        let at = self.backlog.iter().position(is_volatile)?;
        self.backlog.remove(at)
    }

    /// Gives back the messages beyond the first [`HELD_BYTES`], but never the first item.
    pub(super) fn give_back(&mut self) {
        let mut bytes = 0;
        let beyond = self.backlog.iter().position(|item| {
            let Item::Message(message) = item else { return false };
            bytes += message.frame().len();
            bytes > HELD_BYTES
        });
        let Some(kept) = beyond.map(|at| at.max(1)).filter(|kept| *kept < self.backlog.len()) else { return };
        self.fall_behind(self.read);
        self.backlog.truncate(kept);
        let newest = self.backlog.iter().rev().find_map(|item| match item {
            Item::Message(message) => message.seq(),
            Item::Gap(gap) => Some(gap.to),
        });
        self.read = newest.unwrap_or(self.delivered);
        self.reading = None;
    }

    /// The engine is read later, at least until this seq is met.
    fn fall_behind(&mut self, seq: Seq) {
        let known = if let ReadState::Behind(known) = self.state { known } else { Seq::START };
        self.state = ReadState::Behind(known.max(seq));
    }
}
