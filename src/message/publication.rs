//! One committed message with its bytes: encoded once, shared by every transport.

use std::borrow::Cow;

use axum::extract::ws::Utf8Bytes;
use serde::Serialize;

use crate::message::{Address, Kind, Message, SenderName, Seq, TopicName};

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

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
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
    fn a_receipt_is_a_frame_of_its_own() {
        let mailbox = Address::Session(SessionId::new("A").unwrap());
        let id = MessageId::new("c-42").unwrap();
        let receipt = Message::receipt(&id, Outcome::Expired, 7);
        let publication = Publication::encode(&mailbox, Some(Seq(18)), &receipt);
        let frame = r#"{"type":"receipt","seq":18,"ts":7,"id":"c-42","state":"expired"}"#;
        assert_eq!((publication.frame().as_str(), publication.payload()), (frame, ""));
        assert_eq!(publication.stored_payload(), receipt.payload.get());
    }
}
