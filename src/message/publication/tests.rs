use serde_json::value::RawValue;

use super::*;
use crate::budget::{Budget, Holder};
use crate::message::{MessageId, Outcome, SessionId, TopicName};

fn message(from: Option<&str>, payload: &str) -> Message {
    Message {
        kind: Kind::Message,
        from: from.map(|name| SenderName::new(name).unwrap()),
        payload: RawValue::from_string(payload.to_owned()).unwrap(),
        ts: 1_763_886_000_000,
        reference: None,
    }
}

#[test]
fn the_frame_is_the_wire_format_and_the_payload_a_slice_of_it() {
    let mailbox = Address::Session(SessionId::new("A").unwrap());
    let publication = Publication::encode(&mailbox, Some(Seq(18)), &message(Some("B"), r#"{ "a":1e400 }"#));
    assert_eq!(
        publication.frame().as_str(),
        r#"{"type":"message","seq":18,"from":"B","ts":1763886000000,"payload":{ "a":1e400 }}"#
    );
    assert_eq!(publication.payload(), r#"{ "a":1e400 }"#);
}

#[test]
fn volatile_topic_messages_name_the_topic_and_have_no_seq() {
    let topic = Address::Topic(TopicName::new("né\"ws").unwrap());
    let publication = Publication::encode(&topic, None, &message(None, "7"));
    assert_eq!(
        publication.frame().as_str(),
        r#"{"type":"message","topic":"né\"ws","ts":1763886000000,"payload":7}"#
    );
}

#[test]
fn a_message_of_a_backend_says_so() {
    let mailbox = Address::Session(SessionId::new("A").unwrap());
    for (from, fields) in [(Some("ann"), r#""from":"ann","backend":true"#), (None, r#""backend":true"#)] {
        let sent = Message { kind: Kind::FromBackend, ..message(from, "7") };
        let publication = Publication::encode(&mailbox, Some(Seq(18)), &sent);
        let frame = format!(r#"{{"type":"message","seq":18,{fields},"ts":1763886000000,"payload":7}}"#);
        assert_eq!((publication.frame().as_str(), publication.payload()), (frame.as_str(), "7"));
    }
}

#[test]
fn a_receipt_is_a_frame_of_its_own() {
    let mailbox = Address::Session(SessionId::new("A").unwrap());
    let id = MessageId::new("c-42").unwrap();
    let receipt = Message::receipt(&id, Outcome::Expired, 7);
    let publication = Publication::encode(&mailbox, Some(Seq(18)), &receipt);
    let frame = r#"{"type":"receipt","seq":18,"ts":7,"id":"c-42","state":"expired"}"#;
    assert_eq!((publication.frame().as_str(), publication.payload()), (frame, ""));
    assert_eq!(publication.stored_payload(), receipt.payload.get());
}

#[test]
fn a_request_says_where_its_answer_goes_and_a_reply_what_it_answers() {
    let mailbox = Address::Session(SessionId::new("A").unwrap());
    for (kind, text) in [
        (
            Kind::Request { backend: false },
            r#""from":"B","ts":1763886000000,"reply_to":"ab\"c","payload":[1, 2]}"#,
        ),
        (
            Kind::Request { backend: true },
            r#""from":"B","backend":true,"ts":1763886000000,"reply_to":"ab\"c","payload":[1, 2]}"#,
        ),
        (Kind::Reply { backend: false }, r#""from":"B","ts":1763886000000,"id":"ab\"c","payload":[1, 2]}"#),
    ] {
        let sent = Message { kind, reference: Some("ab\"c".into()), ..message(Some("B"), "[1, 2]") };
        let frame_type = if matches!(kind, Kind::Reply { .. }) { "reply" } else { "message" };
        for (seq, field) in [(Some(Seq(18)), "\"seq\":18,"), (None, "")] {
            let publication = Publication::encode(&mailbox, seq, &sent);
            assert_eq!(publication.frame().as_str(), format!("{{\"type\":\"{frame_type}\",{field}{text}"));
            assert_eq!((publication.payload(), publication.kind()), ("[1, 2]", kind));
            let name = if matches!(kind, Kind::Reply { .. }) { "id" } else { "reply_to" };
            let stored = format!(r#"{{"{name}":"ab\"c","payload":[1, 2]}}"#);
            assert_eq!(publication.stored_payload(), stored);
        }
    }
}

#[test]
fn a_draft_takes_any_seq_whatever_was_expected() {
    let topic = Address::Topic(TopicName::new("news").unwrap());
    let id = MessageId::new("c-1").unwrap();
    let from_backend = Message { kind: Kind::FromBackend, ..message(Some("B"), "1") };
    let request =
        Message { kind: Kind::Request { backend: false }, reference: Some("r".into()), ..message(None, "1") };
    let reply = Message { kind: Kind::Reply { backend: true }, ..request.clone() };
    for message in [
        message(Some("B"), r#"{"é":[1]}"#),
        from_backend,
        Message::receipt(&id, Outcome::Acknowledged, 7),
        request,
        reply,
    ] {
        for expected in [0, 1, 9, 10, 99_999, u64::MAX] {
            for seq in [1, 9, 10, 12_345, 99_999, 100_000, u64::MAX] {
                let draft = Draft::encode(&topic, &message, Seq(expected));
                let len = draft.len_with(Seq(seq));
                let sealed = draft.seal(Seq(seq));
                let frame = sealed.frame().as_str();
                assert_eq!(frame.len(), len, "{expected} {seq}");
                let fields: serde_json::Value = serde_json::from_str(frame).unwrap();
                assert_eq!((&fields["seq"], sealed.seq()), (&seq.into(), Some(Seq(seq))));
                match message.reference {
                    None => assert_eq!(sealed.stored_payload(), message.payload.get(), "{expected} {seq}"),
                    Some(_) => assert_eq!(sealed.payload(), message.payload.get(), "{expected} {seq}"),
                }
                assert_eq!(frame, Publication::encode(&topic, Some(Seq(seq)), &message).frame().as_str());
            }
        }
    }
}

#[test]
fn a_large_publication_counts_once_while_it_is_delivered() {
    let budget = Budget::new(100_000);
    let mailbox = Address::Session(SessionId::new("A").unwrap());
    let large = message(None, &format!("\"{}\"", "x".repeat(60_000)));
    let origin = Arc::new(Publication::encode(&mailbox, Some(Seq(1)), &large));
    let deliver =
        |origin: &Arc<Publication>| origin.delivery(|bytes| budget.try_acquire(Holder::Proved, bytes));
    let one = deliver(&origin).unwrap();
    let (used, other) = (budget.used(), deliver(&one).unwrap());
    assert!(Arc::ptr_eq(&one, &deliver(&origin).unwrap()) && Arc::ptr_eq(&one, &other));
    assert!((60_000..61_000).contains(&used) && budget.used() == used);
    assert_eq!((one.payload(), one.seq()), (origin.payload(), origin.seq()));
    assert_eq!(one.frame().as_str().as_ptr(), origin.frame().as_str().as_ptr(), "the bytes are shared");
    // There is no room for another one.
    let second = Arc::new(Publication::encode(&mailbox, Some(Seq(2)), &large));
    assert!(deliver(&second).is_none());
    drop((one, other));
    assert_eq!(budget.used(), 0);
    drop(deliver(&second).unwrap());
    // A small one is not counted.
    let small = Arc::new(Publication::encode(&mailbox, Some(Seq(3)), &message(None, "1")));
    assert!(Arc::ptr_eq(&small, &small.delivery(|_| None).unwrap()));
}

#[test]
fn sealing_with_the_expected_width_moves_nothing() {
    let mailbox = Address::Session(SessionId::new("A").unwrap());
    let draft = Draft::encode(&mailbox, &message(None, "1"), Seq(1_000));
    assert_eq!(draft.frame.capacity(), draft.frame.len(), "one allocation of the right size");
    let at = draft.frame.as_ptr();
    assert_eq!(draft.seal(Seq(9_999)).frame().as_str().as_ptr(), at);
}

#[test]
fn a_copy_without_a_seq_is_the_volatile_frame() {
    let mailbox = Address::Session(SessionId::new("A").unwrap());
    let receipt = Message::receipt(&MessageId::new("c-1").unwrap(), Outcome::Acknowledged, 7);
    for message in [message(Some("B"), r#"{"seq":1}"#), receipt] {
        for seq in [Some(Seq(9)), Some(Seq(12_345)), None] {
            let copy = Publication::encode(&mailbox, seq, &message).without_seq();
            let volatile = Publication::encode(&mailbox, None, &message);
            assert_eq!((copy.frame(), copy.seq()), (volatile.frame(), None));
            assert_eq!(copy.stored_payload(), volatile.stored_payload());
        }
    }
}

#[test]
fn a_small_frame_tells_whether_it_is_one_line() {
    let is_one_line = |payload: &str| {
        let mailbox = Address::Session(SessionId::new("A").unwrap());
        let publication = Publication::encode(&mailbox, Some(Seq(1)), &message(None, payload));
        assert_eq!(publication.is_one_line(), publication.without_seq().is_one_line());
        publication.is_one_line()
    };
    let long = "x".repeat(300);
    assert!(is_one_line(&format!(r#"{{"text":"{long}\n"}}"#)));
    for line_break in ["\n", "\r", "\r\n"] {
        assert!(!is_one_line(&format!("[1,{line_break}2]")));
        assert!(!is_one_line(&format!(r#"["{long}",{line_break}"{long}"]"#)));
    }
    assert!(!is_one_line(&format!(r#""{}""#, "x".repeat(SMALL))), "nobody looks at a large one");
}
