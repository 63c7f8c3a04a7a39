//! Some events of a hub in a row, encoded for the connections of its readers.

use std::sync::Arc;

use bytes::Bytes;

use crate::hub::HubEvent;
use crate::hub::channel::Tail;
use crate::hub::outlet::{Encoded, Encoding};
use crate::hub::reader::AttachedReader;
use crate::message::{Publication, Seq};

/// Bytes of messages after which a batch takes no more.
const SIZE: usize = 16 * 1024;

/// Some events in a row.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    /// How many events came before the first one.
    from: u64,
    /// How many came before the one after the last one.
    end: u64,
    /// The messages, if all of these events are small messages.
    messages: Vec<(Option<Order>, Arc<Publication>)>,
    /// From this one on, each stored message follows the stored one before it.
    intact_from: usize,
    encoded: Vec<EncodedBatch>,
}

/// Where a stored message belongs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub(super) prev: Seq,
    pub(super) seq: Seq,
}

impl Order {
    /// Whether this is the next message of a reader that has everything up to `read`.
    pub(super) fn follows(self, read: Seq) -> bool {
        self.prev <= read && read < self.seq
    }
}

/// The messages as bytes.
#[derive(Debug, Clone)]
struct EncodedBatch {
    encoding: &'static Encoding,
    bytes: Bytes,
    /// Where each message begins.
    begins: Vec<usize>,
}

/// A message that is small, and its place if it is stored.
pub(super) fn small_message(event: &HubEvent) -> Option<(Option<Order>, &Arc<Publication>)> {
    let (order, publication) = match event {
        HubEvent::Stored { prev, publication } => {
            (Some(Order { prev: *prev, seq: publication.seq()? }), publication)
        }
        HubEvent::Volatile(publication) => (None, publication),
        HubEvent::Available(_) | HubEvent::EpochChanged | HubEvent::Ended(_) => return None,
    };
    (!publication.is_large()).then_some((order, publication))
}

impl Batch {
    /// The next events of a tail: small messages, or one event of another kind.
    pub(super) fn next(tail: &mut Tail) -> Self {
        let (mut size, mut count) = (0, 0);
        let events = tail.take_while(|event| {
            let message = small_message(event);
            let fits = count == 0 || message.is_some() && size < SIZE;
            count += 1;
            // Nothing follows an event of another kind.
            size += message.map_or(SIZE, |(_, publication)| publication.frame().len());
            fits
        });
        Self::new(tail.at(), &events)
    }

    fn new(end: u64, events: &[HubEvent]) -> Self {
        let messages: Vec<_> = events
            .iter()
            .filter_map(small_message)
            .map(|(order, publication)| (order, Arc::clone(publication)))
            .collect();
        let (mut intact_from, mut last) = (0, None);
        for (at, (order, _)) in messages.iter().enumerate() {
            let Some(order) = order else { continue };
            if last.is_some_and(|last| !order.follows(last)) {
                intact_from = at;
            }
            last = Some(order.seq);
        }
        Self { from: end - events.len() as u64, end, messages, intact_from, encoded: Vec::new() }
    }

    /// The numbers of its events: from the first one on, up to before the second one.
    pub(super) fn range(&self) -> (u64, u64) {
        (self.from, self.end)
    }

    /// Writes to the connection of a reader what the reader does not have, or wakes up the reader. Returns how many messages were
    /// written; what the peer did not take of them is left to the task of the reader.
    pub(super) fn offer(&mut self, reader: &AttachedReader) -> usize {
        let mut written = 0;
        // It looks by itself.
        if !reader.waits() {
            return written;
        }
        if let Some(outlet) = reader.outlet().filter(|_| !self.messages.is_empty()) {
            let encoded = self.encoded(outlet.encoding());
            let (batch, encoded) = (&*self, &self.encoded[encoded]);
            let all = Encoded { bytes: &encoded.bytes, rest: &|from| encoded.bytes.slice(from..) };
            let is_done = outlet.write(all, &mut || {
                if reader.at() == batch.end {
                    return Some(encoded.bytes.len());
                }
                let begin = batch.move_on(reader)?;
                written = encoded.begins.len() - begin;
                Some(encoded.begins[begin])
            });
            if is_done {
                return written;
            }
        }
        if let Some(waker) = reader.end_wait() {
            waker.wake();
        }
        written
    }

    /// Moves a reader on to the end. Answers which message is its next one; `None` if something is missing between what it has
    /// and this batch: then it has not moved.
    fn move_on(&self, reader: &AttachedReader) -> Option<usize> {
        let begin = usize::try_from(reader.at().checked_sub(self.from)?).ok()?;
        let rest = self.messages.get(begin..)?;
        let mut stored = rest.iter().filter_map(|(order, _)| *order);
        if let Some(first) = stored.next() {
            if begin < self.intact_from || !first.follows(reader.read()) {
                return None;
            }
            reader.set_read(stored.next_back().unwrap_or(first).seq);
        }
        reader.set_at(self.end);
        Some(begin)
    }

    /// Encodes the messages, once. Answers where they are.
    fn encoded(&mut self, encoding: &'static Encoding) -> usize {
        if let Some(at) = self.encoded.iter().position(|encoded| std::ptr::eq(encoded.encoding, encoding)) {
            return at;
        }
        let (mut bytes, mut begins) = (Vec::new(), Vec::with_capacity(self.messages.len()));
        for (_, publication) in &self.messages {
            begins.push(bytes.len());
            (encoding.append)(publication, &mut bytes);
        }
        self.encoded.push(EncodedBatch { encoding, bytes: bytes.into(), begins });
        self.encoded.len() - 1
    }
}
