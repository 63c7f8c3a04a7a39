//! The recorded exchanges between the real x0 client and the old server, replayed against this one.
//!
//! A replay keeps the order of the recording, not its times: before it sends a request, it waits for all answers that
//! came before that request. Every answer must be the recorded one, except where this server differs on purpose: see
//! [`departures`].

mod departures;
mod replay;

pub use departures::departures;
#[cfg(feature = "nats")]
pub use replay::Door;
pub use replay::replay;
use serde_json::json;

use crate::common::*;

/// Gives a macro what each recording shows, and its name.
macro_rules! recordings {
    ($with:ident) => {
        $with! {
            r01_a_page_starts_and_its_poll_ends_empty: "01-page-start-empty-poll";
            r02_a_form_reaches_the_other_page: "02-form-send";
            r03_a_raw_set_reaches_the_other_page: "03-raw-set-from-client";
            r04_a_net_event_is_accepted: "04-fire-net-events";
            r05_a_poll_of_the_net_events_receiver_is_empty_before_it_is_sent: "05-net-event-delivered-nothing";
            r06_a_large_form_is_accepted: "06-large-form-send";
            r07_a_tab_closed_while_polling_loses_nothing: "07-tab-closed-mid-poll";
            r08_two_tabs_of_one_session_both_receive: "08-two-tabs-one-session";
            r10_a_waiting_message_comes_at_once: "10-raw-set-get";
            r11_two_waiting_messages_come_in_order_one_by_one: "11-two-queued-one-poll";
            r12_del_deletes_no_undelivered_message: "12-del";
            r13_malformed_requests: "13-malformed";
            r14_payloads_that_are_not_objects: "14-non-object-payload";
            r15_unicode_passes_through: "15-unicode";
            r16_sizes: "16-size-limits";
            r17_a_cut_poll_loses_nothing: "17-loss-on-disconnect";
            r18_other_requests: "18-other-requests";
            r19_pages_without_a_session_share_no_mailbox: "19-null-session";
        }
    };
}
#[cfg(feature = "nats")]
pub(crate) use recordings;

macro_rules! on_one_server {
    ($($shows:ident: $name:literal;)*) => { $(
        #[tokio::test]
        async fn $shows() {
            let server = TestServer::with(&["--poll-timeout", "2s"]).await;
            replay(&server, $name, departures($name)).await;
        }
    )* };
}

recordings! { on_one_server }

/// The event of recording 04, sent as the page sends it, reaches the receiving page as an event.
#[tokio::test]
async fn a_net_event_is_delivered_as_an_event_for_the_client() {
    let server = TestServer::start().await;
    let query = "a__=464917109103&SYS_SESSION=0a34cb25-7fa23e34&Type=SET&DestinationSession=net-event-dst\
                 &Payload=SYS__NET_EVENT-harness-event";
    let reply = server.get(&format!("{HANDLER}?{query}")).await;
    assert_eq!(reply.json(), json!({ "messages": null, "status": "ok" }));
    let reply = server.post(&x0_target(), x0_poll("net-event-dst")).await;
    let message = &reply.json()["messages"][0];
    assert_eq!(message["fire-events"], json!(["harness-event"]));
    assert_eq!(message["session_src"], "0a34cb25-7fa23e34");
}

/// What recording 11 shows goes on to the end.
#[tokio::test]
async fn two_waiting_messages_come_one_by_one() {
    let server = TestServer::start().await;
    let mut page = server.http().await;
    for n in 1..=2 {
        page.post(&x0_target(), x0_set("rec-src", "m2", &json!({ "n": n }))).await;
    }
    assert_eq!(page.x0("m2").await, [json!({ "n": 1 })]);
    assert_eq!(page.x0("m2").await, [json!({ "n": 2 })]);
}

/// A page without a session may send. Its messages have no sender.
#[tokio::test]
async fn a_page_without_a_session_sends_without_a_sender() {
    let server = TestServer::start().await;
    let mut page = server.http().await;
    let set =
        json!({ "type": "SET", "session_src": null, "session_dst": "B", "payload": { "session_src": "A" } });
    assert_eq!(page.post(&x0_target(), set).await.json()["status"], "ok");
    let reply = page.post(&x0_target(), x0_poll("B")).await;
    assert_eq!(reply.json()["messages"], json!([{ "session_src": null }]));
}

/// The documented paths `/get` and `/set` do the same, with or without a `type`.
#[tokio::test]
async fn get_and_set_are_other_paths_of_the_same_handler() {
    let server = TestServer::start().await;
    let mut http = server.http().await;
    let set = json!({ "session_src": "A", "session_dst": "B", "payload": { "n": 1 } });
    assert_eq!(http.post("/set?a__=1", set).await.json()["status"], "ok");
    let reply = http.post("/get?a__=2", json!({ "session_src": "B" })).await;
    assert_eq!(x0_messages(&reply), [json!({ "n": 1 })]);
    let preflight = http.request("OPTIONS", "/get", &[("origin", "http://x0-app.x0.localnet")], "").await;
    assert_eq!((preflight.status, preflight.header("access-control-allow-headers")), (204, "*"));
}

/// A repeated POST with the same `a__` is stored once. Chromium repeats it when its connection dies.
#[tokio::test]
async fn a_resent_send_is_delivered_once() {
    let server = TestServer::with(&["--poll-timeout", "300ms"]).await;
    for n in 1..=2 {
        let mut page = server.http().await;
        let target = format!("{HANDLER}?a__=0633451219");
        let reply = page.post(&target, x0_set("A", "B", &json!({ "n": 1 }))).await;
        assert_eq!(reply.json(), json!({ "messages": null, "status": "ok" }), "{n}");
    }
    let mut page = server.http().await;
    assert_eq!(page.x0("B").await, [json!({ "n": 1 })]);
    assert_eq!(page.x0("B").await, NOTHING);
}

/// Up to eight waiting messages come one per answer. More come up to 64 together, so that a page catches up.
#[tokio::test]
async fn many_waiting_messages_come_together() {
    let server = TestServer::with(&["--poll-timeout", "300ms"]).await;
    for (waiting, expected) in [(8, vec![1; 8]), (9, vec![9]), (80, vec![64, 16])] {
        let receiver = format!("B{waiting}");
        let mut page = server.http().await;
        for n in 0..waiting {
            page.post(&x0_target(), x0_set("A", &receiver, &json!({ "n": n }))).await;
        }
        let mut sizes = Vec::new();
        let mut got = Vec::new();
        loop {
            let messages = page.x0(&receiver).await;
            if messages.is_empty() {
                break;
            }
            sizes.push(messages.len());
            got.extend(messages);
        }
        assert_eq!(got, (0..waiting).map(|n| json!({ "n": n })).collect::<Vec<_>>());
        assert_eq!(sizes, expected);
    }
}
