//! The requests of today's x0 client, as recorded (`tests/fixtures/legacy/README.md`).

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::edge::{Query, encode};
use crate::message::{Seq, SessionId};
use crate::protocol::{Malformed, parse_object, present};

/// The object of the receiving page that gets the data of a form.
const FORM_OBJECT: &str = "FormlistExchangeData";

/// The prefix of a net event in parameter `Payload`.
const NET_EVENT: &str = "SYS__NET_EVENT-";

/// A request of an x0 client.
#[derive(Debug)]
pub(crate) enum LegacyRequest {
    /// Wait for messages. A page without a valid session gets none.
    Poll { session: Option<SessionId>, ack: Option<Seq> },
    /// Send an object to a session.
    Send { from: Option<SessionId>, to: SessionId, payload: Box<RawValue> },
    /// Acknowledge everything that the session was answered with.
    Del { session: Option<SessionId> },
}

/// Why a request is refused.
#[derive(Debug)]
pub(crate) enum LegacyError {
    /// No x0 client sends this request.
    NotX0(String),
    /// An invalid send. The x0 page shows the failure.
    Send(String),
}

/// The path of a request. The documented `/get` and `/set` imply a `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LegacyPath {
    Handler,
    Get,
    Set,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawRequest<'a> {
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
struct RawForm<'a> {
    #[serde(borrow, rename = "FormlistSelectDstUser")]
    receiver: Option<&'a RawValue>,
    #[serde(borrow, rename = "FormlistExchangeData")]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawReceiver<'a> {
    #[serde(borrow, rename = "DstUserSession")]
    session: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawSender<'a> {
    #[serde(borrow, default, rename = "Value", deserialize_with = "present")]
    value: Option<&'a RawValue>,
}

/// What the receiver of a form gets. The keys have the order of the recorded message.
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

/// What makes the x0 client fire an event. `fire-events` works with any message type.
#[derive(Serialize)]
struct FireEvents<'a> {
    #[serde(rename = "msg-type")]
    msg_type: &'static str,
    #[serde(rename = "fire-events")]
    fire_events: [&'a str; 1],
}

fn string(raw: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(raw?.get()).ok()
}

/// The failure of a send because of one field.
fn invalid(field: &str, reason: impl fmt::Display) -> LegacyError {
    LegacyError::Send(format!("field `{field}` {reason}"))
}

fn receiver(raw: Option<&RawValue>, field: &str) -> Result<SessionId, LegacyError> {
    let name =
        string(raw).ok_or_else(|| invalid(field, "must be the session id of the receiver, a string"))?;
    SessionId::new(&name).map_err(|reason| invalid(field, reason))
}

/// The sender: a session id, or `null` from a page without a session.
fn sender(raw: Option<&RawValue>, field: &str) -> Result<Option<SessionId>, LegacyError> {
    if raw.is_some_and(|raw| raw.get() == "null") {
        return Ok(None);
    }
    let session = string(raw).and_then(|name| SessionId::new(&name).ok());
    session.ok_or_else(|| invalid(field, "must be the session id of the sender, a string")).map(Some)
}

fn object<'a>(raw: Option<&'a RawValue>, field: &str) -> Result<&'a RawValue, LegacyError> {
    raw.filter(|raw| raw.get().starts_with('{')).ok_or_else(|| invalid(field, "must be an object"))
}

/// The session of a poll. A poll is never refused: after anything but a 200 the page stops polling.
fn polled_session(raw: Option<&RawValue>) -> Option<SessionId> {
    string(raw).and_then(|name| SessionId::new(&name).ok())
}

fn raw(value: &impl Serialize) -> Box<RawValue> {
    RawValue::from_string(encode(value)).expect("what was just encoded is JSON")
}

/// Parses the body of a POST.
///
/// # Errors
/// [`LegacyError::Send`] for a send, and for JSON that is nested too deep: only a payload can be. Otherwise
/// [`LegacyError::NotX0`].
pub(crate) fn body(path: LegacyPath, body: &str) -> Result<LegacyRequest, LegacyError> {
    const EXAMPLE: &str = r#"{"type":"GET","session_src":"A"}"#;
    let request: RawRequest<'_> = parse_object(body, EXAMPLE).map_err(|reason| match reason {
        Malformed::TooDeep => LegacyError::Send(reason.to_string()),
        reason => LegacyError::NotX0(format!("the body is not that of an x0 client: {reason}")),
    })?;
    let kind = match (request.r#type, path) {
        (Some(kind), _) => string(Some(kind)),
        (None, _) if request.request_data.is_some() => return form(&request),
        (None, LegacyPath::Get) => Some("GET".to_owned()),
        (None, LegacyPath::Set) => Some("SET".to_owned()),
        (None, LegacyPath::Handler) => None,
    };
    match kind.as_deref() {
        Some("GET") => Ok(LegacyRequest::Poll {
            session: polled_session(request.session_src),
            ack: request.ack.and_then(|raw| serde_json::from_str(raw.get()).ok()).map(Seq),
        }),
        Some("SET") => Ok(LegacyRequest::Send {
            from: sender(request.session_src, "session_src")?,
            to: receiver(request.session_dst, "session_dst")?,
            payload: object(request.payload, "payload")?.to_owned(),
        }),
        Some("DEL") => Ok(LegacyRequest::Del { session: polled_session(request.session_src) }),
        _ => Err(LegacyError::NotX0("field `type` must be \"GET\", \"SET\" or \"DEL\"".to_owned())),
    }
}

/// Parses a "Send Data" form. Its data becomes a `set-data` message.
fn form(request: &RawRequest<'_>) -> Result<LegacyRequest, LegacyError> {
    let not_a_form = |_| invalid("RequestData", "is not the form of an x0 client");
    let form = object(request.request_data, "RequestData")?;
    let form: RawForm<'_> = serde_json::from_str(form.get()).map_err(not_a_form)?;
    let to = object(form.receiver, "RequestData.FormlistSelectDstUser")?;
    let to: RawReceiver<'_> = serde_json::from_str(to.get()).map_err(not_a_form)?;
    let from = object(request.session_data, "SessionData")?;
    let from: RawSender<'_> = serde_json::from_str(from.get())
        .map_err(|_| invalid("SessionData", "must hold the session of the sender"))?;
    let payload = SetData {
        msg_type: "net-message",
        method_id: "set-data",
        dst_object: FORM_OBJECT,
        payload: object(form.data, "RequestData.FormlistExchangeData")?,
    };
    Ok(LegacyRequest::Send {
        from: sender(from.value, "SessionData.Value")?,
        to: receiver(to.session, "RequestData.FormlistSelectDstUser.DstUserSession")?,
        payload: raw(&payload),
    })
}

/// Parses the query of a GET, which is a net event. `None` without parameter `Type`: such a request needs no action.
///
/// # Errors
/// [`LegacyError::NotX0`] for another `Type` than SET, [`LegacyError::Send`] for another wrong parameter.
pub(crate) fn query(query: &Query) -> Option<Result<LegacyRequest, LegacyError>> {
    query.get("Type").map(|kind| net_event(kind, query))
}

fn net_event(kind: &str, query: &Query) -> Result<LegacyRequest, LegacyError> {
    if kind != "SET" {
        return Err(LegacyError::NotX0("parameter `Type` must be SET; poll and send with POST".to_owned()));
    }
    let session = |key: &str| {
        let value = query.get(key).unwrap_or_default();
        SessionId::new(value).map_err(|reason| LegacyError::Send(format!("parameter `{key}` {reason}")))
    };
    let event = query.get("Payload").and_then(|payload| payload.strip_prefix(NET_EVENT));
    let event = event
        .filter(|event| !event.is_empty())
        .ok_or_else(|| LegacyError::Send(format!("parameter `Payload` must be {NET_EVENT} and the event")))?;
    Ok(LegacyRequest::Send {
        from: query.get("SYS_SESSION").map(|_| session("SYS_SESSION")).transpose()?,
        to: session("DestinationSession")?,
        payload: raw(&FireEvents { msg_type: "net-message", fire_events: [event] }),
    })
}

#[cfg(test)]
mod tests {
    use axum::http::Uri;
    use serde_json::json;

    use super::*;

    fn parse(path: LegacyPath, request: &serde_json::Value) -> Result<LegacyRequest, LegacyError> {
        body(path, &request.to_string())
    }

    /// Sender, receiver and payload of a send.
    fn sent(request: Result<LegacyRequest, LegacyError>) -> (Option<String>, String, String) {
        let Ok(LegacyRequest::Send { from, to, payload }) = request else { panic!("{request:?}") };
        (from.map(|from| from.to_string()), to.to_string(), payload.get().to_owned())
    }

    fn failed(request: Result<LegacyRequest, LegacyError>) -> String {
        let Err(LegacyError::Send(text)) = request else { panic!("{request:?}") };
        text
    }

    fn not_x0(request: Result<LegacyRequest, LegacyError>) -> String {
        let Err(LegacyError::NotX0(text)) = request else { panic!("{request:?}") };
        text
    }

    fn form(from: &serde_json::Value, to: &serde_json::Value) -> serde_json::Value {
        json!({
            "RequestData": { "FormlistSelectDstUser": to, "FormlistExchangeData": { "a": 1 } },
            "SessionData": from,
        })
    }

    fn get(text: &str) -> Option<Result<LegacyRequest, LegacyError>> {
        query(&Query::parse(&format!("/get?{text}").parse::<Uri>().unwrap()).unwrap())
    }

    #[test]
    fn a_poll_is_never_refused() {
        for (session_src, session) in
            [(json!("A"), Some("A")), (json!(null), None), (json!(7), None), (json!(""), None)]
        {
            let request = json!({ "type": "GET", "session_src": session_src, "ack": "x" });
            let Ok(LegacyRequest::Poll { session: parsed, ack: None }) = parse(LegacyPath::Handler, &request)
            else {
                panic!("not a poll: {request}")
            };
            assert_eq!(parsed.as_ref().map(SessionId::as_str), session, "{request}");
        }
    }

    #[test]
    fn a_poll_may_acknowledge() {
        let request = json!({ "type": "GET", "session_src": "A", "ack": 17 });
        let Ok(LegacyRequest::Poll { ack, .. }) = parse(LegacyPath::Handler, &request) else { panic!() };
        assert_eq!(ack, Some(Seq(17)));
    }

    #[test]
    fn the_path_implies_the_type_and_a_type_wins() {
        let untyped = json!({ "session_src": "A", "session_dst": "B", "payload": {} });
        assert!(matches!(parse(LegacyPath::Get, &untyped), Ok(LegacyRequest::Poll { .. })));
        assert!(matches!(parse(LegacyPath::Set, &untyped), Ok(LegacyRequest::Send { .. })));
        assert!(not_x0(parse(LegacyPath::Handler, &untyped)).contains("`type`"));
        let delete = json!({ "type": "DEL", "session_src": "A" });
        assert!(matches!(parse(LegacyPath::Set, &delete), Ok(LegacyRequest::Del { session: Some(_) })));
    }

    #[test]
    fn a_send_names_its_receiver_and_its_sender_or_null() {
        let send = |from: serde_json::Value, to: serde_json::Value| {
            let request =
                json!({ "type": "SET", "session_src": from, "session_dst": to, "payload": { "a": 1 } });
            parse(LegacyPath::Handler, &request)
        };
        let payload = r#"{"a":1}"#.to_owned();
        assert_eq!(sent(send(json!("A"), json!("B"))), (Some("A".into()), "B".into(), payload.clone()));
        assert_eq!(sent(send(json!(null), json!("B"))), (None, "B".into(), payload));
        assert!(failed(send(json!(7), json!("B"))).starts_with("field `session_src` must be"));
        assert!(failed(send(json!("A"), json!(null))).starts_with("field `session_dst` must be"));
        assert_eq!(failed(send(json!("A"), json!(""))), "field `session_dst` must not be empty");
        let missing = json!({ "type": "SET", "session_dst": "B", "payload": {} });
        assert!(failed(parse(LegacyPath::Handler, &missing)).starts_with("field `session_src` must be"));
    }

    #[test]
    fn the_payload_of_a_send_is_an_object() {
        for payload in [json!([1]), json!("x"), json!(null)] {
            let request =
                json!({ "type": "SET", "session_src": "A", "session_dst": "B", "payload": payload });
            assert_eq!(failed(parse(LegacyPath::Handler, &request)), "field `payload` must be an object");
        }
    }

    #[test]
    fn the_data_of_a_form_becomes_a_set_data_message() {
        let request = form(&json!({ "Value": "A" }), &json!({ "DstUserSession": "B" }));
        let payload = r#"{"msg-type":"net-message","method-id":"set-data","dst-object":"FormlistExchangeData","payload":{"a":1}}"#;
        assert_eq!(
            sent(parse(LegacyPath::Handler, &request)),
            (Some("A".into()), "B".into(), payload.into())
        );
        let anonymous = form(&json!({ "Value": null }), &json!({ "DstUserSession": "B" }));
        assert_eq!(sent(parse(LegacyPath::Handler, &anonymous)).0, None);
    }

    #[test]
    fn a_wrong_form_names_the_field() {
        for (request, field) in [
            (form(&json!({ "Value": "A" }), &json!(7)), "RequestData.FormlistSelectDstUser"),
            (form(&json!({ "Value": "A" }), &json!({})), "RequestData.FormlistSelectDstUser.DstUserSession"),
            (form(&json!({}), &json!({ "DstUserSession": "B" })), "SessionData.Value"),
            (form(&json!(7), &json!({ "DstUserSession": "B" })), "SessionData"),
            (json!({ "RequestData": [] }), "RequestData"),
        ] {
            let text = failed(parse(LegacyPath::Handler, &request));
            assert!(text.starts_with(&format!("field `{field}` ")), "{text}");
        }
    }

    #[test]
    fn only_a_payload_can_be_nested_too_deep() {
        let deep = format!(r#"{{"payload":{}{}}}"#, "[".repeat(200), "]".repeat(200));
        assert!(failed(body(LegacyPath::Set, &deep)).contains("nested"));
        for text in ["", "[]", "7", "{"] {
            assert!(
                not_x0(body(LegacyPath::Get, text)).starts_with("the body is not that of an x0 client: "),
                "{text}"
            );
        }
    }

    #[test]
    fn a_net_event_comes_in_the_query() {
        let event = "Type=SET&DestinationSession=B&Payload=SYS__NET_EVENT-Saved";
        let payload = r#"{"msg-type":"net-message","fire-events":["Saved"]}"#;
        assert_eq!(sent(get(event).unwrap()), (None, "B".into(), payload.into()));
        assert_eq!(sent(get(&format!("{event}&SYS_SESSION=A")).unwrap()).0, Some("A".into()));
        assert!(get("a__=1").is_none(), "a request without a type needs no action");
    }

    #[test]
    fn a_wrong_net_event_names_the_parameter() {
        assert!(not_x0(get("Type=GET").unwrap()).contains("`Type`"));
        for (text, parameter) in [
            ("Type=SET&Payload=SYS__NET_EVENT-E", "DestinationSession"),
            ("Type=SET&DestinationSession=B", "Payload"),
            ("Type=SET&DestinationSession=B&Payload=SYS__NET_EVENT-", "Payload"),
            ("Type=SET&DestinationSession=B&Payload=E", "Payload"),
            ("Type=SET&DestinationSession=B&Payload=SYS__NET_EVENT-E&SYS_SESSION=", "SYS_SESSION"),
        ] {
            assert!(failed(get(text).unwrap()).starts_with(&format!("parameter `{parameter}` ")), "{text}");
        }
    }
}
