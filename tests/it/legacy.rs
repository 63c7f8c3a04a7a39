//! The recorded exchanges between the real x0 client and the old server, replayed against this one.
//!
//! A replay keeps the order of the recording, not its times: before it sends a request, it waits for all answers that
//! came before that request. Every answer must be the recorded one, except where this server differs on purpose; each
//! test names these departures.

mod replay;

use replay::Departure::{Failed, Messages, Nothing, Sent, Status};
use replay::{Departure, calls, recording, replay};
use serde_json::{Value, json};

use crate::common::*;

#[tokio::test]
async fn r01_a_page_starts_and_its_poll_ends_empty() {
    replay("01-page-start-empty-poll", []).await;
}

#[tokio::test]
async fn r02_a_form_reaches_the_other_page() {
    replay("02-form-send", []).await;
}

#[tokio::test]
async fn r03_a_raw_set_reaches_the_other_page() {
    replay("03-raw-set-from-client", []).await;
}

/// Departure: the old server answered the net event with an empty body and queued nothing.
#[tokio::test]
async fn r04_a_net_event_is_accepted() {
    let calls = calls("04-fire-net-events");
    replay("04-fire-net-events", [(*calls.last().unwrap(), Sent)]).await;
}

#[tokio::test]
async fn r05_a_poll_of_the_net_events_receiver_is_empty_before_it_is_sent() {
    replay("05-net-event-delivered-nothing", []).await;
}

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

/// Departure: the old limit of 4096 bytes is gone.
#[tokio::test]
async fn r06_a_large_form_is_accepted() {
    let calls = calls("06-large-form-send");
    replay("06-large-form-send", [(calls[1], Sent)]).await;
}

/// Departure: the old server lost the message. Here the re-opened tab gets it.
#[tokio::test]
async fn r07_a_tab_closed_while_polling_loses_nothing() {
    let name = "07-tab-closed-mid-poll";
    let calls = calls(name);
    let reopened = calls
        .into_iter()
        .find(|at| recording(name)["exchanges"][*at]["connection"] == 77)
        .expect("the re-opened tab polls on connection 77");
    let message = json!([{ "msg-type": "net-message", "txt-id": "TXT.SYS.INDICATOR.NETEVENT",
        "probe": "after-close", "session_src": "0a34cb25-7fa23e34" }]);
    replay(name, [(reopened, Messages(message))]).await;
}

/// Departure: the old server gave the message to one of the two tabs.
#[tokio::test]
async fn r08_two_tabs_of_one_session_both_receive() {
    let name = "08-two-tabs-one-session";
    let second = calls(name)
        .into_iter()
        .find(|at| recording(name)["exchanges"][*at]["connection"] == 90)
        .expect("the second tab polls on connection 90");
    let message = json!([{ "msg-type": "net-message", "txt-id": "TXT.SYS.INDICATOR.NETEVENT",
        "probe": "two-tabs", "session_src": "0a34cb25-7fa23e34" }]);
    let unrecorded = replay(name, [(second, Messages(message))]).await;
    assert!(unrecorded.contains_key(&second));
}

#[tokio::test]
async fn r10_a_waiting_message_comes_at_once() {
    replay("10-raw-set-get", []).await;
}

/// Departure: one message per answer, so that a message whose handler throws does not lose the other.
#[tokio::test]
async fn r11_two_waiting_messages_come_in_order_one_by_one() {
    let name = "11-two-queued-one-poll";
    let first = json!([{ "n": 1, "session_src": "rec-src" }]);
    replay(name, [(calls(name)[2], Messages(first))]).await;

    let server = TestServer::start().await;
    let mut page = server.http().await;
    for n in 1..=2 {
        page.post(&x0_target(), x0_set("rec-src", "m2", &json!({ "n": n }))).await;
    }
    assert_eq!(page.x0("m2").await, [json!({ "n": 1 })]);
    assert_eq!(page.x0("m2").await, [json!({ "n": 2 })]);
}

#[tokio::test]
async fn r12_del_deletes_no_undelivered_message() {
    replay("12-del", []).await;
}

/// Departures: a request that no x0 client sends is answered 400 at once (old server: 500 with HTML, or 200 with an
/// error that a poll would repeat in a hot loop). A poll without a session is held. A refused send has no effect on
/// later polls (old server: the next polls are answered `[]` at once).
#[tokio::test]
async fn r13_malformed_requests() {
    let name = "13-malformed";
    let calls = calls(name);
    let mut departures: Vec<(usize, Departure)> = calls[..12].iter().map(|at| (*at, Status(400))).collect();
    departures.push((calls[16], Nothing));
    departures.extend([(calls[20], Nothing), (calls[21], Nothing)]);
    replay(name, departures).await;
}

/// Departure: as in 13, a refused send has no effect on later polls.
#[tokio::test]
async fn r14_payloads_that_are_not_objects() {
    let name = "14-non-object-payload";
    let polls = calls(name).into_iter().skip(1).step_by(2);
    replay(name, polls.map(|at| (at, Nothing))).await;
}

/// Departure: 700 CJK characters are 2.1 KB. The old server counted them escaped, and refused them.
#[tokio::test]
async fn r15_unicode_passes_through() {
    let name = "15-unicode";
    replay(name, [(*calls(name).last().unwrap(), Sent)]).await;
}

/// Departures: there is no limit of 4096 bytes. Three waiting messages that exceed it together are delivered one by
/// one; the old server lost them.
#[tokio::test]
async fn r16_sizes() {
    let name = "16-size-limits";
    let calls = calls(name);
    let sent = |at: usize| {
        let body = recording(name)["exchanges"][calls[at]]["request"]["body"].as_str().unwrap().to_owned();
        let mut payload = serde_json::from_str::<Value>(&body).unwrap()["payload"].clone();
        payload["session_src"] = json!("rec-src");
        Messages(json!([payload]))
    };
    let departures = [(calls[4], Sent), (calls[5], Sent), (calls[9], sent(6)), (calls[10], sent(7))];
    replay(name, departures).await;
}

/// Departure: no message is lost, whenever the poll is cut.
#[tokio::test]
async fn r17_a_cut_poll_loses_nothing() {
    let name = "17-loss-on-disconnect";
    let recording = recording(name);
    let exchanges = recording["exchanges"].as_array().unwrap();
    let mut departures = Vec::new();
    for at in calls(name) {
        let body: Value = serde_json::from_str(exchanges[at]["request"]["body"].as_str().unwrap()).unwrap();
        if body["type"] == "GET" && !exchanges[at]["response"].is_null() {
            let probe: u64 = body["session_src"].as_str().unwrap()["loss-".len()..].parse().unwrap();
            departures.push((at, Messages(json!([{ "probe": probe, "session_src": "rec-src" }]))));
        }
    }
    assert_eq!(departures.len(), 5);
    replay(name, departures).await;
}

/// Departures: PUT and DELETE are refused, since no x0 client sends them. `/` is the demo page.
#[tokio::test]
async fn r18_other_requests() {
    let name = "18-other-requests";
    let refused = calls(name).into_iter().filter(|at| {
        let method = recording(name)["exchanges"][*at]["request"]["method"].as_str().unwrap().to_owned();
        method == "PUT" || method == "DELETE"
    });
    replay(name, refused.map(|at| (at, Status(405)))).await;
}

/// Departure: pages without a session do not share a mailbox.
#[tokio::test]
async fn r19_pages_without_a_session_share_no_mailbox() {
    let name = "19-null-session";
    let calls = calls(name);
    replay(name, [(calls[0], Failed), (calls[1], Nothing)]).await;
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
