//! One committed message with its bytes: encoded once, shared by every transport.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, Weak};

use axum::extract::ws::Utf8Bytes;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::budget::{Permit, SMALL};
use crate::message::{Address, Kind, Message, SenderName, Seq};
use crate::sync::lock;

mod frame;

use frame::{Places, encode, seq_start};

/// One message as subscribers get it: committed (or volatile), encoded once.
#[derive(Debug)]
pub struct Publication {
    seq: Option<Seq>,
    kind: Kind,
    from: Option<SenderName>,
    frame: Utf8Bytes,
    places: Places,
    /// Whether it is small and its frame is one line. Looked for once, and not by each reader.
    is_one_line: bool,
    /// What only a large one has.
    large: Option<Box<Large>>,
}

/// How the bytes of a large publication count in the memory budget.
#[derive(Debug)]
enum Large {
    /// It is stored, or was made for its readers. Those share this delivery of it.
    Origin(Mutex<Weak<Publication>>),
    /// It is on its way to readers, and counts until the last one has let it go.
    Delivery { _permit: Permit },
}

impl PartialSchema for Publication {
    fn schema() -> RefOr<Schema> {
        frame::schema()
    }
}

impl ToSchema for Publication {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Frame")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        frame::schemas(schemas);
    }
}

/// A message encoded as a frame before its seq is known, so that nobody waits for the encoding.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    kind: Kind,
    from: Option<SenderName>,
    /// Holds the digits of the expected seq.
    frame: String,
    /// Where the digits are.
    digits: Range<usize>,
    places: Places,
}

impl Draft {
    /// Encodes a message. Sealing is cheapest if the seq has as many digits as `expected`.
    pub(crate) fn encode(address: &Address, message: &Message, expected: Seq) -> Self {
        let (frame, places) = encode(address, Some(expected), message);
        let start = seq_start(message.kind);
        let digits = start..start + expected.width();
        Self { kind: message.kind, from: message.from.clone(), frame, digits, places }
    }

    /// The length of the frame with this seq, in bytes.
    pub(crate) fn len_with(&self, seq: Seq) -> usize {
        self.frame.len() - self.digits.len() + seq.width()
    }

    /// Writes the seq over the expected one.
    pub(crate) fn seal(self, seq: Seq) -> Publication {
        let len = self.len_with(seq);
        let Self { kind, from, mut frame, digits, places } = self;
        let moved = |place: usize| place + len - frame.len();
        let places = Places { fields: moved(places.fields), payload: moved(places.payload) };
        frame.replace_range(digits, seq.digits(&mut [0; 20]));
        debug_assert_eq!(frame.len(), len);
        Publication::new(Some(seq), kind, from, frame, places)
    }
}

impl Publication {
    /// Encodes a message as the native frame of its kind; `seq` is `None` for a volatile one.
    #[must_use]
    pub fn encode(address: &Address, seq: Option<Seq>, message: &Message) -> Self {
        match seq {
            Some(seq) => Draft::encode(address, message, seq).seal(seq),
            None => {
                let (frame, places) = encode(address, None, message);
                Self::new(None, message.kind, message.from.clone(), frame, places)
            }
        }
    }

    fn new(
        seq: Option<Seq>,
        kind: Kind,
        from: Option<SenderName>,
        mut frame: String,
        places: Places,
    ) -> Self {
        // Without spare capacity a clone only counts references.
        frame.shrink_to_fit();
        let large = (frame.len() > SMALL).then(|| Box::new(Large::Origin(Mutex::default())));
        let is_one_line = large.is_none() && !has_line_breaks(frame.as_bytes());
        Self { seq, kind, from, frame: frame.into(), places, is_one_line, large }
    }

    /// The same publication on its way to readers. A large one counts in the memory budget until all of them have let it go:
    /// once, however many there are. `acquire` takes a permit for so many bytes; `None` if there is no room.
    pub(crate) fn delivery(
        self: &Arc<Self>,
        acquire: impl FnOnce(usize) -> Option<Permit>,
    ) -> Option<Arc<Self>> {
        let Some(Large::Origin(shared)) = self.large.as_deref() else { return Some(Arc::clone(self)) };
        let mut shared = lock(shared);
        if let Some(delivery) = shared.upgrade() {
            return Some(delivery);
        }
        let delivery = Arc::new(Self {
            from: self.from.clone(),
            frame: self.frame.clone(),
            large: Some(Box::new(Large::Delivery { _permit: acquire(self.frame.len())? })),
            ..**self
        });
        *shared = Arc::downgrade(&delivery);
        Some(delivery)
    }

    /// The same publication on its way to one reader. A large one counts in the memory budget with this permit.
    pub(crate) fn on_its_way(self, permit: Option<Permit>) -> Self {
        match (&self.large, permit) {
            (Some(_), Some(mut permit)) => {
                permit.shrink_to(self.frame.len());
                Self { large: Some(Box::new(Large::Delivery { _permit: permit })), ..self }
            }
            _ => self,
        }
    }

    /// A copy without a seq, for a reader whose turn for it has not come.
    pub(crate) fn without_seq(&self) -> Self {
        let digits = seq_start(self.kind);
        let field = match self.seq {
            Some(seq) => digits - r#""seq":"#.len()..digits + seq.width() + 1,
            None => 0..0,
        };
        let moved = |place: usize| place - field.len();
        let places = Places { fields: moved(self.places.fields), payload: moved(self.places.payload) };
        let mut frame = self.frame.to_string();
        frame.replace_range(field, "");
        Self::new(None, self.kind, self.from.clone(), frame, places)
    }

    /// Whether it is small, and its frame is one line: a payload may have line breaks between its tokens.
    pub(crate) fn is_one_line(&self) -> bool {
        self.is_one_line
    }

    /// Whether its bytes count in the memory budget.
    pub(crate) fn is_large(&self) -> bool {
        self.large.is_some()
    }

    /// Its position; `None` when volatile.
    #[must_use]
    pub fn seq(&self) -> Option<Seq> {
        self.seq
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Who sent it, as receivers see it.
    #[must_use]
    pub fn from(&self) -> Option<&SenderName> {
        self.from.as_ref()
    }

    /// When it was accepted, in Unix milliseconds. Looks for it in the frame.
    pub(crate) fn accepted_at(&self) -> Option<u64> {
        #[derive(serde::Deserialize)]
        struct Accepted {
            ts: u64,
        }
        serde_json::from_str(self.frame.as_str()).ok().map(|Accepted { ts }| ts)
    }

    /// The native frame.
    #[must_use]
    pub fn frame(&self) -> &Utf8Bytes {
        &self.frame
    }

    /// The sender's payload, a slice of the frame. Empty for a receipt and for presence.
    #[must_use]
    pub fn payload(&self) -> &str {
        let text = self.frame.as_str();
        match self.kind {
            Kind::Receipt | Kind::Presence => "",
            _ => &text[self.places.payload..text.len() - 1],
        }
    }

    /// Where the payload begins in the frame.
    pub(crate) fn payload_start(&self) -> usize {
        self.places.payload
    }

    /// What the engine stores: the payload, or an object with the fields that only this kind has.
    pub(crate) fn stored_payload(&self) -> Cow<'_, str> {
        match self.kind {
            Kind::Message | Kind::FromBackend => Cow::Borrowed(self.payload()),
            Kind::Receipt | Kind::Request { .. } | Kind::Reply { .. } | Kind::Presence => {
                Cow::Owned(format!("{{{}", &self.frame.as_str()[self.places.fields..]))
            }
        }
    }
}

/// Whether a text has more than one line. It looks at all bytes, and so at many of them at a time.
fn has_line_breaks(text: &[u8]) -> bool {
    text.iter().fold(0, |found, byte| found | u8::from(*byte == b'\n') | u8::from(*byte == b'\r')) != 0
}

#[cfg(test)]
mod tests;
