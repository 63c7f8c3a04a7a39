//! Frames as `JSON.stringify` and most libraries write them, decoded in one pass.
//!
//! Such a frame is an object without repeated or unknown fields. Its strings have no escapes, and its numbers are whole. There
//! may be spaces behind commas and colons. Everything else, and everything that is wrong, is left to the parser: its errors
//! name the field.

use serde_json::Deserializer;
use serde_json::value::RawValue;

use crate::message::{BackendName, Epoch, MessageId, Seq, SessionId, TopicName, UserId};
use crate::protocol::client_frame::types::{ClientFrame, Resume, SendRequest, To};
use crate::protocol::json::{MAX_SEQ, MAX_WINDOW, may_be_too_deep};

/// The fields that are decoded here.
#[derive(Default)]
struct Fields<'a> {
    r#type: Option<&'a str>,
    id: Option<&'a str>,
    session: Option<&'a str>,
    token: Option<&'a str>,
    epoch: Option<&'a str>,
    /// What kind of receiver, and its name.
    to: Option<(&'a str, &'a str)>,
    payload: Option<&'a RawValue>,
    volatile: Option<bool>,
    receipt: Option<bool>,
    request: Option<bool>,
    after: Option<u64>,
    seq: Option<u64>,
    window: Option<u64>,
}

/// Decodes a frame of a WebSocket, if it is plain and of a frequent type.
pub(super) fn frame(text: &str) -> Option<ClientFrame> {
    let fields = Fields::of(text)?;
    match fields.r#type? {
        "send" => fields.send().map(ClientFrame::Send),
        "ack" => fields.seq.map(|seq| ClientFrame::Ack(Seq(seq))),
        "hello" => fields.hello(),
        _ => None,
    }
}

/// Decodes a send object, if it is plain.
pub(super) fn send(text: &str) -> Option<SendRequest> {
    Fields::of(text)?.send()
}

/// Sets a field that was not there before.
fn set<T>(field: &mut Option<T>, value: Option<T>) -> Option<()> {
    if field.is_some() {
        return None;
    }
    *field = Some(value?);
    Some(())
}

impl<'a> Fields<'a> {
    fn of(text: &'a str) -> Option<Self> {
        if may_be_too_deep(text) {
            return None;
        }
        let (mut fields, mut rest) = (Self::default(), Rest(text));
        rest.skip("{")?;
        loop {
            let name = rest.string()?;
            rest.skip(":")?;
            rest.skip_space();
            match name {
                "type" => set(&mut fields.r#type, rest.string()),
                "id" => set(&mut fields.id, rest.string()),
                "session" => set(&mut fields.session, rest.string()),
                "token" => set(&mut fields.token, rest.string()),
                "epoch" => set(&mut fields.epoch, rest.string()),
                "to" => set(&mut fields.to, rest.receiver()),
                "payload" => set(&mut fields.payload, rest.value()),
                "volatile" => set(&mut fields.volatile, rest.flag()),
                "receipt" => set(&mut fields.receipt, rest.flag()),
                "request" => set(&mut fields.request, rest.flag()),
                "after" => set(&mut fields.after, rest.whole()),
                "seq" => set(&mut fields.seq, rest.whole()),
                "window" => set(&mut fields.window, rest.whole()),
                _ => None,
            }?;
            if rest.skip(",").is_none() {
                break;
            }
            rest.skip_space();
        }
        rest.skip("}")?;
        rest.0.is_empty().then_some(fields)
    }

    fn send(self) -> Option<SendRequest> {
        let to = match self.to? {
            ("session", name) => To::Session(SessionId::new(name).ok()?),
            ("user", name) => To::User(UserId::new(name).ok()?),
            ("topic", name) => To::Topic(TopicName::new(name).ok()?),
            ("backend", name) => To::Backend(BackendName::new(name).ok()?),
            _ => return None,
        };
        Some(SendRequest {
            id: self.id.map(MessageId::new).transpose().ok()?,
            to,
            payload: self.payload?.to_owned(),
            ttl: None,
            volatile: self.volatile.unwrap_or_default(),
            receipt: self.receipt.unwrap_or_default(),
            request: self.request.unwrap_or_default(),
        })
    }

    fn hello(self) -> Option<ClientFrame> {
        let window = match self.window {
            Some(window) => {
                Some(u32::try_from(window).ok().filter(|window| (1..=MAX_WINDOW).contains(window))?)
            }
            None => None,
        };
        Some(ClientFrame::Hello {
            session: self.session.map(SessionId::new).transpose().ok()?,
            token: self.token.map(str::to_owned),
            resume: Resume { after: self.after.map(Seq), epoch: self.epoch.map(Epoch::new) },
            window,
        })
    }
}

/// What is not decoded yet.
struct Rest<'a>(&'a str);

impl<'a> Rest<'a> {
    fn skip(&mut self, token: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(token)?;
        Some(())
    }

    fn skip_space(&mut self) {
        self.0 = self.0.strip_prefix(' ').unwrap_or(self.0);
    }

    /// Cuts off the first bytes.
    fn cut(&mut self, len: usize) -> Option<&'a str> {
        let (cut, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(cut)
    }

    /// A string without escapes.
    fn string(&mut self) -> Option<&'a str> {
        self.skip("\"")?;
        let len = self.0.bytes().position(|byte| byte == b'"' || byte == b'\\' || byte < b' ')?;
        let text = self.cut(len)?;
        self.skip("\"")?;
        Some(text)
    }

    /// A whole number that can be a seq.
    fn whole(&mut self) -> Option<u64> {
        let len = self.0.bytes().position(|byte| !byte.is_ascii_digit())?;
        let is_plain = len == 1 || (2..=16).contains(&len) && !self.0.starts_with('0');
        let ends = self.0[len..].starts_with([',', '}']);
        let number = self.cut(len)?.parse().ok()?;
        (is_plain && ends && number <= MAX_SEQ).then_some(number)
    }

    fn flag(&mut self) -> Option<bool> {
        let flag = self.0.starts_with("true");
        self.skip(if flag { "true" } else { "false" })?;
        Some(flag)
    }

    /// An object with one name in it.
    fn receiver(&mut self) -> Option<(&'a str, &'a str)> {
        self.skip("{")?;
        let kind = self.string()?;
        self.skip(":")?;
        self.skip_space();
        let name = self.string()?;
        self.skip("}")?;
        Some((kind, name))
    }

    /// Any value.
    fn value(&mut self) -> Option<&'a RawValue> {
        let mut values = Deserializer::from_str(self.0).into_iter::<&'a RawValue>();
        let value = values.next()?.ok()?;
        self.cut(values.byte_offset())?;
        Some(value)
    }
}

#[cfg(test)]
mod tests;
