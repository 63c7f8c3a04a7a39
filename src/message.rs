//! What is sent: names, positions, and one committed message with its bytes.
//!
//! Nothing here knows about engines, hubs or transports. A [`Publication`] is encoded once, when it is
//! committed; every transport afterwards shares its bytes by reference count.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use axum::extract::ws::Utf8Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

/// Longest session id, user id, topic name or message id, in bytes.
pub const MAX_NAME: usize = 256;

/// Why a name was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has no characters.
    #[error("must not be empty")]
    Empty,
    /// The name is longer than [`MAX_NAME`] bytes.
    #[error("is {0} bytes long; at most {MAX_NAME} are allowed")]
    TooLong(usize),
    /// The name holds a control character.
    #[error("must not contain control characters")]
    Control,
}

fn check_name(name: &str) -> Result<(), NameError> {
    match name.len() {
        0 => Err(NameError::Empty),
        n if n > MAX_NAME => Err(NameError::TooLong(n)),
        _ if name.chars().any(char::is_control) => Err(NameError::Control),
        _ => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks and keeps a name: 1 to 256 bytes, no control characters.
            ///
            /// # Errors
            /// [`NameError`] says which of the two rules is broken.
            pub fn new(name: &str) -> Result<Self, NameError> {
                check_name(name).map(|()| Self(Arc::from(name)))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// Names one logged-in browser session. Several tabs, sockets and polls may hold it at once.
    SessionId
}
name! {
    /// Names who sessions belong to.
    UserId
}
name! {
    /// Names a topic: a channel that anyone allowed may subscribe to.
    TopicName
}
name! {
    /// A sender's own name for a message; it makes a retry harmless.
    MessageId
}
name! {
    /// What receivers see as `from`: a session id in `open` mode; a user, a handle or a backend's name in `token` mode.
    SenderName
}

/// The public name of a session whose id is secret: derived from the id with a key, and no way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(pub [u8; 16]);

impl Handle {
    /// What every handle begins with.
    const PREFIX: &str = "h-";

    /// Reads a handle; `None` for text that is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(Self::PREFIX)?).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// The handle as a sender's name.
    #[must_use]
    pub fn sender_name(self) -> SenderName {
        SenderName(self.to_string().into())
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl Serialize for Handle {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<&SessionId> for UserId {
    fn from(session: &SessionId) -> Self {
        Self(Arc::clone(&session.0))
    }
}

impl From<&SessionId> for SenderName {
    fn from(session: &SessionId) -> Self {
        Self(Arc::clone(&session.0))
    }
}

impl From<&UserId> for SenderName {
    fn from(user: &UserId) -> Self {
        Self(Arc::clone(&user.0))
    }
}

/// Who a sender is to the server. Tells senders apart, and is never shown to receivers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Author {
    /// The holder of a session, whose mailbox gets receipts.
    Session(SessionId),
    /// A backend, by the name of its API key.
    Backend(Arc<str>),
    /// Somebody in `open` mode who did not say.
    Anonymous,
}

impl Author {
    /// The session of this author.
    #[must_use]
    pub fn session(&self) -> Option<&SessionId> {
        match self {
            Self::Session(session) => Some(session),
            Self::Backend(_) | Self::Anonymous => None,
        }
    }
}

/// Where committed messages live: the mailbox of a session, or the history of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// The mailbox of one session: kept until acknowledged.
    Session(SessionId),
    /// The history of one topic: a bounded tail.
    Topic(TopicName),
}

impl Address {
    /// The session whose mailbox this is.
    #[must_use]
    pub fn session(&self) -> Option<&SessionId> {
        match self {
            Self::Session(session) => Some(session),
            Self::Topic(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(name) => write!(f, "session {name}"),
            Self::Topic(name) => write!(f, "topic {name}"),
        }
    }
}

/// A position in a mailbox or history: strictly increasing, may skip, opaque to clients.
///
/// A seq means something only within its [`Epoch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// Before every message.
    pub const START: Self = Self(0);
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifies the incarnation of the store: it changes when stored messages were lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// The epoch with this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// The epoch as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What a sender sent.
    Message,
    /// What became of a message whose sender asked for it. Its payload is an [`Outcome`] with an id.
    Receipt,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Its receiver acknowledged it.
    Acknowledged,
    /// Its time to live ended before that.
    Expired,
}

/// A message on its way into the store.
#[derive(Debug, Clone)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// Who sent it, as receivers see it; `None` for a sender without a name.
    pub from: Option<SenderName>,
    /// The sender's JSON, kept byte for byte.
    pub payload: Box<RawValue>,
    /// When it was accepted, in Unix milliseconds.
    pub ts: u64,
}

impl Message {
    /// The receipt for the message its sender named `id`.
    #[must_use]
    pub fn receipt(id: &MessageId, state: Outcome, ts: u64) -> Self {
        #[derive(Serialize)]
        struct Payload<'a> {
            id: &'a MessageId,
            state: Outcome,
        }
        let payload = serde_json::value::to_raw_value(&Payload { id, state }).expect("strings always encode");
        Self { kind: Kind::Receipt, from: None, payload, ts }
    }
}

/// One message as subscribers get it: committed (or volatile), encoded once.
#[derive(Debug)]
pub struct Publication {
    seq: Option<Seq>,
    kind: Kind,
    from: Option<SenderName>,
    frame: Utf8Bytes,
    payload_start: usize,
}

#[derive(Serialize)]
struct Head<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<Seq>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a TopicName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a SenderName>,
    ts: u64,
}

impl Publication {
    /// Encodes a message as the native `message` (or `receipt`) frame; `seq` is `None` for a volatile one.
    ///
    /// The payload comes last, so that it can be handed out as a slice of the frame. A receipt's fields stand in
    /// the frame itself.
    #[must_use]
    pub fn encode(address: &Address, seq: Option<Seq>, message: &Message) -> Self {
        let topic = match address {
            Address::Topic(topic) => Some(topic),
            Address::Session(_) => None,
        };
        let from = message.from.as_ref();
        let r#type = match message.kind {
            Kind::Message => "message",
            Kind::Receipt => "receipt",
        };
        let head = Head { r#type, seq, topic, from, ts: message.ts };
        let payload = message.payload.get();
        let mut frame = Vec::with_capacity(payload.len() + 160);
        serde_json::to_writer(&mut frame, &head).expect("strings and numbers always encode");
        frame.pop();
        let payload_start = match message.kind {
            Kind::Message => {
                frame.extend_from_slice(b",\"payload\":");
                frame.extend_from_slice(payload.as_bytes());
                frame.push(b'}');
                frame.len() - 1 - payload.len()
            }
            Kind::Receipt => {
                frame.push(b',');
                frame.extend_from_slice(&payload.as_bytes()[1..]);
                frame.len() + 1 - payload.len()
            }
        };
        // One block of exactly the right size: cloning it later only counts references.
        frame.shrink_to_fit();
        let frame = String::from_utf8(frame).expect("the head and the payload are both UTF-8");
        Self { seq, kind: message.kind, from: message.from.clone(), frame: frame.into(), payload_start }
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

    /// The sender's payload: a slice of the frame; empty for a receipt, which has none.
    #[must_use]
    pub fn payload(&self) -> &str {
        let text = self.frame.as_str();
        match self.kind {
            Kind::Message => &text[self.payload_start..text.len() - 1],
            Kind::Receipt => "",
        }
    }

    /// What the message was made of, also for a receipt.
    pub(crate) fn stored_payload(&self) -> Cow<'_, str> {
        match self.kind {
            Kind::Message => Cow::Borrowed(self.payload()),
            Kind::Receipt => Cow::Owned(format!("{{{}", &self.frame.as_str()[self.payload_start..])),
        }
    }
}

/// Why a reader is told that messages between two positions are not coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GapReason {
    /// They were acknowledged, by this reader or another one of its session.
    Acknowledged,
    /// Their time to live ended, or a topic's history no longer reaches back.
    Expired,
    /// The cursor belongs to another incarnation of the store.
    Epoch,
    /// The store is damaged there.
    Lost,
}

/// Messages after `from`, up to and including `to`, are not coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The reader's cursor.
    pub from: Seq,
    /// Where reading goes on (exclusive).
    pub to: Seq,
    /// Why.
    pub reason: GapReason,
}

/// What a reader gets next.
#[derive(Debug, Clone)]
pub enum Item {
    /// A message.
    Message(Arc<Publication>),
    /// A hole that is not going to be filled.
    Gap(Gap),
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_handle_is_read_back() {
        let handle = Handle([7; 16]);
        assert_eq!(handle.to_string(), "h-BwcHBwcHBwcHBwcHBwcHBw");
        assert_eq!(Handle::parse(&handle.to_string()), Some(handle));
        for other in ["", "h-", "h-BwcH", "x-BwcHBwcHBwcHBwcHBwcHBw", "h-BwcHBwcHBwcHBwcHBwcHBw=", "A"] {
            assert_eq!(Handle::parse(other), None, "{other}");
        }
    }

    #[test]
    fn names_are_bounded() {
        assert_eq!(SessionId::new(""), Err(NameError::Empty));
        assert_eq!(SessionId::new(&"x".repeat(257)), Err(NameError::TooLong(257)));
        assert_eq!(SessionId::new("a\nb"), Err(NameError::Control));
        assert!(SessionId::new(&"x".repeat(256)).is_ok());
    }
}
