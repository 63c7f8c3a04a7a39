//! Mailboxes: acknowledgements, resume, several readers, limits.

use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::common::*;

#[tokio::test]
async fn unacknowledged_messages_come_again_and_acknowledged_ones_do_not() {
    let server = TestServer::start().await;
    for n in 1..=3 {
        server.send("A", "B", json!(n)).await;
    }
    let mut b = server.session("B").await;
    let mut seqs = Vec::new();
    for n in 1..=3 {
        let message = b.message().await;
        assert_eq!(message["payload"], n);
        seqs.push(message["seq"].as_u64().unwrap());
    }
    b.ack(seqs[1]).await;
    b.ping().await;
    drop(b);
    let mut b = server.ws("").await;
    b.send(json!({ "type": "hello", "session": "B" })).await;
    assert_eq!(b.recv().await["seq"], seqs[1], "welcome names the ack floor");
    assert_eq!(b.payload().await, 3);
    b.ping().await;
}

#[tokio::test]
async fn resume_goes_on_after_the_given_seq() {
    let server = TestServer::start().await;
    let mut seqs = Vec::new();
    for n in 1..=3 {
        seqs.push(server.send("A", "B", json!(n)).await);
    }
    let mut b = server.ws("").await;
    b.send(json!({ "type": "hello", "session": "B", "after": seqs[1] })).await;
    assert_eq!(b.recv().await["type"], "welcome");
    assert_eq!(b.payload().await, 3);
    b.ping().await;
}

#[tokio::test]
async fn a_cursor_below_the_floor_is_told_of_the_gap() {
    let server = TestServer::start().await;
    let mut seqs = Vec::new();
    for n in 1..=3 {
        seqs.push(server.send("A", "B", json!(n)).await);
    }
    let reply = server.post("/v1/ack", json!({ "session": "B", "seq": seqs[1] })).await;
    assert_eq!(reply.json(), json!({ "session": "B", "seq": seqs[1] }));
    let mut b = server.ws("").await;
    b.send(json!({ "type": "hello", "session": "B", "after": seqs[0] })).await;
    let welcome = b.recv().await;
    let expected = json!({ "type": "gap", "from": seqs[0], "to": seqs[1], "reason": "acknowledged" });
    assert_eq!(b.recv().await, expected, "{welcome}");
    assert_eq!(b.payload().await, 3);
}

#[tokio::test]
async fn a_cursor_of_another_epoch_starts_over_and_is_told() {
    let server = TestServer::start().await;
    let seq = server.send("A", "B", json!(1)).await;
    for hello in [
        json!({ "type": "hello", "session": "B", "after": seq, "epoch": "another" }),
        json!({ "type": "hello", "session": "B", "after": seq + 1_000_000 }),
    ] {
        let mut b = server.ws("").await;
        b.send(hello.clone()).await;
        assert_eq!(b.recv().await["type"], "welcome");
        let gap = b.recv().await;
        assert_eq!((&gap["type"], &gap["reason"]), (&json!("gap"), &json!("epoch")));
        assert_eq!(gap["from"], hello["after"]);
        assert_eq!(b.payload().await, 1);
    }
}

/// A store in memory ends with its process. Acks and cursors from before must not delete new messages.
#[tokio::test]
async fn acks_and_cursors_from_before_a_restart_are_harmless() {
    let server = TestServer::start().await;
    let mut old = 0;
    for n in 0..50 {
        old = server.send("A", "B", json!(n)).await;
    }
    drop(server);
    // The seqs of a process begin above all seqs of a process that started in an earlier second.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let server = TestServer::start().await;
    let new = server.send("A", "B", json!("new")).await;
    assert!(new > old);
    assert_eq!(server.post("/v1/ack", json!({ "session": "B", "seq": old })).await.status, 200);
    let reply = server.get(&format!("/v1/messages?session=B&after={old}&wait=0")).await;
    assert_eq!(reply.payloads(), [json!("new")]);
    // The client is told that its unread messages are gone.
    assert_eq!(reply.json()["gaps"][0]["reason"], "epoch");
}

#[tokio::test]
async fn all_sockets_of_a_session_get_every_message_once() {
    let server = TestServer::start().await;
    let mut tabs = [server.session("B").await, server.session("B").await, server.session("B").await];
    for n in 0..20 {
        server.send("A", "B", json!(n)).await;
        for tab in &mut tabs {
            let message = tab.message().await;
            assert_eq!(message["payload"], n);
        }
        tabs[n % 3].ack(server.send("A", "C", json!(0)).await).await;
    }
    for tab in &mut tabs {
        tab.ping().await;
    }
}

/// The acknowledgement of one tab does not delete a message for another tab that is between two polls.
#[tokio::test]
async fn an_ack_by_one_tab_waits_for_a_polling_one() {
    let server = TestServer::start().await;
    let first = server.send("A", "B", json!(1)).await;
    let reply = server.get("/v1/messages?session=B&wait=0").await;
    assert_eq!((reply.payloads(), reply.json()["seq"].as_u64()), (vec![json!(1)], Some(first)));
    // The poller is between two polls. A socket gets both messages and acknowledges them.
    let mut socket = server.session("B").await;
    let second = server.send("A", "B", json!(2)).await;
    for _ in 0..2 {
        socket.message().await;
    }
    socket.ack(second).await;
    socket.ping().await;
    let reply = server.get(&format!("/v1/messages?session=B&after={first}&wait=0")).await;
    assert_eq!(reply.payloads(), [json!(2)], "{}", reply.body);
    assert_eq!(reply.json().get("gaps"), None);
}

#[tokio::test]
async fn a_full_mailbox_refuses_the_sender_and_keeps_its_messages() {
    let server = TestServer::with(&["--mailbox-messages", "3"]).await;
    let mut a = server.session("A").await;
    for n in 1..=3 {
        a.send_to("B", json!(n)).await;
    }
    a.send(json!({ "type": "send", "id": "c-4", "to": { "session": "B" }, "payload": 4 })).await;
    let refused = a.recv().await;
    assert_eq!((&refused["code"], &refused["id"]), (&json!("mailbox_full"), &json!("c-4")));
    let reply = server.post("/v1/messages", json!({ "to": { "session": "B" }, "payload": 4 })).await;
    assert_eq!((reply.status, reply.code().as_str()), (507, "mailbox_full"));
    let reply = server.post(&x0_target(), x0_set("A", "B", &json!({ "n": 4 }))).await;
    assert_eq!((reply.status, &reply.json()["exception_id"]), (200, &json!("mailbox_full")));
    let mut b = server.session("B").await;
    for n in 1..=3 {
        assert_eq!(b.payload().await, n);
    }
    b.ping().await;
}

#[tokio::test]
async fn the_size_of_the_store_is_limited() {
    let server = TestServer::with(&["--store-limit", "100000"]).await;
    let large = json!("x".repeat(40_000));
    let mut codes = Vec::new();
    for n in 0..3 {
        let body = json!({ "to": { "session": format!("S{n}") }, "payload": large });
        codes.push(server.post("/v1/messages", body).await.status);
    }
    assert_eq!(codes, [200, 200, 503]);
}

#[tokio::test]
async fn an_ack_above_the_newest_seq_is_refused() {
    let server = TestServer::start().await;
    let mut a = server.session("A").await;
    a.ack(9_007_199_254_740_991).await;
    assert_eq!(a.error().await, "not_found");
    let seq = server.send("B", "A", json!(1)).await;
    let wrong = json!({ "session": "A", "seq": seq, "epoch": "another" });
    assert_eq!(server.post("/v1/ack", wrong).await.code(), "not_found");
    assert_eq!(a.payload().await, 1);
    a.ping().await;
}

#[tokio::test]
async fn a_retry_with_the_same_id_is_stored_once() {
    let server = TestServer::start().await;
    let send =
        |session: &str| json!({ "type": "send", "id": "c-1", "to": { "session": session }, "payload": 1 });
    let mut seqs: Vec<Value> = Vec::new();
    for _ in 0..2 {
        let mut a = server.session("A").await;
        a.send(send("B")).await;
        seqs.push(a.recv().await["seq"].clone());
    }
    // The same on another transport.
    let reply = server.post("/v1/messages?session=A", send("B")).await;
    seqs.push(reply.json()["seq"].clone());
    assert!(seqs[0].is_u64() && seqs.iter().all(|seq| *seq == seqs[0]), "{seqs:?}");
    let mut b = server.session("B").await;
    assert_eq!(b.payload().await, 1);
    b.ping().await;
}

#[tokio::test]
async fn volatile_messages_reach_those_who_are_there_and_are_not_kept() {
    let server = TestServer::start().await;
    let mut b = server.session("B").await;
    let mut a = server.session("A").await;
    let volatile =
        json!({ "type": "send", "id": "v", "to": { "session": "B" }, "payload": 1, "volatile": true });
    a.send(volatile).await;
    let sent = a.recv().await;
    assert_eq!((&sent["type"], sent.get("seq")), (&json!("sent"), None));
    let message = b.message().await;
    assert_eq!((&message["payload"], message.get("seq")), (&json!(1), None));
    drop(b);
    let mut b = server.session("B").await;
    b.ping().await;
}

/// Anonymous senders cannot be told apart: only the same id with the same payload is a retry.
#[tokio::test]
async fn anonymous_senders_with_the_same_id_do_not_lose_messages() {
    let server = TestServer::start().await;
    let send = async |n: i32| {
        let body = json!({ "id": "1", "to": { "session": "B" }, "payload": n });
        server.post("/v1/messages", body).await.json()["seq"].clone()
    };
    let (one, two, again) = (send(1).await, send(2).await, send(1).await);
    assert_eq!(one, again);
    assert_ne!(one, two);
    assert_eq!(server.get("/v1/messages?session=B&wait=0").await.payloads(), [1, 2]);
}

/// The waiting polls of a session are limited. An x0 page is held, never refused.
#[tokio::test]
async fn waiting_polls_of_one_session_are_limited() {
    let server = TestServer::with(&["--poll-timeout", "500ms"]).await;
    let mut polls = Vec::new();
    for _ in 0..64 {
        let mut http = server.http().await;
        // The poll below may hold the last place for a moment, so a refused poll is repeated.
        let poll = async move {
            loop {
                match http.get("/v1/messages?session=B&wait=60").await {
                    reply if reply.status == 503 => {}
                    reply => break reply,
                }
            }
        };
        polls.push(tokio::spawn(poll));
    }
    // Once all of them wait, another one is refused.
    let refused = loop {
        let reply = server.get("/v1/messages?session=B&wait=0").await;
        if reply.status == 503 {
            break reply;
        }
    };
    assert_eq!(refused.code(), "overloaded");
    assert!(refused.body.contains("64"), "{}", refused.body);
    // The polls of the x0 client are counted apart, and never refused.
    let mut pages = Vec::new();
    for _ in 0..70 {
        let mut http = server.http().await;
        pages.push(tokio::spawn(async move { http.x0("C").await }));
    }
    for page in pages {
        assert_eq!(soon(page).await.unwrap(), NOTHING);
    }
    server.send("A", "B", json!(1)).await;
    for poll in polls {
        assert_eq!(soon(poll).await.unwrap().payloads(), [1]);
    }
}

/// Promise 7: a tab that reads nothing delays neither senders nor the other tab.
#[tokio::test]
async fn a_stuck_tab_never_fills_the_mailbox_and_is_told_a_gap() {
    const MESSAGES: u64 = 150;
    // Three times what the mailbox holds, and more than the buffers of both sides.
    let args = ["--durability", "memory", "--mailbox-messages", "50", "--heartbeat", "600s"];
    let server = TestServer::with(&args).await;
    let stream = upgrade(connect_with_small_buffer(server.address), "?session=S", "").await;
    let socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    let mut stuck = Ws { socket, epoch: String::new() };
    assert_eq!(stuck.recv().await["type"], "welcome");
    let mut other = server.session("S").await;
    for n in 0..MESSAGES {
        // `send` panics if the mailbox is full.
        let seq = server.send("A", "S", json!([n, "x".repeat(100_000)])).await;
        let message = other.message().await;
        assert_eq!((&message["seq"], &message["payload"][0]), (&json!(seq), &json!(n)));
        other.ack(seq).await;
        other.ping().await;
    }
    // It reads again: all up to somewhere, then a gap, then all the rest.
    let (mut next, mut gaps) = (0, Vec::new());
    while next < MESSAGES {
        let frame = stuck.recv().await;
        if frame["type"] == "gap" {
            gaps.push(frame);
            continue;
        }
        let n = frame["payload"][0].as_u64().unwrap();
        assert!(n == next || n > next && !gaps.is_empty(), "{n} instead of {next}");
        next = n + 1;
    }
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!(gaps[0]["reason"], "acknowledged");
}
