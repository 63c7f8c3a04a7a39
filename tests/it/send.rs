//! Sending: over HTTP, one message or an array, and from the command line.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::common::*;
use crate::guarded::*;

#[tokio::test]
async fn one_message_is_answered_with_its_seq() {
    let server = TestServer::start().await;
    let mut b = server.session("B").await;
    let body = json!({ "id": "c-1", "to": { "session": "B" }, "payload": { "n": 1 } });
    let reply = server.post("/v1/messages?session=A", body).await;
    assert_eq!((reply.status, &reply.json()["id"]), (200, &json!("c-1")));
    let message = b.message().await;
    assert_eq!((&message["from"], &message["seq"]), (&json!("A"), &reply.json()["seq"]));
    // Without a session, as a backend sends in open mode.
    server.post("/v1/messages", json!({ "to": { "session": "B" }, "payload": 2 })).await;
    assert_eq!(b.message().await.get("from"), None);
}

#[tokio::test]
async fn an_array_is_stored_in_its_order() {
    let server = TestServer::start().await;
    let sends: Vec<Value> =
        (0..1000).map(|n| json!({ "id": n.to_string(), "to": { "session": "B" }, "payload": n })).collect();
    let answers = server.post("/v1/messages", json!(sends)).await.json();
    let seqs: Vec<u64> =
        answers.as_array().unwrap().iter().map(|answer| answer["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs.len(), 1000);
    assert!(seqs.is_sorted());
    assert_eq!(answers[7]["id"], "7");
    let mut b = server.session("B").await;
    for n in 0..1000 {
        assert_eq!(b.payload().await, n);
    }
}

#[tokio::test]
async fn health_is_reported() {
    let server = TestServer::start().await;
    let health = server.get("/healthz").await;
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("ok")));
    assert_eq!(health.json()["durability"], "fsync");
}

fn cli(server: &TestServer, args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(args).args(["--server", &format!("ws://{}", server.address)]).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn output(mut command: Command) -> (bool, String, String) {
    let output = soon(command.output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn the_command_line_sends_and_listens() {
    let server = TestServer::start().await;
    let mut listener = cli(&server, &["listen", "--session", "B", "--topic", "news"]).spawn().unwrap();
    let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines();
    let (ok, out, _) = output(cli(&server, &["send", "--to", "B", "--from", "A", r#"{"a":1}"#])).await;
    assert!(ok && out.starts_with("sent, seq "), "{out}");
    let line: Value = serde_json::from_str(&soon(lines.next_line()).await.unwrap().unwrap()).unwrap();
    assert_eq!((&line["from"], &line["payload"]), (&json!("A"), &json!({ "a": 1 })));
    // It has subscribed: a message of the topic comes live.
    let (ok, ..) = output(cli(&server, &["send", "--topic", "news", "\"hi\""])).await;
    assert!(ok);
    let line: Value = serde_json::from_str(&soon(lines.next_line()).await.unwrap().unwrap()).unwrap();
    assert_eq!((&line["topic"], &line["payload"]), (&json!("news"), &json!("hi")));
    // The printed messages were acknowledged.
    let mut b = server.session("B").await;
    b.ping().await;
}

#[tokio::test]
async fn the_command_line_reads_standard_input_and_can_leave_messages_unacknowledged() {
    let server = TestServer::start().await;
    let mut send = cli(&server, &["send", "--to", "B", "-"]);
    let mut child = send.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"[1,\n2]").await.unwrap();
    assert!(soon(child.wait()).await.unwrap().success());
    for _ in 0..2 {
        let args = ["listen", "--session", "B", "--no-ack", "--payload", "--count", "1"];
        let (ok, out, _) = output(cli(&server, &args)).await;
        assert_eq!((ok, out.as_str()), (true, "[1, 2]\n"));
    }
    let (_, out, _) = output(cli(&server, &["listen", "--session", "B", "--count", "1"])).await;
    assert!(out.contains("[1, 2]"));
    let mut b = server.session("B").await;
    b.ping().await;
}

#[tokio::test]
async fn the_command_line_stores_a_message_with_an_id_once() {
    let server = TestServer::start().await;
    let send = async |args: &[&str]| output(cli(&server, &[&["send", "--to", "B"], args].concat())).await;
    let (ok, first, _) = send(&["--id", "1", "7"]).await;
    assert!(ok && first.starts_with("sent, seq "), "{first}");
    assert_eq!(send(&["--id", "1", "7"]).await.1, first, "a retry");
    let (ok, _, text) = send(&["--id", "1", "8"]).await;
    assert!(!ok && text.contains("bad_request") && text.contains("another payload"), "{text}");
    for args in [&["--id", "1", "--from", "A", "8"][..], &["7"], &["7"]] {
        assert!(send(args).await.0, "{args:?}");
    }
    let found = server.get("/v1/messages?session=B&wait=0").await.payloads();
    assert_eq!(found, [7, 8, 7, 7]);
}

/// At every door an id belongs to one payload of one sender.
#[tokio::test]
async fn an_id_that_was_used_for_another_payload_is_refused() {
    let server = TestServer::start().await;
    let send = |id: &str, payload: Value| json!({ "id": id, "to": { "session": "B" }, "payload": payload });
    let first = server.post("/v1/messages?session=A", send("1", json!(1))).await.json();
    assert_eq!(server.post("/v1/messages?session=A", send("1", json!(1))).await.json(), first);
    let reply = server.post("/v1/messages?session=A", send("1", json!(2))).await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"));
    let sends = json!([send("1", json!(1)), send("1", json!(2)), send("2", json!(3))]);
    let answers = server.post("/v1/messages?session=A", sends).await.json();
    assert_eq!((&answers[0], &answers[1]["error"]["code"]), (&first, &json!("bad_request")));
    assert!(answers[2]["seq"].is_u64(), "{answers}");
    let mut a = server.session("A").await;
    let mut frame = send("1", json!(2));
    frame["type"] = json!("send");
    a.send(frame).await;
    assert_eq!(a.error().await, "bad_request");
    // The x0 client repeats a request with its `a__`.
    let set = |payload: u64| json!({ "type": "SET", "session_src": "X", "session_dst": "B", "payload": { "n": payload } });
    let mut http = server.http().await;
    for (payload, is_error) in [(4, false), (4, false), (5, true)] {
        let reply = http.post("/set?a__=17", set(payload)).await;
        assert_eq!((reply.status, reply.json()["error"] == true), (200, is_error), "{}", reply.body);
    }
    // Nobody can tell senders without a name apart.
    for payload in [6, 6, 7] {
        assert_eq!(server.post("/v1/messages", send("1", json!(payload))).await.status, 200);
    }
    let found = server.get("/v1/messages?session=B&wait=0").await.payloads();
    let stored = [json!(1), json!(3), json!({ "n": 4, "session_src": "X" }), json!(6), json!(7)];
    assert_eq!(found, stored);
}

#[tokio::test]
async fn errors_of_the_command_line_name_the_cause() {
    let server = TestServer::start().await;
    for (args, names) in [
        (&["send", "--to", "B", "hello"][..], "JSON"),
        (&["send", "{}"], "--to"),
        (&["send", "--to", "B", "--topic", "t", "{}"], "--topic"),
        (&["send", "--to", "B", "--ttl", "1e9", "{}"], "ttl"),
        (&["send", "--to", "B", "--ttl", "soon", "{}"], "like 90, 0.5, 10m"),
        (&["send", "--to", "", "{}"], "to.session"),
        (&["listen"], "--session"),
        (&["listen", "--session", ""], "session"),
        (&["listen", "--session", "B", "--count", "0"], "--count"),
    ] {
        let (ok, _, text) = output(cli(&server, args)).await;
        assert!(!ok && text.contains(names), "{args:?}: {text}");
    }
    let mut nobody = Command::new(BINARY);
    nobody.args(["send", "--to", "B", "{}", "--server", "ws://127.0.0.1:1"]);
    let (ok, _, text) = output(nobody).await;
    assert!(!ok && text.contains("is the broker running"), "{text}");
    for (flag, value, names) in [
        ("--poll-timeout", "0s", "from 10ms to 30d"),
        ("--poll-timeout", "1ns", "from 10ms to 30d"),
        ("--ttl", "5000000y", "from 1ms to 36500d"),
        ("--poll-timeout", "x", "10s"),
        ("--max-payload", "1", "1024"),
    ] {
        let mut serve = Command::new(BINARY);
        serve.args([flag, value]);
        let (ok, _, text) = output(serve).await;
        assert!(!ok && text.contains(names) && text.contains(flag), "{text}");
    }
}

/// What the last lines of a command say, and whether the cause stands before the advice.
fn says_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let (_, after) = rest
            .split_once(part)
            .unwrap_or_else(|| panic!("{part} is not there, or not in its place: {text}"));
        rest = after;
    }
}

#[tokio::test]
async fn errors_of_the_command_line_say_the_cause_before_the_advice() {
    let server = TestServer::start().await;
    let taken = server.address.to_string();
    let nowhere = ["--server", "ws://127.0.0.1:1"];
    for (args, parts) in [
        (
            &["--listen", &taken, "--durability", "memory"][..],
            &["cannot listen on", "in use", "another address with --listen"][..],
        ),
        (
            &[&["send", "--to", "B", "{}"], &nowhere[..]].concat(),
            &["cannot connect to ws://127.0.0.1:1/ws", "refused", "is the broker running"],
        ),
        (
            &[&["health"], &nowhere[..]].concat(),
            &["no healthy broker answers at 127.0.0.1:1", "refused", "--server"],
        ),
        (&["send", "--to", "B", "hello"], &["not JSON", "line 1 column 1", "quote it for the shell"]),
    ] {
        let mut command = Command::new(BINARY);
        command.args(args).stdin(Stdio::null());
        let (ok, _, text) = output(command).await;
        assert!(!ok);
        says_in_order(&text, parts);
    }
    // A broker that answers is running.
    let refused = Guarded::start().await;
    let (ok, _, text) = output(cli(&refused, &["listen", "--session", "B"])).await;
    assert!(!ok && !text.contains("is the broker running"), "{text}");
}

#[tokio::test]
async fn a_time_to_live_is_seconds_or_has_a_unit() {
    let server = TestServer::start().await;
    for ttl in ["0.05", "50ms", "60", "1d", "1h 30m"] {
        let (ok, out, text) = output(cli(&server, &["send", "--to", "B", "--ttl", ttl, "1"])).await;
        assert!(ok && out.starts_with("sent, seq "), "{ttl}: {text}");
    }
    // Two of them expire.
    soon(async { while server.get("/v1/sessions/B").await.json()["pending"] != 3 {} }).await;
}

#[tokio::test]
async fn a_listener_that_can_get_nothing_says_what_is_missing() {
    let server = Guarded::start().await;
    std::fs::write(server.path("key"), KEY).unwrap();
    let key = server.path("key");
    let listen = |more: &[&str]| {
        let args = [&["listen", "--token-file", key.to_str().unwrap()], more].concat();
        output(cli(&server, &args))
    };
    let (ok, _, text) = listen(&[]).await;
    assert!(!ok && text.contains("this API key has no mailbox") && text.contains("--topic"), "{text}");
    let (ok, _, text) = listen(&["--session", "B"]).await;
    assert!(!ok && text.contains("API key"), "{text}");
    // With a topic it listens.
    let mut command =
        cli(&server, &["listen", "--token-file", key.to_str().unwrap(), "--topic", "news", "--count", "1"]);
    let listener = tokio::spawn(async move { command.output().await });
    soon(async {
        while !listener.is_finished() {
            let body = json!({ "to": { "topic": "news" }, "payload": 1 });
            assert_eq!(server.call("POST", "/v1/messages", KEY, body).await.status, 200);
        }
    })
    .await;
    assert!(listener.await.unwrap().unwrap().status.success());
}

#[tokio::test]
async fn what_is_expected_is_said_where_a_body_or_a_frame_is_empty() {
    let server = TestServer::start().await;
    for (method, target, body, expected) in [
        ("POST", "/v1/messages", "", r#"{"to":{"session":"B"},"payload":{"any":"JSON"}}"#),
        ("POST", "/v1/messages", " \n", r#"{"to":{"session":"B"}"#),
        ("POST", "/v1/messages", "[7]", r#"{"to":{"session":"B"}"#),
        ("POST", "/v1/ack", "", r#"{"session":"A","seq":17}"#),
        ("PUT", "/v1/sessions/A", "7", r#"{"user":"ann","ttl":3600}"#),
        ("POST", HANDLER, "", r#"{"type":"GET","session_src":"A"}"#),
    ] {
        let reply = server.http().await.request(method, target, &[], body).await;
        let said = reply.body.replace("\\\"", "\"");
        assert!(said.contains("expected a JSON object like") && said.contains(expected), "{target}: {said}");
    }
    let mut ws = server.session("A").await;
    ws.send_text("").await;
    let error = ws.recv().await;
    let text = error["message"].as_str().unwrap_or_default();
    assert!(
        text.contains(r#"there is no text here; expected a JSON object like {"type":"ping"}"#),
        "{error}"
    );
}

#[tokio::test]
async fn the_command_line_checks_health() {
    let server = TestServer::start().await;
    let (ok, out, _) = output(cli(&server, &["health"])).await;
    assert!(ok && out.contains("\"ok\""), "{out}");
    let mut nobody = Command::new(BINARY);
    nobody.args(["health", "--server", "http://127.0.0.1:1"]);
    let (ok, _, text) = output(nobody).await;
    assert!(!ok && text.contains("no healthy broker answers"), "{text}");
}

/// A listener connects again after its broker has restarted, and goes on where it was.
#[tokio::test]
async fn the_listener_reconnects() {
    let server = TestServer::start().await;
    let address = server.address;
    let mut listener = cli(&server, &["listen", "--session", "B", "--payload"]).spawn().unwrap();
    let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines();
    server.send("A", "B", json!(1)).await;
    assert_eq!(soon(lines.next_line()).await.unwrap().unwrap(), "1");
    server.stop().await;
    let server = TestServer::with(&["--listen", &address.to_string()]).await;
    server.send("A", "B", json!(2)).await;
    assert_eq!(soon(lines.next_line()).await.unwrap().unwrap(), "2");
}

#[tokio::test]
async fn names_that_are_not_utf8_are_refused_at_every_door() {
    let server = TestServer::start().await;
    // A decoder that replaces what it cannot read would make one name of all of these.
    for name in ["%FF", "%FE", "a%C3"] {
        for target in [
            format!("/v1/messages?session={name}&wait=0"),
            format!("/v1/messages?session=A&topic={name}&wait=0"),
            format!("/v1/messages?session=A&after=1&epoch={name}&wait=0"),
            format!("/v1/events?session={name}"),
            format!("/v1/sessions/{name}"),
            format!("/v1/users/{name}"),
            format!("/get?Type=SET&SYS_SESSION=A&DestinationSession={name}&Payload=SYS__NET_EVENT-X"),
        ] {
            let reply = server.get(&target).await;
            assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"), "{target}");
        }
        let body = json!({ "to": { "session": "B" }, "payload": 1 });
        let reply = server.post(&format!("/v1/messages?session={name}"), body).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"), "{name}");
        assert!(reply.body.contains("`session` must be UTF-8"), "{}", reply.body);
        let mut ws = server.ws(&format!("?session={name}")).await;
        assert_eq!(ws.error().await, "bad_request", "{name}");
        assert_eq!(ws.closed().await.0, 4500);
    }
    let mut b = server.session("B").await;
    server.send("%C3%A9", "B", json!(1)).await;
    assert_eq!(b.message().await["from"], "é");
}

/// A listener waits for a broker that is not there yet.
#[tokio::test]
async fn a_listener_may_be_started_before_the_broker() {
    let dir = tempfile::tempdir().unwrap();
    let address = TestServer::at(dir.path(), &[]).await;
    let (place, _) = (address.address.to_string(), address.stop().await);
    let mut command = Command::new(BINARY);
    command.args([
        "listen",
        "--session",
        "B",
        "--count",
        "1",
        "--payload",
        "--server",
        &format!("ws://{place}"),
    ]);
    let mut listener = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut said = BufReader::new(listener.stderr.take().unwrap()).lines();
    let line = soon(said.next_line()).await.unwrap().unwrap();
    assert!(line.contains("refused") && line.contains("trying again"), "{line}");
    let server = TestServer::at(dir.path(), &["--listen", &place]).await;
    server.send("A", "B", json!("early")).await;
    let output = soon(listener.wait_with_output()).await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "\"early\"\n");
}

#[tokio::test]
async fn a_shell_completes_commands_and_flags() {
    for (shell, part) in
        [("bash", "complete -F"), ("zsh", "#compdef x0-msg-server"), ("fish", "complete -c x0-msg-server")]
    {
        let mut command = Command::new(BINARY);
        command.args(["completions", shell]);
        let (ok, text, _) = output(command).await;
        assert!(
            ok && text.contains(part) && text.contains("poll-timeout") && text.contains("backup"),
            "{shell}: {text}"
        );
    }
}
