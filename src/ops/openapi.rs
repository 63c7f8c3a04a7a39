//! `/openapi.json`: what `/v1` and the other HTTP calls take and answer. The limits in it are those in force.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::openapi::schema::{Object, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Ref, RefOr, Required, Schema, SecurityRequirement};
use utoipa::{OpenApi, ToSchema};

use crate::config::{Auth, Config};
use crate::hub::Connections;
use crate::message::{GapReason, Outcome};
use crate::protocol::Code;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "x0-msg-server",
        description = "A message broker for browser sessions. WebSocket is described in /asyncapi.json.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    paths(
        crate::api::send,
        crate::api::ack,
        crate::transport::poll::poll,
        crate::transport::sse::events,
        crate::api::sessions::register,
        crate::api::sessions::look_up,
        crate::api::sessions::end,
        crate::api::sessions::user,
        crate::ops::health,
    ),
    tags(
        (name = "messages", description = "Sending, reading and acknowledging"),
        (name = "sessions", description = "For backends: who is registered, and who is there"),
        (name = "operations", description = "For operators")
    )
)]
struct Document;

/// A name: 1 to 256 bytes, no control characters.
#[derive(ToSchema)]
#[schema(min_length = 1, max_length = 256, pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$")]
#[allow(dead_code)]
pub(crate) struct Name(String);

/// A position in a mailbox or history; grows, may skip, means something only within its epoch.
#[derive(ToSchema)]
#[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
#[allow(dead_code)]
pub(crate) struct SeqNumber(u64);

/// Where a message goes.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code)]
pub(crate) enum To {
    /// To a session: by its id or its handle
    Session { session: Name },
    /// To all registered sessions of a user
    User { user: Name },
    /// To whoever reads a topic
    Topic { topic: Name },
}

/// One message to send.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct Send {
    /// Your own name for it: sending it again with the same one stores nothing
    id: Option<Name>,
    to: To,
    /// Any JSON value, passed through byte for byte
    #[schema(value_type = Value)]
    payload: Value,
    /// How many seconds it is kept unread
    #[schema(minimum = 0.001)]
    ttl: Option<f64>,
    /// Reach only those who listen now, and store nothing
    volatile: Option<bool>,
    /// See SendWithReceipt
    #[schema(schema_with = no_receipt)]
    receipt: Option<bool>,
}

/// `false`, which may as well be left out.
fn no_receipt() -> Object {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Boolean, Type::Null]))
        .enum_values(Some([json!(false), json!(null)]))
        .build()
}

/// `true`.
fn receipt() -> Object {
    ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([json!(true)])).build()
}

/// One message to send, with a receipt in the mailbox of the session that sends when it was acknowledged, or expired.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct SendWithReceipt {
    /// Your own name for it, which the receipt names
    id: Name,
    to: ToSession,
    /// Any JSON value, passed through byte for byte
    #[schema(value_type = Value)]
    payload: Value,
    /// How many seconds it is kept unread
    #[schema(minimum = 0.001)]
    ttl: Option<f64>,
    #[schema(schema_with = no_receipt)]
    volatile: Option<bool>,
    #[schema(schema_with = receipt)]
    receipt: bool,
}

/// A session, by its id or its handle.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct ToSession {
    session: Name,
}

/// One message, or up to 1,000 of them.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code)]
pub(crate) enum SendBody {
    One(Box<Send>),
    WithReceipt(Box<SendWithReceipt>),
    /// Each item is a message like a single one; what is wrong with one is told in its place of the answer
    Many(Vec<Value>),
}

/// What became of a message.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct Sent {
    id: Option<Name>,
    /// Where it was stored; absent when volatile, or sent to a user
    seq: Option<SeqNumber>,
    /// Sent to a user: in how many mailboxes
    sessions: Option<u64>,
}

/// What became of one message of an array: as for a single one, or why it was refused.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct SentOrNot {
    id: Option<Name>,
    seq: Option<SeqNumber>,
    sessions: Option<u64>,
    error: Option<ErrorFields>,
}

#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code)]
pub(crate) enum SendAnswer {
    One(Sent),
    Many(Vec<SentOrNot>),
}

#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct ErrorFields {
    code: Code,
    /// For people: which field, which limit, what to do
    message: String,
}

/// A refusal.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct ErrorBody {
    error: ErrorFields,
}

/// What is acknowledged.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct Ack {
    /// Whose mailbox; may be left out with a token that names its session
    session: Option<Name>,
    /// Everything up to here is received
    seq: SeqNumber,
    /// What `seq` belongs to
    epoch: Option<String>,
}

#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct Acknowledged {
    session: Name,
    /// The ack floor
    seq: SeqNumber,
}

#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(dead_code)]
pub(crate) enum FrameType {
    Message,
    Receipt,
}

/// A message, or a receipt: the frame that subscribers get over WebSocket.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct Frame {
    r#type: FrameType,
    /// Absent when volatile
    seq: Option<SeqNumber>,
    /// Absent for messages from the mailbox
    topic: Option<Name>,
    /// Who sent it
    from: Option<Name>,
    /// When it was accepted, in Unix milliseconds
    ts: u64,
    #[schema(value_type = Option<Value>)]
    payload: Option<Value>,
    /// In a receipt: the sender's name for the message
    id: Option<Name>,
    /// In a receipt: what became of it
    state: Option<Outcome>,
}

/// Messages after `from`, up to and including `to`, are not coming.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct Gap {
    topic: Option<Name>,
    from: u64,
    to: u64,
    reason: GapReason,
}

/// What a poll brings.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct Polled {
    /// With a token: whose mailbox, if the call did not name it
    session: Option<Name>,
    /// And its public name
    handle: Option<String>,
    epoch: String,
    messages: Vec<Frame>,
    gaps: Option<Vec<Gap>>,
    /// The `after` of the next call
    seq: SeqNumber,
    /// The `after.<topic>` of the next call
    topics: Option<BTreeMap<String, u64>>,
}

/// What is registered.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct Registration {
    /// Who it belongs to; a registration keeps the user it has
    user: Option<Name>,
    /// How many seconds it stays registered
    #[schema(minimum = 0.001)]
    ttl: Option<f64>,
}

/// A session, as backends see it.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct Session {
    session: Name,
    /// Its public name, which other clients may know
    handle: String,
    user: Option<Name>,
    /// When its registration ends, in Unix milliseconds; absent if it is not registered
    expires: Option<u64>,
    connections: Connections,
    /// Messages that wait for it
    pending: u64,
}

/// A user and its registered sessions.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct User {
    user: Name,
    /// Those of all sessions together
    connections: Connections,
    sessions: Vec<Session>,
}

/// How the server fares.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(crate) struct Health {
    /// ok, degraded (messages cannot be stored now) or stopping
    status: String,
    server: String,
    /// What "sent" means: fsync, os or memory
    durability: String,
    epoch: String,
    /// Why messages cannot be stored at present
    failing: Option<String>,
}

/// The description of a server with these settings, as JSON.
pub(super) fn document(config: &Config) -> String {
    let mut document = Document::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let mut components = document.components.take().unwrap_or_default();
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token (JWT) of a client, or the API key of a backend"))
        .build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    for name in ["Send", "SendWithReceipt", "Registration"] {
        if let Some(RefOr::T(Schema::Object(object))) = components.schemas.get_mut(name)
            && let Some(RefOr::T(Schema::Object(ttl))) = object.properties.get_mut("ttl")
        {
            ttl.maximum = Some(config.max_ttl.as_secs_f64().into());
        }
    }
    if config.access.auth == Auth::Open
        && let Some(RefOr::T(Schema::Object(ack))) = components.schemas.get_mut("Ack")
    {
        // No token says whose mailbox.
        ack.required.push("session".to_owned());
        ack.properties.insert("session".to_owned(), Ref::from_schema_name("Name").into());
    }
    document.components = Some(components);
    if config.access.auth == Auth::Token {
        let required = SecurityRequirement::new::<_, [&str; 0], &str>("bearer", []);
        for (path, item) in &mut document.paths.paths {
            let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
            for operation in operations.into_iter().flatten().filter(|_| path.starts_with("/v1/")) {
                operation.security = Some(vec![required.clone()]);
            }
        }
    }
    let register = document.paths.paths.get_mut("/v1/sessions/{id}").and_then(|item| item.put.as_mut());
    if let Some(RefOr::T(body)) = register.and_then(|register| register.request_body.as_mut()) {
        body.required = Some(Required::False);
    }
    document.to_json().expect("the description encodes")
}
