//! Where this server differs on purpose from the recorded one.

use serde_json::{Value, json};

use super::replay::Departure::{self, Failed, Messages, Nothing, Sent, Status};
use super::replay::{calls, recording};

/// The request on this connection that is no preflight.
fn on_connection(name: &str, connection: u64) -> usize {
    let recording = recording(name);
    let found = |at: &usize| recording["exchanges"][*at]["connection"] == connection;
    calls(name).into_iter().find(found).expect("a page polls on it")
}

fn net_message(probe: &str) -> Departure {
    Messages(json!([{ "msg-type": "net-message", "txt-id": "TXT.SYS.INDICATOR.NETEVENT",
        "probe": probe, "session_src": "0a34cb25-7fa23e34" }]))
}

/// What is expected instead of the recorded answers, by the number of the exchange.
pub fn departures(name: &str) -> Vec<(usize, Departure)> {
    let calls = calls(name);
    match name {
        // The old server answered the net event with an empty body and queued nothing.
        "04-fire-net-events" => vec![(*calls.last().unwrap(), Sent)],
        // The old limit of 4096 bytes is gone.
        "06-large-form-send" => vec![(calls[1], Sent)],
        // The old server lost the message. Here the re-opened tab gets it.
        "07-tab-closed-mid-poll" => vec![(on_connection(name, 77), net_message("after-close"))],
        // The old server gave the message to one of the two tabs.
        "08-two-tabs-one-session" => vec![(on_connection(name, 90), net_message("two-tabs"))],
        // One message per answer, so that a message whose handler throws does not lose the other.
        "11-two-queued-one-poll" => vec![(calls[2], Messages(json!([{ "n": 1, "session_src": "rec-src" }])))],
        "13-malformed" => malformed(&calls),
        // As in 13, a refused send has no effect on later polls.
        "14-non-object-payload" => calls.into_iter().skip(1).step_by(2).map(|at| (at, Nothing)).collect(),
        // 700 CJK characters are 2.1 KB. The old server counted them escaped, and refused them.
        "15-unicode" => vec![(*calls.last().unwrap(), Sent)],
        "16-size-limits" => sizes(name, &calls),
        "17-loss-on-disconnect" => cut_polls(name, calls),
        // PUT and DELETE are refused, since no x0 client sends them. `/` is the demo page.
        "18-other-requests" => {
            let recording = recording(name);
            let method =
                |at: usize| recording["exchanges"][at]["request"]["method"].as_str().unwrap().to_owned();
            let refused = calls.into_iter().filter(|at| ["PUT", "DELETE"].contains(&method(*at).as_str()));
            refused.map(|at| (at, Status(405))).collect()
        }
        // Pages without a session do not share a mailbox.
        "19-null-session" => vec![(calls[0], Failed), (calls[1], Nothing)],
        _ => Vec::new(),
    }
}

/// A request that no x0 client sends is answered 400 at once (old server: 500 with HTML, or 200 with an error that a poll would
/// repeat in a hot loop). A poll without a session is held. A refused send has no effect on later polls (old server: the next
/// polls are answered `[]` at once).
fn malformed(calls: &[usize]) -> Vec<(usize, Departure)> {
    let refused = calls[..12].iter().map(|at| (*at, Status(400)));
    refused.chain([16, 20, 21].map(|call| (calls[call], Nothing))).collect()
}

/// There is no limit of 4096 bytes. Three waiting messages that exceed it together are delivered one by one; the old server
/// lost them.
fn sizes(name: &str, calls: &[usize]) -> Vec<(usize, Departure)> {
    let sent = |at: usize| {
        let body = recording(name)["exchanges"][calls[at]]["request"]["body"].as_str().unwrap().to_owned();
        let mut payload = serde_json::from_str::<Value>(&body).unwrap()["payload"].clone();
        payload["session_src"] = json!("rec-src");
        Messages(json!([payload]))
    };
    vec![(calls[4], Sent), (calls[5], Sent), (calls[9], sent(6)), (calls[10], sent(7))]
}

/// No message is lost, whenever the poll is cut.
fn cut_polls(name: &str, calls: Vec<usize>) -> Vec<(usize, Departure)> {
    let recording = recording(name);
    let exchanges = recording["exchanges"].as_array().unwrap();
    let mut departures = Vec::new();
    for at in calls {
        let body: Value = serde_json::from_str(exchanges[at]["request"]["body"].as_str().unwrap()).unwrap();
        if body["type"] == "GET" && !exchanges[at]["response"].is_null() {
            let probe: u64 = body["session_src"].as_str().unwrap()["loss-".len()..].parse().unwrap();
            departures.push((at, Messages(json!([{ "probe": probe, "session_src": "rec-src" }]))));
        }
    }
    assert_eq!(departures.len(), 5);
    departures
}
