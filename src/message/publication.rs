//! One committed message with its bytes: encoded once, shared by every transport.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, Weak};

use axum::extract::ws::Utf8Bytes;
use serde::Serialize;
use utoipa::openapi::schema::{AllOfBuilder, AnyOfBuilder, ObjectBuilder, SchemaType};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::budget::{Permit, SMALL};
use crate::message::{Address, Kind, Message, ReceiptFields, SenderName, Seq, TopicName};
use crate::sync::lock;

/// One message as subscribers get it: committed (or volatile), encoded once.
#[derive(Debug)]
pub struct Publication {
    seq: Option<Seq>,
    kind: Kind,
    from: Option<SenderName>,
    frame: Utf8Bytes,
    payload_start: usize,
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

/// What a frame is, on the wire.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum FrameType {
    Message,
    Receipt,
}

impl From<Kind> for FrameType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Message | Kind::FromBackend => Self::Message,
            Kind::Receipt => Self::Receipt,
        }
    }
}

#[derive(Serialize, ToSchema)]
struct Head<'a> {
    r#type: FrameType,
    /// Absent for a volatile message.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<Seq>,
    /// Absent for a message from the mailbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a TopicName>,
    /// The sender, as receivers see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a SenderName>,
    /// True if a backend sent it, with an API key; absent otherwise. So no user passes for a backend of the same name.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    backend: bool,
    /// When the message was accepted, in Unix milliseconds.
    ts: u64,
}

/// The frame: the head, then the payload or the fields of a receipt. All are in one list of properties, since generators
/// of clients do not look for them elsewhere.
impl PartialSchema for Publication {
    fn schema() -> RefOr<Schema> {
        let payload = ObjectBuilder::new().schema_type(SchemaType::AnyValue);
        let mut frame = properties(Head::schema()).property("payload", payload).build();
        let receipt = properties(ReceiptFields::schema()).build();
        let rest = AnyOfBuilder::new().item(ObjectBuilder::new().required("payload"));
        let rest = rest.item(receipt.required.iter().fold(ObjectBuilder::new(), ObjectBuilder::required));
        frame.properties.extend(receipt.properties);
        AllOfBuilder::new().item(frame).item(rest).into()
    }
}

fn properties(schema: RefOr<Schema>) -> ObjectBuilder {
    match schema {
        RefOr::T(Schema::Object(object)) => object.into(),
        _ => ObjectBuilder::new(),
    }
}

impl ToSchema for Publication {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Frame")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        Head::schemas(schemas);
        ReceiptFields::schemas(schemas);
    }
}

/// A message encoded as a frame before its seq is known, so that nobody waits for the encoding.
#[derive(Debug)]
pub(crate) struct Draft {
    kind: Kind,
    from: Option<SenderName>,
    /// Holds the digits of the expected seq.
    frame: String,
    /// Where the digits are.
    digits: Range<usize>,
    payload_start: usize,
}

impl Draft {
    /// Encodes a message. Sealing is cheapest if the seq has as many digits as `expected`.
    pub(crate) fn encode(address: &Address, message: &Message, expected: Seq) -> Self {
        let (frame, payload_start) = encode(address, Some(expected), message);
        let start = match FrameType::from(message.kind) {
            FrameType::Message => r#"{"type":"message","seq":"#.len(),
            FrameType::Receipt => r#"{"type":"receipt","seq":"#.len(),
        };
        let digits = start..start + width(expected);
        Self { kind: message.kind, from: message.from.clone(), frame, digits, payload_start }
    }

    /// The length of the frame with this seq, in bytes.
    pub(crate) fn len_with(&self, seq: Seq) -> usize {
        self.frame.len() - self.digits.len() + width(seq)
    }

    /// Writes the seq over the expected one.
    pub(crate) fn seal(self, seq: Seq) -> Publication {
        let len = self.len_with(seq);
        let Self { kind, from, mut frame, digits, payload_start } = self;
        let payload_start = payload_start + len - frame.len();
        frame.replace_range(digits, &seq.to_string());
        debug_assert_eq!(frame.len(), len);
        Publication::new(Some(seq), kind, from, frame, payload_start)
    }
}

/// How many digits a seq has.
fn width(seq: Seq) -> usize {
    seq.0.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// The frame of a message, of exactly the right size, and where its payload starts.
///
/// The payload comes last, so that it can be handed out as a slice of the frame. A receipt's fields are fields of the
/// frame itself.
fn encode(address: &Address, seq: Option<Seq>, message: &Message) -> (String, usize) {
    let topic = match address {
        Address::Topic(topic) => Some(topic),
        Address::Session(_) => None,
    };
    let (r#type, backend) = (message.kind.into(), message.kind == Kind::FromBackend);
    let head = Head { r#type, seq, topic, from: message.from.as_ref(), backend, ts: message.ts };
    let head = serde_json::to_string(&head).expect("strings and numbers always encode");
    let head = &head[..head.len() - 1];
    let payload = message.payload.get();
    let (parts, payload_start) = match message.kind {
        Kind::Message | Kind::FromBackend => {
            ([head, ",\"payload\":", payload, "}"], head.len() + ",\"payload\":".len())
        }
        Kind::Receipt => ([head, ",", &payload[1..], ""], head.len() + 1),
    };
    (parts.concat(), payload_start)
}

impl Publication {
    /// Encodes a message as the native `message` (or `receipt`) frame; `seq` is `None` for a volatile one.
    #[must_use]
    pub fn encode(address: &Address, seq: Option<Seq>, message: &Message) -> Self {
        match seq {
            Some(seq) => Draft::encode(address, message, seq).seal(seq),
            None => {
                let (frame, payload_start) = encode(address, None, message);
                Self::new(None, message.kind, message.from.clone(), frame, payload_start)
            }
        }
    }

    fn new(
        seq: Option<Seq>,
        kind: Kind,
        from: Option<SenderName>,
        mut frame: String,
        payload_start: usize,
    ) -> Self {
        // Without spare capacity a clone only counts references.
        frame.shrink_to_fit();
        let large = (frame.len() > SMALL).then(|| Box::new(Large::Origin(Mutex::default())));
        Self { seq, kind, from, frame: frame.into(), payload_start, large }
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

    /// The native `message` or `receipt` frame.
    #[must_use]
    pub fn frame(&self) -> &Utf8Bytes {
        &self.frame
    }

    /// The sender's payload, a slice of the frame. Empty for a receipt.
    #[must_use]
    pub fn payload(&self) -> &str {
        let text = self.frame.as_str();
        match self.kind {
            Kind::Message | Kind::FromBackend => &text[self.payload_start..text.len() - 1],
            Kind::Receipt => "",
        }
    }

    /// Where the payload begins in the frame.
    pub(crate) fn payload_start(&self) -> usize {
        self.payload_start
    }

    /// The payload of the message that was encoded, also for a receipt.
    pub(crate) fn stored_payload(&self) -> Cow<'_, str> {
        match self.kind {
            Kind::Message | Kind::FromBackend => Cow::Borrowed(self.payload()),
            Kind::Receipt => Cow::Owned(format!("{{{}", &self.frame.as_str()[self.payload_start..])),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::budget::{Budget, Holder};
    use crate::message::{MessageId, Outcome, SessionId};

    fn message(from: Option<&str>, payload: &str) -> Message {
        Message {
            kind: Kind::Message,
            from: from.map(|name| SenderName::new(name).unwrap()),
            payload: RawValue::from_string(payload.to_owned()).unwrap(),
            ts: 1_763_886_000_000,
        }
    }

    #[test]
    fn the_frame_is_the_wire_format_and_the_payload_a_slice_of_it() {
        let mailbox = Address::Session(SessionId::new("A").unwrap());
        let publication =
            Publication::encode(&mailbox, Some(Seq(18)), &message(Some("B"), r#"{ "a":1e400 }"#));
        assert_eq!(
            publication.frame().as_str(),
            r#"{"type":"message","seq":18,"from":"B","ts":1763886000000,"payload":{ "a":1e400 }}"#
        );
        assert_eq!(publication.payload(), r#"{ "a":1e400 }"#);
    }

    #[test]
    fn volatile_topic_messages_name_the_topic_and_have_no_seq() {
        let topic = Address::Topic(TopicName::new("né\"ws").unwrap());
        let publication = Publication::encode(&topic, None, &message(None, "7"));
        assert_eq!(
            publication.frame().as_str(),
            r#"{"type":"message","topic":"né\"ws","ts":1763886000000,"payload":7}"#
        );
    }

    #[test]
    fn a_message_of_a_backend_says_so() {
        let mailbox = Address::Session(SessionId::new("A").unwrap());
        for (from, fields) in [(Some("ann"), r#""from":"ann","backend":true"#), (None, r#""backend":true"#)] {
            let sent = Message { kind: Kind::FromBackend, ..message(from, "7") };
            let publication = Publication::encode(&mailbox, Some(Seq(18)), &sent);
            let frame = format!(r#"{{"type":"message","seq":18,{fields},"ts":1763886000000,"payload":7}}"#);
            assert_eq!((publication.frame().as_str(), publication.payload()), (frame.as_str(), "7"));
        }
    }

    #[test]
    fn a_receipt_is_a_frame_of_its_own() {
        let mailbox = Address::Session(SessionId::new("A").unwrap());
        let id = MessageId::new("c-42").unwrap();
        let receipt = Message::receipt(&id, Outcome::Expired, 7);
        let publication = Publication::encode(&mailbox, Some(Seq(18)), &receipt);
        let frame = r#"{"type":"receipt","seq":18,"ts":7,"id":"c-42","state":"expired"}"#;
        assert_eq!((publication.frame().as_str(), publication.payload()), (frame, ""));
        assert_eq!(publication.stored_payload(), receipt.payload.get());
    }

    #[test]
    fn a_draft_takes_any_seq_whatever_was_expected() {
        let topic = Address::Topic(TopicName::new("news").unwrap());
        let id = MessageId::new("c-1").unwrap();
        let from_backend = Message { kind: Kind::FromBackend, ..message(Some("B"), "1") };
        for message in [
            message(Some("B"), r#"{"é":[1]}"#),
            from_backend,
            Message::receipt(&id, Outcome::Acknowledged, 7),
        ] {
            for expected in [0, 1, 9, 10, 99_999, u64::MAX] {
                for seq in [1, 9, 10, 12_345, 99_999, 100_000, u64::MAX] {
                    let draft = Draft::encode(&topic, &message, Seq(expected));
                    let len = draft.len_with(Seq(seq));
                    let sealed = draft.seal(Seq(seq));
                    let frame = sealed.frame().as_str();
                    assert_eq!(frame.len(), len, "{expected} {seq}");
                    let fields: serde_json::Value = serde_json::from_str(frame).unwrap();
                    assert_eq!((&fields["seq"], sealed.seq()), (&seq.into(), Some(Seq(seq))));
                    assert_eq!(sealed.stored_payload(), message.payload.get(), "{expected} {seq}");
                    assert_eq!(frame, Publication::encode(&topic, Some(Seq(seq)), &message).frame().as_str());
                }
            }
        }
    }

    #[test]
    fn a_large_publication_counts_once_while_it_is_delivered() {
        let budget = Budget::new(100_000);
        let mailbox = Address::Session(SessionId::new("A").unwrap());
        let large = message(None, &format!("\"{}\"", "x".repeat(60_000)));
        let origin = Arc::new(Publication::encode(&mailbox, Some(Seq(1)), &large));
        let deliver =
            |origin: &Arc<Publication>| origin.delivery(|bytes| budget.try_acquire(Holder::Proved, bytes));
        let one = deliver(&origin).unwrap();
        let (used, other) = (budget.used(), deliver(&one).unwrap());
        assert!(Arc::ptr_eq(&one, &deliver(&origin).unwrap()) && Arc::ptr_eq(&one, &other));
        assert!((60_000..61_000).contains(&used) && budget.used() == used);
        assert_eq!((one.payload(), one.seq()), (origin.payload(), origin.seq()));
        assert_eq!(one.frame().as_str().as_ptr(), origin.frame().as_str().as_ptr(), "the bytes are shared");
        // There is no room for another one.
        let second = Arc::new(Publication::encode(&mailbox, Some(Seq(2)), &large));
        assert!(deliver(&second).is_none());
        drop((one, other));
        assert_eq!(budget.used(), 0);
        drop(deliver(&second).unwrap());
        // A small one is not counted.
        let small = Arc::new(Publication::encode(&mailbox, Some(Seq(3)), &message(None, "1")));
        assert!(Arc::ptr_eq(&small, &small.delivery(|_| None).unwrap()));
    }

    #[test]
    fn sealing_with_the_expected_width_moves_nothing() {
        let mailbox = Address::Session(SessionId::new("A").unwrap());
        let draft = Draft::encode(&mailbox, &message(None, "1"), Seq(1_000));
        assert_eq!(draft.frame.capacity(), draft.frame.len(), "one allocation of the right size");
        let at = draft.frame.as_ptr();
        assert_eq!(draft.seal(Seq(9_999)).frame().as_str().as_ptr(), at);
    }
}
