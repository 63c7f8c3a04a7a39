//! What clients send: the frames of a WebSocket, and the JSON bodies of `/v1`, which share their fields.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::message::{BackendName, Epoch, MessageId, Seq, SessionId, TopicName, UserId, taken_name};
use crate::protocol::json::{
    Malformed, field, flag, name, optional, parse_object, present, required, seq, string, ttl, window,
};

mod plain;
mod poll;
mod reply_to;
mod types;

pub use poll::{PollBody, PollTopic};
pub use reply_to::ReplyTo;
pub use types::{ClientFrame, Resume, SendRequest, To};

use reply_to::reply_to;

/// An example of a send object.
const SEND_EXAMPLE: &str = r#"{"to":{"session":"B"},"payload":{"any":"JSON"}}"#;

/// The fields of all frames and bodies, not decoded yet. A field is decoded only where its frame type has it, so that
/// an error can name the field.
#[derive(Deserialize, Default)]
#[serde(default)]
struct RawFields<'a> {
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
    proof: Option<&'a RawValue>,
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
    request: Option<&'a RawValue>,
    #[serde(borrow)]
    seq: Option<&'a RawValue>,
    #[serde(borrow)]
    topic: Option<&'a RawValue>,
    #[serde(borrow)]
    window: Option<&'a RawValue>,
    #[serde(borrow)]
    presence: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawTo<'a> {
    #[serde(borrow)]
    session: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
    #[serde(borrow)]
    topic: Option<&'a RawValue>,
    #[serde(borrow)]
    backend: Option<&'a RawValue>,
    #[serde(borrow)]
    reply: Option<&'a RawValue>,
}

impl RawFields<'_> {
    fn decode<T>(
        text: &str,
        example: &str,
        take: impl FnOnce(&RawFields<'_>) -> Result<T, Malformed>,
    ) -> Result<T, BadFrame> {
        let fields: RawFields<'_> =
            parse_object(text, example).map_err(|reason| BadFrame { id: None, reason })?;
        fields.take(take)
    }

    fn take<T>(&self, take: impl FnOnce(&Self) -> Result<T, Malformed>) -> Result<T, BadFrame> {
        let id = || self.id.and_then(|raw| name(raw, "id", MessageId::new).ok());
        take(self).map_err(|reason| BadFrame { id: id(), reason })
    }

    fn session(&self) -> Result<Option<SessionId>, Malformed> {
        optional(self.session).map(|raw| name(raw, "session", SessionId::new)).transpose()
    }

    fn topic(&self) -> Result<TopicName, Malformed> {
        name(required(self.topic, "topic")?, "topic", TopicName::new)
    }

    fn seq(&self) -> Result<Seq, Malformed> {
        seq(required(self.seq, "seq")?, "seq")
    }

    fn ttl(&self) -> Result<Option<Duration>, Malformed> {
        optional(self.ttl).map(ttl).transpose()
    }

    fn resume(&self) -> Result<Resume, Malformed> {
        let epoch = optional(self.epoch).map(|raw| string(raw, "epoch")).transpose()?;
        Ok(Resume {
            after: optional(self.after).map(|raw| seq(raw, "after")).transpose()?,
            epoch: epoch.as_deref().map(Epoch::new),
        })
    }

    fn to(&self) -> Result<To, Malformed> {
        const WANTED: &str = r#"an object with one of `session`, `user`, `topic`, `backend` and `reply`, like {"session":"B"}"#;
        let to: RawTo<'_> = field(required(self.to, "to")?, "to", WANTED)?;
        match [to.session, to.user, to.topic, to.backend, to.reply].map(optional) {
            [Some(raw), None, None, None, None] => name(raw, "to.session", SessionId::new).map(To::Session),
            [None, Some(raw), None, None, None] => name(raw, "to.user", UserId::new).map(To::User),
            [None, None, Some(raw), None, None] => name(raw, "to.topic", TopicName::new).map(To::Topic),
            [None, None, None, Some(raw), None] => name(raw, "to.backend", BackendName::new).map(To::Backend),
            [None, None, None, None, Some(raw)] => reply_to(raw).map(To::Reply),
            _ => Err(Malformed::Wrong { field: "to", wanted: WANTED }),
        }
    }

    fn send(&self) -> Result<SendRequest, Malformed> {
        Ok(SendRequest {
            id: optional(self.id).map(|raw| name(raw, "id", MessageId::new)).transpose()?,
            to: self.to()?,
            payload: self.payload.ok_or(Malformed::Missing("payload"))?.to_owned(),
            ttl: self.ttl()?,
            volatile: flag(self.volatile, "volatile")?,
            receipt: flag(self.receipt, "receipt")?,
            request: flag(self.request, "request")?,
        })
    }

    fn token(&self) -> Result<Option<String>, Malformed> {
        optional(self.token).map(|raw| string(raw, "token")).transpose()
    }

    fn hello(&self) -> Result<ClientFrame, Malformed> {
        Ok(ClientFrame::Hello {
            session: self.session()?,
            token: self.token()?,
            resume: self.resume()?,
            window: optional(self.window).map(window).transpose()?,
        })
    }

    fn frame(&self) -> Result<ClientFrame, Malformed> {
        let kind = string(required(self.r#type, "type")?, "type")?;
        Ok(match kind.as_str() {
            "send" => ClientFrame::Send(self.send()?),
            "ack" => ClientFrame::Ack(self.seq()?),
            "hello" => self.hello()?,
            "subscribe" => ClientFrame::Subscribe {
                topic: self.topic()?,
                resume: self.resume()?,
                presence: flag(self.presence, "presence")?,
            },
            "unsubscribe" => ClientFrame::Unsubscribe(self.topic()?),
            "ping" => ClientFrame::Ping,
            _ => return Err(Malformed::UnknownType(kind.chars().take(64).collect())),
        })
    }
}

/// A refused frame, with the `id` that its sender may wait for.
#[derive(Debug)]
pub struct BadFrame {
    /// The frame's `id`, if it is a valid one.
    pub id: Option<MessageId>,
    /// What is wrong with the frame.
    pub reason: Malformed,
}

impl ClientFrame {
    /// Decodes a text frame.
    ///
    /// # Errors
    /// [`BadFrame`] names the field that is wrong and what it must hold.
    pub(crate) fn decode(frame: &str) -> Result<Self, BadFrame> {
        plain::frame(frame).map_or_else(|| Self::parse(frame), Ok)
    }

    fn parse(frame: &str) -> Result<Self, BadFrame> {
        RawFields::decode(frame, r#"{"type":"ping"}"#, |fields| fields.frame())
    }
}

impl SendRequest {
    /// Decodes one send object of `POST /v1/messages`. A `type` is ignored.
    ///
    /// # Errors
    /// [`BadFrame`] names the field that is wrong and what it must hold.
    pub(crate) fn decode(object: &str) -> Result<Self, BadFrame> {
        plain::send(object).map_or_else(|| Self::parse(object), Ok)
    }

    fn parse(object: &str) -> Result<Self, BadFrame> {
        RawFields::decode(object, SEND_EXAMPLE, |fields| fields.send())
    }

    /// Decodes one send object and its sender.
    ///
    /// # Errors
    /// [`Malformed`], if it is no object or the sender is wrong.
    pub(crate) fn decode_with_sender(object: &str) -> Result<(Sender, Result<Self, BadFrame>), Malformed> {
        let fields: RawFields<'_> = parse_object(object, SEND_EXAMPLE)?;
        let sender = Sender { session: fields.session()?, token: fields.token()? };
        Ok((sender, fields.take(|fields| fields.send())))
    }
}

/// Who sends, as the body of `POST /v1/messages` may say: in a send object, beside the message.
#[derive(Debug, Default, ToSchema)]
pub(crate) struct Sender {
    /// The session that sends; the one in the address comes first.
    pub session: Option<SessionId>,
    /// The proof; the bearer of the header `Authorization` if absent.
    pub token: Option<String>,
}

impl Sender {
    /// Decodes the sender of a send object.
    ///
    /// # Errors
    /// [`Malformed`] names the field that is wrong and what it must hold.
    pub(crate) fn decode(object: &str) -> Result<Self, Malformed> {
        let fields: RawFields<'_> = parse_object(object, SEND_EXAMPLE)?;
        Ok(Self { session: fields.session()?, token: fields.token()? })
    }
}

/// The body of `POST /v1/ack`.
#[derive(Debug, ToSchema)]
#[schema(as = Ack)]
pub struct AckBody {
    /// The session of the mailbox; a token's own session if absent, or the backend of an API key.
    pub session: Option<SessionId>,
    /// The proof; the bearer of the header `Authorization` if absent.
    pub token: Option<String>,
    /// The last acknowledged seq.
    pub seq: Seq,
    /// The epoch of that seq.
    pub epoch: Option<Epoch>,
}

impl AckBody {
    /// Decodes the body.
    ///
    /// # Errors
    /// [`Malformed`] names the field that is wrong and what it must hold.
    pub(crate) fn decode(body: &str) -> Result<Self, Malformed> {
        let fields: RawFields<'_> = parse_object(body, r#"{"session":"A","seq":17}"#)?;
        let epoch = fields.resume()?.epoch;
        Ok(Self { session: fields.session()?, token: fields.token()?, seq: fields.seq()?, epoch })
    }
}

/// The body of `PUT /v1/sessions/{id}`.
#[derive(Debug, Default, ToSchema)]
#[schema(as = Registration)]
pub struct SessionBody {
    /// The user that the session belongs to.
    pub user: Option<UserId>,
    /// How many seconds the session stays registered; the server has a default.
    #[schema(value_type = Option<f64>, minimum = 0.001)]
    pub ttl: Option<Duration>,
    /// Whether the id of the session is a proof on every transport, until it is registered without this. The id must be able to
    /// hold 128 random bits, like 32 hex digits. In `open` mode only that is checked: there an id proves nothing.
    #[schema(value_type = Option<bool>)]
    pub proof: bool,
}

impl SessionBody {
    /// Decodes the body. An empty body has no fields.
    ///
    /// # Errors
    /// [`Malformed`] names the field that is wrong and what it must hold.
    pub(crate) fn decode(body: &str) -> Result<Self, Malformed> {
        if body.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let fields: RawFields<'_> = parse_object(body, r#"{"user":"ann","ttl":3600}"#)?;
        let user = optional(fields.user)
            .map(|raw| name(raw, "user", |user| taken_name(user, UserId::new)))
            .transpose()?;
        Ok(Self { user, ttl: fields.ttl()?, proof: flag(fields.proof, "proof")? })
    }
}

#[cfg(test)]
mod tests;
