//! Sessions that a backend registers with `"proof": true`: their ids are proofs on every transport. And wrong proofs.

use serde_json::{Value, json};
use tokio::process::Command;

use crate::common::*;
use crate::guarded::*;

const ID: &str = "5f3c9a1be07d42886c0e9b7d13fa2465";
const WRONG: &str = "5f3c9a1be07d42886c0e9b7d13fa2466";

fn bearer(text: &str) -> String {
    format!("Bearer {text}")
}

/// A server in `token` mode that knows API keys and no token key.
async fn without_token_keys(dir: &std::path::Path, args: &[&str]) -> TestServer {
    let file = dir.join("keys.toml");
    std::fs::write(&file, key_file()).unwrap();
    let mut start = Command::new(BINARY);
    start.args(["--auth", "token", "--poll-timeout", "200ms", "--api-key-file"]).arg(file).args(args);
    start.env("X0_MSG_LISTEN", "127.0.0.1:0").env("X0_MSG_DATA_DIR", dir.join("store"));
    start.env("RUST_LOG", "trace");
    TestServer::try_spawn_as_is(start).await.unwrap()
}

async fn register(server: &TestServer, id: &str, body: Value) -> Reply {
    let key = bearer(KEY);
    let target = format!("/v1/sessions/{id}");
    server.http().await.request("PUT", &target, &[("authorization", &key)], body.to_string()).await
}

async fn hello(server: &TestServer, hello: Value) -> (Ws, Value) {
    let mut ws = server.ws("").await;
    ws.send(hello).await;
    let answer = ws.recv().await;
    (ws, answer)
}

#[tokio::test]
async fn an_id_with_proof_is_enough_on_every_transport() {
    let dir = tempfile::tempdir().unwrap();
    let server = without_token_keys(dir.path(), &[]).await;
    let registered = register(&server, ID, json!({ "user": "ann", "proof": true })).await.json();
    assert_eq!((&registered["proof"], &registered["user"]), (&json!(true), &json!("ann")));
    register(&server, "x0-page", json!({ "user": "bob" })).await;
    let mine = bearer(ID);
    let mine = [("authorization", mine.as_str())];
    let mut http = server.http().await;
    let to_ann = |n: u64| json!({ "session": ID, "to": { "user": "ann" }, "payload": n }).to_string();
    // Send: in a body, as the bearer, over WebSocket.
    assert_eq!(http.post("/v1/messages", to_ann(1)).await.status, 200);
    let reply = http.request("POST", "/v1/messages", &mine, r#"{"to":{"user":"ann"},"payload":2}"#).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let (mut ws, welcome) = hello(&server, json!({ "type": "hello", "session": ID })).await;
    assert_eq!((&welcome["type"], &welcome["user"]), (&json!("welcome"), &json!("ann")), "{welcome}");
    ws.send(json!({ "type": "send", "id": "c", "to": { "user": "ann" }, "payload": 3 })).await;
    let mut read = Vec::new();
    while read.len() < 3 {
        let frame = ws.recv().await;
        if frame["type"] == "message" {
            assert_eq!(frame["from"], "ann", "{frame}");
            read.push(frame["payload"].clone());
        }
    }
    assert_eq!(read, [1, 2, 3]);
    drop(ws);
    // Read: the body of a poll, alone and with others; the bearer of a poll, of SSE and of a handshake.
    let poll = json!({ "session": ID, "wait": 0 });
    let reply = http.post("/v1/messages/poll", &poll).await;
    assert_eq!(reply.payloads(), [1, 2, 3], "{}", reply.body);
    let reply = http.post("/v1/messages/poll", json!([poll, { "session": WRONG, "wait": 0 }])).await.json();
    assert_eq!(reply[0]["messages"].as_array().map(Vec::len), Some(3), "{reply}");
    assert_eq!(reply[1]["error"]["code"], "unauthorized", "{reply}");
    for target in ["/v1/messages?wait=0".to_owned(), format!("/v1/messages?session={ID}&wait=0")] {
        assert_eq!(http.request("GET", &target, &mine, "").await.payloads(), [1, 2, 3], "{target}");
    }
    assert_eq!(http.request("HEAD", "/v1/messages", &mine, "").await.status, 200);
    let mut events = Events::with_bearer(server.address, "", ID).await;
    assert_eq!(
        (events.next().await.name.as_str(), events.next().await.data["payload"].clone()),
        ("welcome", json!(1))
    );
    drop(events);
    let mut ws = Ws::with_headers(server.address, "", &mine).await;
    assert_eq!(ws.recv().await["type"], "welcome");
    let seq = ws.message().await["seq"].clone();
    let reply = http.post("/v1/ack", json!({ "session": ID, "seq": seq })).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    // x0's requests, as any registered session.
    assert_eq!(http.x0("x0-page").await, Vec::<Value>::new());
    let to_bob = http.post(&x0_target(), x0_set(ID, "bob", &json!({ "n": 4 }))).await.json();
    assert_eq!(to_bob["status"], "ok", "{to_bob}");
    let reply = http.post(&x0_target(), x0_poll("x0-page")).await;
    assert_eq!(
        reply.json()["messages"][0],
        json!({ "n": 4, "session_src": "ann" }),
        "no id of another session"
    );
    // After a crash it goes on where it was.
    let log = server.kill().await;
    let server = without_token_keys(dir.path(), &[]).await;
    let epoch = welcome["epoch"].clone();
    let again = json!({ "type": "hello", "session": ID, "after": seq, "epoch": epoch });
    let (mut ws, welcome) = hello(&server, again).await;
    assert_eq!(welcome["type"], "welcome", "{welcome}");
    assert_eq!(ws.payload().await, 2);
    for log in [log, server.stop().await] {
        assert!(!log.contains(ID) && !log.contains(WRONG), "an id is in the log: {log}");
    }
}

#[tokio::test]
async fn an_id_in_an_address_proves_nothing_and_the_answer_says_where_it_belongs() {
    let server = Guarded::start().await;
    server.register(ID, json!({ "proof": true })).await;
    let mut ws = server.ws(&format!("?session={ID}")).await;
    let error = ws.recv().await;
    assert_eq!(error["code"], "unauthorized");
    assert!(error["message"].as_str().unwrap().contains("logs show addresses"), "{error}");
    assert_eq!(ws.closed().await.0, 4501);
    let mut http = server.http().await;
    for (method, path) in [
        ("GET", "/v1/messages?wait=0&"),
        ("HEAD", "/v1/messages?"),
        ("GET", "/v1/events?"),
        ("POST", "/v1/messages?"),
    ] {
        let body = if method == "POST" { r#"{"to":{"user":"ann"},"payload":1}"# } else { "" };
        let reply = http.request(method, &format!("{path}session={ID}"), &[], body).await;
        assert_eq!(reply.status, 401, "{method} {path}: {}", reply.body);
        assert!(method == "HEAD" || reply.body.contains("Authorization: Bearer"), "{path}: {}", reply.body);
    }
    // With a token, it only names the session.
    let key = token_with("ann", "a1", json!({}));
    let reply = server.call("GET", "/v1/messages?session=a1&wait=0", &key, "").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

#[tokio::test]
async fn an_id_that_can_be_guessed_is_no_proof() {
    let guarded = Guarded::start().await;
    let open = TestServer::start().await;
    for (id, why) in [
        ("0a34cb20-5d1b-11ef-9d3a-0242ac120002", "122 random bits"),
        ("7d5f1c62-9b0e-4a57-8e43-2c1f6a90b7d8", "UUID"),
        ("ann", "too short"),
        ("0123456789abcdef0123456789abcdef", "counts"),
    ] {
        for server in [&*guarded, &open] {
            let reply = register(server, id, json!({ "proof": true })).await;
            assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"), "{id}: {}", reply.body);
            let says = |part| reply.body.contains(part);
            assert!(says("`proof`") && says(why) && says("openssl rand -hex 16"), "{id}: {}", reply.body);
        }
    }
    let reply = register(&guarded, ID, json!({ "proof": "yes" })).await;
    assert!(reply.status == 400 && reply.body.contains("`proof`"), "{}", reply.body);
    // Without `proof` an id is accepted in requests of the x0 client only, and the refusal says so.
    guarded.register("ann", json!({})).await;
    let (mut ws, refused) = hello(&guarded, json!({ "type": "hello", "session": "ann" })).await;
    assert!(refused["message"].as_str().unwrap().contains("without `proof`"), "{refused}");
    assert_eq!(ws.closed().await.0, 4501);
    // In `open` mode ids are public: nothing is a proof there.
    assert_eq!(register(&open, ID, json!({ "proof": true })).await.json().get("proof"), None);
}

#[tokio::test]
async fn a_proof_lasts_as_long_as_its_registration() {
    let server = Guarded::with(&["--heartbeat", "3s"]).await;
    let ids = ["a", "b", "c", "d"].map(|last| format!("{}{last}", &ID[..31]));
    let [expires, prolonged, dropped, ended] = &ids;
    for id in &ids {
        server.register(id, json!({ "proof": true, "ttl": 3 })).await;
    }
    let mut sockets = Vec::new();
    for id in &ids {
        let (ws, welcome) = hello(&server, json!({ "type": "hello", "session": id })).await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        sockets.push(ws);
    }
    let mut events = Events::with_bearer(server.address, "", expires).await;
    for id in [prolonged, dropped, ended] {
        server.register(id, json!({ "proof": true, "ttl": 600 })).await;
    }
    assert_eq!(server.call("DELETE", &format!("/v1/sessions/{ended}"), KEY, "").await.status, 204);
    assert_eq!(server.register(dropped, json!({ "ttl": 600 })).await.get("proof"), None);
    let [first, second, third, fourth] = &mut sockets[..] else { unreachable!("four") };
    let end = async {
        let (expired, dropped, ended) = tokio::join!(first.closed(), third.closed(), fourth.closed());
        assert_eq!([expired.0, dropped.0, ended.0], [4502; 3], "{expired:?} {dropped:?} {ended:?}");
        soon(async { while events.try_next().await.is_some() {} }).await;
    };
    let stays = async {
        loop {
            // A read answers the pings of the server.
            second.ping_among_messages().await;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = end => {}
        () = stays => {}
    }
    second.ping_among_messages().await;
    for (id, status) in [(expires, 401), (prolonged, 200), (dropped, 401), (ended, 401)] {
        let reply = server.post("/v1/messages/poll", json!({ "session": id, "wait": 0 })).await;
        assert_eq!(reply.status, status, "{}", reply.body);
    }
}

/// A door at which something wrong is shown: the status, or the code of the first error frame and of the close frame.
async fn show_wrong(server: &TestServer, door: &str, address: &str) -> (String, u16) {
    let (from, wrong) = (("x-forwarded-for", address), bearer(WRONG));
    let with_header = [from, ("authorization", wrong.as_str())];
    let body = match door {
        "POST /v1/messages" => json!({ "session": WRONG, "to": { "user": "ann" }, "payload": 1 }),
        "POST /v1/ack" => json!({ "session": WRONG, "seq": 1 }),
        _ => json!({ "session": WRONG, "wait": 0 }),
    };
    if let Some(how) = door.strip_prefix("ws ") {
        let mut ws = match how {
            "header" => Ws::with_headers(server.address, "", &with_header).await,
            _ => Ws::with_headers(server.address, "", &[from]).await,
        };
        match how {
            "token" => ws.send(json!({ "type": "hello", "token": "a.b.c" })).await,
            "hello" => ws.send(json!({ "type": "hello", "session": WRONG })).await,
            _ => {}
        }
        let code = ws.error().await;
        return (code, ws.closed().await.0);
    }
    let (method, target) = door.split_once(' ').unwrap();
    let mut http = server.http().await;
    let reply = match (method, target) {
        ("POST", target) => http.request("POST", target, &[from], body.to_string()).await,
        ("MANY", target) => {
            let reply = http.request("POST", target, &[from], json!([body, body]).to_string()).await.json();
            let code = reply[1]["error"]["code"].as_str().unwrap().to_owned();
            return (code, 0);
        }
        (method, target) => http.request(method, target, &with_header, "{}").await,
    };
    if reply.status == 429 {
        assert_eq!(reply.header("retry-after"), "1");
    }
    let code = if method == "HEAD" { String::new() } else { reply.code() };
    (code, reply.status)
}

#[tokio::test]
async fn wrong_proofs_are_limited_by_address_at_every_door() {
    let server = Guarded::with(&["--trust-proxy", "127.0.0.1", "--poll-timeout", "50ms"]).await;
    server.register(ID, json!({ "user": "ann", "proof": true })).await;
    let doors = [
        ("ws hello", 1013),
        ("ws token", 1013),
        ("ws header", 1013),
        ("GET /v1/messages?wait=0", 429),
        ("HEAD /v1/messages", 429),
        ("GET /v1/events", 429),
        ("POST /v1/messages", 429),
        ("POST /v1/messages/poll", 429),
        ("MANY /v1/messages/poll", 0),
        ("POST /v1/ack", 429),
        ("PUT /v1/sessions/A", 429),
    ];
    for (n, (door, limited)) in doors.into_iter().enumerate() {
        let address = format!("10.0.0.{n}");
        let mut tries = 0;
        // The bucket fills meanwhile, slowly.
        while show_wrong(&server, door, &address).await.1 != limited
            || door.starts_with("MANY") && show_wrong(&server, door, &address).await.0 != "rate_limited"
        {
            tries += 1;
            assert!(tries < 500, "{door}: no limit");
        }
        assert!(tries >= 9 || door.starts_with("MANY"), "{door}: limited after {tries}");
        // Right keys and tokens pass.
        let mut http = server.http().await;
        for (proof, target) in [(KEY, "/v1/sessions/none"), (&token("eve", "e"), "/v1/messages?wait=0")] {
            let headers = [("x-forwarded-for", address.as_str()), ("authorization", &bearer(proof))];
            let reply = http.request("GET", target, &headers, "").await;
            assert!(reply.status != 401 && reply.status != 429, "{door}: {}", reply.body);
        }
    }
    // x0's polls are held, and never refused.
    let mut http = server.http().await;
    for _ in 0..30 {
        assert_eq!(http.x0(WRONG).await, Vec::<Value>::new());
    }
}

#[tokio::test]
async fn a_neighbour_who_guesses_locks_nobody_out_for_long() {
    let server = Guarded::with(&["--trust-proxy", "127.0.0.1"]).await;
    let other = format!("{}9", &ID[..31]);
    for id in [ID, &other] {
        server.register(id, json!({ "proof": true })).await;
    }
    let from = [("x-forwarded-for", "10.0.0.1")];
    let poll = async |id: &str| {
        let body = json!({ "session": id, "wait": 0 }).to_string();
        server.http().await.request("POST", "/v1/messages/poll", &from, body).await.status
    };
    assert_eq!(poll(ID).await, 200);
    let expired = signed(&json!({ "sub": "ann", "sid": "A", "exp": now() - 60 }));
    let mut locked_out = false;
    for _ in 0..200 {
        let (code, _) = show_wrong(&server, "POST /v1/ack", "10.0.0.1").await;
        // Who polls here already goes on.
        assert_eq!(poll(ID).await, 200);
        locked_out = code == "rate_limited" && poll(&other).await == 429;
        if locked_out {
            break;
        }
    }
    assert!(locked_out, "an id that was never shown here may be a guess");
    // An expired token is no guess, and is told what it is.
    let headers = [from[0], ("authorization", &bearer(&expired))];
    assert_eq!(server.http().await.request("GET", "/v1/messages", &headers, "").await.status, 401);
    soon(async { while poll(&other).await != 200 {} }).await;
}
