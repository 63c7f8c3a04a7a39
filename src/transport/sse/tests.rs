use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::http::{Request, StatusCode};
use futures::FutureExt;
use http_body_util::BodyExt;
use serde_json::json;
use tower::ServiceExt;

use super::*;
use crate::grant::SKEW;
use crate::message::SessionId;
use crate::protocol::To;
use crate::transport::testing::{gateway, send, session, token_caller, topic};

/// The answer to a request for events.
async fn request(gateway: &Arc<Gateway>, target: &str, last_event_id: Option<&str>) -> Response {
    let mut request = Request::get(target);
    if let Some(id) = last_event_id {
        request = request.header("last-event-id", id);
    }
    Router::from(routes(Arc::clone(gateway))).oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

/// The next chunk of an answer; `None` at its end.
async fn chunk(response: &mut Response) -> Option<String> {
    let frame = response.body_mut().frame().await?;
    Some(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap())
}

async fn send_to_a(gateway: &Gateway, payload: &serde_json::Value) -> Seq {
    send(gateway, To::Session(session("A")), payload, false).await
}

#[tokio::test(start_paused = true)]
async fn only_seqs_of_the_mailbox_are_ids() {
    let gateway = gateway(&[]);
    let first = send_to_a(&gateway, &json!(1)).await;
    let topic_seq = send(&gateway, To::Topic(topic("t")), &json!(7), false).await;
    let last = send_to_a(&gateway, &json!(2)).await;
    gateway.broker.ack(&session("A"), last, None).await.unwrap();
    let target = format!("/v1/events?session=A&after={first}&topic=t&after.t=0");
    let mut response = request(&gateway, &target, None).await;
    let mut events = String::new();
    while !events.contains("event: gap\n") || !events.contains("\"type\":\"message\"") {
        events.push_str(&chunk(&mut response).await.unwrap());
    }
    assert!(events.contains(&format!("event: gap\nid: {last}\ndata: {{")), "{events}");
    let of_topic = format!("\n\ndata: {{\"type\":\"message\",\"seq\":{topic_seq},\"topic\"");
    assert!(events.contains(&of_topic), "{events}");
}

#[tokio::test(start_paused = true)]
async fn the_welcome_comes_first_and_then_what_is_stored() {
    let gateway = gateway(&[]);
    let seq = send_to_a(&gateway, &json!(1)).await;
    let mut response = request(&gateway, "/v1/events?session=A", None).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let first = chunk(&mut response).await.unwrap();
    assert!(first.starts_with("event: welcome\ndata: {\"type\":\"welcome\",\"session\":\"A\""), "{first}");
    let second = chunk(&mut response).await.unwrap();
    assert!(second.starts_with(&format!("id: {seq}\ndata: {{\"type\":\"message\"")), "{second}");
}

#[tokio::test(start_paused = true)]
async fn the_last_event_id_acknowledges_and_wins_over_after() {
    let gateway = gateway(&[]);
    let first = send_to_a(&gateway, &json!(1)).await;
    let second = send_to_a(&gateway, &json!(2)).await;
    let mut response = request(&gateway, "/v1/events?session=A&after=0", Some(&first.to_string())).await;
    assert_eq!(gateway.broker.floor(&session("A")).await, first);
    chunk(&mut response).await.unwrap();
    assert!(chunk(&mut response).await.unwrap().starts_with(&format!("id: {second}\n")));
    assert_eq!(
        last_event_id(&HeaderMap::from_iter([("last-event-id".parse().unwrap(), "x".parse().unwrap())])),
        None
    );
}

#[tokio::test(start_paused = true)]
async fn a_chunk_counts_as_sent_when_the_next_one_is_asked_for() {
    let gateway = gateway(&[]);
    let mut response = request(&gateway, "/v1/events?session=A", None).await;
    chunk(&mut response).await.unwrap();
    let seq = send_to_a(&gateway, &json!(1)).await;
    chunk(&mut response).await.unwrap();
    gateway.broker.ack(&session("A"), seq, None).await.unwrap();
    let waiting =
        async |gateway: &Gateway| gateway.broker.session(&SessionId::new("A").unwrap()).await.waiting;
    assert_eq!(waiting(&gateway).await, 1);
    assert!(chunk(&mut response).now_or_never().is_none());
    assert_eq!(waiting(&gateway).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_comment_is_sent_after_a_heartbeat_of_silence() {
    let gateway = gateway(&[]);
    let mut response = request(&gateway, "/v1/events?session=A", None).await;
    chunk(&mut response).await.unwrap();
    let begun = Instant::now();
    assert_eq!(chunk(&mut response).await.unwrap(), ": still here\n\n");
    assert_eq!(begun.elapsed().as_secs(), 25);
    tokio::time::sleep(Duration::from_secs(10)).await;
    send_to_a(&gateway, &json!(1)).await;
    chunk(&mut response).await.unwrap();
    let begun = Instant::now();
    for silences in 1..=2 {
        assert_eq!(chunk(&mut response).await.unwrap(), ": still here\n\n");
        assert_eq!(begun.elapsed().as_secs(), 25 * silences);
    }
}

#[tokio::test(start_paused = true)]
async fn the_stream_ends_with_the_proof_of_its_reader() {
    let gateway = gateway(&[]);
    let caller = token_caller(&gateway, "A", gateway.broker.now() + 5_000);
    let permit = gateway.connection_permit(None).unwrap();
    let mut stream = EventStream::new(gateway, (caller, permit), (None, Seq::START));
    let begun = Instant::now();
    while stream.next_chunk().await.is_some() {}
    assert_eq!(begun.elapsed().as_secs(), 5 + SKEW);
}

#[tokio::test(start_paused = true)]
async fn topics_are_read_along_and_a_reconnected_browser_is_told_that_it_may_have_missed_some() {
    let gateway = gateway(&[]);
    for (target, id, recovered) in [
        ("/v1/events?session=A&topic=t", None, true),
        ("/v1/events?session=A&topic=t", Some("0"), false),
        ("/v1/events?session=A&topic=t&after.t=0", Some("0"), true),
    ] {
        let mut response = request(&gateway, target, id).await;
        let first = chunk(&mut response).await.unwrap();
        assert!(first.contains("event: subscribed\n"), "{first}");
        assert!(first.contains(&format!("\"recovered\":{recovered}")), "{first}");
    }
    let mut response = request(&gateway, "/v1/events?session=A&topic=t", None).await;
    chunk(&mut response).await.unwrap();
    send(&gateway, To::Topic(topic("t")), &json!(7), false).await;
    let message = chunk(&mut response).await.unwrap();
    assert!(message.starts_with("data: {") && message.contains("\"topic\":\"t\""), "{message}");
}

#[tokio::test(start_paused = true)]
async fn the_stream_ends_with_the_server_and_with_the_session() {
    let gateway = gateway(&[]);
    let mut ended = request(&gateway, "/v1/events?session=A", None).await;
    let mut stopped = request(&gateway, "/v1/events?session=B", None).await;
    chunk(&mut ended).await.unwrap();
    chunk(&mut stopped).await.unwrap();
    gateway.broker.end(&session("A")).await.unwrap();
    assert_eq!(chunk(&mut ended).await, None);
    gateway.shutdown.cancel();
    assert_eq!(chunk(&mut stopped).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_session_is_refused() {
    let response = request(&gateway(&[]), "/v1/events", None).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let body = to_bytes(response.into_body(), 4096).await.unwrap();
    assert!(std::str::from_utf8(&body).unwrap().contains("session"));
}
