use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use futures::FutureExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use tokio::time::Instant;

use super::answer::{MAX_MESSAGES, PollItems};
use super::*;
use crate::message::{Gap, GapReason, Item, Seq};
use crate::protocol::To;
use crate::transport::lease::{GRACE, MAX_READERS};
use crate::transport::testing::{gateway, send, session, topic};

/// A gateway, and the readers that its polls leave behind.
fn polls(flags: &[&str]) -> Polls {
    Polls { gateway: gateway(flags), readers: PollReaders::default() }
}

impl Polls {
    async fn request(&self, query: &str) -> (StatusCode, Value) {
        let routes = Router::from(routes(self.clone()));
        let request = Request::get(format!("/v1/messages?{query}")).body(Body::empty()).unwrap();
        let response = routes.oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 24).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// The answer to a poll in a body.
    async fn post(&self, body: &Value) -> (StatusCode, Value) {
        let routes = Router::from(routes(self.clone()));
        let request = Request::post("/v1/messages/poll").body(Body::from(body.to_string())).unwrap();
        let response = routes.oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 24).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// The answer to a poll that is not refused.
    async fn poll(&self, query: &str) -> Value {
        let (status, answer) = self.request(query).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    async fn send(&self, payload: &Value) -> Seq {
        send(&self.gateway, To::Session(session("A")), payload, false).await
    }
}

fn payloads(answer: &Value) -> Vec<Value> {
    answer["messages"].as_array().unwrap().iter().map(|message| message["payload"].clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_poll_waits_for_a_message() {
    let polls = polls(&[]);
    let mut waiting = Box::pin(polls.poll("session=A"));
    assert!((&mut waiting).now_or_never().is_none());
    let seq = polls.send(&json!(1)).await;
    let answer = waiting.await;
    assert_eq!((payloads(&answer), &answer["seq"]), (vec![json!(1)], &json!(seq)));
}

#[tokio::test(start_paused = true)]
async fn a_poll_without_messages_is_answered_when_its_time_is_over() {
    let polls = polls(&[]);
    for (query, seconds) in [("session=A", 10), ("session=A&wait=2.5", 2), ("session=A&wait=0", 0)] {
        let begun = Instant::now();
        assert_eq!(payloads(&polls.poll(query).await), Vec::<Value>::new());
        assert_eq!(begun.elapsed().as_secs(), seconds, "{query}");
    }
    for wait in ["61", "-1", "x", "inf"] {
        let (status, answer) = polls.request(&format!("session=A&wait={wait}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_does_not_wait_gets_what_is_stored() {
    let polls = polls(&[]);
    polls.send(&json!(1)).await;
    assert_eq!(payloads(&polls.poll("session=A&wait=0").await), [json!(1)]);
}

#[tokio::test(start_paused = true)]
async fn the_cursor_of_the_next_poll_acknowledges() {
    let polls = polls(&[]);
    polls.send(&json!(1)).await;
    let seq = polls.poll("session=A").await["seq"].as_u64().unwrap();
    let again = polls.poll("session=A&wait=0").await;
    assert_eq!(payloads(&again), [json!(1)], "without a cursor nothing is acknowledged");
    assert_eq!(payloads(&polls.poll(&format!("session=A&after={seq}&wait=0")).await), Vec::<Value>::new());
    assert_eq!(polls.gateway.broker.floor(&session("A")).await, Seq(seq));
}

/// What another tab of the session acknowledges is kept for a reader, also at the start of a mailbox, where its cursor is 0.
#[tokio::test(start_paused = true)]
async fn a_reader_gets_what_another_one_has_acknowledged() {
    let polls = polls(&[]);
    assert_eq!(polls.poll("session=A&after=0&wait=0").await["seq"], 0);
    let seq = polls.send(&json!(1)).await;
    polls.gateway.broker.ack(&session("A"), seq, None).await.unwrap();
    for time in ["between two polls", "again, since the answer was lost"] {
        assert_eq!(payloads(&polls.poll("session=A&after=0&wait=0").await), [json!(1)], "{time}");
    }
    let after = polls.poll(&format!("session=A&after={seq}&wait=0")).await;
    assert_eq!(payloads(&after), Vec::<Value>::new());
    assert_eq!(payloads(&polls.poll("session=A&after=0&wait=0").await), Vec::<Value>::new(), "a new reader");
}

#[tokio::test(start_paused = true)]
async fn a_first_poll_that_is_repeated_gets_what_another_reader_has_acknowledged() {
    let polls = polls(&[]);
    assert!(polls.poll("session=A").now_or_never().is_none(), "the client goes, and comes again");
    let seq = polls.send(&json!(1)).await;
    polls.gateway.broker.ack(&session("A"), seq, None).await.unwrap();
    assert_eq!(payloads(&polls.poll("session=A&wait=0").await), [json!(1)]);
}

#[tokio::test(start_paused = true)]
async fn volatile_messages_between_two_polls_are_kept() {
    let polls = polls(&[]);
    let seq = polls.poll("session=A&wait=0").await["seq"].as_u64().unwrap();
    send(&polls.gateway, To::Session(session("A")), &json!(1), true).await;
    assert_eq!(payloads(&polls.poll(&format!("session=A&after={seq}")).await), [json!(1)]);
    send(&polls.gateway, To::Session(session("A")), &json!(2), true).await;
    tokio::time::advance(GRACE).await;
    assert_eq!(polls.readers.sweep().len(), 1);
    assert_eq!(payloads(&polls.poll(&format!("session=A&after={seq}&wait=0")).await), Vec::<Value>::new());
}

#[tokio::test(start_paused = true)]
async fn a_cursor_of_another_epoch_is_answered_with_a_gap_and_everything() {
    let polls = polls(&[]);
    polls.send(&json!(1)).await;
    let answer = polls.poll("session=A&after=17&epoch=other").await;
    assert_eq!(payloads(&answer), [json!(1)]);
    assert_eq!((&answer["gaps"][0]["from"], &answer["gaps"][0]["reason"]), (&json!(17), &json!("epoch")));
}

#[test]
fn an_answer_has_a_bounded_number_of_items() {
    let mut items = PollItems::default();
    for _ in 0..MAX_MESSAGES {
        assert!(!items.is_full());
        items.push(None, Item::Gap(Gap { from: Seq(1), to: Seq(2), reason: GapReason::Expired }));
    }
    assert!(items.is_full());
}

#[tokio::test(start_paused = true)]
async fn an_answer_has_a_bounded_number_of_bytes() {
    let polls = polls(&[]);
    for _ in 0..3 {
        polls.send(&json!("x".repeat(600_000))).await;
    }
    let first = polls.poll("session=A").await;
    assert_eq!(payloads(&first).len(), 2);
    assert_eq!(payloads(&polls.poll(&format!("session=A&after={}", first["seq"])).await).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn topics_are_read_along_each_from_its_cursor() {
    let polls = polls(&[]);
    let first = polls.poll("session=A&topic=t&wait=0").await;
    let from = first["topics"]["t"].as_u64().unwrap();
    for n in 0..2 {
        send(&polls.gateway, To::Topic(topic("t")), &json!(n), false).await;
    }
    let next = polls.poll(&format!("session=A&topic=t&after.t={from}")).await;
    assert_eq!(payloads(&next), [json!(0), json!(1)]);
    let again = polls.poll(&format!("session=A&topic=t&after.t={from}")).await;
    assert_eq!(payloads(&again), [json!(0), json!(1)], "a topic is read again from an older cursor");
    let through = next["topics"]["t"].as_u64().unwrap();
    let none = polls.poll(&format!("session=A&topic=t&after.t={through}&wait=0")).await;
    assert_eq!((payloads(&none), &none["topics"]["t"]), (Vec::new(), &json!(through)));
}

#[tokio::test(start_paused = true)]
async fn too_many_polls_of_a_session_are_refused() {
    let polls = polls(&["--connections-per-session", "1000"]);
    let mut waiting: Vec<_> = (0..MAX_READERS).map(|_| Box::pin(polls.poll("session=A"))).collect();
    for poll in &mut waiting {
        assert!(poll.now_or_never().is_none());
    }
    let (status, answer) = polls.request("session=A").await;
    assert_eq!((status, &answer["error"]["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("overloaded")));
}

#[tokio::test(start_paused = true)]
async fn a_poll_ends_with_the_server_and_with_the_session() {
    let polls = polls(&[]);
    let mut ended = Box::pin(polls.request("session=A"));
    let mut stopped = Box::pin(polls.request("session=B"));
    assert!((&mut ended).now_or_never().is_none() && (&mut stopped).now_or_never().is_none());
    polls.gateway.broker.end(&session("A")).await.unwrap();
    assert_eq!(ended.await.0, StatusCode::UNAUTHORIZED);
    polls.gateway.shutdown.cancel();
    assert_eq!(stopped.await.0, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_poll_in_a_body_is_answered_like_one_in_the_address() {
    let polls = polls(&[]);
    polls.send(&json!(1)).await;
    let (status, answer) = polls.post(&json!({ "session": "A", "wait": 0 })).await;
    assert_eq!((status, payloads(&answer)), (StatusCode::OK, vec![json!(1)]));
    assert_eq!(answer["dedup_window"], 900);
    let (after, epoch) = (&answer["seq"], &answer["epoch"]);
    let (_, answer) = polls.post(&json!({ "session": "A", "after": after, "epoch": epoch, "wait": 0 })).await;
    assert_eq!(payloads(&answer), Vec::<Value>::new());
    assert_eq!(polls.gateway.broker.floor(&session("A")).await.0, after.as_u64().unwrap());
}

#[tokio::test(start_paused = true)]
async fn several_polls_are_answered_when_one_has_something() {
    let polls = polls(&[]);
    let call = json!([{ "session": "A", "wait": 20 }, { "session": "B", "wait": 20 }, { "topics": [{ "topic": "t" }] }]);
    let mut waiting = Box::pin(polls.post(&call));
    assert!((&mut waiting).now_or_never().is_none());
    let begun = Instant::now();
    polls.send(&json!(1)).await;
    let (status, answers) = waiting.await;
    assert_eq!((status, answers.as_array().map(Vec::len)), (StatusCode::OK, Some(3)), "{answers}");
    assert_eq!((payloads(&answers[0]), payloads(&answers[1])), (vec![json!(1)], vec![]));
    assert_eq!(begun.elapsed().as_secs(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_shortest_wait_of_several_polls_counts() {
    let polls = polls(&[]);
    let begun = Instant::now();
    let (status, _) =
        polls.post(&json!([{ "session": "A", "wait": 20 }, { "session": "B", "wait": 3 }])).await;
    assert_eq!((status, begun.elapsed().as_secs()), (StatusCode::OK, 3));
}

#[tokio::test(start_paused = true)]
async fn a_refused_poll_does_not_end_the_others() {
    let polls = polls(&[]);
    polls.send(&json!(1)).await;
    let (status, answers) =
        polls.post(&json!([{ "session": "", "wait": 20 }, { "session": "A", "wait": 20 }])).await;
    assert_eq!((status, payloads(&answers[1])), (StatusCode::OK, vec![json!(1)]));
    assert_eq!(answers[0]["error"]["code"], "bad_request");
    for calls in [json!([]), json!(vec![json!({ "session": "A", "wait": 0 }); 17])] {
        assert_eq!(polls.post(&calls).await.0, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_topic_is_told_at_once_and_the_rest_is_read() {
    let polls = polls(&["--max-topics", "1"]);
    polls.send(&json!(1)).await;
    let topics = json!([{ "topic": "news" }, { "topic": "" }, { "topic": "second" }]);
    let begun = Instant::now();
    let (status, answer) = polls.post(&json!({ "session": "A", "topics": topics })).await;
    assert_eq!((status, payloads(&answer)), (StatusCode::OK, vec![json!(1)]));
    assert_eq!(begun.elapsed().as_secs(), 0);
    let told = |n: usize| (answer["errors"][n]["topic"].clone(), answer["errors"][n]["code"].clone());
    assert_eq!(told(0), (json!(""), json!("bad_request")));
    assert_eq!(told(1), (json!("second"), json!("forbidden")));
    assert!(answer["topics"]["news"].is_u64(), "{answer}");
    // The client goes on to name them: it does not poll without pause.
    let again = json!({ "session": "A", "after": answer["seq"], "topics": topics, "wait": 3 });
    let (_, answer) = polls.post(&again).await;
    assert_eq!((begun.elapsed().as_secs(), answer["errors"].as_array().map(Vec::len)), (3, Some(2)));
}
