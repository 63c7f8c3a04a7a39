use std::time::Duration;

use serde_json::value::RawValue;

use super::*;
use crate::message::{Author, Kind, Message, TopicName};

const BOUNDS: QueueBounds = QueueBounds { messages: 9, bytes: 99 };

fn address() -> Address {
    Address::Topic(TopicName::new("t").unwrap())
}

fn job(payload: &str) -> Job {
    let payload = RawValue::from_string(payload.to_owned()).unwrap();
    let message = Message { kind: Kind::Message, from: None, payload, reference: None, ts: 0 };
    let (answer, _) = oneshot::channel();
    Job { append: Append::new(address(), message, Author::Anonymous), since: Instant::now(), answer }
}

fn outgoing() -> Outgoing {
    let place =
        Place { stream: 0, group: 0, token: 0, stored: String::new(), live: String::new(), floor: None };
    Outgoing { place, id: String::new(), expires_at: 0, ttl: 1, body: bytes::Bytes::new() }
}

/// Pushes an append. Returns its number if it was sent.
fn push(lanes: &Lanes, payload: &str) -> Option<u64> {
    let (mut number, until) = (None, Instant::now() + Duration::from_secs(2));
    let outgoing = Some((outgoing(), Seq::START));
    let send = |sent, _: &Append, _: &Outgoing| {
        number = Some(sent);
        true
    };
    lanes.push(job(payload), outgoing, (BOUNDS, until), send).unwrap();
    number
}

fn payload(job: &Job) -> &str {
    job.append.message.payload.get()
}

fn is_stored(seq: u64) -> Result<Stored, AskError> {
    Ok(Stored { seq, is_known: false })
}

fn refused() -> Result<Stored, AskError> {
    Err(AskError::Refused { code: 1, text: "full".into() })
}

fn is_empty(lanes: &Lanes) -> bool {
    let all = lock(&lanes.all);
    all.lanes.is_empty() && all.in_flight.is_empty()
}

#[tokio::test(start_paused = true)]
async fn appends_are_sent_without_waiting_for_answers() {
    let lanes = Lanes::default();
    assert_eq!([push(&lanes, "1"), push(&lanes, "2")], [Some(0), Some(1)]);
    for (number, seq) in [(1, 6), (0, 5)] {
        let answered = lanes.answered(number, is_stored(seq));
        assert!(answered.run.is_none());
        assert_eq!(answered.stored.unwrap().1.seq, seq);
    }
    assert!(is_empty(&lanes));
    assert!(lanes.answered(0, is_stored(5)).stored.is_none(), "it is told once");
}

#[tokio::test(start_paused = true)]
async fn what_is_undecided_holds_later_ones_until_all_before_is_answered() {
    let lanes = Lanes::default();
    let numbers = ["1", "2", "3"].map(|payload| push(&lanes, payload).unwrap());
    assert!(lanes.answered(numbers[1], refused()).run.is_none());
    assert_eq!(push(&lanes, "4"), None, "it is held");
    assert!(lanes.answered(numbers[0], refused()).run.is_none());
    let answered = lanes.answered(numbers[2], is_stored(7));
    assert_eq!(answered.run, Some(address()), "nothing is on its way any more");
    let Step::Settle(undecided, newest) = lanes.next(&address()) else { panic!("some are undecided") };
    assert_eq!(newest, Some((numbers[2], Seq(7))));
    let order: Vec<&str> = undecided.iter().map(|undecided| payload(&undecided.sent.job)).collect();
    assert_eq!(order, ["1", "2"]);
    assert_eq!(push(&lanes, "5"), None, "those are settled first");
    for expected in ["4", "5"] {
        let Step::Send(job) = lanes.next(&address()) else { panic!("one waits") };
        assert_eq!(payload(&job), expected);
    }
    assert!(matches!(lanes.next(&address()), Step::Stop) && is_empty(&lanes));
    assert!(push(&lanes, "6").is_some());
}

#[tokio::test(start_paused = true)]
async fn one_that_is_not_answered_in_time_is_undecided() {
    let lanes = Lanes::default();
    let first = push(&lanes, "1").unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    let second = push(&lanes, "2").unwrap();
    assert!(lanes.expire(Instant::now()).is_empty());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(lanes.expire(Instant::now()).is_empty(), "the second one is on its way");
    assert!(lanes.answered(first, is_stored(1)).stored.is_none(), "too late");
    assert!(lanes.answered(second, is_stored(2)).run.is_some());
    assert!(matches!(lanes.next(&address()), Step::Settle(..)));
    assert_eq!(lanes.next_expiry(), None);
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_sent_at_once_waits_before_later_ones() {
    let lanes = Lanes::default();
    let until = Instant::now() + Duration::from_secs(2);
    let pushed = lanes.push(job("1"), Some((outgoing(), Seq::START)), (BOUNDS, until), |_, _, _| false);
    assert_eq!(pushed, Ok(Pushed::Run));
    assert_eq!(push(&lanes, "2"), None);
    let Step::Send(job) = lanes.next(&address()) else { panic!("one waits") };
    assert_eq!(payload(&job), "1");
    let sent = |job| Sent { job, outgoing: outgoing(), after: Seq::START };
    let number = lanes.begin(sent(job), until).unwrap();
    let Step::Send(job) = lanes.next(&address()) else { panic!("another one waits") };
    // What is refused meanwhile comes first.
    assert!(lanes.answered(number, refused()).run.is_none(), "somebody runs the lane");
    assert_eq!(lanes.begin(sent(job), until), None);
    let Step::Settle(undecided, None) = lanes.next(&address()) else { panic!("one is undecided") };
    assert_eq!(payload(&undecided[0].sent.job), "1");
    assert!(matches!(lanes.next(&address()), Step::Send(job) if payload(&job) == "2"));
}
