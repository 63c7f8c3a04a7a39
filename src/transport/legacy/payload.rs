//! The payloads that x0 pages get.

use std::fmt;

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

/// The object that an x0 page gets for a payload: the payload with member `session_src` set to the sender, whatever the
/// payload said. All other members stay byte for byte. A payload that is no object becomes member `payload` of one.
pub(crate) fn with_sender(payload: &str, from: Option<&SenderName>) -> String {
    let from = encode(&from);
    let Ok(Members(members)) = serde_json::from_str(payload) else {
        return format!(r#"{{"payload":{payload},"session_src":{from}}}"#);
    };
    let mut object = String::with_capacity(payload.len() + from.len() + 20);
    let mut is_set = false;
    let mut push = |key: &str, value: &str| {
        object.push(if object.is_empty() { '{' } else { ',' });
        object.push_str(key);
        object.push(':');
        object.push_str(value);
    };
    for (key, value) in members {
        if !is_session_src(key) {
            push(key.get(), value.get());
        } else if !is_set {
            push(key.get(), &from);
            is_set = true;
        }
    }
    if !is_set {
        push("\"session_src\"", &from);
    }
    object.push('}');
    object
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
    fn a_payload_that_is_no_object_becomes_a_member() {
        assert_eq!(from_a(" [1, 2]"), r#"{"payload": [1, 2],"session_src":"A\""}"#);
        assert_eq!(from_a("null"), r#"{"payload":null,"session_src":"A\""}"#);
    }
}
