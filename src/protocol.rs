//! The native wire, version 1: frames both ways, error codes, close codes, and how JSON is taken apart.
//!
//! Every frame is one JSON object with a `type`. Unknown fields are ignored. A field is looked at only when
//! its frame type wants it, so that an error can name the field, what it held and what it should hold.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::message::{Epoch, Gap, Handle, MessageId, NameError, Seq, SessionId, TopicName, UserId};

/// The WebSocket subprotocol of this version.
pub const SUBPROTOCOL: &str = "x0-msg.v1";

/// What `welcome` and `/healthz` call this server.
pub const SERVER: &str = concat!("x0-msg-server/", env!("CARGO_PKG_VERSION"));

/// Deepest nesting of arrays and objects in anything received. Deeper JSON overflows the stacks of common
/// parsers on the receiving side.
pub const MAX_DEPTH: usize = 128;

/// Bytes a frame may have besides its payload.
pub const ENVELOPE: usize = 8 * 1024;

/// Seqs above this lose their meaning in JavaScript (`Number.MAX_SAFE_INTEGER`).
pub const MAX_SEQ: u64 = (1 << 53) - 1;

/// Error codes, as sent in error frames and HTTP error bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request cannot be understood; sending it again will not help.
    BadRequest,
    /// A size limit is exceeded.
    TooLarge,
    /// Nobody said who this is.
    Unauthorized,
    /// Known, but not allowed.
    Forbidden,
    /// The receiver does not exist.
    NotFound,
    /// The receiver's mailbox has no room; try again when it has read some.
    MailboxFull,
    /// Too many requests from this sender.
    RateLimited,
    /// The server has more to do than it can hold; try again soon.
    Overloaded,
    /// The store cannot take messages now.
    Unavailable,
}

/// WebSocket close codes. 4000-4499: come back (with jitter); 4500-4999: do not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Close {
    /// Restart or shutdown (RFC 6455 section 7.4.1).
    GoingAway = 1001,
    /// The peer broke the WebSocket protocol (RFC 6455 section 7.4.1).
    Protocol = 1002,
    /// A text frame was not UTF-8 (RFC 6455 section 8.1).
    NotUtf8 = 1007,
    /// A frame was larger than the limit.
    TooBig = 1009,
    /// Something failed inside.
    Internal = 1011,
    /// There are too many connections, or something that is needed does not work now.
    Overloaded = 1013,
    /// No `hello` in time.
    NoHello = 4001,
    /// Nothing was heard for two heartbeats.
    Silent = 4002,
    /// The query of the request does not identify anyone.
    NotThisProtocol = 4500,
    /// The token is missing, wrong or has expired.
    Unauthorized = 4501,
    /// The session was ended.
    SessionEnded = 4502,
    /// Pages of this origin are not let in.
    OriginRefused = 4503,
}

/// Why something received was refused: what is wrong with which field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, or not the JSON object that was expected.
    #[error("{0}")]
    Json(String),
    /// A required field is missing.
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    /// A field holds something else than it should.
    #[error("field `{field}` must be {wanted}")]
    Wrong {
        /// The field.
        field: &'static str,
        /// What it should hold.
        wanted: &'static str,
    },
    /// A name breaks the rules of names.
    #[error("field `{field}` {reason}")]
    Name {
        /// The field.
        field: &'static str,
        /// Which rule.
        reason: NameError,
    },
    /// JSON nested deeper than [`MAX_DEPTH`].
    #[error("JSON is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// A frame type this version does not know.
    #[error("unknown type `{0}`; this version knows hello, send, ack, subscribe, unsubscribe and ping")]
    UnknownType(String),
}

/// Where a sender wants a message to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// The mailbox of a session.
    Session(SessionId),
    /// Every session of a user.
    User(UserId),
    /// A topic.
    Topic(TopicName),
    /// What an x0 page names where sessions are proved: a handle, a session of its own user, or a user.
    Peer(SessionId),
}

/// One message to send.
#[derive(Debug, Clone)]
pub struct Send {
    /// The sender's own name for it.
    pub id: Option<MessageId>,
    /// Where it goes.
    pub to: To,
    /// Any JSON value, byte for byte.
    pub payload: Box<RawValue>,
    /// How long it is kept unread; the server's default when absent.
    pub ttl: Option<Duration>,
    /// Skip the store: live subscribers only, at most once.
    pub volatile: bool,
    /// Tell the sender's mailbox when it was acknowledged, or expired.
    pub receipt: bool,
}

/// Where a client wants to go on reading.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resume {
    /// The last seq it has.
    pub after: Option<Seq>,
    /// The epoch that seq belongs to.
    pub epoch: Option<Epoch>,
}

/// What a client says over WebSocket.
#[derive(Debug, Clone)]
pub enum ClientFrame {
    /// Identify, and resume.
    Hello {
        /// Who.
        session: Option<SessionId>,
        /// The proof of that.
        token: Option<String>,
        /// From where.
        resume: Resume,
    },
    /// Send a message.
    Send(Send),
    /// Everything in my mailbox up to this seq is received.
    Ack(Seq),
    /// Read a topic.
    Subscribe {
        /// Which.
        topic: TopicName,
        /// From where; without `after`, from now on.
        resume: Resume,
    },
    /// Stop reading a topic.
    Unsubscribe(TopicName),
    /// Answered by `pong`.
    Ping,
}

/// The fields of all client frames, not yet looked at.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Fields<'a> {
    #[serde(borrow)]
    r#type: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    session: Option<&'a RawValue>,
    #[serde(borrow)]
    token: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
    #[serde(borrow)]
    after: Option<&'a RawValue>,
    #[serde(borrow)]
    epoch: Option<&'a RawValue>,
    #[serde(borrow)]
    to: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    payload: Option<&'a RawValue>,
    #[serde(borrow)]
    ttl: Option<&'a RawValue>,
    #[serde(borrow)]
    volatile: Option<&'a RawValue>,
    #[serde(borrow)]
    receipt: Option<&'a RawValue>,
    #[serde(borrow)]
    seq: Option<&'a RawValue>,
    #[serde(borrow)]
    topic: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ToFields<'a> {
    #[serde(borrow)]
    session: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
    #[serde(borrow)]
    topic: Option<&'a RawValue>,
}

/// For fields in which `null` is a value, and not the absence of one.
pub(crate) fn present<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// Counts nesting without recursion: `{` and `[` outside of strings.
fn check_depth(text: &str) -> Result<(), Malformed> {
    let mut depth = 0_usize;
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(Malformed::TooDeep);
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                while let Some(inner) = bytes.next() {
                    match inner {
                        b'\\' => _ = bytes.next(),
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes a JSON text apart, with nesting bounded by [`MAX_DEPTH`].
///
/// # Errors
/// [`Malformed`] says where the text stops being what was expected.
pub fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Malformed> {
    check_depth(text)?;
    serde_json::from_str(text)
        .map_err(|error| Malformed::Json(format!("not the JSON expected here: {error}")))
}

/// Takes a JSON object apart, with nesting bounded by [`MAX_DEPTH`].
///
/// # Errors
/// As [`parse`], and [`Malformed::Json`] for JSON that is no object: serde would take an array for one.
pub fn parse_object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Malformed> {
    match text.trim_start().starts_with('{') {
        true => parse(text),
        false => Err(Malformed::Json("not a JSON object".to_owned())),
    }
}

/// Decodes a field, or says what it should have held.
pub(crate) fn field<'a, T: Deserialize<'a>>(
    raw: &'a RawValue,
    field: &'static str,
    wanted: &'static str,
) -> Result<T, Malformed> {
    serde_json::from_str(raw.get()).map_err(|_| Malformed::Wrong { field, wanted })
}

fn given(raw: Option<&RawValue>) -> Option<&RawValue> {
    raw.filter(|raw| raw.get() != "null")
}

fn required<'a>(raw: Option<&'a RawValue>, name: &'static str) -> Result<&'a RawValue, Malformed> {
    given(raw).ok_or(Malformed::Missing(name))
}

fn text(raw: &RawValue, name: &'static str) -> Result<String, Malformed> {
    field(raw, name, "a string")
}

fn name<T>(
    raw: &RawValue,
    name: &'static str,
    new: impl Fn(&str) -> Result<T, NameError>,
) -> Result<T, Malformed> {
    new(&text(raw, name)?).map_err(|reason| Malformed::Name { field: name, reason })
}

fn seq(raw: &RawValue, name: &'static str) -> Result<Seq, Malformed> {
    const WANTED: &str = "a whole number from 0 to 9007199254740991";
    let whole = serde_json::from_str(raw.get()).ok().or_else(|| {
        // 17.0 is a whole number as well; up to here floats hold all of them.
        let number: f64 = serde_json::from_str(raw.get()).ok()?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let whole =
            (number >= 0.0 && number <= MAX_SEQ as f64 && number.fract() == 0.0).then_some(number as u64);
        whole
    });
    whole.filter(|n| *n <= MAX_SEQ).map(Seq).ok_or(Malformed::Wrong { field: name, wanted: WANTED })
}

impl Fields<'_> {
    fn decode<T>(text: &str, take: impl FnOnce(&Fields<'_>) -> Result<T, Malformed>) -> Result<T, BadFrame> {
        let fields: Fields<'_> = parse_object(text).map_err(|reason| BadFrame { id: None, reason })?;
        let id = || fields.id.and_then(|raw| name(raw, "id", MessageId::new).ok());
        take(&fields).map_err(|reason| BadFrame { id: id(), reason })
    }

    fn resume(&self) -> Result<Resume, Malformed> {
        Ok(Resume {
            after: given(self.after).map(|raw| seq(raw, "after")).transpose()?,
            epoch: given(self.epoch).map(|raw| text(raw, "epoch")).transpose()?.as_deref().map(Epoch::new),
        })
    }

    fn to(&self) -> Result<To, Malformed> {
        const WANTED: &str = r#"an object with one of `session`, `user` and `topic`, like {"session":"B"}"#;
        let to: ToFields<'_> = field(required(self.to, "to")?, "to", WANTED)?;
        match (given(to.session), given(to.user), given(to.topic)) {
            (Some(raw), None, None) => name(raw, "to.session", SessionId::new).map(To::Session),
            (None, Some(raw), None) => name(raw, "to.user", UserId::new).map(To::User),
            (None, None, Some(raw)) => name(raw, "to.topic", TopicName::new).map(To::Topic),
            _ => Err(Malformed::Wrong { field: "to", wanted: WANTED }),
        }
    }

    fn send(&self) -> Result<Send, Malformed> {
        Ok(Send {
            id: given(self.id).map(|raw| name(raw, "id", MessageId::new)).transpose()?,
            to: self.to()?,
            payload: self.payload.ok_or(Malformed::Missing("payload"))?.to_owned(),
            ttl: given(self.ttl).map(ttl).transpose()?,
            volatile: flag(self.volatile, "volatile")?,
            receipt: flag(self.receipt, "receipt")?,
        })
    }
}

fn flag(raw: Option<&RawValue>, name: &'static str) -> Result<bool, Malformed> {
    given(raw).map_or(Ok(false), |raw| field(raw, name, "true or false"))
}

fn ttl(raw: &RawValue) -> Result<Duration, Malformed> {
    const WANTED: &str = "a number of seconds, at least 0.001";
    let seconds: f64 = field(raw, "ttl", WANTED)?;
    let whole = Duration::try_from_secs_f64(seconds).ok().filter(|ttl| *ttl >= Duration::from_millis(1));
    whole.ok_or(Malformed::Wrong { field: "ttl", wanted: WANTED })
}

/// A refused frame, with the `id` its sender may be waiting for.
#[derive(Debug)]
pub struct BadFrame {
    /// The frame's `id`, where it had a usable one.
    pub id: Option<MessageId>,
    /// What is wrong.
    pub reason: Malformed,
}

impl ClientFrame {
    /// Decodes a text frame.
    ///
    /// # Errors
    /// [`BadFrame`] names the field that is wrong and what it should hold.
    pub fn decode(frame: &str) -> Result<Self, BadFrame> {
        Fields::decode(frame, Self::from_fields)
    }

    fn from_fields(fields: &Fields<'_>) -> Result<Self, Malformed> {
        let kind = text(required(fields.r#type, "type")?, "type")?;
        Ok(match kind.as_str() {
            "send" => Self::Send(fields.send()?),
            "ack" => Self::Ack(seq(required(fields.seq, "seq")?, "seq")?),
            "hello" => Self::Hello {
                session: given(fields.session).map(|raw| name(raw, "session", SessionId::new)).transpose()?,
                token: given(fields.token).map(|raw| text(raw, "token")).transpose()?,
                resume: fields.resume()?,
            },
            "subscribe" => Self::Subscribe {
                topic: name(required(fields.topic, "topic")?, "topic", TopicName::new)?,
                resume: fields.resume()?,
            },
            "unsubscribe" => {
                Self::Unsubscribe(name(required(fields.topic, "topic")?, "topic", TopicName::new)?)
            }
            "ping" => Self::Ping,
            _ => return Err(Malformed::UnknownType(kind.chars().take(64).collect())),
        })
    }
}

impl Send {
    /// Decodes one send object of `POST /v1/messages`. A `type` is not looked at.
    ///
    /// # Errors
    /// [`BadFrame`] names the field that is wrong and what it should hold.
    pub fn decode(object: &str) -> Result<Self, BadFrame> {
        Fields::decode(object, |fields| fields.send())
    }
}

/// The body of `POST /v1/ack`.
#[derive(Debug)]
pub struct AckBody {
    /// Whose mailbox; the caller's own where that was proved.
    pub session: Option<SessionId>,
    /// Up to and including which seq.
    pub seq: Seq,
    /// The epoch that seq belongs to.
    pub epoch: Option<Epoch>,
}

impl AckBody {
    /// Decodes the body.
    ///
    /// # Errors
    /// [`Malformed`] names the field that is wrong and what it should hold.
    pub fn decode(body: &str) -> Result<Self, Malformed> {
        let fields: Fields<'_> = parse_object(body)?;
        Ok(Self {
            session: given(fields.session).map(|raw| name(raw, "session", SessionId::new)).transpose()?,
            seq: seq(required(fields.seq, "seq")?, "seq")?,
            epoch: fields.resume()?.epoch,
        })
    }
}

/// The body of `PUT /v1/sessions/{id}`.
#[derive(Debug, Default)]
pub struct SessionBody {
    /// Who it belongs to.
    pub user: Option<UserId>,
    /// How long it stays registered.
    pub ttl: Option<Duration>,
}

impl SessionBody {
    /// Decodes the body. An empty one says nothing.
    ///
    /// # Errors
    /// [`Malformed`] names the field that is wrong and what it should hold.
    pub fn decode(body: &str) -> Result<Self, Malformed> {
        if body.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let fields: Fields<'_> = parse_object(body)?;
        Ok(Self {
            user: given(fields.user).map(|raw| name(raw, "user", UserId::new)).transpose()?,
            ttl: given(fields.ttl).map(ttl).transpose()?,
        })
    }
}

/// Where a message was stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// Its position; absent when volatile, or sent to a user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<Seq>,
    /// Sent to a user: in how many mailboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<usize>,
}

/// What the server says, besides `message` (which [`crate::message::Publication`] encodes).
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame<'a> {
    /// The answer to `hello`.
    Welcome {
        /// Whose mailbox is read; none's on a backend's connection.
        #[serde(skip_serializing_if = "Option::is_none")]
        session: Option<&'a SessionId>,
        /// The user it belongs to, where that was proved.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<&'a UserId>,
        /// Its public name, where the session is secret.
        #[serde(skip_serializing_if = "Option::is_none")]
        handle: Option<Handle>,
        /// The incarnation of the store.
        epoch: &'a Epoch,
        /// The ack floor.
        seq: Seq,
        /// What "sent" means here: `fsync`, `os` or `memory`.
        durability: &'static str,
        /// Seconds between pings; a peer silent for two of them is closed.
        heartbeat: u64,
        /// Largest payload, in bytes.
        max_payload: usize,
        /// Name and version.
        server: &'static str,
    },
    /// A message was accepted.
    Sent {
        /// The sender's name for it.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a MessageId>,
        /// What became of it.
        #[serde(flatten)]
        stored: Stored,
    },
    /// A topic is being read.
    Subscribed {
        /// Which.
        topic: &'a TopicName,
        /// The newest seq of its history.
        seq: Seq,
        /// Whether its history still reaches back to `after`.
        recovered: bool,
    },
    /// A topic is no longer read.
    Unsubscribed {
        /// Which.
        topic: &'a TopicName,
    },
    /// Messages that are not coming.
    Gap {
        /// The topic; absent for the mailbox.
        #[serde(skip_serializing_if = "Option::is_none")]
        topic: Option<&'a TopicName>,
        /// Which, and why.
        #[serde(flatten)]
        gap: Gap,
    },
    /// Something was refused; the connection lives on.
    Error {
        /// The sender's name for the refused message.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a MessageId>,
        /// For programs.
        code: Code,
        /// For people.
        message: &'a str,
    },
    /// The answer to `ping`.
    Pong,
}

impl ServerFrame<'_> {
    /// The frame as JSON text.
    #[must_use]
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and booleans always encode")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(frame: &str) -> String {
        ClientFrame::decode(frame).unwrap_err().reason.to_string()
    }

    #[test]
    fn a_send_keeps_its_payload_byte_for_byte() {
        let frame = "{\"type\":\"send\",\"id\":\"c-42\",\"to\":{\"session\":\"B\"},\
                     \"payload\":{ \"n\" : 1e400, \"s\":\"\\ud800\" },\"ttl\":1.5,\"extra\":[]}";
        let Ok(ClientFrame::Send(send)) = ClientFrame::decode(frame) else { panic!("not a send") };
        assert_eq!(send.payload.get(), "{ \"n\" : 1e400, \"s\":\"\\ud800\" }");
        assert_eq!(send.ttl, Some(Duration::from_millis(1500)));
        assert_eq!(send.to, To::Session(SessionId::new("B").unwrap()));
        assert!(!send.volatile);
    }

    #[test]
    fn a_null_payload_is_a_payload() {
        let frame = r#"{"type":"send","to":{"topic":"t"},"payload":null}"#;
        let Ok(ClientFrame::Send(send)) = ClientFrame::decode(frame) else { panic!("not a send") };
        assert_eq!(send.payload.get(), "null");
    }

    #[test]
    fn errors_name_the_field_and_the_cure() {
        assert!(reason("{").starts_with("not the JSON expected here: EOF"));
        assert_eq!(reason("[]"), "not a JSON object");
        assert_eq!(reason("null"), "not a JSON object");
        assert_eq!(reason("{}"), "field `type` is missing");
        assert_eq!(reason(r#"{"type":7}"#), "field `type` must be a string");
        assert!(reason(r#"{"type":"bye"}"#).contains("unknown type `bye`"));
        assert_eq!(
            reason(r#"{"type":"ack","seq":-1}"#),
            "field `seq` must be a whole number from 0 to 9007199254740991"
        );
        assert_eq!(reason(r#"{"type":"send","to":{"session":"B"}}"#), "field `payload` is missing");
        assert!(reason(r#"{"type":"send","to":{"session":"B","topic":"x"},"payload":1}"#).contains("one of"));
        assert_eq!(
            reason(r#"{"type":"send","to":{"session":""},"payload":1}"#),
            "field `to.session` must not be empty"
        );
        for ttl in ["0", "-1", "\"1\"", "1e300"] {
            let frame = format!(r#"{{"type":"send","to":{{"session":"B"}},"payload":1,"ttl":{ttl}}}"#);
            assert_eq!(reason(&frame), "field `ttl` must be a number of seconds, at least 0.001", "{ttl}");
        }
    }

    #[test]
    fn a_seq_is_a_whole_number_however_it_is_written() {
        let ack = |seq: &str| match ClientFrame::decode(&format!(r#"{{"type":"ack","seq":{seq}}}"#)) {
            Ok(ClientFrame::Ack(seq)) => Some(seq.0),
            _ => None,
        };
        for (text, seq) in [("17", 17), ("17.0", 17), ("1.7e1", 17), ("9007199254740991", MAX_SEQ)] {
            assert_eq!(ack(text), Some(seq), "{text}");
        }
        for text in ["17.5", "-1", "-1.0", "9007199254740992", "1e300", "\"17\"", "null", "true"] {
            assert_eq!(ack(text), None, "{text}");
        }
    }

    #[test]
    fn a_refused_frame_keeps_its_id() {
        let bad = ClientFrame::decode(r#"{"type":"send","id":"c-1"}"#).unwrap_err();
        assert_eq!(bad.id.unwrap().as_str(), "c-1");
    }

    #[test]
    fn thirty_levels_pass_and_ten_thousand_do_not() {
        let nested = |n: usize| {
            let (open, close) = ("[".repeat(n), "]".repeat(n));
            format!(r#"{{"type":"send","to":{{"session":"B"}},"payload":{open}"]{{\""{close}}}"#)
        };
        assert!(ClientFrame::decode(&nested(30)).is_ok());
        assert!(ClientFrame::decode(&nested(MAX_DEPTH - 1)).is_ok());
        assert_eq!(reason(&nested(MAX_DEPTH)), Malformed::TooDeep.to_string());
        assert_eq!(reason(&nested(10_000)), Malformed::TooDeep.to_string());
    }
}
