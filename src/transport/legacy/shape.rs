//! The JSON shapes of today's x0 client, as recorded (`tests/fixtures/legacy/README.md`).

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::edge::{Query, encode};
use crate::message::{SenderName, Seq, SessionId};
use crate::protocol::{Malformed, parse_object, present};

/// Where a form send puts its data in the receiving page.
const FORM_OBJECT: &str = "FormlistExchangeData";

/// What the payload of a net event begins with.
const NET_EVENT: &str = "SYS__NET_EVENT-";

/// What an x0 client asks.
#[derive(Debug)]
pub(crate) enum LegacyRequest {
    /// Wait for messages; `None` for a page without a usable session.
    Poll { session: Option<SessionId>, ack: Option<Seq> },
    /// Send an object to another session.
    Send { from: Option<SessionId>, to: SessionId, payload: Box<RawValue> },
    /// Forget what was handed out.
    Del { session: Option<SessionId> },
}

/// Why a request was refused.
#[derive(Debug)]
pub(crate) enum LegacyError {
    /// No x0 client sends this.
    NotX0(String),
    /// A send that the x0 page is to show as failed.
    Send(String),
}

/// Which of the three addresses was used: the documented `/get` and `/set` imply their type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LegacyPath {
    Handler,
    Get,
    Set,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Fields<'a> {
    #[serde(borrow)]
    r#type: Option<&'a RawValue>,
    #[serde(borrow, deserialize_with = "present")]
    session_src: Option<&'a RawValue>,
    #[serde(borrow)]
    session_dst: Option<&'a RawValue>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(borrow)]
    ack: Option<&'a RawValue>,
    #[serde(borrow, rename = "RequestData")]
    request_data: Option<&'a RawValue>,
    #[serde(borrow, rename = "SessionData")]
    session_data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Form<'a> {
    #[serde(borrow, rename = "FormlistSelectDstUser")]
    select: Option<&'a RawValue>,
    #[serde(borrow, rename = "FormlistExchangeData")]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Select<'a> {
    #[serde(borrow, rename = "DstUserSession")]
    session: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct SessionData<'a> {
    #[serde(borrow, default, rename = "Value", deserialize_with = "present")]
    value: Option<&'a RawValue>,
}

/// What a form send becomes for its receiver: the keys of the recorded message, in their order.
#[derive(Serialize)]
struct SetData<'a> {
    #[serde(rename = "msg-type")]
    msg_type: &'static str,
    #[serde(rename = "method-id")]
    method_id: &'static str,
    #[serde(rename = "dst-object")]
    dst_object: &'static str,
    payload: &'a RawValue,
}

/// What makes the x0 client fire an event: `fire-events` works with any message type.
#[derive(Serialize)]
struct FireEvents<'a> {
    #[serde(rename = "msg-type")]
    msg_type: &'static str,
    #[serde(rename = "fire-events")]
    fire_events: [&'a str; 1],
}

fn text(raw: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(raw?.get()).ok()
}

fn receiver(raw: Option<&RawValue>, field: &str) -> Result<SessionId, LegacyError> {
    let told = |reason: &dyn fmt::Display| LegacyError::Send(format!("field `{field}` {reason}"));
    let name = text(raw).ok_or_else(|| told(&"must be the session id of the receiver, a string"))?;
    SessionId::new(&name).map_err(|reason| told(&reason))
}

/// The sender: a session id, or `null` from a page without a session.
fn sender(raw: Option<&RawValue>, field: &str) -> Result<Option<SessionId>, LegacyError> {
    match raw {
        Some(raw) if raw.get() == "null" => Ok(None),
        raw => receiver(raw, field).map(Some).map_err(|_| {
            LegacyError::Send(format!("field `{field}` must be the session id of the sender, a string"))
        }),
    }
}

fn object<'a>(raw: Option<&'a RawValue>, field: &str) -> Result<&'a RawValue, LegacyError> {
    raw.filter(|raw| raw.get().starts_with('{'))
        .ok_or_else(|| LegacyError::Send(format!("field `{field}` must be an object")))
}

fn raw(value: &impl Serialize) -> Box<RawValue> {
    RawValue::from_string(encode(value)).expect("what was just encoded is JSON")
}

/// Takes the body of a POST apart.
pub(crate) fn body(path: LegacyPath, body: &str) -> Result<LegacyRequest, LegacyError> {
    let fields: Fields<'_> = parse_object(body).map_err(|reason| match reason {
        // Deep nesting can only be a payload: the page is to show the failure.
        Malformed::TooDeep => LegacyError::Send(reason.to_string()),
        reason => LegacyError::NotX0(format!("the body must be a JSON object of an x0 client: {reason}")),
    })?;
    let kind = match fields.r#type {
        Some(kind) => text(Some(kind)),
        None if fields.request_data.is_some() => return form(&fields),
        None if path == LegacyPath::Get => Some("GET".to_owned()),
        None if path == LegacyPath::Set => Some("SET".to_owned()),
        None => None,
    };
    match kind.as_deref() {
        Some("GET") => Ok(LegacyRequest::Poll {
            // A poll is never refused: a page that is told anything but 200 stops polling for good.
            session: text(fields.session_src).and_then(|name| SessionId::new(&name).ok()),
            ack: fields.ack.and_then(|raw| serde_json::from_str(raw.get()).ok()).map(Seq),
        }),
        Some("SET") => Ok(LegacyRequest::Send {
            from: sender(fields.session_src, "session_src")?,
            to: receiver(fields.session_dst, "session_dst")?,
            payload: object(fields.payload, "payload")?.to_owned(),
        }),
        Some("DEL") => Ok(LegacyRequest::Del {
            session: text(fields.session_src).and_then(|name| SessionId::new(&name).ok()),
        }),
        _ => Err(LegacyError::NotX0("field `type` must be \"GET\", \"SET\" or \"DEL\"".to_owned())),
    }
}

/// The "Send Data" form: its data becomes a `set-data` message.
fn form(fields: &Fields<'_>) -> Result<LegacyRequest, LegacyError> {
    let request = object(fields.request_data, "RequestData")?;
    let told = |_| LegacyError::Send("field `RequestData` is not the form of an x0 client".to_owned());
    let form: Form<'_> = serde_json::from_str(request.get()).map_err(told)?;
    let select = object(form.select, "RequestData.FormlistSelectDstUser")?;
    let select: Select<'_> = serde_json::from_str(select.get()).map_err(told)?;
    let session = object(fields.session_data, "SessionData")?;
    let session: SessionData<'_> = serde_json::from_str(session.get()).map_err(|_| {
        LegacyError::Send("field `SessionData` must hold the session of the sender".to_owned())
    })?;
    let payload = SetData {
        msg_type: "net-message",
        method_id: "set-data",
        dst_object: FORM_OBJECT,
        payload: object(form.data, "RequestData.FormlistExchangeData")?,
    };
    Ok(LegacyRequest::Send {
        from: sender(session.value, "SessionData.Value")?,
        to: receiver(select.session, "RequestData.FormlistSelectDstUser.DstUserSession")?,
        payload: raw(&payload),
    })
}

/// Takes the query of a GET apart: the net event; `None` if it asks for nothing.
pub(crate) fn query(query: &Query) -> Option<Result<LegacyRequest, LegacyError>> {
    query.get("Type").map(|kind| net_event(kind, query))
}

fn net_event(kind: &str, query: &Query) -> Result<LegacyRequest, LegacyError> {
    let told = |text: String| LegacyError::Send(text);
    if kind != "SET" {
        return Err(LegacyError::NotX0("parameter `Type` must be SET; poll and send with POST".to_owned()));
    }
    let name = |key: &str| {
        let value = query.get(key).unwrap_or_default();
        SessionId::new(value).map_err(|reason| told(format!("parameter `{key}` {reason}")))
    };
    let event = query.get("Payload").and_then(|payload| payload.strip_prefix(NET_EVENT));
    let event = event.filter(|event| !event.is_empty());
    let event =
        event.ok_or_else(|| told(format!("parameter `Payload` must be {NET_EVENT} and the event")))?;
    Ok(LegacyRequest::Send {
        from: query.get("SYS_SESSION").map(|_| name("SYS_SESSION")).transpose()?,
        to: name("DestinationSession")?,
        payload: raw(&FireEvents { msg_type: "net-message", fire_events: [event] }),
    })
}

/// The members of an object, each key and value as it stands.
struct Members<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AllMembers;
        impl<'de> Visitor<'de> for AllMembers {
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
        deserializer.deserialize_map(AllMembers)
    }
}

/// The object an x0 page gets for a payload: the payload with `session_src` set to the sender, whatever the
/// payload said. Everything else stays byte for byte. A payload that is no object stands in a field of one.
pub(crate) fn with_sender(payload: &str, from: Option<&SenderName>) -> String {
    let from = encode(&from);
    let Ok(Members(members)) = serde_json::from_str(payload) else {
        return format!(r#"{{"payload":{payload},"session_src":{from}}}"#);
    };
    let mut object = String::with_capacity(payload.len() + from.len() + 20);
    let mut set = false;
    for (key, value) in members {
        let is_sender = text(Some(key)).as_deref() == Some("session_src");
        if is_sender && set {
            continue;
        }
        set |= is_sender;
        object.push(if object.is_empty() { '{' } else { ',' });
        object.push_str(key.get());
        object.push(':');
        object.push_str(if is_sender { &from } else { value.get() });
    }
    if !set {
        object.push(if object.is_empty() { '{' } else { ',' });
        object.push_str("\"session_src\":");
        object.push_str(&from);
    }
    object.push('}');
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_is_set_whatever_the_payload_says() {
        let sender = SenderName::new("A\"").unwrap();
        let set = |payload| with_sender(payload, Some(&sender));
        assert_eq!(set(r#"{"a":1e400,"b":"\ud800"}"#), r#"{"a":1e400,"b":"\ud800","session_src":"A\""}"#);
        assert_eq!(set("{}"), r#"{"session_src":"A\""}"#);
        assert_eq!(set(r#"{"session_src":"evil","a":1}"#), r#"{"session_src":"A\"","a":1}"#);
        assert_eq!(
            set(r#"{"\u0073ession_src":"x","a":1,"session_src":2}"#),
            r#"{"\u0073ession_src":"A\"","a":1}"#
        );
        assert_eq!(set(" [1, 2]"), r#"{"payload": [1, 2],"session_src":"A\""}"#);
        assert_eq!(with_sender("{\"\\ud800\":1}", None), "{\"\\ud800\":1,\"session_src\":null}");
    }
}
