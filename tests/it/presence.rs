//! Who reads a topic: events, counts and the list, on every transport and in both modes.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::common::*;
use crate::guarded::*;

/// The members of a topic, as one who is told of changes knows them.
struct Known {
    members: BTreeSet<String>,
    /// Each name as often as it was told that it joined or left.
    joined: Vec<String>,
    left: Vec<String>,
}

fn names(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

impl Known {
    /// Begins with the list.
    fn new(list: &Reply) -> Self {
        assert_eq!(list.status, 200, "{}", list.body);
        let members = names(&list.json()["members"]).into_iter().collect();
        Self { members, joined: Vec::new(), left: Vec::new() }
    }

    fn apply(&mut self, event: &Value) {
        assert_eq!((&event["type"], &event["topic"]), (&json!("presence"), &json!("news")), "{event}");
        assert_eq!(event.get("seq"), None);
        for name in names(&event["left"]) {
            self.members.remove(&name);
            self.left.push(name);
        }
        for name in names(&event["joined"]) {
            self.members.insert(name.clone());
            self.joined.push(name);
        }
        assert_eq!(event["count"], self.members.len(), "{event}");
    }

    fn are(&self, members: &[&str]) -> bool {
        self.members.iter().eq(members)
    }
}

/// One who is told of changes.
enum Watcher {
    Websocket(Box<Ws>),
    Events(Events),
    /// Polls, with the cursor or the body of the next one.
    Get(Http, String),
    Post(Http, Value),
}

const PRESENCE_POLL: &str = "&topic=news&presence=news&wait=20";

/// The parameters of the poll that goes on after this answer.
fn cursor_of(answer: &Value) -> String {
    format!("&after={}&epoch={}", answer["seq"], answer["epoch"].as_str().unwrap())
}

impl Watcher {
    /// One on each transport: its session, and how many members it is told at first.
    async fn all(server: &TestServer) -> Vec<(Self, u64)> {
        let count = |value: &Value| value["presence"]["count"].as_u64().unwrap();
        let mut ws = server.session("W").await;
        let subscribed = subscribe(&mut ws).await;
        let mut events = Events::open(server, "?session=E&topic=news&presence=news", None).await;
        assert_eq!(events.next().await.name, "welcome");
        let opened = events.next().await;
        assert_eq!(opened.name, "subscribed");
        let mut get = server.http().await;
        let first = get.get(&format!("/v1/messages?session=G{PRESENCE_POLL}")).await.json();
        let mut post = server.http().await;
        let mut body =
            json!({ "session": "P", "topics": [{ "topic": "news", "presence": true }], "wait": 20 });
        let posted = post.post("/v1/messages/poll", &body).await.json();
        (body["after"], body["epoch"]) = (posted["seq"].clone(), posted["epoch"].clone());
        vec![
            (Self::Websocket(Box::new(ws)), count(&subscribed)),
            (Self::Events(events), count(&opened.data)),
            (Self::Get(get, cursor_of(&first)), count(&json!({ "presence": first["presence"]["news"] }))),
            (Self::Post(post, body), count(&json!({ "presence": posted["presence"]["news"] }))),
        ]
    }

    async fn events(&mut self) -> Vec<Value> {
        let answer = match self {
            Self::Websocket(ws) => return vec![ws.recv().await],
            Self::Events(events) => {
                let event = events.next().await;
                assert_eq!((event.name.as_str(), event.id), ("presence", None));
                return vec![event.data];
            }
            Self::Get(http, cursor) => {
                let target = format!("/v1/messages?session=G{PRESENCE_POLL}{cursor}");
                let answer = http.get(&target).await.json();
                *cursor = cursor_of(&answer);
                answer
            }
            Self::Post(http, body) => {
                let answer = http.post("/v1/messages/poll", &body).await.json();
                (body["after"], body["epoch"]) = (answer["seq"].clone(), answer["epoch"].clone());
                answer
            }
        };
        assert_eq!(answer.get("presence"), None, "it was told before: {answer}");
        answer["messages"].as_array().unwrap().clone()
    }

    /// Waits until it was told that these are the members.
    async fn told(&mut self, known: &mut Known, members: &[&str]) {
        soon(async {
            while !known.are(members) {
                self.events().await.iter().for_each(|event| known.apply(event));
            }
        })
        .await;
    }
}

async fn subscribe(ws: &mut Ws) -> Value {
    ws.send(json!({ "type": "subscribe", "topic": "news", "presence": true })).await;
    let subscribed = ws.recv().await;
    assert_eq!(subscribed["type"], "subscribed", "{subscribed}");
    subscribed
}

async fn list(server: &TestServer) -> Reply {
    server.get("/v1/topics/news/presence").await
}

#[tokio::test]
async fn every_transport_is_told_who_comes_and_goes_on_every_transport() {
    let server = TestServer::start().await;
    let watchers = Watcher::all(&server).await;
    let watching = ["E", "G", "P", "W"];
    let counts: Vec<u64> = watchers.iter().map(|(_, count)| *count).collect();
    assert_eq!(counts, [1, 2, 3, 4], "who subscribes is a member");
    let mut readers = Vec::new();
    for (watcher, _) in watchers {
        let mut known = Known::new(&list(&server).await);
        let mut watcher = watcher;
        watcher.told(&mut known, &watching).await;
        readers.push((watcher, known));
    }
    // Over a WebSocket, with events, and by a poll that is over.
    let mut ws = server.session("1").await;
    ws.send(json!({ "type": "subscribe", "topic": "news" })).await;
    assert_eq!(ws.recv().await.get("presence"), None, "it did not ask");
    let events = Events::open(&server, "?session=2&topic=news", None).await;
    server.get("/v1/messages?session=3&topic=news&wait=0").await;
    for (watcher, known) in &mut readers {
        watcher.told(known, &["1", "2", "3", "E", "G", "P", "W"]).await;
    }
    ws.send(json!({ "type": "unsubscribe", "topic": "news" })).await;
    drop(events);
    for (watcher, known) in &mut readers {
        watcher.told(known, &["3", "E", "G", "P", "W"]).await;
        assert_eq!((known.left.len(), known.joined.iter().filter(|name| *name == "3").count()), (2, 1));
    }
    // Who does not ask is told nothing.
    assert_eq!(ws.recv().await["type"], "unsubscribed");
    ws.ping().await;
}

#[tokio::test]
async fn a_user_with_three_tabs_is_one_member_and_no_session_is_shown() {
    let server = Guarded::start().await;
    let claims = json!({ "topics": ["news"], "presence": ["news"] });
    let mut bob = server.welcomed(&token_with("bob", "secret-b", claims.clone())).await;
    assert_eq!(subscribe(&mut bob).await["presence"], json!({ "count": 1 }));
    let mut known = Known::new(&server.call("GET", "/v1/topics/news/presence", KEY, "").await);
    let mut tabs = Vec::new();
    for sid in ["secret-1", "secret-2", "secret-2"] {
        let mut tab = server.welcomed(&token_with("ann", sid, json!({ "topics": ["news"] }))).await;
        tab.send(json!({ "type": "subscribe", "topic": "news" })).await;
        assert_eq!(tab.recv().await["type"], "subscribed");
        tabs.push(tab);
    }
    let mut watcher = Watcher::Websocket(Box::new(bob));
    watcher.told(&mut known, &["ann", "bob"]).await;
    tabs.truncate(1);
    // What comes next is told after the two tabs that closed.
    let mut cid = server.welcomed(&token_with("cid", "secret-c", claims)).await;
    assert_eq!(subscribe(&mut cid).await["presence"]["count"], 3);
    watcher.told(&mut known, &["ann", "bob", "cid"]).await;
    tabs.clear();
    watcher.told(&mut known, &["bob", "cid"]).await;
    assert_eq!(
        (known.joined, known.left),
        (vec!["ann".to_owned(), "cid".to_owned()], vec!["ann".to_owned()])
    );
    let list = server.call("GET", "/v1/topics/news/presence", KEY, "").await;
    assert_eq!(list.json(), json!({ "topic": "news", "count": 2, "members": ["bob", "cid"] }));
}

#[tokio::test]
async fn the_list_has_pages_and_backends_and_readers_without_a_session_are_not_on_it() {
    let server = TestServer::start().await;
    let mut tabs = Vec::new();
    for name in ["b", "a", "c é", "d"] {
        let mut tab = server.session(name).await;
        tab.send(json!({ "type": "subscribe", "topic": "room/1" })).await;
        tab.recv().await;
        tabs.push(tab);
    }
    let _anonymous = Events::open(&server, "?topic=room/1", None).await;
    let page = async |query: &str| server.get(&format!("/v1/topics/room%2F1/presence{query}")).await.json();
    let whole = json!({ "topic": "room/1", "count": 4, "members": ["a", "b", "c é", "d"] });
    assert_eq!(page("").await, whole);
    assert_eq!(
        page("?limit=3").await,
        json!({ "topic": "room/1", "count": 4, "members": ["a", "b", "c é"], "next": "c é" })
    );
    assert_eq!(
        page("?limit=3&after=c%20%C3%A9").await,
        json!({ "topic": "room/1", "count": 4, "members": ["d"] })
    );
    assert_eq!(page("?after=zzz").await["members"], json!([]));
    let empty = json!({ "topic": "nobody", "count": 0, "members": [] });
    assert_eq!(server.get("/v1/topics/nobody/presence").await.json(), empty);
    for query in ["?limit=0", "?limit=1001", "?limit=x", "?after="] {
        let reply = server.get(&format!("/v1/topics/news/presence{query}")).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"), "{query}");
    }
    assert_eq!(server.get("/v1/topics/a%0Ab/presence").await.status, 400);
    let guarded = Guarded::start().await;
    let _backend = Events::with_bearer(guarded.address, "?topic=news&presence=news", KEY).await;
    let list = guarded.call("GET", "/v1/topics/news/presence", KEY, "").await;
    assert_eq!(list.json()["count"], 0);
}

#[tokio::test]
async fn who_may_not_see_the_members_is_told_which_list_would_allow_it() {
    let server = Guarded::start().await;
    let token = token_with("ann", "a1", json!({ "topics": ["news"], "presence": ["room/*"] }));
    let mut ws = server.welcomed(&token).await;
    ws.send(json!({ "type": "subscribe", "topic": "news", "presence": true })).await;
    let error = ws.recv().await;
    assert_eq!(error["code"], "forbidden");
    assert!(error["message"].as_str().unwrap().contains("`presence` list of the token"), "{error}");
    for target in [
        "/v1/topics/news/presence",
        "/v1/messages?topic=news&presence=news&wait=0",
        "/v1/events?topic=news&presence=news",
    ] {
        let reply = server.call("GET", target, &token, "").await;
        assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"), "{target}");
        assert!(reply.body.contains("`presence` list of the token"), "{}", reply.body);
    }
    let body = json!({ "topics": [{ "topic": "news", "presence": true }], "wait": 0 });
    let reply = server.call("POST", "/v1/messages/poll", &token, body).await.json();
    assert_eq!(
        (&reply["errors"][0]["topic"], &reply["errors"][0]["code"]),
        (&json!("news"), &json!("forbidden"))
    );
    assert_eq!(server.call("GET", "/v1/topics/news/presence", "", "").await.code(), "unauthorized");
    // A token without a session sees the list as well, and gets no session by that.
    let without = signed(&json!({ "sub": "bob", "exp": now() + 60, "presence": ["*"] }));
    assert_eq!(server.call("GET", "/v1/topics/news/presence", &without, "").await.status, 200);
    assert_eq!(server.call("GET", "/v1/users/bob", KEY, "").await.status, 404);
}

#[tokio::test]
async fn a_fresh_token_without_the_permission_ends_the_events() {
    let server = Guarded::start().await;
    let claims = |presence: &[&str]| json!({ "topics": ["news"], "presence": presence });
    let mut ann = server.welcomed(&token_with("ann", "a1", claims(&["news"]))).await;
    subscribe(&mut ann).await;
    ann.send(json!({ "type": "hello", "token": token_with("ann", "a1", claims(&[])) })).await;
    assert_eq!(ann.recv().await["type"], "welcome");
    let error = ann.recv().await;
    assert!(error["message"].as_str().unwrap().contains("`presence` list"), "{error}");
    // Another one hears of bob; then ann would have heard of him too.
    let mut cid = server.welcomed(&token_with("cid", "c1", claims(&["news"]))).await;
    subscribe(&mut cid).await;
    let mut known = Known::new(&server.call("GET", "/v1/topics/news/presence", KEY, "").await);
    let mut bob = server.welcomed(&token_with("bob", "b1", claims(&["news"]))).await;
    subscribe(&mut bob).await;
    Watcher::Websocket(Box::new(cid)).told(&mut known, &["ann", "bob", "cid"]).await;
    ann.ping().await;
    // She still reads the topic.
    server.call("POST", "/v1/messages", KEY, json!({ "to": { "topic": "news" }, "payload": 1 })).await;
    assert_eq!(ann.payload().await, 1);
}

#[tokio::test]
async fn a_poll_without_a_session_is_told_where_the_list_is() {
    let server = TestServer::start().await;
    let reply = server.get("/v1/messages?topic=news&presence=news&wait=0").await;
    assert_eq!((reply.status, reply.code().as_str()), (401, "unauthorized"));
    assert!(reply.body.contains("/v1/topics/news/presence"), "{}", reply.body);
    let body = json!({ "topics": [{ "topic": "news", "presence": true }], "wait": 0 });
    assert_eq!(server.post("/v1/messages/poll", body).await.code(), "unauthorized");
    // Presence reads the topic as well.
    let answer = server.get("/v1/messages?session=A&presence=news&wait=9").await.json();
    assert_eq!(answer["presence"], json!({ "news": { "count": 1 } }));
    assert!(answer["topics"]["news"].is_u64(), "{answer}");
}

#[tokio::test]
async fn an_ended_session_is_no_member_any_more() {
    let server = TestServer::start().await;
    let mut watcher = server.session("W").await;
    let mut ended = server.session("X").await;
    for ws in [&mut watcher, &mut ended] {
        subscribe(ws).await;
    }
    let mut known = Known::new(&list(&server).await);
    let mut watcher = Watcher::Websocket(Box::new(watcher));
    watcher.told(&mut known, &["W", "X"]).await;
    server.http().await.request("DELETE", "/v1/sessions/X", &[], "").await;
    watcher.told(&mut known, &["W"]).await;
}
