//! JSON from clients: parsed with bounded nesting, field by field, with errors that name the field.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::message::{NameError, Seq};

/// Deepest nesting of arrays and objects in received JSON. Deeper JSON overflows the stack of common parsers at the
/// receiver.
pub(crate) const MAX_DEPTH: usize = 128;

/// Largest seq. Larger integers are not exact in JavaScript (`Number.MAX_SAFE_INTEGER`).
pub(crate) const MAX_SEQ: u64 = (1 << 53) - 1;

/// Why received JSON is refused. The text names the field and what it must hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The text is not JSON, or not a JSON object.
    #[error("{0}")]
    Json(String),
    /// A required field is missing.
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    /// The value of a field has another type or range.
    #[error("field `{field}` must be {wanted}")]
    Wrong {
        /// The field.
        field: &'static str,
        /// The values that the field may have.
        wanted: &'static str,
    },
    /// The value of a field is not a valid name.
    #[error("field `{field}` {reason}")]
    Name {
        /// The field.
        field: &'static str,
        /// The broken rule.
        reason: NameError,
    },
    /// JSON nested deeper than 128 levels.
    #[error("JSON is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// The `type` of a frame is unknown.
    #[error("unknown type `{0}`; this version knows hello, send, ack, subscribe, unsubscribe and ping")]
    UnknownType(String),
}

/// Deserializes a field in which `null` is a value and not the absence of one.
pub(crate) fn present<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// Whether a text has so many brackets that its nesting must be looked at. Counted without a look at what they mean, many at a
/// time.
pub(super) fn may_be_too_deep(text: &str) -> bool {
    // In ASCII, `{` and `[` differ in one bit.
    let opens = |byte: &&u8| **byte | 0x20 == b'{';
    text.as_bytes().iter().filter(opens).count() > MAX_DEPTH
}

/// Checks the nesting without recursion: counts `{` and `[` outside of strings.
fn check_depth(text: &str) -> Result<(), Malformed> {
    let mut depth = 0_usize;
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(Malformed::TooDeep);
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                while let Some(inner) = bytes.next() {
                    match inner {
                        b'\\' => _ = bytes.next(),
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Parses a JSON text with at most 128 levels of nesting.
///
/// # Errors
/// [`Malformed::TooDeep`], or [`Malformed::Json`] with the parser's error.
pub fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Malformed> {
    if may_be_too_deep(text) {
        check_depth(text)?;
    }
    serde_json::from_str(text)
        .map_err(|error| Malformed::Json(format!("not the JSON expected here: {error}")))
}

/// Parses a JSON object with at most 128 levels of nesting. Errors show the example.
///
/// # Errors
/// As [`parse`]. [`Malformed::Json`] for JSON that is no object: serde reads a struct from an array as well.
pub(crate) fn parse_object<'a, T: Deserialize<'a>>(text: &'a str, example: &str) -> Result<T, Malformed> {
    let expected = |found| Err(Malformed::Json(format!("{found}; expected a JSON object like {example}")));
    match text.trim_ascii_start().as_bytes() {
        [b'{', ..] => parse(text),
        [] => expected("there is no text here"),
        _ => expected("not a JSON object"),
    }
}

/// Decodes a field; the error says what it must hold.
pub(super) fn field<'a, T: Deserialize<'a>>(
    raw: &'a RawValue,
    field: &'static str,
    wanted: &'static str,
) -> Result<T, Malformed> {
    serde_json::from_str(raw.get()).map_err(|_| Malformed::Wrong { field, wanted })
}

/// An optional field: `null` means absent.
pub(super) fn optional(raw: Option<&RawValue>) -> Option<&RawValue> {
    raw.filter(|raw| raw.get() != "null")
}

/// A required field: `null` means absent.
pub(super) fn required<'a>(raw: Option<&'a RawValue>, name: &'static str) -> Result<&'a RawValue, Malformed> {
    optional(raw).ok_or(Malformed::Missing(name))
}

pub(super) fn string(raw: &RawValue, name: &'static str) -> Result<String, Malformed> {
    field(raw, name, "a string")
}

pub(super) fn name<T>(
    raw: &RawValue,
    name: &'static str,
    new: impl Fn(&str) -> Result<T, NameError>,
) -> Result<T, Malformed> {
    // Without escapes it is a part of the JSON.
    let named = match serde_json::from_str::<&str>(raw.get()) {
        Ok(text) => new(text),
        Err(_) => new(&string(raw, name)?),
    };
    named.map_err(|reason| Malformed::Name { field: name, reason })
}

/// A seq: a whole number, however it is written (`17`, `17.0`, `1.7e1`).
pub(super) fn seq(raw: &RawValue, name: &'static str) -> Result<Seq, Malformed> {
    const WANTED: &str = "a whole number from 0 to 9007199254740991";
    let whole = serde_json::from_str(raw.get()).ok().or_else(|| {
        let number: f64 = serde_json::from_str(raw.get()).ok()?;
        // A float holds every whole number up to MAX_SEQ exactly.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let whole =
            (number >= 0.0 && number <= MAX_SEQ as f64 && number.fract() == 0.0).then_some(number as u64);
        whole
    });
    whole.filter(|n| *n <= MAX_SEQ).map(Seq).ok_or(Malformed::Wrong { field: name, wanted: WANTED })
}

/// A boolean, `false` when absent.
pub(super) fn flag(raw: Option<&RawValue>, name: &'static str) -> Result<bool, Malformed> {
    optional(raw).map_or(Ok(false), |raw| field(raw, name, "true or false"))
}

/// Largest window of a connection.
pub(crate) const MAX_WINDOW: u32 = 65_536;

/// A window: how many messages.
pub(super) fn window(raw: &RawValue) -> Result<u32, Malformed> {
    let window = seq(raw, "window").ok().and_then(|Seq(window)| u32::try_from(window).ok());
    let window = window.filter(|window| (1..=MAX_WINDOW).contains(window));
    window.ok_or(Malformed::Wrong { field: "window", wanted: "a whole number from 1 to 65536" })
}

/// A time to live, in seconds on the wire; at least one millisecond.
pub(super) fn ttl(raw: &RawValue) -> Result<Duration, Malformed> {
    const WANTED: &str = "a number of seconds, at least 0.001";
    let seconds: f64 = field(raw, "ttl", WANTED)?;
    let ttl = Duration::try_from_secs_f64(seconds).ok().filter(|ttl| *ttl >= Duration::from_millis(1));
    ttl.ok_or(Malformed::Wrong { field: "ttl", wanted: WANTED })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn nesting_is_bounded_and_brackets_in_strings_do_not_count() {
        let nested = |depth: usize| format!("{}\"]{{\\\"[\"{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse::<&RawValue>(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(parse::<&RawValue>(&nested(MAX_DEPTH + 1)).unwrap_err(), Malformed::TooDeep);
        assert_eq!(parse::<&RawValue>(&"[".repeat(1 << 20)).unwrap_err(), Malformed::TooDeep);
    }

    #[test]
    fn an_unclosed_string_is_no_endless_loop() {
        assert!(matches!(parse::<&RawValue>(r#"{"a":"\"#), Err(Malformed::Json(_))));
    }

    #[test]
    fn only_an_object_is_an_object() {
        for text in ["[]", "null", "7", "\"{\""] {
            let error = parse_object::<&RawValue>(text, "{}").unwrap_err().to_string();
            assert_eq!(error, "not a JSON object; expected a JSON object like {}", "{text}");
        }
        for text in ["", " \n"] {
            let error = parse_object::<&RawValue>(text, "{}").unwrap_err().to_string();
            assert_eq!(error, "there is no text here; expected a JSON object like {}");
        }
        assert!(parse_object::<&RawValue>(" \n{}", "{}").is_ok());
    }

    #[test]
    fn null_means_absent_for_optional_and_required_fields() {
        let null = raw("null");
        assert!(optional(Some(&null)).is_none());
        assert_eq!(required(Some(&null), "seq").unwrap_err(), Malformed::Missing("seq"));
        assert_eq!(required(None, "seq").unwrap_err(), Malformed::Missing("seq"));
        assert!(!flag(Some(&null), "volatile").unwrap());
    }

    #[test]
    fn a_seq_is_a_whole_number_however_it_is_written() {
        for (text, number) in [("17", 17), ("17.0", 17), ("1.7e1", 17), ("9007199254740991", MAX_SEQ)] {
            assert_eq!(seq(&raw(text), "seq"), Ok(Seq(number)), "{text}");
        }
        for text in ["17.5", "-1", "-1.0", "9007199254740992", "1e300", "\"17\"", "null", "true"] {
            let error = seq(&raw(text), "seq").unwrap_err().to_string();
            assert_eq!(error, "field `seq` must be a whole number from 0 to 9007199254740991", "{text}");
        }
    }

    #[test]
    fn a_ttl_is_at_least_a_millisecond() {
        assert_eq!(ttl(&raw("1.5")), Ok(Duration::from_millis(1500)));
        assert_eq!(ttl(&raw("0.001")), Ok(Duration::from_millis(1)));
        for text in ["0", "0.0009", "-1", "\"1\"", "1e300"] {
            let error = ttl(&raw(text)).unwrap_err().to_string();
            assert_eq!(error, "field `ttl` must be a number of seconds, at least 0.001", "{text}");
        }
    }

    #[test]
    fn a_window_has_room_for_a_message() {
        assert_eq!([window(&raw("1")), window(&raw("65536"))], [Ok(1), Ok(MAX_WINDOW)]);
        for text in ["0", "65537", "-1", "1.5", "\"9\"", "true"] {
            let error = window(&raw(text)).unwrap_err().to_string();
            assert_eq!(error, "field `window` must be a whole number from 1 to 65536", "{text}");
        }
    }

    #[test]
    fn a_flag_is_a_boolean() {
        assert!(flag(Some(&raw("true")), "volatile").unwrap());
        let error = flag(Some(&raw("1")), "volatile").unwrap_err().to_string();
        assert_eq!(error, "field `volatile` must be true or false");
    }

    #[test]
    fn a_name_follows_the_rules_of_names() {
        let error = name(&raw("\"\""), "to.user", crate::message::UserId::new).unwrap_err().to_string();
        assert_eq!(error, "field `to.user` must not be empty");
        let error = name(&raw("7"), "to.user", crate::message::UserId::new).unwrap_err().to_string();
        assert_eq!(error, "field `to.user` must be a string");
    }
}
