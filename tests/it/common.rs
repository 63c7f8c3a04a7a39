//! A server in a process of its own, and a client for each transport. Waits on events, never sleeps.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HeaderMap;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::AbortHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

pub const BINARY: &str = env!("CARGO_BIN_EXE_x0-msg-server");

/// What an empty answer holds.
pub const NOTHING: [Value; 0] = [];

/// No event in these tests takes longer, on however busy a machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Waits for an event; its not coming is a failure.
pub async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, event).await.expect("the event should have come by now")
}

/// The real binary, killed when dropped.
pub struct TestServer {
    pub address: SocketAddr,
    pub child: Child,
    pub log: tokio::task::JoinHandle<String>,
    /// Its store, if it is this server's own.
    _dir: Option<TempDir>,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    pub async fn with(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Self::at(dir.path(), args).await;
        server._dir = Some(dir);
        server
    }

    /// On the store in this directory.
    pub async fn at(dir: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.args(args);
        Self::spawn(dir, command).await
    }

    /// As this command starts it.
    pub async fn spawn(dir: &Path, mut command: Command) -> Self {
        command.env("X0_MSG_LISTEN", "127.0.0.1:0").env("X0_MSG_DATA_DIR", dir);
        Self::try_spawn(command).await.unwrap_or_else(|log| panic!("the server did not start: {log}"))
    }

    /// As this command starts it; or what it says when it does not start.
    pub async fn try_spawn(mut command: Command) -> Result<Self, String> {
        command.env("RUST_LOG", "info");
        Self::try_spawn_as_is(command).await
    }

    /// As this command starts it, with the log that it chooses.
    pub async fn try_spawn_as_is(mut command: Command) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = String::new();
        let address = soon(async {
            while let Some(line) = lines.next_line().await.unwrap() {
                log.push_str(&line);
                log.push('\n');
                // The last words of one that does not start are for people.
                let Ok(entry) = serde_json::from_str::<Value>(&line) else { continue };
                if entry["message"] == "ready" {
                    return entry["address"].as_str().unwrap().parse().ok();
                }
            }
            None
        })
        .await;
        let Some(address) = address else { return Err(log) };
        // Reading on keeps the pipe from filling up.
        let log = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                log.push_str(&line);
                log.push('\n');
            }
            log
        });
        Ok(Self { address, child, log, _dir: None })
    }

    /// Kills it, as a crash does.
    pub async fn kill(mut self) -> String {
        self.child.start_kill().unwrap();
        soon(self.child.wait()).await.unwrap();
        soon(&mut self.log).await.unwrap()
    }

    /// Stops it in order.
    pub async fn stop(mut self) -> String {
        self.signal(15);
        let status = soon(self.child.wait()).await.unwrap();
        assert!(status.success(), "{status}");
        soon(&mut self.log).await.unwrap()
    }

    pub fn signal(&self, signal: i32) {
        let pid = self.child.id().expect("still running");
        let status =
            std::process::Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status();
        assert!(status.unwrap().success());
    }

    pub async fn http(&self) -> Http {
        Http::connect(self.address).await
    }

    pub async fn get(&self, target: &str) -> Reply {
        self.http().await.get(target).await
    }

    pub async fn post(&self, target: &str, body: impl ToString) -> Reply {
        self.http().await.post(target, body).await
    }

    pub async fn ws(&self, query: &str) -> Ws {
        Ws::connect(self.address, query).await
    }

    /// A socket that has said who it is and was welcomed.
    pub async fn session(&self, session: &str) -> Ws {
        let mut ws = self.ws("").await;
        ws.say(json!({ "type": "hello", "session": session })).await;
        let welcome = ws.hear().await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        ws.epoch = welcome["epoch"].as_str().unwrap().to_owned();
        ws
    }

    /// Sends over HTTP and answers the seq.
    pub async fn send(&self, from: &str, to: &str, payload: Value) -> u64 {
        let body = json!({ "to": { "session": to }, "payload": payload });
        let reply = self.post(&format!("/v1/messages?session={from}"), body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()["seq"].as_u64().unwrap()
    }
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The payloads of a native poll's messages.
    pub fn payloads(&self) -> Vec<Value> {
        self.json()["messages"].as_array().unwrap().iter().map(|m| m["payload"].clone()).collect()
    }

    /// The code of a refusal, which must come with its text.
    pub fn code(&self) -> String {
        let error = self.json()["error"].clone();
        assert!(error["message"].as_str().is_some_and(|text| text.len() > 10), "{error}");
        error["code"].as_str().unwrap().to_owned()
    }
}

/// One HTTP/1.1 connection; closed when dropped.
pub struct Http {
    sender: SendRequest<Full<Bytes>>,
    connection: AbortHandle,
    authority: String,
}

impl Http {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::on(soon(TcpStream::connect(address)).await.unwrap(), &address.to_string()).await
    }

    pub async fn on(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
        authority: &str,
    ) -> Self {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(async move { _ = connection.await }).abort_handle();
        Self { sender, connection, authority: authority.to_owned() }
    }

    pub async fn try_request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> hyper::Result<Reply> {
        let mut request =
            hyper::Request::builder().method(method).uri(target).header("host", &self.authority);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.sender.send_request(request.body(Full::new(body.into())).unwrap()).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes().to_vec();
        let body = String::from_utf8(body).expect("answers are UTF-8");
        Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body })
    }

    pub async fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        soon(self.try_request(method, target, headers, body)).await.unwrap()
    }

    pub async fn get(&mut self, target: &str) -> Reply {
        self.request("GET", target, &[], "").await
    }

    pub async fn post(&mut self, target: &str, body: impl ToString) -> Reply {
        self.request("POST", target, &[("content-type", "application/json")], body.to_string()).await
    }
}

impl Http {
    /// Closes the connection; when this is done, the system has been told.
    pub async fn close(self) {
        let connection = self.connection.clone();
        drop(self);
        soon(async {
            while !connection.is_finished() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// One WebSocket.
pub struct Ws<S = MaybeTlsStream<TcpStream>> {
    pub socket: WebSocketStream<S>,
    pub epoch: String,
}

impl Ws {
    pub async fn connect(address: SocketAddr, query: &str) -> Self {
        let (socket, _) = soon(connect_async(format!("ws://{address}/ws{query}"))).await.unwrap();
        Self { socket, epoch: String::new() }
    }
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Ws<S> {
    pub async fn say(&mut self, frame: Value) {
        self.say_text(&frame.to_string()).await;
    }

    pub async fn say_text(&mut self, frame: &str) {
        soon(self.socket.send(Message::text(frame))).await.unwrap();
    }

    /// The next text frame.
    pub async fn hear(&mut self) -> Value {
        serde_json::from_str(&self.hear_text().await).unwrap()
    }

    pub async fn hear_text(&mut self) -> String {
        // Pings in between give no more time.
        soon(async {
            loop {
                match self.socket.next().await.expect("open").unwrap() {
                    Message::Text(text) => return text.as_str().to_owned(),
                    Message::Ping(_) | Message::Pong(_) => {}
                    other => panic!("expected a text frame, got {other:?}"),
                }
            }
        })
        .await
    }

    /// The next `message` frame.
    pub async fn message(&mut self) -> Value {
        let frame = self.hear().await;
        assert_eq!(frame["type"], "message", "{frame}");
        frame
    }

    pub async fn payload(&mut self) -> Value {
        self.message().await["payload"].clone()
    }

    /// The next frame, which must be an error; its code.
    pub async fn error(&mut self) -> String {
        let frame = self.hear().await;
        assert_eq!(frame["type"], "error", "{frame}");
        assert!(frame["message"].as_str().is_some_and(|text| text.len() > 10), "{frame}");
        frame["code"].as_str().unwrap().to_owned()
    }

    /// Everything said so far has been acted on, and nothing unexpected was answered.
    pub async fn settle(&mut self) {
        self.say(json!({ "type": "ping" })).await;
        let frame = self.hear().await;
        assert_eq!(frame["type"], "pong", "{frame}");
    }

    /// Everything said so far has been acted on; messages that come meanwhile are not looked at.
    pub async fn settle_among_messages(&mut self) {
        self.say(json!({ "type": "ping" })).await;
        while self.hear().await["type"] != "pong" {}
    }

    /// Waits for the close frame and answers its code and reason.
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            match soon(self.socket.next()).await.expect("a close frame comes first").unwrap() {
                Message::Close(Some(frame)) => return (frame.code.into(), frame.reason.as_str().to_owned()),
                Message::Close(None) => panic!("closed without a code"),
                _ => {}
            }
        }
    }

    pub async fn ack(&mut self, seq: u64) {
        self.say(json!({ "type": "ack", "seq": seq })).await;
    }

    /// Sends and waits until it is stored; the seq.
    pub async fn send_to(&mut self, session: &str, payload: Value) -> u64 {
        self.say(json!({ "type": "send", "to": { "session": session }, "payload": payload })).await;
        let sent = self.hear().await;
        assert_eq!(sent["type"], "sent", "{sent}");
        sent["seq"].as_u64().unwrap()
    }
}

/// The x0 client's address.
pub const HANDLER: &str = "/python/MsgHandler.py";

/// One poll of an x0 page, as it sends it.
pub fn x0_poll(session: &str) -> Value {
    json!({ "session_src": session, "type": "GET", "SessionData": { "ID": "SYS_SESSION", "Value": session } })
}

/// One raw send of an x0 page.
pub fn x0_set(from: &str, to: &str, payload: &Value) -> Value {
    json!({ "type": "SET", "session_src": from, "session_dst": to, "payload": payload })
}

impl Http {
    /// Polls as an x0 page does, with a new `a__`; the messages, without their `session_src`.
    pub async fn x0(&mut self, session: &str) -> Vec<Value> {
        let reply = self.post(&x0_target(), x0_poll(session)).await;
        x0_messages(&reply)
    }
}

/// The handler with a new `a__`.
pub fn x0_target() -> String {
    format!("{HANDLER}?a__={:010}", fastrand::u64(..10_000_000_000))
}

/// The messages of an answer to an x0 page, without their `session_src`.
pub fn x0_messages(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.header("access-control-allow-origin"), "*");
    let Some(messages) = reply.json()["messages"].as_array().cloned() else { return Vec::new() };
    messages
        .into_iter()
        .map(|mut message| {
            message.as_object_mut().unwrap().remove("session_src").expect("every message names its sender");
            message
        })
        .collect()
}
