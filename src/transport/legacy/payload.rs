//! The payloads that x0 pages get.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::edge::encode;
use crate::message::SenderName;

/// The members of an object: each key and value byte for byte.
struct Members<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

/// A part of the object that an x0 page gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// These bytes of the payload.
    Payload(Range<usize>),
    Text(Cow<'static, str>),
}

/// The member that names the sender.
const SENDER: &str = "session_src";

/// The object that an x0 page gets for a payload, which is JSON, in parts: the payload with member `session_src` set to the sender, whatever
/// the payload said. All other members stay byte for byte. A payload that is no object becomes member `payload` of one.
pub(super) fn parts_with_sender(payload: &str, from: Option<&SenderName>) -> Vec<Part> {
    let from = encode(&from);
    parts_without_parsing(payload, &from).unwrap_or_else(|| parsed_parts(payload, &from))
}

/// The parts, if it can be told without parsing what they are: the sender is not in the payload, or is its last member already,
/// as it is in what an x0 page sent. Each poll looks at the payload again.
fn parts_without_parsing(payload: &str, from: &str) -> Option<Vec<Part>> {
    let members = payload.strip_prefix('{')?.strip_suffix('}')?;
    // Nor can an escape spell the name then.
    if members.contains("\\u") {
        return None;
    }
    let Some(others) = members.strip_suffix(from).and_then(|rest| rest.strip_suffix(r#","session_src":"#))
    else {
        return (!members.contains(SENDER)).then(|| parts_without_sender(payload, from));
    };
    // In a text these quotes would be escaped. So the comma and the name are no part of one, nor is what follows: the name is
    // that of the last member.
    let is_same = others.starts_with('"') && !others.contains(SENDER);
    is_same.then(|| vec![Part::Payload(0..payload.len())])
}

/// The parts of an object without a sender, which is added.
fn parts_without_sender(object: &str, from: &str) -> Vec<Part> {
    const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];
    let from_first = object[1..].trim_start_matches(SPACE);
    let start = object.len() - from_first.len();
    let members = from_first[..from_first.len() - 1].trim_end_matches(SPACE);
    match members.len() {
        0 => vec![Part::Text(format!(r#"{{"session_src":{from}}}"#).into())],
        len => vec![
            Part::Text("{".into()),
            Part::Payload(start..start + len),
            Part::Text(format!(r#","session_src":{from}}}"#).into()),
        ],
    }
}

fn parsed_parts(payload: &str, from: &str) -> Vec<Part> {
    let Ok(Members(members)) = serde_json::from_str(payload) else {
        let tail = format!(r#","session_src":{from}}}"#).into();
        return vec![Part::Text(r#"{"payload":"#.into()), Part::Payload(0..payload.len()), Part::Text(tail)];
    };
    let mut parts = vec![Part::Text("{".into())];
    // Where a raw value is in the payload, from which it is borrowed.
    let range_of = |raw: &RawValue| {
        let start = raw.get().as_ptr() as usize - payload.as_ptr() as usize;
        start..start + raw.get().len()
    };
    let (mut is_set, mut adjoins) = (false, false);
    for (key, value) in members {
        let (start, value) = (range_of(key).start, range_of(value));
        let is_sender = is_session_src(key);
        if is_sender && is_set {
            adjoins = false;
            continue;
        }
        let end = if is_sender { value.start } else { value.end };
        match parts.last_mut() {
            Some(Part::Payload(before)) if adjoins => before.end = end,
            _ => {
                if parts.len() > 1 {
                    parts.push(Part::Text(",".into()));
                }
                parts.push(Part::Payload(start..end));
            }
        }
        if is_sender {
            parts.push(Part::Text(from.to_owned().into()));
            is_set = true;
        }
        adjoins = !is_sender;
    }
    let comma = if parts.len() > 1 { "," } else { "" };
    let added = || format!(r#"{comma}"session_src":{from}}}"#).into();
    parts.push(Part::Text(if is_set { "}".into() } else { added() }));
    parts
}

/// The same object as one text.
pub(crate) fn with_sender(payload: &str, from: Option<&SenderName>) -> String {
    let parts = parts_with_sender(payload, from);
    let texts = parts.iter().map(|part| match part {
        Part::Payload(range) => &payload[range.clone()],
        Part::Text(text) => text,
    });
    texts.collect()
}

/// Whether a key is `session_src`, however it is escaped.
fn is_session_src(key: &RawValue) -> bool {
    serde_json::from_str::<String>(key.get()).is_ok_and(|key| key == SENDER)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_a(payload: &str) -> String {
        with_sender(payload, Some(&SenderName::new("A\"").unwrap()))
    }

    #[test]
    fn the_sender_is_added_and_the_rest_stays_byte_for_byte() {
        assert_eq!(from_a("{}"), r#"{"session_src":"A\""}"#);
        assert_eq!(from_a(r#"{"a":1e400,"b":"\ud800"}"#), r#"{"a":1e400,"b":"\ud800","session_src":"A\""}"#);
        assert_eq!(with_sender("{\"\\ud800\":1}", None), "{\"\\ud800\":1,\"session_src\":null}");
    }

    #[test]
    fn a_sender_in_the_payload_is_replaced_and_not_repeated() {
        assert_eq!(from_a(r#"{"session_src":"evil","a":1}"#), r#"{"session_src":"A\"","a":1}"#);
        assert_eq!(
            from_a(r#"{"\u0073ession_src":"x","a":1,"session_src":2}"#),
            r#"{"\u0073ession_src":"A\"","a":1}"#
        );
    }

    #[test]
    fn members_that_are_kept_are_one_part() {
        let payload = r#"{ "a" : 1, "b":2, "session_src":3, "c":4, "d":5, "session_src":6, "e":7 }"#;
        assert_eq!(from_a(payload), r#"{"a" : 1, "b":2, "session_src":"A\"","c":4, "d":5,"e":7}"#);
        let kept = parts_with_sender(payload, None);
        assert_eq!(kept.iter().filter(|part| matches!(part, Part::Payload(_))).count(), 3);
    }

    #[test]
    fn what_is_told_without_parsing_is_the_same() {
        let text = |parts: Vec<Part>, payload: &str| -> String {
            let texts = parts.iter().map(|part| match part {
                Part::Payload(range) => &payload[range.clone()],
                Part::Text(text) => text,
            });
            texts.collect()
        };
        let names = [Some("A"), Some("A\""), Some("A\\"), Some("é\u{2028}"), None];
        let from = names.map(|name| encode(&name.map(|name| SenderName::new(name).unwrap())));
        let mut unparsed = 0;
        for from in &from {
            for object in [
                r"{}",
                "{ \n}",
                r#"{"a":1}"#,
                "{\t\"a\" : [1, {}] , \"b\":\"x \\\" y\"\r\n}",
                r#"{"session_src":FROM}"#,
                r#"{"a":1,"session_src":FROM}"#,
                r#"{"a":1, "session_src":FROM}"#,
                r#"{ "a":1,"session_src":FROM}"#,
                r#"{"a":1,"session_src":FROM }"#,
                r#"{"session_src":1,"session_src":FROM}"#,
                r#"{"a":{"session_src":1},"session_src":FROM}"#,
                r#"{"a":{"b":1,"session_src":FROM}}"#,
                r#"{"a":"session_src","b":{}}"#,
                r#"{"a":"\"session_src\":FROM"}"#,
                r#"{"a":"b,\"session_src\":null"}"#,
                r#"{"\u0073ession_src":1,"a":2}"#,
                r#"{"\u0073ession_src":1,"session_src":FROM}"#,
                r#"{"a":"\\u","b":1}"#,
            ] {
                let Ok(object) =
                    serde_json::from_str::<&RawValue>(&object.replace("FROM", from)).map(ToOwned::to_owned)
                else {
                    continue;
                };
                let object = object.get();
                let Some(parts) = parts_without_parsing(object, from) else { continue };
                unparsed += 1;
                assert_eq!(text(parts, object), text(parsed_parts(object, from), object), "{object}");
            }
        }
        assert!(unparsed >= 5 * from.len(), "{unparsed}");
    }

    #[test]
    fn a_payload_that_is_no_object_becomes_a_member() {
        assert_eq!(from_a(" [1, 2]"), r#"{"payload": [1, 2],"session_src":"A\""}"#);
        assert_eq!(from_a("null"), r#"{"payload":null,"session_src":"A\""}"#);
    }
}
