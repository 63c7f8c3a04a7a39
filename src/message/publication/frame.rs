//! How a message becomes a frame.

use serde::Serialize;
use utoipa::openapi::schema::{AllOfBuilder, AnyOfBuilder, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::message::{Address, Kind, Message, PresenceFields, ReceiptFields, SenderName, Seq, TopicName};

/// Where things begin in a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    /// What the sender says, and the engine stores: the fields of a receipt or of presence, or the reference, or the payload.
    pub(super) fields: usize,
    /// The payload; in a receipt its fields.
    pub(super) payload: usize,
}

/// What a frame is, on the wire.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum FrameType {
    Message,
    Receipt,
    Reply,
    Presence,
}

impl From<Kind> for FrameType {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Message | Kind::FromBackend | Kind::Request { .. } => Self::Message,
            Kind::Receipt => Self::Receipt,
            Kind::Reply { .. } => Self::Reply,
            Kind::Presence => Self::Presence,
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

/// The frame: the head, then the payload (in a request after its `reply_to`, in a reply after the `id`) or the fields of a
/// receipt or of presence. All are in one list of properties, since generators
/// of clients do not look for them elsewhere.
pub(super) fn schema() -> RefOr<Schema> {
    let payload = ObjectBuilder::new().schema_type(SchemaType::AnyValue);
    let mut frame = properties(Head::schema()).property("payload", payload).build();
    let receipt = properties(ReceiptFields::schema()).build();
    let rest = AnyOfBuilder::new().item(ObjectBuilder::new().required("payload"));
    let presence = properties(PresenceFields::schema()).required("topic").build();
    let rest = rest.item(require(&receipt.required)).item(require(&presence.required));
    frame.properties.extend(receipt.properties);
    frame.properties.extend(presence.properties);
    let reply_to = ObjectBuilder::new().schema_type(SchemaType::new(Type::String));
    let reply_to = reply_to.description(Some("In a request: what its one answer is sent to."));
    frame.properties.insert("reply_to".to_owned(), reply_to.into());
    AllOfBuilder::new().item(frame).item(rest).into()
}

/// The schemas that the schema of a frame refers to.
pub(super) fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
    Head::schemas(schemas);
    ReceiptFields::schemas(schemas);
    PresenceFields::schemas(schemas);
}

/// An object that has these fields.
fn require(fields: &[String]) -> ObjectBuilder {
    fields.iter().fold(ObjectBuilder::new(), ObjectBuilder::required)
}

fn properties(schema: RefOr<Schema>) -> ObjectBuilder {
    match schema {
        RefOr::T(Schema::Object(object)) => object.into(),
        _ => ObjectBuilder::new(),
    }
}

/// Where the digits of the seq begin in a frame.
pub(super) fn seq_start(kind: Kind) -> usize {
    match FrameType::from(kind) {
        FrameType::Message => r#"{"type":"message","seq":"#.len(),
        FrameType::Receipt => r#"{"type":"receipt","seq":"#.len(),
        FrameType::Reply => r#"{"type":"reply","seq":"#.len(),
        FrameType::Presence => r#"{"type":"presence","seq":"#.len(),
    }
}

/// The frame of a message, of exactly the right size, and where its parts start.
///
/// The payload comes last, so that it can be handed out as a slice of the frame. The fields of a receipt and of presence are
/// fields of the frame itself.
pub(super) fn encode(address: &Address, seq: Option<Seq>, message: &Message) -> (String, Places) {
    let topic = match address {
        Address::Topic(topic) => Some(topic),
        Address::Session(_) | Address::Backend(_) => None,
    };
    let (r#type, backend) = (message.kind.into(), message.kind.is_from_backend());
    let head = Head { r#type, seq, topic, from: message.from.as_ref(), backend, ts: message.ts };
    let head = serde_json::to_string(&head).expect("strings and numbers always encode");
    let head = &head[..head.len() - 1];
    let payload = message.payload.get();
    if matches!(message.kind, Kind::Receipt | Kind::Presence) {
        let fields = head.len() + 1;
        return ([head, ",", &payload[1..]].concat(), Places { fields, payload: fields });
    }
    let reference = reference_field(message);
    let frame = [head, &reference, ",\"payload\":", payload, "}"].concat();
    let payload = head.len() + reference.len() + ",\"payload\":".len();
    let fields = if reference.is_empty() { payload } else { head.len() + 1 };
    (frame, Places { fields, payload })
}

/// The field of a request or a reply that others do not have, after a comma. Empty if it has none.
fn reference_field(message: &Message) -> String {
    let name = match message.kind {
        Kind::Message | Kind::FromBackend | Kind::Receipt | Kind::Presence => return String::new(),
        Kind::Request { .. } => "reply_to",
        Kind::Reply { .. } => "id",
    };
    let Some(reference) = &message.reference else { return String::new() };
    let value = serde_json::to_string(reference).expect("strings always encode");
    format!(",\"{name}\":{value}")
}
