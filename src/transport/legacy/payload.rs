//! The payloads that x0 pages get.

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
    Text(String),
}

/// The object that an x0 page gets for a payload, in parts: the payload with member `session_src` set to the sender, whatever
/// the payload said. All other members stay byte for byte. A payload that is no object becomes member `payload` of one.
pub(super) fn parts_with_sender(payload: &str, from: Option<&SenderName>) -> Vec<Part> {
    let from = encode(&from);
    let Ok(Members(members)) = serde_json::from_str(payload) else {
        let (head, tail) = (r#"{"payload":"#.to_owned(), format!(r#","session_src":{from}}}"#));
        return vec![Part::Text(head), Part::Payload(0..payload.len()), Part::Text(tail)];
    };
    let mut parts = vec![Part::Text("{".to_owned())];
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
                    parts.push(Part::Text(",".to_owned()));
                }
                parts.push(Part::Payload(start..end));
            }
        }
        if is_sender {
            parts.push(Part::Text(from.clone()));
            is_set = true;
        }
        adjoins = !is_sender;
    }
    let comma = if parts.len() > 1 { "," } else { "" };
    parts.push(Part::Text(if is_set { "}".to_owned() } else { format!(r#"{comma}"session_src":{from}}}"#) }));
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
    serde_json::from_str::<String>(key.get()).is_ok_and(|key| key == "session_src")
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
    fn a_payload_that_is_no_object_becomes_a_member() {
        assert_eq!(from_a(" [1, 2]"), r#"{"payload": [1, 2],"session_src":"A\""}"#);
        assert_eq!(from_a("null"), r#"{"payload":null,"session_src":"A\""}"#);
    }
}
