//! Requests, and the one answer that each allows.
//!
//! A request carries its `reply_to`: who asked, how, and who may answer, encrypted by the engine. So the broker remembers
//! nothing of a request, and any node can take the answer, after a restart too. The engine stores one answer: all answers
//! to a request have the same author and id.

use std::time::Duration;

use aws_lc_rs::digest::{self, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::broker::receivers::Receivers;
use crate::broker::{Broker, BrokerError};
use crate::engine::{Append, DecryptError};
use crate::grant::{Denied, Grant};
use crate::message::{Address, Author, BackendName, Kind, Message, MessageId, SessionId, UserId};
use crate::protocol::{SendRequest, To};

/// The version of the encrypted content.
const VERSION: u8 = 1;

/// How long the hash is that tells requests apart, in bytes.
const REQUEST_HASH: usize = 16;

/// A request that is being sent.
pub(super) struct Asking {
    requester: Address,
    /// The user that the requester's session belongs to.
    user: Option<UserId>,
    id: MessageId,
    hash: [u8; REQUEST_HASH],
    lifetime: Duration,
}

impl Asking {
    /// A request of this caller to these receivers. `None` if the caller has no mailbox.
    fn new(grant: &Grant, id: &MessageId, receivers: &Receivers, lifetime: Duration) -> Option<Self> {
        let requester = grant.mailbox()?;
        let user = grant.client().and_then(|client| client.user.clone());
        let to = match receivers {
            Receivers::One(address, _) => address.to_string(),
            Receivers::Each(user, _) => format!("user {user}"),
        };
        // A retry is the same request: its answers exclude each other. Names hold no line breaks.
        let all = digest::digest(&SHA256, format!("{requester}\n{to}\n{id}").as_bytes());
        let mut hash = [0; REQUEST_HASH];
        hash.copy_from_slice(&all.as_ref()[..REQUEST_HASH]);
        Some(Self { requester, user, id: id.clone(), hash, lifetime })
    }

    /// The request, as it goes to one mailbox.
    pub(super) fn message(&self, broker: &Broker, message: &Message, to: &Address) -> Message {
        let user = self.user.as_ref().map_or("", UserId::as_str);
        let mut content = vec![VERSION];
        content.extend_from_slice(&self.hash);
        for text in [&*mailbox_text(&self.requester), user, self.id.as_str(), &mailbox_text(to)] {
            // Names are at most 256 bytes long.
            content.extend_from_slice(&u16::try_from(text.len()).unwrap_or_default().to_be_bytes());
            content.extend_from_slice(text.as_bytes());
        }
        let kind = Kind::Request { backend: message.kind.is_from_backend() };
        let reply_to = broker.engine.encrypt(&content, self.lifetime);
        Message { kind, reference: Some(reply_to.into()), ..message.clone() }
    }
}

/// A mailbox as it is encrypted.
fn mailbox_text(mailbox: &Address) -> String {
    match mailbox {
        Address::Session(name) => format!("s{name}"),
        Address::Backend(name) => format!("b{name}"),
        // Nobody asks a topic.
        Address::Topic(_) => String::new(),
    }
}

/// The inverse of [`mailbox_text`].
fn parse_mailbox(text: &str) -> Option<Address> {
    match text.split_at_checked(1)? {
        ("s", name) => SessionId::new(name).ok().map(Address::Session),
        ("b", name) => BackendName::new(name).ok().map(Address::Backend),
        _ => None,
    }
}

/// What a `reply_to` says.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    hash: [u8; REQUEST_HASH],
    requester: Address,
    user: Option<UserId>,
    id: MessageId,
    /// The mailbox whose readers may answer.
    answerer: Address,
}

impl Asked {
    fn decode(content: &[u8]) -> Option<Self> {
        let (version, rest) = content.split_first()?;
        let (hash, mut rest) = rest.split_first_chunk::<REQUEST_HASH>()?;
        if *version != VERSION {
            return None;
        }
        let mut text = || {
            let (len, from_here) = rest.split_first_chunk::<2>()?;
            let (text, behind) = from_here.split_at_checked(u16::from_be_bytes(*len).into())?;
            rest = behind;
            std::str::from_utf8(text).ok()
        };
        let requester = parse_mailbox(text()?)?;
        let user = match text()? {
            "" => None,
            user => Some(UserId::new(user).ok()?),
        };
        let id = MessageId::new(text()?).ok()?;
        let answerer = parse_mailbox(text()?)?;
        Some(Self { hash: *hash, requester, user, id, answerer })
    }

    /// The author of all answers to this request: its requester. So others can neither use their id nor push it out of the
    /// ids that are remembered.
    fn author(&self) -> Author {
        match &self.requester {
            Address::Session(session) => Author::Session(session.clone()),
            Address::Backend(backend) => Author::Backend(backend.as_str().into()),
            Address::Topic(_) => Author::Anonymous,
        }
    }

    /// The id of all answers to this request.
    fn reply_id(&self) -> MessageId {
        let id = format!("reply {}", URL_SAFE_NO_PAD.encode(self.hash));
        MessageId::new(&id).expect("it is a short text")
    }
}

impl Broker {
    /// The request that a send is, if it is one.
    pub(super) fn asking(&self, grant: &Grant, send: &SendRequest, receivers: &Receivers) -> Option<Asking> {
        let id = send.id.as_ref().filter(|_| send.request)?;
        Asking::new(grant, id, receivers, self.reply_lifetime(send.ttl))
    }

    /// How long a request can be answered.
    fn reply_lifetime(&self, ttl: Option<Duration>) -> Duration {
        // Beyond the window a second answer would not be noticed.
        ttl.unwrap_or(Duration::MAX).min(self.limits.reply_window)
    }

    /// How long a send is stored unread. A request without a `ttl` is not kept when nobody can answer it any more.
    pub(super) fn stored_for(&self, send: &SendRequest) -> Option<Duration> {
        if send.request { send.ttl.or(Some(self.limits.reply_window)) } else { send.ttl }
    }

    /// The answer to a request, as it goes to the mailbox of the requester.
    pub(super) async fn answer(&self, grant: &Grant, send: SendRequest) -> Result<Append, BrokerError> {
        let SendRequest { to: To::Reply(reply_to), payload, ttl, .. } = send else {
            return Err(foreign());
        };
        let asked = self.asked(reply_to.as_str())?;
        if grant.mailbox().as_ref() != Some(&asked.answerer) {
            let text = "field `to.reply` is for the reader of the mailbox that got the request; answer as its session, or with \
                        the API key of its backend";
            return Err(Denied(text.to_owned()).into());
        }
        self.check_requester(&asked).await?;
        let kind = Kind::Reply { backend: grant.kind().is_from_backend() };
        let reference = Some(asked.id.as_str().into());
        let message = Message { kind, from: grant.from(), payload, ts: self.clock.now(), reference };
        let (id, author) = (Some(asked.reply_id()), asked.author());
        let (address, payer, user) = (asked.requester, grant.payer(), asked.user);
        Ok(Append { address, message, author, id, ttl, receipt: false, payer, user })
    }

    fn asked(&self, reply_to: &str) -> Result<Asked, BrokerError> {
        let content = self.engine.decrypt(reply_to).map_err(|error| match error {
            DecryptError::Foreign => foreign(),
            DecryptError::Expired => BrokerError::RequestExpired,
        })?;
        Asked::decode(&content).ok_or_else(foreign)
    }

    /// Where an answer to this request goes; `None` if it is no request of this broker.
    pub(crate) fn requester(&self, reply_to: &str) -> Option<Address> {
        self.asked(reply_to).ok().map(|asked| asked.requester)
    }

    /// Where sessions are proved, an answer is for the user who asked: the session must be registered, and for that user. An
    /// append compares the user once more, under the lock of the store.
    async fn check_requester(&self, asked: &Asked) -> Result<(), BrokerError> {
        let Some(session) = asked.requester.session().filter(|_| self.limits.secret_ids) else {
            return Ok(());
        };
        match self.directory.registration(session).await {
            Some(registration) if registration.user == asked.user => Ok(()),
            _ => Err(BrokerError::RequesterGone),
        }
    }
}

/// The refusal of a `reply_to` that this broker has not made.
fn foreign() -> BrokerError {
    let text = "field `to.reply` is not the `reply_to` of a request, or was changed; send it as it came";
    Denied(text.to_owned()).into()
}

/// The refusal of a second answer.
pub(super) fn answered() -> BrokerError {
    Denied("this request has been answered; only one answer is delivered".to_owned()).into()
}

/// Checks that there can be an answer: somebody receives the request who can give one, and the sender can be told.
pub(super) fn may_request(grant: &Grant, send: &SendRequest) -> Result<(), BrokerError> {
    let why = match send.to {
        To::Topic(_) => {
            "is for messages to a session, a user or a backend; a topic has any number of readers"
        }
        To::Reply(_) => "is not for replies",
        _ if send.id.is_none() => "needs an `id`, which the reply is going to name",
        _ if grant.mailbox().is_none() => return Err(BrokerError::RequestOfNobody),
        _ => return Ok(()),
    };
    Err(BrokerError::NoRequest(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_content_is_decoded() {
        let mut content = vec![VERSION];
        content.extend_from_slice(&[7; REQUEST_HASH]);
        for text in ["sA", "ann", "c-1", "bB"] {
            content.extend_from_slice(&[0, u8::try_from(text.len()).unwrap()]);
            content.extend_from_slice(text.as_bytes());
        }
        let asked = Asked::decode(&content).unwrap();
        assert_eq!(
            (asked.requester.to_string(), asked.answerer.to_string()),
            ("session A".into(), "backend B".into())
        );
        assert_eq!(asked.id.as_str(), "c-1");
        assert_eq!(asked.user, UserId::new("ann").ok());
        for len in 0..content.len() {
            assert_eq!(Asked::decode(&content[..len]), None, "{len}");
        }
        content[0] = VERSION + 1;
        assert_eq!(Asked::decode(&content), None);
    }
}
