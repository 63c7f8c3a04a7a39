//! Writes a message to the connections of the few readers of a hub, which need not be woken for it then.
//!
//! Each reader is written to once. Then its task runs before the next time: a peer that acknowledges wakes it for that. So
//! who sends much to one reader wakes it at the second message, and it writes the others together.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::hub::HubEvent;
use crate::hub::address_hub::Hub;
use crate::hub::batch::{Order, small_message};
use crate::hub::outlet::{Encoded, Encoding};
use crate::hub::reader::AttachedReader;
use crate::hub::timing::Written;
use crate::message::Publication;

/// Room for the header of a frame.
const HEADER: usize = 32;

/// A small message that was sent to a hub.
pub(super) struct Direct {
    order: Option<Order>,
    publication: Arc<Publication>,
    /// The message as bytes, for the connection before.
    encoded: Option<(&'static Encoding, Vec<u8>)>,
}

impl Direct {
    /// `None` if this is something else than a small message.
    pub(super) fn of(event: &HubEvent) -> Option<Self> {
        let (order, publication) = small_message(event)?;
        Some(Self { order, publication: Arc::clone(publication), encoded: None })
    }

    /// Writes the message to the connections of these readers. It comes after the first `sent` events. Returns whether nothing is
    /// left to any of them.
    pub(super) fn write_to_all<'a>(
        &mut self,
        hub: &Hub,
        readers: impl Iterator<Item = &'a AttachedReader>,
        sent: u64,
    ) -> bool {
        let (mut all, mut written) = (true, Written::default());
        for reader in readers {
            all &= self.write_to(hub, reader, sent, &mut written);
        }
        written.count(&hub.timed, (sent, sent + 1));
        all
    }

    fn write_to(&mut self, hub: &Hub, reader: &AttachedReader, sent: u64, written: &mut Written) -> bool {
        // A reader that does not wait looks by itself.
        let Some(outlet) = reader.outlet().filter(|_| reader.waits() && reader.takes_one()) else {
            return false;
        };
        self.encode(outlet.encoding());
        let Some((_, bytes)) = &self.encoded else { return false };
        let mut is_settled = true;
        let encoded = Encoded { bytes, rest: &|from| Bytes::copy_from_slice(&bytes[from..]) };
        let is_written = outlet.write(encoded, &mut || {
            is_settled = self.move_on(hub, reader, sent)?;
            written.add(reader.transport, 1);
            Some(0)
        });
        is_written && is_settled
    }

    fn encode(&mut self, encoding: &'static Encoding) {
        if self.encoded.as_ref().is_some_and(|(known, _)| std::ptr::eq(*known, encoding)) {
            return;
        }
        let mut bytes = Vec::with_capacity(self.publication.frame().len() + HEADER);
        (encoding.append)(&self.publication, &mut bytes);
        self.encoded = Some((encoding, bytes));
    }

    /// Moves a reader on. `None` if it is not at this message, or was written to already. Otherwise, whether nothing waited for
    /// this reader to be deleted.
    fn move_on(&self, hub: &Hub, reader: &AttachedReader, sent: u64) -> Option<bool> {
        let follows = self.order.is_none_or(|order| order.follows(reader.read()));
        if reader.at() != sent || !follows || !reader.take_one() {
            return None;
        }
        reader.set_at(sent + 1);
        let Some(Order { seq, .. }) = self.order else { return Some(true) };
        reader.set_read(seq);
        if self.publication.kind().is_message() {
            reader.note_written(self.publication.frame().len());
        }
        // Sequentially consistent against `Hubs::acknowledge`, as in `ReaderHandle::advance`.
        let before = reader.position.fetch_max(seq.0, Ordering::SeqCst);
        let is_settled = hub.acked.load(Ordering::SeqCst) <= before;
        if !is_settled {
            reader.set_unsettled(true);
        }
        Some(is_settled)
    }
}

#[cfg(test)]
mod tests;
