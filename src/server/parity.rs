//! All transports on an engine of several machines: the same messages, in the same order, none lost, none twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, BodyStream, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::*;
use crate::engine::{Cluster, Engine, Node, Settings};

const MESSAGES: usize = 60;

/// Each test runs once for each of these seeds of the network. A test that fails prints its seed.
const SEEDS: std::ops::Range<u64> = 0..3;

async fn soon<T>(event: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), event).await.expect("the event comes within the deadline")
}

/// Nodes of one cluster, each with a server.
struct Nodes {
    cluster: Arc<Cluster>,
    clock: Clock,
    seed: u64,
}

impl Nodes {
    fn new(seed: u64) -> Self {
        // Shown if the test fails.
        println!("seed {seed}");
        let clock = Clock::manual();
        Self { cluster: Cluster::new(Self::settings(clock)), clock, seed }
    }

    fn settings(clock: Clock) -> Settings {
        engine_settings(&Config::default(), clock)
    }

    /// Starts a server on a node of its own. It stops with the test.
    async fn start(&mut self) -> SocketAddr {
        self.start_node().await.0
    }

    async fn start_node(&mut self) -> (SocketAddr, Node) {
        let (config, slots) = (Config::default(), 4);
        let settings = Self::settings(self.clock);
        let (node, hubs) = Node::start(&self.cluster, settings, slots, self.seed);
        self.seed += 1000;
        let engine = Engine::Replicated(node.clone());
        let broker = Broker::new(engine, hubs, broker_limits(&config), self.clock);
        let server = Server::with(broker, config).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(server.serve(vec![listener]));
        (address, node)
    }
}

/// One connection for requests, one after the other.
struct Http(SendRequest<Full<Bytes>>);

impl Http {
    async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn open(&mut self, method: &str, target: &str, body: &Value) -> Incoming {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = hyper::Request::builder().method(method).uri(target).header("host", "localhost");
        let request = request.header("content-type", "application/json");
        self.0.ready().await.unwrap();
        let response = self.0.send_request(request.body(Full::from(body)).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200, "{method} {target}");
        response.into_body()
    }

    async fn call(&mut self, method: &str, target: &str, body: &Value) -> Value {
        let body = soon(self.open(method, target, body).await.collect()).await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    }

    async fn x0(&mut self, body: &Value) -> Value {
        let target = format!("/python/MsgHandler.py?a__={:010}", fastrand::u64(..10_000_000_000));
        self.call("POST", &target, body).await
    }
}

struct Ws(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Ws {
    /// Connects, and answers the `welcome`.
    async fn connect(address: SocketAddr, query: &str) -> (Self, Value) {
        let (socket, _) = soon(connect_async(format!("ws://{address}/ws{query}"))).await.unwrap();
        let mut ws = Self(socket);
        let welcome = ws.receive().await;
        assert_eq!(welcome["type"], "welcome");
        (ws, welcome)
    }

    async fn send(&mut self, frame: &Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    async fn receive(&mut self) -> Value {
        loop {
            let message = soon(self.0.next()).await.expect("open").unwrap();
            if let Message::Text(text) = message {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    async fn message(&mut self) -> Value {
        let frame = self.receive().await;
        assert_eq!(frame["type"], "message", "{frame}");
        frame
    }
}

/// Waits until so many readers are connected to session B, or poll for it.
async fn attached_to_b(address: SocketAddr, count: u64) {
    let mut http = Http::connect(address).await;
    loop {
        let session = http.call("GET", "/v1/sessions/B", &Value::Null).await;
        let connections = session["connections"].as_object().into_iter().flatten();
        if connections.filter_map(|(_, count)| count.as_u64()).sum::<u64>() == count {
            return;
        }
    }
}

async fn send_to_b(address: SocketAddr) {
    let (mut ws, _) = Ws::connect(address, "?session=A").await;
    let (mut http, mut page) = (Http::connect(address).await, Http::connect(address).await);
    for n in 0..MESSAGES {
        let payload = json!({ "n": n });
        let send =
            json!({ "type": "send", "id": n.to_string(), "to": { "session": "B" }, "payload": payload });
        match n % 3 {
            0 => {
                ws.send(&send).await;
                assert_eq!(ws.receive().await["type"], "sent");
            }
            1 => _ = http.call("POST", "/v1/messages?session=A", &send).await,
            _ => {
                let set =
                    json!({ "type": "SET", "session_src": "A", "session_dst": "B", "payload": payload });
                assert_eq!(page.x0(&set).await["status"], "ok");
            }
        }
    }
}

async fn over_websocket(mut ws: Ws) -> Vec<Value> {
    let mut got = Vec::new();
    while got.len() < MESSAGES {
        got.push(ws.message().await["payload"].take());
    }
    got
}

/// Acknowledges at once, so that slower readers are waited for.
async fn acknowledging(mut ws: Ws) {
    for _ in 0..MESSAGES {
        let seq = ws.message().await["seq"].take();
        ws.send(&json!({ "type": "ack", "seq": seq })).await;
    }
}

async fn over_poll(mut http: Http) -> Vec<Value> {
    let (mut got, mut after) = (Vec::new(), json!(0));
    while got.len() < MESSAGES {
        let mut answer =
            http.call("GET", &format!("/v1/messages?session=B&after={after}"), &Value::Null).await;
        assert_eq!(answer.get("gaps"), None, "{answer}");
        after = answer["seq"].take();
        got.extend(answer["messages"].as_array_mut().unwrap().iter_mut().map(|one| one["payload"].take()));
    }
    got
}

/// Server-Sent Events.
struct Events {
    body: BodyStream<Incoming>,
    text: String,
}

impl Events {
    async fn open(address: SocketAddr) -> Self {
        let body = Http::connect(address).await.open("GET", "/v1/events?session=B", &Value::Null).await;
        let mut events = Self { body: BodyStream::new(body), text: String::new() };
        assert_eq!(events.next().await.0, "welcome");
        events
    }

    /// The name and the data of the next event.
    async fn next(&mut self) -> (String, Value) {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name| event.lines().find_map(|line| line.strip_prefix(name));
                let name = field("event: ").unwrap_or("message").to_owned();
                let data = field("data: ").map(|data| serde_json::from_str(data).unwrap());
                self.text = rest.to_owned();
                // A comment is no event.
                let Some(data) = data else { continue };
                return (name, data);
            }
            let frame = soon(self.body.next()).await.expect("open").unwrap().into_data().unwrap();
            self.text.push_str(std::str::from_utf8(&frame).unwrap());
        }
    }
}

async fn over_sse(mut events: Events) -> Vec<Value> {
    let mut got = Vec::new();
    while got.len() < MESSAGES {
        let (name, mut data) = events.next().await;
        assert_eq!(name, "message", "{data}");
        got.push(data["payload"].take());
    }
    got
}

async fn over_legacy(mut page: Http) -> Vec<Value> {
    let poll = json!({ "session_src": "B", "type": "GET" });
    let mut got = Vec::new();
    while got.len() < MESSAGES {
        let mut answer = page.x0(&poll).await;
        for message in answer["messages"].as_array_mut().into_iter().flatten() {
            message.as_object_mut().unwrap().remove("session_src").expect("its sender");
            got.push(message.take());
        }
    }
    got
}

#[tokio::test]
async fn all_transports_get_the_same_at_once() {
    for seed in SEEDS {
        let address = Nodes::new(seed).start().await;
        let ((ws, _), (acker, _)) =
            (Ws::connect(address, "?session=B").await, Ws::connect(address, "?session=B").await);
        let (poll, page, events) =
            (Http::connect(address).await, Http::connect(address).await, Events::open(address).await);
        let readers =
            async { tokio::join!(over_websocket(ws), over_poll(poll), over_sse(events), over_legacy(page)) };
        // What is acknowledged before a reader is there does not come to it.
        let sending = async {
            attached_to_b(address, 5).await;
            send_to_b(address).await;
        };
        let all = Box::pin(async { tokio::join!(readers, acknowledging(acker), sending) });
        let ((websocket, poll, sse, legacy), ..) = soon(all).await;
        let mut expected: Vec<Value> = (0..MESSAGES).map(|n| json!({ "n": n })).collect();
        assert_eq!(legacy, expected);
        for payload in expected.iter_mut().skip(2).step_by(3) {
            payload["session_src"] = json!("A");
        }
        assert_eq!(websocket, expected);
        assert_eq!(poll, expected);
        assert_eq!(sse, expected);
    }
}

/// A reader goes on with its cursor over another transport, at another node: nothing is lost, and what it
/// acknowledged does not come again.
#[tokio::test]
async fn a_cursor_is_good_at_every_node_and_transport() {
    for seed in SEEDS {
        let mut nodes = Nodes::new(seed);
        let (one, other) = (nodes.start().await, nodes.start().await);
        let mut http = Http::connect(other).await;
        let (sending, mut got, mut after) = (tokio::spawn(send_to_b(one)), Vec::new(), json!(0));
        let mut epoch = String::new();
        while got.len() < MESSAGES {
            let query = format!("?session=B&after={after}&epoch={epoch}");
            let (mut ws, welcome) = Ws::connect(one, query.strip_suffix("&epoch=").unwrap_or(&query)).await;
            welcome["epoch"].as_str().unwrap().clone_into(&mut epoch);
            for _ in 0..(MESSAGES - got.len()).min(3) {
                let mut message = ws.message().await;
                got.push(message["payload"]["n"].take());
                after = message["seq"].take();
            }
            drop(ws);
            // The cursor acknowledges.
            let target = format!("/v1/messages?session=B&after={after}&epoch={epoch}&wait=0.01");
            let mut answer = http.call("GET", &target, &Value::Null).await;
            assert_eq!(answer.get("gaps"), None, "{answer}");
            after = answer["seq"].take();
            let messages = answer["messages"].as_array_mut().unwrap();
            got.extend(messages.iter_mut().map(|message| message["payload"]["n"].take()));
        }
        soon(sending).await.unwrap();
        assert_eq!(got, (0..MESSAGES).map(|n| json!(n)).collect::<Vec<_>>());
        let waiting =
            http.call("GET", &format!("/v1/messages?session=B&after={after}&wait=0"), &Value::Null).await;
        assert_eq!(waiting["messages"], json!([]));
        let acked = http.call("POST", "/v1/ack", &json!({ "session": "B", "seq": after })).await;
        assert_eq!(acked["seq"], after, "the ack floor");
    }
}

#[tokio::test]
async fn a_session_that_is_registered_at_one_node_is_known_at_the_other() {
    let mut nodes = Nodes::new(7);
    let (one, other) = (nodes.start().await, nodes.start().await);
    let (mut one, mut http) = (Http::connect(one).await, Http::connect(other).await);
    for n in 0..20 {
        let target = format!("/v1/sessions/S{n}");
        let user = format!("u{n}");
        let registered = one.call("PUT", &target, &json!({ "user": user })).await;
        assert_eq!(registered["user"], user.as_str());
        assert_eq!(http.call("GET", &target, &Value::Null).await["user"], user.as_str());
        let send = json!({ "to": { "user": user }, "payload": n });
        assert_eq!(http.call("POST", "/v1/messages", &send).await["sessions"], 1);
        assert_eq!(http.call("GET", &format!("/v1/users/{user}"), &Value::Null).await["user"], user.as_str());
    }
}

/// The store begins anew while readers are attached: they are told, see the new epoch, and get what comes.
#[tokio::test]
async fn a_new_epoch_is_told_over_every_transport() {
    for seed in SEEDS {
        let mut nodes = Nodes::new(seed);
        let (address, node) = nodes.start_node().await;
        let ((mut ws, welcome), mut events) =
            (Ws::connect(address, "?session=B").await, Events::open(address).await);
        let (mut http, mut waiting) = (Http::connect(address).await, Http::connect(address).await);
        let send = |n: u64| json!({ "to": { "session": "B" }, "payload": n });
        let first = http.call("POST", "/v1/messages?session=A", &send(1)).await["seq"].take();
        assert_eq!(ws.message().await["payload"], 1);
        assert_eq!(events.next().await.1["payload"], 1);
        let old = welcome["epoch"].as_str().unwrap().to_owned();
        let target = format!("/v1/messages?session=B&after={first}&epoch={old}");
        let poll = tokio::spawn({
            let target = format!("{target}&wait=60");
            async move { waiting.call("GET", &target, &Value::Null).await }
        });
        let attached = async {
            while http.call("GET", "/v1/sessions/B", &Value::Null).await["connections"]["poll"] != 1 {}
        };
        soon(attached).await;

        nodes.clock.advance(Duration::from_secs(10));
        nodes.cluster.recreate(Nodes::settings(nodes.clock));
        node.notice_epoch();
        http.call("POST", "/v1/messages?session=A", &send(2)).await;

        let gap = ws.receive().await;
        assert_eq!((&gap["type"], &gap["from"], &gap["reason"]), (&json!("gap"), &first, &json!("epoch")));
        assert_eq!(ws.message().await["payload"], 2);
        let (name, gap) = events.next().await;
        assert_eq!((name.as_str(), &gap["reason"]), ("gap", &json!("epoch")));
        assert_eq!(events.next().await.1["payload"], 2);
        for answer in [soon(poll).await.unwrap(), http.call("GET", &target, &Value::Null).await] {
            assert_eq!(answer["gaps"][0]["reason"], "epoch", "{answer}");
            assert_ne!(answer["epoch"], old.as_str());
        }
    }
}
