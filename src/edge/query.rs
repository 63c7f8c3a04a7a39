//! The query of a request.

use std::ops::Range;

use axum::http::Uri;

use crate::broker::BrokerError;
use crate::edge::refusal::Refusal;
use crate::edge::topic::TopicRequest;
use crate::grant::Grant;
use crate::message::{Epoch, NameError, Seq, SessionId, TopicName};
use crate::protocol::{MAX_SEQ, MAX_WINDOW, Resume};

/// Parameters that have one value. Which of two counts is a matter of taste: a proxy may have checked the other one.
const SINGLE: [&str; 11] = [
    "session",
    "after",
    "epoch",
    "wait",
    "prefix",
    "cursor",
    "limit",
    "SYS_SESSION",
    "Type",
    "DestinationSession",
    "Payload",
];

/// The query of a request, decoded.
#[derive(Debug, Default)]
pub(crate) struct Query {
    /// All names and values, one after the other.
    text: String,
    params: Vec<Param>,
}

/// Where a parameter is in the text.
#[derive(Debug)]
struct Param {
    name: Range<usize>,
    value: Range<usize>,
}

impl Query {
    /// Parses the query of a URI.
    ///
    /// # Errors
    /// Those of [`Self::of`].
    pub(crate) fn parse(uri: &Uri) -> Result<Self, Refusal> {
        Self::of(uri.query().unwrap_or_default())
    }

    /// Parses a query, as forms are encoded.
    ///
    /// # Errors
    /// `bad_request` if it is not UTF-8: a decoder that replaces what it cannot read would make one name of many. Also if
    /// a parameter that has one value is given twice.
    pub(crate) fn of(query: &str) -> Result<Self, Refusal> {
        let (mut bytes, mut params) = (Vec::with_capacity(query.len()), Vec::new());
        for param in query.split('&').filter(|param| !param.is_empty()) {
            let (name, value) = param.split_once('=').unwrap_or((param, ""));
            let ranges = [name, value].map(|part| decode(part, &mut bytes));
            let [is_name, is_value] =
                ranges.each_ref().map(|range| std::str::from_utf8(&bytes[range.clone()]).is_ok());
            if !(is_name && is_value) {
                let name = if is_name { name } else { "?" };
                return Err(Refusal::bad_param(name, "must be UTF-8, percent-encoded"));
            }
            let [name, value] = ranges;
            params.push(Param { name, value });
        }
        let text = String::from_utf8(bytes).expect("each part is UTF-8");
        let query = Self { text, params };
        match query.repeated() {
            Some(name) => Err(Refusal::bad_param(name, "must not be given twice")),
            None => Ok(query),
        }
    }

    /// The parameters, as names and values.
    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.params.iter().map(|Param { name, value }| (&self.text[name.clone()], &self.text[value.clone()]))
    }

    /// A parameter that has one value and is given twice.
    fn repeated(&self) -> Option<&str> {
        let names = || self.pairs().map(|(name, _)| name);
        let is_single = |name: &&str| SINGLE.contains(name) || name.starts_with("after.");
        names()
            .enumerate()
            .filter(|(_, name)| is_single(name))
            .find_map(|(index, name)| names().take(index).any(|before| before == name).then_some(name))
    }

    /// The value of a parameter.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.pairs().find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// All values of a parameter.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs().filter(move |(key, _)| *key == name).map(|(_, value)| value)
    }

    fn name<T>(&self, key: &str, new: impl Fn(&str) -> Result<T, NameError>) -> Result<Option<T>, Refusal> {
        self.get(key).map(|value| new(value).map_err(|reason| Refusal::bad_param(key, reason))).transpose()
    }

    /// The session the request names.
    ///
    /// # Errors
    /// `bad_request` if it is not a name.
    pub(crate) fn session(&self) -> Result<Option<SessionId>, Refusal> {
        self.name("session", SessionId::new)
    }

    /// The seq in a parameter.
    ///
    /// # Errors
    /// `bad_request` if it is not a whole number.
    pub(crate) fn seq(&self, key: &str) -> Result<Option<Seq>, Refusal> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let seq = value.parse().ok().filter(|seq| *seq <= MAX_SEQ).map(Seq);
        let invalid = || Refusal::bad_param(key, format_args!("must be a whole number from 0 to {MAX_SEQ}"));
        seq.ok_or_else(invalid).map(Some)
    }

    /// How many messages the connection may have that it has not acknowledged.
    ///
    /// # Errors
    /// `bad_request` if it is not a number in range.
    pub(crate) fn window(&self) -> Result<Option<u32>, Refusal> {
        let Some(value) = self.get("window") else { return Ok(None) };
        let window = value.parse().ok().filter(|window| (1..=MAX_WINDOW).contains(window));
        let invalid =
            || Refusal::bad_param("window", format_args!("must be a whole number from 1 to {MAX_WINDOW}"));
        window.ok_or_else(invalid).map(Some)
    }

    /// Where to resume: the seq in parameter `key`, and `epoch`.
    ///
    /// # Errors
    /// `bad_request` if it is not a whole number.
    pub(crate) fn resume(&self, key: &str) -> Result<Resume, Refusal> {
        Ok(Resume { after: self.seq(key)?, epoch: self.get("epoch").map(Epoch::new) })
    }

    /// The topics to read. Each resumes at its own `after.<topic>`. Those in `presence` are watched as well, and
    /// need not be in `topic`.
    ///
    /// # Errors
    /// `bad_request` for an invalid name or number. `forbidden` for a topic that may not be read or watched, and for
    /// more than `limit` topics.
    pub(crate) fn topics(&self, grant: &Grant, limit: usize) -> Result<Vec<TopicRequest>, Refusal> {
        let mut topics = Vec::<TopicRequest>::new();
        for text in self.all("topic").chain(self.all("presence")) {
            let topic = TopicName::new(text).map_err(|reason| Refusal::bad_param("topic", reason))?;
            if topics.iter().any(|known| known.topic == topic) {
                continue;
            }
            if topics.len() >= limit {
                return Err(Refusal::too_many_topics(limit));
            }
            let presence = self.all("presence").any(|watched| watched == text);
            let request = TopicRequest { topic, resume: self.resume(&format!("after.{text}"))?, presence };
            request.check(grant).map_err(BrokerError::from)?;
            topics.push(request);
        }
        Ok(topics)
    }
}

/// Decodes a name or a value behind these bytes. Answers where it is.
fn decode(part: &str, bytes: &mut Vec<u8>) -> Range<usize> {
    let (start, mut rest) = (bytes.len(), part.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        let digits = after.first_chunk::<2>().filter(|_| *first == b'%');
        match digits.and_then(|[high, low]| Some(hex(*high)? << 4 | hex(*low)?)) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = after;
            }
        }
    }
    start..bytes.len()
}

/// The value of a hexadecimal digit.
fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Code;

    fn query(text: &str) -> Query {
        Query::parse(&format!("/v1/messages?{text}").parse().unwrap()).unwrap()
    }

    #[test]
    fn a_query_that_is_not_utf8_is_refused_with_its_parameter() {
        for (text, name) in [
            ("session=%FF", "`session`"),
            ("session%C3=%A9", "`?`"),
            ("wait=0&session=a%C3", "`session`"),
            ("topic=%C3%28", "`topic`"),
            ("session=%ed%a0%80", "`session`"),
            ("%FE=1", "`?`"),
        ] {
            let refusal = Query::parse(&format!("/v1/messages?{text}").parse().unwrap()).unwrap_err();
            assert_eq!(refusal.code, Code::BadRequest, "{text}");
            assert!(refusal.message.contains(name) && refusal.message.contains("UTF-8"), "{refusal:?}");
        }
        for (text, session) in [
            ("session=%C3%A9", "é"),
            ("session=é", "é"),
            ("session=100%", "100%"),
            ("session=%zz%4", "%zz%4"),
            ("session=%+1", "% 1"),
            ("session=%25FF", "%FF"),
            ("session=%EF%BF%BD", "\u{fffd}"),
        ] {
            assert_eq!(query(text).get("session"), Some(session), "{text}");
        }
    }

    #[test]
    fn a_parameter_with_one_value_is_not_given_twice() {
        for text in [
            "session=A&session=B",
            "session=A&topic=t&sessio%6e=A",
            "after=1&wait=0&after=9",
            "topic=t&after.t=1&after.t=2",
            "Type=SET&Payload=a&Payload=b",
        ] {
            let refusal = Query::parse(&format!("/v1/messages?{text}").parse().unwrap()).unwrap_err();
            assert!(refusal.message.contains("twice"), "{text}: {refusal:?}");
        }
    }

    fn open() -> Grant {
        Grant::Open { session: None, manages: false }
    }

    #[test]
    fn parameters_are_decoded_and_may_repeat() {
        let query = query("topic=a%2Fb&session=A+B&topic=c&_=1&_=2");
        assert_eq!(query.get("session"), Some("A B"));
        assert_eq!(query.all("topic").collect::<Vec<_>>(), ["a/b", "c"]);
        assert_eq!(query.get("epoch"), None);
        assert_eq!(Query::parse(&"/".parse().unwrap()).unwrap().get("session"), None);
    }

    #[test]
    fn an_invalid_value_is_refused_with_its_parameter() {
        for (text, name) in
            [("after=-1", "`after`"), ("after=x", "`after`"), ("after=9007199254740992", "`after`")]
        {
            let refusal = query(text).resume("after").unwrap_err();
            assert_eq!(refusal.code, Code::BadRequest);
            assert!(refusal.message.contains(name) && refusal.message.contains("from 0 to"), "{refusal:?}");
        }
        assert!(query("session=").session().unwrap_err().message.contains("`session` must not be empty"));
        assert!(query("topic=a%0Ab").topics(&open(), 9).unwrap_err().message.contains("`topic`"));
    }

    #[test]
    fn a_position_may_have_an_epoch() {
        let resume = query("after=7&epoch=e-1").resume("after").unwrap();
        assert_eq!(resume, Resume { after: Some(Seq(7)), epoch: Some(Epoch::new("e-1")) });
        assert_eq!(query("").resume("after").unwrap(), Resume::default());
    }

    #[test]
    fn presence_is_asked_for_topics_which_are_read_then() {
        let topics = query("topic=a&topic=b&presence=b&presence=c&after.c=7").topics(&open(), 9).unwrap();
        let asked = topics.iter().map(|request| (request.topic.as_str(), request.presence));
        assert_eq!(asked.collect::<Vec<_>>(), [("a", false), ("b", true), ("c", true)]);
        assert_eq!(topics[2].resume.after, Some(Seq(7)));
        assert!(query("topic=a&presence=b").topics(&open(), 1).unwrap_err().message.contains("at most 1"));
    }

    #[test]
    fn each_topic_has_its_own_position() {
        let topics = query("topic=a&topic=b&topic=a&after.b=7").topics(&open(), 2).unwrap();
        let positions: Vec<_> =
            topics.iter().map(|request| (request.topic.as_str(), request.resume.after)).collect();
        assert_eq!(positions, [("a", None), ("b", Some(Seq(7)))]);
        let refusal = query("topic=a&topic=b").topics(&open(), 1).unwrap_err();
        assert_eq!(refusal.code, Code::Forbidden);
        assert!(refusal.message.contains("at most 1"), "{refusal:?}");
    }
}
