//! A message as NATS stores it: one line of JSON that says what it is, then the payload as its sender wrote it.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::engine::Append;
use crate::message::{
    Address, BackendName, Kind, Message, MessageId, Publication, SenderName, Seq, SessionId,
};

/// The line before the payload.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    #[serde(rename = "k")]
    kind: u8,
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(rename = "t")]
    ts: u64,
    /// When it expires, in Unix milliseconds.
    #[serde(rename = "x")]
    expires_at: u64,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    reference: Option<Box<str>>,
    /// The mailbox that gets a receipt, with its kind before its name, and the id that its sender gave the message.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    receipt: Option<(String, String)>,
    /// The registration of its session that it is for, by the seq since which that has the mailbox. Without it, it is for whoever comes.
    #[serde(rename = "o", default, skip_serializing_if = "Option::is_none")]
    owner: Option<u64>,
}

/// The mailbox that gets a receipt, and the id that its owner gave the message.
pub(super) type ReceiptFor = (Address, MessageId);

/// A stored message.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) publication: Arc<Publication>,
    /// When it expires, in Unix milliseconds.
    pub(super) expires_at: u64,
    /// Who gets a receipt for it.
    pub(super) receipt: Option<ReceiptFor>,
    /// The registration of its session that it is for, by its [`Registration::since`](crate::engine::Registration::since). `None` if
    /// it is for whoever comes.
    pub(super) owner: Option<Seq>,
}

/// What is needed of a stored message that is not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Summary {
    /// When it expires, in Unix milliseconds.
    pub(super) expires_at: u64,
    /// As [`Letter::owner`].
    pub(super) owner: Option<Seq>,
    /// Who pays for it: clients do, backends do not.
    pub(super) payer: Option<SenderName>,
}

fn code_of(kind: Kind) -> u8 {
    match kind {
        Kind::Message => 0,
        Kind::FromBackend => 1,
        Kind::Receipt => 2,
        Kind::Request { backend: false } => 3,
        Kind::Request { backend: true } => 4,
        Kind::Reply { backend: false } => 5,
        Kind::Reply { backend: true } => 6,
        Kind::Presence => 7,
    }
}

fn kind_of(code: u8) -> Option<Kind> {
    Some(match code {
        0 => Kind::Message,
        1 => Kind::FromBackend,
        2 => Kind::Receipt,
        3 => Kind::Request { backend: false },
        4 => Kind::Request { backend: true },
        5 => Kind::Reply { backend: false },
        6 => Kind::Reply { backend: true },
        7 => Kind::Presence,
        _ => return None,
    })
}

/// A mailbox as text, with its kind before its name; `None` for a topic.
pub(super) fn mailbox_text(mailbox: &Address) -> Option<String> {
    match mailbox {
        Address::Session(name) => Some(format!("s{name}")),
        Address::Backend(name) => Some(format!("b{name}")),
        Address::Topic(_) => None,
    }
}

/// The inverse of [`mailbox_text`].
pub(super) fn mailbox_of(text: &str) -> Option<Address> {
    match text.split_at_checked(1)? {
        ("s", name) => SessionId::new(name).ok().map(Address::Session),
        ("b", name) => BackendName::new(name).ok().map(Address::Backend),
        _ => None,
    }
}

/// What is stored of a message that expires at this time, and is for this registration.
pub(super) fn encode(append: &Append, expires_at: u64, owner: Option<Seq>) -> Bytes {
    let receipt = match (append.receipt, &append.id, append.author.mailbox()) {
        (true, Some(id), Some(mailbox)) => Some((mailbox, id.clone())),
        _ => None,
    };
    encode_message(&append.message, expires_at, receipt.as_ref(), owner)
}

/// What is stored of a message that another store held, that expires at this time, and whose sender gets this receipt.
pub(super) fn encode_moved(message: &Message, expires_at: u64, receipt: Option<&ReceiptFor>) -> Bytes {
    encode_message(message, expires_at, receipt, None)
}

/// The fields of a frame that a message needs and a publication does not keep.
#[derive(Deserialize)]
struct Shown {
    ts: u64,
    reply_to: Option<Box<str>>,
    id: Option<Box<str>>,
}

/// What is sent of a message that is not stored; `None` if it is none.
pub(super) fn encode_volatile(publication: &Publication) -> Option<Bytes> {
    let Shown { ts, reply_to, id } = serde_json::from_str(publication.frame().as_str()).ok()?;
    let kind = publication.kind();
    let (payload, reference) = match kind {
        Kind::Request { .. } => (publication.payload().to_owned(), reply_to),
        Kind::Reply { .. } => (publication.payload().to_owned(), id),
        _ => (publication.stored_payload().into_owned(), None),
    };
    let payload = RawValue::from_string(payload).ok()?;
    let message = Message { kind, from: publication.from().cloned(), payload, reference, ts };
    Some(encode_message(&message, 0, None, None))
}

/// Reads a message that is not stored.
pub(super) fn decode_volatile(address: &Address, sent: &[u8]) -> Option<Arc<Publication>> {
    let (message, _) = message(sent)?;
    Some(Arc::new(Publication::encode(address, None, &message)))
}

fn encode_message(
    message: &Message,
    expires_at: u64,
    receipt: Option<&ReceiptFor>,
    owner: Option<Seq>,
) -> Bytes {
    let receipt = receipt.and_then(|(mailbox, id)| Some((mailbox_text(mailbox)?, id.as_str().to_owned())));
    let head = Head {
        kind: code_of(message.kind),
        from: message.from.as_ref().map(ToString::to_string),
        ts: message.ts,
        expires_at,
        reference: message.reference.clone(),
        receipt,
        owner: owner.map(|owner| owner.0),
    };
    let mut bytes = serde_json::to_vec(&head).expect("strings and numbers always encode");
    bytes.push(b'\n');
    bytes.extend_from_slice(message.payload.get().as_bytes());
    bytes.into()
}

/// The payload of what is stored.
pub(super) fn payload(stored: &[u8]) -> Option<&[u8]> {
    let line = stored.iter().position(|byte| *byte == b'\n')?;
    stored.get(line + 1..)
}

fn head(stored: &[u8]) -> Option<(Head, &[u8])> {
    let line = stored.iter().position(|byte| *byte == b'\n')?;
    Some((serde_json::from_slice(stored.get(..line)?).ok()?, stored.get(line + 1..)?))
}

/// What a stored message says of itself; `None` if it is none.
pub(super) fn summary(stored: &[u8]) -> Option<Summary> {
    let (Head { kind, from, expires_at, owner, .. }, _) = head(stored)?;
    let kind = kind_of(kind)?;
    let pays = kind != Kind::Receipt && !kind.is_from_backend();
    let payer = from.filter(|_| pays).and_then(|from| SenderName::new(&from).ok());
    Some(Summary { expires_at, owner: owner.map(Seq), payer })
}

/// Reads what is stored; `None` if it is no message.
pub(super) fn decode(address: &Address, seq: Seq, stored: &[u8]) -> Option<Letter> {
    let (message, Head { expires_at, receipt, owner, .. }) = message(stored)?;
    let receipt = match receipt {
        Some((mailbox, id)) => Some((mailbox_of(&mailbox)?, MessageId::new(&id).ok()?)),
        None => None,
    };
    let publication = Arc::new(Publication::encode(address, Some(seq), &message));
    Some(Letter { publication, expires_at, receipt, owner: owner.map(Seq) })
}

/// A message, and what is left of the line before it.
fn message(bytes: &[u8]) -> Option<(Message, Head)> {
    let (mut head, payload) = head(bytes)?;
    let message = Message {
        kind: kind_of(head.kind)?,
        from: head.from.as_deref().map(SenderName::new).transpose().ok()?,
        payload: RawValue::from_string(std::str::from_utf8(payload).ok()?.to_owned()).ok()?,
        reference: head.reference.take(),
        ts: head.ts,
    };
    Some((message, head))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Author;

    #[test]
    fn a_message_comes_back_as_it_was() {
        let address = Address::Session(SessionId::new("A").unwrap());
        let author = Author::Session(SessionId::new("S b").unwrap());
        for kind in (0..8).filter_map(kind_of) {
            assert_eq!(kind_of(code_of(kind)), Some(kind));
            let payload = RawValue::from_string("{\"n\":\n1}".to_owned()).unwrap();
            let is_about = matches!(kind, Kind::Request { .. } | Kind::Reply { .. });
            let reference = is_about.then(|| "r".into());
            let message = Message { kind, from: SenderName::new("é ").ok(), payload, reference, ts: 7 };
            let append = Append {
                receipt: true,
                id: MessageId::new("c").ok(),
                ..Append::new(address.clone(), message.clone(), author.clone())
            };
            let stored = encode(&append, 9, Some(Seq(4)));
            let letter = decode(&address, Seq(5), &stored).unwrap();
            let expected = Publication::encode(&address, Some(Seq(5)), &message);
            assert_eq!(letter.publication.frame(), expected.frame());
            let (mailbox, id) = letter.receipt.unwrap();
            assert_eq!((letter.expires_at, mailbox, id.as_str()), (9, author.mailbox().unwrap(), "c"));
            let volatile = Publication::encode(&address, None, &message);
            let sent = encode_volatile(&volatile).unwrap();
            assert_eq!(decode_volatile(&address, &sent).unwrap().frame(), volatile.frame());
            assert_eq!(super::payload(&stored).unwrap(), message.payload.get().as_bytes());
            let pays = matches!(code_of(kind), 0 | 3 | 5 | 7);
            let summary =
                Summary { expires_at: 9, owner: letter.owner, payer: message.from.filter(|_| pays) };
            assert_eq!((super::summary(&stored), letter.owner), (Some(summary), Some(Seq(4))));
        }
    }

    #[test]
    fn other_bytes_are_no_message() {
        let address = Address::Session(SessionId::new("A").unwrap());
        for bytes in ["", "{}", "{}\n1", "{\"k\":99,\"t\":1,\"x\":1}\n1", "{\"k\":0,\"t\":1,\"x\":1}\n{"] {
            assert!(decode(&address, Seq(1), bytes.as_bytes()).is_none(), "{bytes}");
        }
    }
}
