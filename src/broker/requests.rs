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
use crate::engine::{Append, DecryptError, Registration};
use crate::grant::{Denied, Grant};
use crate::message::{Address, Author, BackendName, Kind, Message, MessageId, Seq, SessionId, UserId};
use crate::protocol::{ReplyTo, SendRequest, To};

/// The version of the encrypted content.
const VERSION: u8 = 2;

/// How long the hash is that tells requests apart, in bytes.
const REQUEST_HASH: usize = 16;

/// A request that is being sent.
pub(super) struct Asking {
    requester: Address,
    /// The user that the requester's session belongs to.
    user: Option<UserId>,
    /// The registration of the requester's session, if that has no user.
    since: Option<Seq>,
    id: MessageId,
    hash: [u8; REQUEST_HASH],
    lifetime: Duration,
}

impl Asking {
    /// A request of this caller to these receivers. `None` if the caller has no mailbox.
    fn new(
        broker: &Broker,
        grant: &Grant,
        (id, lifetime): (&MessageId, Duration),
        receivers: &Receivers,
    ) -> Option<Self> {
        let requester = grant.mailbox()?;
        let user = grant.client().and_then(|client| client.user.clone());
        let since = if user.is_none() { broker.registered_since(&requester) } else { None };
        let to = match receivers {
            Receivers::One(address, _) => address.to_string(),
            Receivers::Each(user, _) => format!("user {user}"),
        };
        // A retry is the same request: its answers exclude each other. Names hold no line breaks.
        let all = digest::digest(&SHA256, format!("{requester}\n{to}\n{id}").as_bytes());
        let mut hash = [0; REQUEST_HASH];
        hash.copy_from_slice(&all.as_ref()[..REQUEST_HASH]);
        Some(Self { requester, user, since, id: id.clone(), hash, lifetime })
    }

    /// The request, as it goes to one mailbox.
    pub(super) fn message(&self, broker: &Broker, message: &Message, to: &Address) -> Message {
        let user = self.user.as_ref().map_or("", UserId::as_str);
        let mut content = vec![VERSION];
        content.extend_from_slice(&self.hash);
        let (asks, answers) = (since_text(self.since), since_text(broker.registered_since(to)));
        let (requester, answerer) = (mailbox_text(&self.requester), mailbox_text(to));
        for text in [&*requester, user, &asks, self.id.as_str(), &answerer, &answers] {
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

/// A registration as it is encrypted: its `since`, or nothing.
fn since_text(since: Option<Seq>) -> String {
    since.map(|since| since.to_string()).unwrap_or_default()
}

/// The inverse of [`since_text`].
fn parse_since(text: &str) -> Option<Option<Seq>> {
    if text.is_empty() { Some(None) } else { text.parse().ok().map(|seq| Some(Seq(seq))) }
}

/// What a `reply_to` says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    hash: [u8; REQUEST_HASH],
    requester: Address,
    user: Option<UserId>,
    /// The registration of the session that asked. `None` if it has a user.
    requester_since: Option<Seq>,
    id: MessageId,
    /// The mailbox whose readers may answer.
    answerer: Address,
    /// The registration of the session that was asked. `None` if it had none: the request is for whoever gets it.
    answerer_since: Option<Seq>,
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
        let requester_since = parse_since(text()?)?;
        let id = MessageId::new(text()?).ok()?;
        let answerer = parse_mailbox(text()?)?;
        let answerer_since = parse_since(text()?)?;
        Some(Self { hash: *hash, requester, user, requester_since, id, answerer, answerer_since })
    }

    /// Where an answer goes.
    pub(crate) fn requester(&self) -> &Address {
        &self.requester
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
        Asking::new(self, grant, (id, self.reply_lifetime(send.ttl)), receivers)
    }

    /// Where sessions are proved, the registration of a mailbox's session, by its `since`: the next holder of the session has
    /// another one.
    fn registered_since(&self, mailbox: &Address) -> Option<Seq> {
        let session = mailbox.session().filter(|_| self.limits.secret_ids)?;
        self.engine.registration(session).map(|registration| registration.since)
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
    pub(super) async fn answer(
        &self,
        grant: &Grant,
        asked: Asked,
        send: SendRequest,
    ) -> Result<Append, BrokerError> {
        let is_same =
            asked.answerer_since.is_none_or(|since| self.registered_since(&asked.answerer) == Some(since));
        if grant.mailbox().as_ref() != Some(&asked.answerer) || !is_same {
            let text = "field `to.reply` is for the reader of the mailbox that got the request; answer as its session, or with \
                        the API key of its backend";
            return Err(Denied(text.to_owned()).into());
        }
        self.check_requester(&asked).await?;
        let kind = Kind::Reply { backend: grant.kind().is_from_backend() };
        let reference = Some(asked.id.as_str().into());
        let SendRequest { payload, ttl, .. } = send;
        let message = Message { kind, from: grant.from(), payload, ts: self.clock.now(), reference };
        let (id, author) = (Some(asked.reply_id()), asked.author());
        let (address, payer, user, since) =
            (asked.requester, grant.payer(), asked.user, asked.requester_since);
        Ok(Append { address, message, author, id, ttl, receipt: false, payer, user, since })
    }

    /// What the `reply_to` of an answer says.
    ///
    /// # Errors
    /// What is wrong with the answer; the `reply_to` is none of this broker, or its time is over.
    pub(crate) fn asked(
        &self,
        grant: &Grant,
        send: &SendRequest,
        reply_to: &ReplyTo,
    ) -> Result<Asked, BrokerError> {
        self.check(grant, send)?;
        let content = self.engine.decrypt(reply_to.as_str()).map_err(|error| match error {
            DecryptError::Foreign => foreign(),
            DecryptError::Expired => BrokerError::RequestExpired,
        })?;
        Asked::decode(&content).ok_or_else(foreign)
    }

    /// Where sessions are proved, an answer is for who asked: the session must be registered for that user, and not have been
    /// ended since. An append compares both once more, under the lock of the store.
    async fn check_requester(&self, asked: &Asked) -> Result<(), BrokerError> {
        let Some(session) = asked.requester.session().filter(|_| self.limits.secret_ids) else {
            return Ok(());
        };
        match self.directory.registration(session).await {
            Some(Registration { user, since, .. })
                if user == asked.user && asked.requester_since.is_none_or(|asked| since == asked) =>
            {
                Ok(())
            }
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
        for text in ["sA", "ann", "17", "c-1", "bB", ""] {
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
        assert_eq!((asked.requester_since, asked.answerer_since), (Some(Seq(17)), None));
        for len in 0..content.len() {
            assert_eq!(Asked::decode(&content[..len]), None, "{len}");
        }
        content[0] = VERSION + 1;
        assert_eq!(Asked::decode(&content), None);
    }
}
