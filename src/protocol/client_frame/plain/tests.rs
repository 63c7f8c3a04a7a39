use super::*;

/// What is decoded here is what the parser decodes. Returns whether it is.
fn is_plain(text: &str) -> bool {
    let (plain, parsed) = (frame(text), ClientFrame::parse(text));
    if let Some(plain) = &plain {
        assert_eq!(format!("{plain:?}"), format!("{:?}", parsed.as_ref().unwrap()), "{text}");
    }
    if let Some(plain) = send(text) {
        assert_eq!(format!("{plain:?}"), format!("{:?}", SendRequest::parse(text).unwrap()), "{text}");
    }
    plain.is_some()
}

const PLAIN: [&str; 14] = [
    r#"{"type":"send","id":"c-1","to":{"session":"B"},"payload":{"a":[1,"]}"]},"receipt":false,"volatile":true}"#,
    r#"{"type": "send", "id": "c-1", "to": {"user": "ann"}, "payload": {"a": 1}, "request": true}"#,
    r#"{"payload":"}\"","to":{"topic":"news"},"type":"send"}"#,
    r#"{"type":"send","to":{"backend":"shop"},"payload":1}"#,
    r#"{"type":"send","to":{"session":"é"},"payload":-1.5e7,"seq":1,"token":"t"}"#,
    r#"{"type":"send","to":{"session":"B"},"payload":null}"#,
    r#"{"type":"send","to":{"session":"B"},"payload": [ ]}"#,
    r#"{"type":"ack","seq":0}"#,
    r#"{"type": "ack", "seq": 17}"#,
    r#"{"seq":9007199254740991,"type":"ack"}"#,
    r#"{"type":"hello","session":"A"}"#,
    r#"{"type":"hello","session":"A","token":"x.y.z","after":17,"epoch":"e1","window":256}"#,
    r#"{"type":"hello","token":""}"#,
    r#"{"type":"hello"}"#,
];

const LEFT_TO_THE_PARSER: [&str; 40] = [
    "",
    "{}",
    "[]",
    r#"{"type":"ping"}"#,
    r#"{"type":"subscribe","topic":"news"}"#,
    r#"{"type":"ack"}"#,
    r#"{"type":"ack","seq":1} "#,
    r#"{"type":"ack","seq":1}}"#,
    r#" {"type":"ack","seq":1}"#,
    r#"{"type":"ack","seq":1"#,
    r#"{"type":"ack","seq":"#,
    r#"{"type":"ack","seq":1,}"#,
    r#"{"type":"ack","seq":1,"seq":1}"#,
    r#"{"type":"ack","seq":1,"other":1}"#,
    r#"{"type":"ack","seq":01}"#,
    r#"{"type":"ack","seq":1.0}"#,
    r#"{"type":"ack","seq":1e1}"#,
    r#"{"type":"ack","seq":-1}"#,
    r#"{"type":"ack","seq":9007199254740992}"#,
    r#"{"type":"ack","seq":null}"#,
    r#"{"type":"ack","seq":"1"}"#,
    r#"{"type":"ac\u006b","seq":1}"#,
    r#"{"type":"ack" ,"seq":1}"#,
    r#"{"type":"hello","window":0}"#,
    r#"{"type":"hello","window":65537}"#,
    r#"{"type":"hello","session":""}"#,
    r#"{"type":"hello","session":null}"#,
    r#"{"type":"hello","session":"a\nb"}"#,
    "{\"type\":\"hello\",\"session\":\"a\nb\"}",
    r#"{"type":"send","to":{"session":"B"}}"#,
    r#"{"type":"send","payload":1}"#,
    r#"{"type":"send","to":{"session":"B","user":"ann"},"payload":1}"#,
    r#"{"type":"send","to":{"reply":"r"},"payload":1}"#,
    r#"{"type":"send","to":{},"payload":1}"#,
    r#"{"type":"send","to":{"session":"B"},"payload":1,"ttl":1}"#,
    r#"{"type":"send","to":{"session":"B"},"payload":01}"#,
    r#"{"type":"send","to":{"session":"B"},"payload":{"a":}}"#,
    r#"{"type":"send","to":{"session":"B"},"payload":1 2}"#,
    r#"{"type":"send","to":{"session":"B"},"payload":1,"volatile":falsee}"#,
    r#"{"type":"send","to":{"session":"B"},"payload":"a"b"}"#,
];

#[test]
fn plain_frames_are_decoded_as_the_parser_does_and_others_are_left_to_it() {
    PLAIN.iter().for_each(|text| assert!(is_plain(text), "{text}"));
    LEFT_TO_THE_PARSER.iter().for_each(|text| assert!(!is_plain(text), "{text}"));
    assert!(matches!(frame(PLAIN[9]), Some(ClientFrame::Ack(Seq(MAX_SEQ)))));
}

/// Each byte of a plain frame in turn is left out, or is another one, or comes twice.
#[test]
fn frames_that_are_almost_plain_are_decoded_as_the_parser_does() {
    let (mut plain, mut all) = (0, 0);
    for text in PLAIN.iter().chain(&LEFT_TO_THE_PARSER) {
        for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
            let (before, behind) = text.split_at(at);
            let rest = behind.char_indices().nth(1).map_or("", |(next, _)| &behind[next..]);
            for other in
                ["", " ", "\"", "\\", "0", "1", ".", ",", ":", "{", "}", "]", "a", "\n", "\u{1}", "é"]
            {
                for changed in [format!("{before}{other}{rest}"), format!("{before}{other}{behind}")] {
                    all += 1;
                    plain += usize::from(is_plain(&changed));
                }
            }
        }
    }
    assert!(plain > 1000 && plain < all / 2, "{plain} of {all}");
}

#[test]
fn what_is_nested_too_deep_is_left_to_the_parser() {
    let nested = |depth: usize| {
        let payload = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        format!(r#"{{"type":"send","to":{{"session":"B"}},"payload":{payload}}}"#)
    };
    assert!(is_plain(&nested(100)) && !is_plain(&nested(128)));
}
