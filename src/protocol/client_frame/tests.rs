use super::*;
use crate::protocol::client_frame::reply_to::MAX_REPLY_TO;
use crate::protocol::json::MAX_DEPTH;

fn decode(frame: &str) -> ClientFrame {
    ClientFrame::decode(frame).unwrap()
}

fn reason(frame: &str) -> String {
    ClientFrame::decode(frame).unwrap_err().reason.to_string()
}

#[test]
fn a_send_keeps_its_payload_byte_for_byte() {
    let frame = "{\"type\":\"send\",\"id\":\"c-42\",\"to\":{\"session\":\"B\"},\
                 \"payload\":{ \"n\" : 1e400, \"s\":\"\\ud800\" },\"ttl\":1.5,\"extra\":[]}";
    let ClientFrame::Send(send) = decode(frame) else { panic!("not a send") };
    assert_eq!(send.payload.get(), "{ \"n\" : 1e400, \"s\":\"\\ud800\" }");
    assert_eq!(send.ttl, Some(Duration::from_millis(1500)));
    assert_eq!(send.to, To::Session(SessionId::new("B").unwrap()));
    assert!(!send.volatile && !send.receipt);
}

#[test]
fn a_request_is_a_send_and_its_answer_goes_to_its_reply_to() {
    let text = r#"{"type":"send","id":"c-1","to":{"user":"ann"},"payload":1,"request":true}"#;
    let ClientFrame::Send(send) = decode(text) else { panic!("not a send") };
    assert!(send.request && send.id.is_some());
    let reply = |reply_to: &str| format!(r#"{{"type":"send","to":{{"reply":{reply_to}}},"payload":1}}"#);
    let ClientFrame::Send(send) = decode(&reply("\"abc\"")) else { panic!("not a send") };
    assert_eq!((send.to, send.request), (To::Reply(ReplyTo::new("abc".to_owned()).unwrap()), false));
    let (long, longest) = ("x".repeat(MAX_REPLY_TO + 1), "x".repeat(MAX_REPLY_TO));
    for wrong in ["\"\"", "7", "\"a b\"", "\"ä\"", &format!("\"{long}\"")] {
        assert_eq!(reason(&reply(wrong)), "field `to.reply` must be the `reply_to` of a request");
    }
    decode(&reply(&format!("\"{longest}\"")));
}

#[test]
fn a_null_payload_is_a_payload() {
    let ClientFrame::Send(send) = decode(r#"{"type":"send","to":{"topic":"t"},"payload":null}"#) else {
        panic!("not a send")
    };
    assert_eq!(send.payload.get(), "null");
    assert_eq!(send.to, To::Topic(TopicName::new("t").unwrap()));
}

#[test]
fn a_hello_brings_session_token_and_position() {
    let frame = r#"{"type":"hello","session":"A","token":"t","after":17,"epoch":"e1"}"#;
    let ClientFrame::Hello { session, token, resume, .. } = decode(frame) else { panic!("not a hello") };
    assert_eq!((session.unwrap().as_str(), token.as_deref()), ("A", Some("t")));
    assert_eq!(resume, Resume { after: Some(Seq(17)), epoch: Some(Epoch::new("e1")) });
    let ClientFrame::Hello { session, token, resume, .. } = decode(r#"{"type":"hello","session":null}"#)
    else {
        panic!("not a hello")
    };
    assert!(session.is_none() && token.is_none());
    assert_eq!(resume, Resume::default());
}

#[test]
fn topics_are_subscribed_to_from_a_position() {
    let frame = r#"{"type":"subscribe","topic":"news","after":0}"#;
    let ClientFrame::Subscribe { topic, resume, presence } = decode(frame) else { panic!("not a subscribe") };
    assert_eq!((topic.as_str(), resume.after, presence), ("news", Some(Seq::START), false));
    let frame = r#"{"type":"subscribe","topic":"news","presence":true}"#;
    assert!(matches!(decode(frame), ClientFrame::Subscribe { presence: true, .. }));
    assert!(matches!(decode(r#"{"type":"unsubscribe","topic":"news"}"#), ClientFrame::Unsubscribe(_)));
    assert_eq!(reason(r#"{"type":"subscribe"}"#), "field `topic` is missing");
}

#[test]
fn errors_name_the_field_and_the_cure() {
    assert!(reason("{").starts_with("not the JSON expected here: EOF"));
    assert_eq!(reason("[]"), r#"not a JSON object; expected a JSON object like {"type":"ping"}"#);
    assert!(AckBody::decode("").unwrap_err().to_string().contains(r#"like {"session":"A","seq":17}"#));
    assert!(SessionBody::decode("7").unwrap_err().to_string().contains(r#"like {"user":"ann","ttl":3600}"#));
    assert_eq!(reason("{}"), "field `type` is missing");
    assert_eq!(reason(r#"{"type":7}"#), "field `type` must be a string");
    assert!(reason(r#"{"type":"bye"}"#).contains("unknown type `bye`"));
    assert_eq!(reason(r#"{"type":"send","to":{"session":"B"}}"#), "field `payload` is missing");
    let ttl = r#"{"type":"send","to":{"session":"B"},"payload":1,"ttl":0}"#;
    assert_eq!(reason(ttl), "field `ttl` must be a number of seconds, at least 0.001");
    let ack = r#"{"type":"ack","seq":-1}"#;
    assert_eq!(reason(ack), "field `seq` must be a whole number from 0 to 9007199254740991");
}

#[test]
fn a_send_has_exactly_one_receiver() {
    for to in [r#"{"session":"B","topic":"x"}"#, "{}", r#""B""#, r#"{"session":null}"#] {
        let frame = format!(r#"{{"type":"send","to":{to},"payload":1}}"#);
        assert!(reason(&frame).contains("one of"), "{to}");
    }
    assert_eq!(
        reason(r#"{"type":"send","to":{"session":""},"payload":1}"#),
        "field `to.session` must not be empty"
    );
    assert_eq!(reason(r#"{"type":"send","payload":1}"#), "field `to` is missing");
}

#[test]
fn an_unknown_type_is_repeated_in_part() {
    let kind = "ä".repeat(100);
    let text = reason(&format!(r#"{{"type":"{kind}"}}"#));
    assert!(text.contains(&"ä".repeat(64)) && !text.contains(&"ä".repeat(65)), "{text}");
}

#[test]
fn a_refused_frame_keeps_its_id() {
    let bad = ClientFrame::decode(r#"{"type":"send","id":"c-1"}"#).unwrap_err();
    assert_eq!(bad.id.unwrap().as_str(), "c-1");
    let bad = ClientFrame::decode(r#"{"type":"send","id":7}"#).unwrap_err();
    assert!(bad.id.is_none());
}

#[test]
fn the_payload_may_be_nested_as_deep_as_the_frame_allows() {
    let nested = |n: usize| {
        let (open, close) = ("[".repeat(n), "]".repeat(n));
        format!(r#"{{"type":"send","to":{{"session":"B"}},"payload":{open}"]{{\""{close}}}"#)
    };
    assert!(ClientFrame::decode(&nested(30)).is_ok());
    assert!(ClientFrame::decode(&nested(MAX_DEPTH - 1)).is_ok());
    assert_eq!(reason(&nested(MAX_DEPTH)), Malformed::TooDeep.to_string());
    assert_eq!(reason(&nested(10_000)), Malformed::TooDeep.to_string());
}

#[test]
fn a_send_object_of_http_needs_no_type() {
    let send = SendRequest::decode(r#"{"to":{"user":"u"},"payload":1,"volatile":true}"#).unwrap();
    assert_eq!(send.to, To::User(UserId::new("u").unwrap()));
    assert!(send.volatile);
    let bad = SendRequest::decode(r#"{"id":"c-1","to":{"user":"u"}}"#).unwrap_err();
    assert_eq!(
        (bad.id.unwrap().as_str(), bad.reason.to_string()),
        ("c-1", "field `payload` is missing".to_owned())
    );
}

#[test]
fn an_ack_body_needs_a_seq() {
    let ack = AckBody::decode(r#"{"session":"A","seq":17,"epoch":"e"}"#).unwrap();
    assert_eq!((ack.session.unwrap().as_str(), ack.seq, ack.epoch), ("A", Seq(17), Some(Epoch::new("e"))));
    assert_eq!(AckBody::decode("{}").unwrap_err(), Malformed::Missing("seq"));
}

#[test]
fn a_session_body_may_be_empty() {
    for body in ["", " \n", "{}"] {
        let body = SessionBody::decode(body).unwrap();
        assert!(body.user.is_none() && body.ttl.is_none());
    }
    let body = SessionBody::decode(r#"{"user":"u","ttl":60}"#).unwrap();
    assert_eq!((body.user.unwrap().as_str(), body.ttl), ("u", Some(Duration::from_secs(60))));
    assert!(SessionBody::decode("7").is_err());
}
