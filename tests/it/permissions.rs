//! Permissions: one table of callers, operations and addresses, with the answer to each combination.

use serde_json::{Value, json};

use crate::common::*;
use crate::guarded::*;

/// The caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Without credentials.
    Nobody,
    /// The user `ann` in the session `a1`.
    Ann,
    /// The same user in another session.
    AnnElsewhere,
    /// The user `eve`.
    Eve,
    /// The user `eve`, with a token that is limited to the user `bob` and some topics.
    EveNarrowed,
    /// A backend.
    Key,
    /// Backends with limited keys.
    SendOnly,
    TopicsOnly,
    SessionsOnly,
    /// Another backend, which has a mailbox.
    Shop,
}

use Who::*;

const EVERYBODY: [Who; 10] =
    [Nobody, Ann, AnnElsewhere, Eve, EveNarrowed, Key, SendOnly, TopicsOnly, SessionsOnly, Shop];

impl Who {
    fn bearer(self) -> String {
        match self {
            Nobody => String::new(),
            Ann => token_with("ann", "a1", json!({ "topics": ["news"] })),
            AnnElsewhere => token("ann", "a2"),
            Eve => token("eve", "e1"),
            EveNarrowed => token_with(
                "eve",
                "e2",
                json!({ "send": ["user:bob", "topic:news", "backend:shop"], "topics": ["news", "room/*"] }),
            ),
            Key => KEY.to_owned(),
            SendOnly => SEND_ONLY.to_owned(),
            TopicsOnly => TOPICS_ONLY.to_owned(),
            SessionsOnly => SESSIONS_ONLY.to_owned(),
            Shop => SHOP.to_owned(),
        }
    }

    fn holds_a_session(self) -> bool {
        matches!(self, Ann | AnnElsewhere | Eve | EveNarrowed)
    }
}

/// The operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// To the session of ann, by its id.
    SendToId,
    /// To the session of ann, by its handle.
    SendToHandle,
    /// To a user with a session.
    SendToBob,
    /// To a user without one.
    SendToNobody,
    SendToNews,
    SendToOtherTopic,
    /// To a backend with a mailbox.
    SendToShop,
    ReadOwnMailbox,
    /// The mailbox of the session `a1`.
    ReadA1,
    AckA1,
    ReadNews,
    ReadRoom,
    Register,
    LookUp,
    LookUpUser,
    End,
}

use What::*;

/// The answer: `ok`, or the code of the error.
fn expected(who: Who, what: What) -> &'static str {
    match (what, who) {
        (_, Nobody) => "unauthorized",
        // Only its user and backends can address a session by its id.
        (SendToId, Ann | AnnElsewhere | Key | SendOnly | Shop) => "ok",
        (SendToId, Eve) => "not_found",
        (SendToHandle, Ann | AnnElsewhere | Eve | Key | SendOnly | Shop) => "ok",
        (SendToId | SendToHandle, EveNarrowed | TopicsOnly | SessionsOnly) => "forbidden",
        (SendToBob, TopicsOnly | SessionsOnly) => "forbidden",
        (SendToBob, _) => "ok",
        (SendToNobody, EveNarrowed | TopicsOnly | SessionsOnly) => "forbidden",
        (SendToNobody, _) => "not_found",
        (SendToNews, EveNarrowed | Key | SendOnly | TopicsOnly | Shop) => "ok",
        (SendToNews, _) => "forbidden",
        (SendToOtherTopic, Key | SendOnly | TopicsOnly | Shop) => "ok",
        (SendToOtherTopic, _) => "forbidden",
        (SendToShop, EveNarrowed | Key | SendOnly | Shop) => "ok",
        (SendToShop, _) => "forbidden",
        (ReadOwnMailbox, Ann | AnnElsewhere | Eve | EveNarrowed | Shop) => "ok",
        // Other API keys have no mailbox.
        (ReadOwnMailbox, _) => "unauthorized",
        (ReadA1 | AckA1, Ann) => "ok",
        (ReadA1 | AckA1, _) => "forbidden",
        (ReadNews, Ann | EveNarrowed | Key | TopicsOnly | Shop) => "ok",
        (ReadRoom, EveNarrowed | Key | TopicsOnly | Shop) => "ok",
        (ReadNews | ReadRoom, _) => "forbidden",
        (Register | LookUp | LookUpUser | End, Key | SessionsOnly | Shop) => "ok",
        (Register | LookUp | LookUpUser | End, _) => "forbidden",
    }
}

const EVERYTHING: [What; 16] = [
    SendToId,
    SendToHandle,
    SendToBob,
    SendToNobody,
    SendToNews,
    SendToOtherTopic,
    SendToShop,
    ReadOwnMailbox,
    ReadA1,
    AckA1,
    ReadNews,
    ReadRoom,
    Register,
    LookUp,
    LookUpUser,
    End,
];

fn address(what: What, handle: &str) -> Option<Value> {
    Some(match what {
        SendToId => json!({ "session": "a1" }),
        SendToHandle => json!({ "session": handle }),
        SendToBob => json!({ "user": "bob" }),
        SendToNobody => json!({ "user": "nobody" }),
        SendToNews => json!({ "topic": "news" }),
        SendToOtherTopic => json!({ "topic": "other" }),
        SendToShop => json!({ "backend": "shop" }),
        _ => return None,
    })
}

fn of_reply(reply: &Reply) -> String {
    if reply.status < 300 { "ok".to_owned() } else { reply.code() }
}

/// The answers over HTTP, one for each way to make this call.
async fn over_http(server: &Guarded, who: Who, what: What, handle: &str) -> Vec<(&'static str, String)> {
    let bearer = who.bearer();
    let call = |method, target: &'static str, body: Value| {
        let bearer = bearer.clone();
        async move { of_reply(&server.call(method, target, &bearer, body).await) }
    };
    if let Some(to) = address(what, handle) {
        let send = json!({ "to": to, "payload": 1 });
        let batch = server.call("POST", "/v1/messages", &bearer, json!([send])).await;
        let inner = batch.json()[0]["error"]["code"].as_str().map(str::to_owned);
        let batch = inner.unwrap_or_else(|| of_reply(&batch));
        return vec![("http", call("POST", "/v1/messages", send).await), ("batch", batch)];
    }
    match what {
        ReadOwnMailbox => {
            vec![
                ("poll", call("GET", "/v1/messages?wait=0", json!(null)).await),
                ("sse", stream(server, "/v1/events", &bearer).await),
            ]
        }
        ReadA1 => vec![
            ("poll", call("GET", "/v1/messages?session=a1&wait=0", json!(null)).await),
            ("sse", stream(server, "/v1/events?session=a1", &bearer).await),
        ],
        AckA1 => vec![("http", call("POST", "/v1/ack", json!({ "session": "a1", "seq": 0 })).await)],
        // Over HTTP, topics are read together with a mailbox.
        ReadNews | ReadRoom if who.holds_a_session() || who == Nobody => {
            let (poll, sse) = match what {
                ReadNews => ("/v1/messages?wait=0&topic=news", "/v1/events?topic=news"),
                _ => ("/v1/messages?wait=0&topic=room/1", "/v1/events?topic=room/1"),
            };
            vec![("poll", call("GET", poll, json!(null)).await), ("sse", stream(server, sse, &bearer).await)]
        }
        Register => vec![("http", call("PUT", "/v1/sessions/new", json!({ "ttl": 60 })).await)],
        LookUp => vec![("http", call("GET", "/v1/sessions/a1", json!(null)).await)],
        LookUpUser => vec![("http", call("GET", "/v1/users/bob", json!(null)).await)],
        End => vec![("http", call("DELETE", "/v1/sessions/new", json!(null)).await)],
        _ => Vec::new(),
    }
}

/// The answer to the request of an event stream.
async fn stream(server: &Guarded, target: &str, bearer: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let proof = if bearer.is_empty() { String::new() } else { format!("authorization: Bearer {bearer}\r\n") };
    let request = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n{proof}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = String::new();
    loop {
        let mut bytes = [0; 4096];
        let count = soon(stream.read(&mut bytes)).await.unwrap();
        seen.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        if seen.contains("event: welcome") {
            return "ok".to_owned();
        }
        if let Some((_, body)) = seen.split_once("\r\n\r\n")
            && let Ok(body) = serde_json::from_str::<Value>(body)
        {
            return body["error"]["code"].as_str().unwrap().to_owned();
        }
    }
}

/// The answer over WebSocket; `None` if WebSocket has no such operation.
async fn over_websocket(server: &Guarded, who: Who, what: What, handle: &str) -> Option<String> {
    let mut hello = json!({ "type": "hello", "token": who.bearer() });
    if who == Nobody {
        hello["token"] = json!(null);
    }
    if what == ReadA1 {
        hello["session"] = json!("a1");
    }
    let frame = match what {
        ReadNews => json!({ "type": "subscribe", "topic": "news" }),
        ReadRoom => json!({ "type": "subscribe", "topic": "room/1" }),
        // A socket acknowledges its own mailbox only.
        ReadOwnMailbox => json!({ "type": "ack", "seq": 0 }),
        ReadA1 => json!({ "type": "ping" }),
        what => json!({ "type": "send", "to": address(what, handle)?, "payload": 1, "volatile": true }),
    };
    let mut ws = server.ws("").await;
    ws.send(hello).await;
    let answer = ws.recv().await;
    if answer["type"] == "error" {
        let code = answer["code"].as_str().unwrap().to_owned();
        assert_eq!(ws.closed().await.0, 4501, "{who:?} {what:?}");
        return Some(code);
    }
    ws.send(frame).await;
    ws.send(json!({ "type": "ping" })).await;
    loop {
        let answer = ws.recv().await;
        match answer["type"].as_str().unwrap() {
            "message" => {}
            "error" => return Some(answer["code"].as_str().unwrap().to_owned()),
            _ => return Some("ok".to_owned()),
        }
    }
}

#[tokio::test]
async fn permissions_are_as_in_the_table() {
    let server = Guarded::start().await;
    let handle = server.register("a1", json!({ "user": "ann" })).await["handle"].as_str().unwrap().to_owned();
    server.register("b1", json!({ "user": "bob" })).await;
    let mut wrong = Vec::new();
    let mut count = 0;
    for who in EVERYBODY {
        for what in EVERYTHING {
            let mut answers = over_http(&server, who, what, &handle).await;
            let over_ws = over_websocket(&server, who, what, &handle).await;
            answers.extend(over_ws.map(|answer| ("websocket", answer)));
            for (way, answer) in answers {
                count += 1;
                if answer != expected(who, what) {
                    wrong.push(format!("{who:?} {what:?} by {way}: {answer}, not {}", expected(who, what)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 200, "only {count} were asked");
}

/// The table for x0 pages with `--auth token`: the ids with which a page polls and sends, and the answers.
#[tokio::test]
async fn permissions_of_x0_pages_are_as_in_the_table() {
    let server = Guarded::with(&["--poll-timeout", "300ms"]).await;
    let a1 = server.register("a1", json!({ "user": "ann" })).await["handle"].as_str().unwrap().to_owned();
    server.register("a2", json!({ "user": "ann" })).await;
    server.register("b1", json!({ "user": "bob" })).await;
    server.register("lonely", json!({})).await;
    server.welcomed(&token("ann", "carried")).await;
    let mut http = server.http().await;
    for (from, to, answer) in [
        ("a1", "bob", "ok"),
        ("a1", "a2", "ok"),
        ("a1", "a1", "ok"),
        ("a1", "ann", "ok"),
        ("b1", a1.as_str(), "ok"),
        ("lonely", "bob", "ok"),
        ("lonely", "lonely", "ok"),
        // A foreign id is answered like an unknown one.
        ("b1", "a1", "not_found"),
        ("lonely", "a1", "not_found"),
        ("a1", "lonely", "not_found"),
        ("a1", "nobody", "not_found"),
        ("unknown", "bob", "unauthorized"),
        (a1.as_str(), "bob", "unauthorized"),
        // The session of a token has an id that others may know, so the id is no credential.
        ("carried", "bob", "unauthorized"),
    ] {
        let reply = http.post(&x0_target(), x0_set(from, to, &json!({ "n": 1 }))).await;
        assert_eq!(reply.status, 200);
        let reply = reply.json();
        let said = reply["status"].as_str().or(reply["exception_id"].as_str()).unwrap();
        assert_eq!(said, answer, "{from} to {to}: {reply}");
    }
    for (session, count) in
        [("b1", 2), ("a1", 3), ("a2", 2), ("lonely", 1), ("unknown", 0), (a1.as_str(), 0), ("carried", 0)]
    {
        let mut http = server.http().await;
        for n in 0..=count {
            assert_eq!(http.x0(session).await.len(), usize::from(n < count), "{session} {n}");
        }
    }
}
