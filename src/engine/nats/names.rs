//! Streams, subjects, and the tokens in them that stand for names.
//!
//! Names of sessions and topics hold characters that subjects cannot, and must not show in the monitoring of NATS. So a subject
//! holds a keyed hash of the name.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::message::{Address, Seq, SessionId};

/// Groups of each stream. More of them take more memory in a node that reads many addresses; fewer bring a node more of what it does
/// not read.
const GROUPS: u16 = 1024;

/// Makes names. The key comes from the secret of the cluster.
#[derive(Debug)]
pub(super) struct Names {
    prefix: String,
    shards: usize,
    key: hmac::Key,
}

/// Where an address lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The number of its stream: mailboxes first, then topics.
    pub(super) stream: usize,
    /// Its group within that: a node subscribes to groups.
    pub(super) group: u16,
    /// The last part of its subjects, as a number.
    pub(super) token: u128,
    /// What its messages are stored under.
    pub(super) stored: String,
    /// What its messages, floors and volatile messages are republished under.
    pub(super) live: String,
    /// What its floor is stored under, if it is a mailbox.
    pub(super) floor: Option<String>,
}

impl Names {
    pub(super) fn new(prefix: &str, shards: usize, secret: &[u8; 16]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, b"subjects").as_ref());
        Self { prefix: prefix.to_owned(), shards, key }
    }

    /// The stream of messages with this number.
    pub(super) fn stream(&self, number: usize) -> String {
        match number.checked_sub(self.shards) {
            None => format!("{}_M{number}", self.prefix),
            Some(shard) => format!("{}_T{shard}", self.prefix),
        }
    }

    /// The stream of floors.
    pub(super) fn floors(&self) -> String {
        format!("{}_F", self.prefix)
    }

    /// The stream of registrations.
    pub(super) fn directory(&self) -> String {
        format!("{}_D", self.prefix)
    }

    /// The subject of all registrations, as they are stored.
    pub(super) fn registrations(&self) -> String {
        format!("{}.d.>", self.prefix)
    }

    /// The subject under which all changes of registrations are republished.
    pub(super) fn live_registrations(&self) -> String {
        format!("{}.ld.>", self.prefix)
    }

    /// The subject of a registration.
    pub(super) fn registration(&self, session: &SessionId) -> String {
        format!("{}.d.{}", self.prefix, URL_SAFE_NO_PAD.encode(self.token(b"s", session.as_str())))
    }

    /// The stream of schedules.
    pub(super) fn schedules(&self) -> String {
        format!("{}_S", self.prefix)
    }

    /// The subject of what is scheduled for a message.
    pub(super) fn schedule(&self, place: &Place, seq: Seq) -> String {
        format!("{}.s.{}.{seq}", self.prefix, last_part(&place.stored))
    }

    /// The subject of what is due for messages of an address.
    pub(super) fn due(&self, place: &Place) -> String {
        format!("{}.due.{}", self.prefix, last_part(&place.stored))
    }

    /// The subject of all that is due.
    pub(super) fn all_due(&self) -> String {
        format!("{}.due.>", self.prefix)
    }

    /// A subject for what nodes say to each other.
    pub(super) fn control(&self, what: &str) -> String {
        format!("{}.ctl.{what}", self.prefix)
    }

    /// Where an address lives.
    pub(super) fn place(&self, address: &Address) -> Place {
        let (kind, name) = match address {
            Address::Session(name) => (b"s", name.as_str()),
            Address::Topic(name) => (b"t", name.as_str()),
            Address::Backend(name) => (b"b", name.as_str()),
        };
        let token = self.token(kind, name);
        let (prefix, shard) = (&self.prefix, usize::from(token[0]) % self.shards);
        let group = u16::from_le_bytes([token[1], token[2]]) % GROUPS;
        let number = u128::from_le_bytes(token);
        let token = URL_SAFE_NO_PAD.encode(token);
        let name = |kind: &str| format!("{prefix}.{kind}.{shard}.{group}.{token}");
        let (stream, stored, live, floor) = match address.is_mailbox() {
            true => {
                let floor = format!("{prefix}.f.{shard}.{token}");
                (shard, name("m"), name("l"), Some(floor))
            }
            false => (self.shards + shard, name("t"), name("lt"), None),
        };
        Place { stream, group, token: number, stored, live, floor }
    }

    /// What everything of the group of an address is republished under.
    pub(super) fn live_group(&self, place: &Place) -> String {
        let (kind, shard) = match place.stream.checked_sub(self.shards) {
            None => ("l", place.stream),
            Some(shard) => ("lt", shard),
        };
        format!("{}.{kind}.{shard}.{}.*", self.prefix, place.group)
    }

    /// What makes a retry known: the hash of all this, as text.
    pub(super) fn message_id(&self, parts: &[&[u8]]) -> String {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(b"i");
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        URL_SAFE_NO_PAD.encode(&context.sign().as_ref()[..16])
    }

    fn token(&self, kind: &[u8; 1], name: &str) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(kind);
        context.update(name.as_bytes());
        let mut token = [0; 16];
        token.copy_from_slice(&context.sign().as_ref()[..16]);
        token
    }
}

fn last_part(subject: &str) -> &str {
    subject.rsplit('.').next().unwrap_or_default()
}

/// The last part of a subject, as the number of a place.
pub(super) fn token_of(subject: &str) -> Option<u128> {
    let mut token = [0; 16];
    let length = URL_SAFE_NO_PAD.decode_slice(last_part(subject), &mut token).ok()?;
    (length == token.len()).then(|| u128::from_le_bytes(token))
}

/// The settings of streams: what is named after the prefix before the secret is known.
pub(super) fn setup_stream(prefix: &str) -> (String, String) {
    (format!("{prefix}_SETUP"), format!("{prefix}.setup"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::TopicName;

    #[test]
    fn subjects_hide_names_and_differ_by_kind_and_secret() {
        let names = Names::new("x0", 8, &[1; 16]);
        let session = Address::Session(SessionId::new("a.b *>").unwrap());
        let topic = Address::Topic(TopicName::new("news").unwrap());
        let place = names.place(&session);
        assert!(place.stored.starts_with("x0.m.") && place.stored.split('.').count() == 5, "{place:?}");
        assert_eq!(token_of(&place.live), Some(place.token));
        let group = names.live_group(&place);
        assert_eq!(place.live.rsplit_once('.').unwrap().0, group.strip_suffix(".*").unwrap());
        assert_eq!((token_of("x0.l.0.0.short"), token_of("")), (None, None));
        assert_eq!(names.stream(place.stream), format!("x0_M{}", place.stream));
        assert_eq!(place, Names::new("x0", 8, &[1; 16]).place(&session));
        assert_ne!(place.stored, Names::new("x0", 8, &[2; 16]).place(&session).stored);
        let place = names.place(&topic);
        assert!(place.stored.starts_with("x0.t.") && place.floor.is_none() && place.stream >= 8);
        assert_ne!(names.message_id(&[b"a", b"bc"]), names.message_id(&[b"ab", b"c"]));
    }
}
