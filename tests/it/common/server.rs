//! The binary as a server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{BINARY, Http, Reply, Ws, soon};

/// Hides from a broker the variables that are for tests: it would warn of them, since it does not know them.
pub fn hide_variables_of_tests(command: &mut Command) {
    for name in ["X0_MSG_LONG_TESTS", "X0_MSG_NATS_SERVER", "X0_MSG_SEED"] {
        command.env_remove(name);
    }
}

/// A process of the binary, killed when dropped.
pub struct TestServer {
    pub address: SocketAddr,
    pub child: Child,
    log: Log,
    /// The directory of its store, if nobody else owns it.
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

    /// Starts it on the store in this directory.
    pub async fn at(dir: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.args(args);
        Self::spawn(dir, command).await
    }

    /// Starts it on the store in this directory; its log if it does not start.
    pub async fn try_at(dir: &Path) -> Result<Self, String> {
        let mut command = Command::new(BINARY);
        command.env("X0_MSG_LISTEN", "127.0.0.1:0").env("X0_MSG_DATA_DIR", dir);
        Self::try_spawn(command).await
    }

    /// Starts it with this command.
    pub async fn spawn(dir: &Path, mut command: Command) -> Self {
        command.env("X0_MSG_LISTEN", "127.0.0.1:0").env("X0_MSG_DATA_DIR", dir);
        Self::try_spawn(command).await.unwrap_or_else(|log| panic!("the server did not start: {log}"))
    }

    /// Starts it with this command; its log if it does not start.
    pub async fn try_spawn(mut command: Command) -> Result<Self, String> {
        command.env("RUST_LOG", "info");
        Self::try_spawn_as_is(command).await
    }

    /// As `try_spawn`, with the log level of the command.
    pub async fn try_spawn_as_is(command: Command) -> Result<Self, String> {
        Self::try_spawn_until("ready", command).await
    }

    /// As `try_spawn_as_is`, but returns once a line of the log begins with this and names the address.
    pub async fn try_spawn_until(begin: &str, mut command: Command) -> Result<Self, String> {
        hide_variables_of_tests(&mut command);
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
                // The error of a failed start is not JSON.
                let Ok(entry) = serde_json::from_str::<Value>(&line) else { continue };
                if entry["message"].as_str().is_some_and(|message| message.starts_with(begin)) {
                    return entry["address"].as_str().unwrap().parse().ok();
                }
            }
            None
        })
        .await;
        let Some(address) = address else { return Err(log) };
        Ok(Self { address, child, log: Log::read_on(log, lines), _dir: None })
    }

    /// Kills it, as a crash does; its log.
    pub async fn kill(mut self) -> String {
        self.child.start_kill().unwrap();
        soon(self.child.wait()).await.unwrap();
        self.log.end().await
    }

    /// Stops it with SIGTERM; its log.
    pub async fn stop(self) -> String {
        self.signal(15);
        self.stopped().await
    }

    /// Waits until it has stopped; its log.
    pub async fn stopped(mut self) -> String {
        let status = soon(self.child.wait()).await.unwrap();
        assert!(status.success(), "{status}");
        self.log.end().await
    }

    /// Waits until it has ended by itself; its exit code and its log.
    pub async fn ended(mut self) -> (Option<i32>, String) {
        let status = soon(self.child.wait()).await.unwrap();
        (status.code(), self.log.end().await)
    }

    /// What it has logged.
    pub fn log_so_far(&self) -> String {
        self.log.text.borrow().clone()
    }

    /// What it logs from now on.
    pub fn log_from_here(&self) -> LogFromHere {
        LogFromHere { start: self.log.text.borrow().len(), text: self.log.text.clone() }
    }

    /// Waits until this many clients are connected to a session, or poll for it.
    pub async fn attached(&self, session: &str, count: u64) {
        let target = format!("/v1/sessions/{session}");
        let mut http = self.http().await;
        soon(async {
            loop {
                let reply = http.get(&target).await;
                let connections = &reply.json()["connections"];
                let found =
                    connections.as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64());
                if found.sum::<u64>() == count {
                    break;
                }
            }
        })
        .await;
    }

    pub fn signal(&self, signal: i32) {
        super::signal(self.child.id().expect("still running"), signal);
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

    /// A socket after its hello and welcome.
    pub async fn session(&self, session: &str) -> Ws {
        let mut ws = self.ws("").await;
        ws.send(json!({ "type": "hello", "session": session })).await;
        let welcome = ws.recv().await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        ws.epoch = welcome["epoch"].as_str().unwrap().to_owned();
        ws
    }

    /// Reads everything that waits for a session. This acknowledges it.
    pub async fn read_all(&self, session: &str) -> Mailbox {
        let mut mailbox = Mailbox { epoch: String::new(), messages: BTreeMap::new(), gaps: Vec::new() };
        let mut after = 0;
        loop {
            let target = format!("/v1/messages?session={session}&after={after}&wait=0");
            let answer = self.get(&target).await.json();
            let messages = answer["messages"].as_array().unwrap();
            mailbox.gaps.extend(answer["gaps"].as_array().cloned().unwrap_or_default());
            for message in messages {
                mailbox.messages.insert(message["seq"].as_u64().unwrap(), message["payload"].clone());
            }
            if messages.is_empty() {
                mailbox.epoch = answer["epoch"].as_str().unwrap().to_owned();
                return mailbox;
            }
            after = answer["seq"].as_u64().unwrap();
        }
    }

    /// Sends over HTTP; the seq.
    pub async fn send(&self, from: &str, to: &str, payload: Value) -> u64 {
        let body = json!({ "to": { "session": to }, "payload": payload });
        let reply = self.post(&format!("/v1/messages?session={from}"), body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()["seq"].as_u64().unwrap()
    }

    /// Waits until the acknowledgements so far are stored. One of a message with a receipt is stored with its receipt, and those
    /// before with it.
    pub async fn acks_stored(&self) {
        let to = json!({ "session": "flush" });
        let body = json!({ "id": "flush", "to": to, "payload": 0, "receipt": true });
        let seq = self.post("/v1/messages?session=flush", body).await.json()["seq"].clone();
        let reply = self.post("/v1/ack", json!({ "session": "flush", "seq": seq })).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        self.send("flush", "flushed", json!(0)).await;
    }
}

/// What the server has logged so far.
struct Log {
    text: watch::Receiver<String>,
    reader: JoinHandle<()>,
}

impl Log {
    /// Reads the log to its end; otherwise the pipe would fill up and stop the server.
    fn read_on(start: String, mut lines: Lines<BufReader<ChildStderr>>) -> Self {
        let (sender, text) = watch::channel(start);
        let reader = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                sender.send_modify(|text| {
                    text.push_str(&line);
                    text.push('\n');
                });
            }
        });
        Self { text, reader }
    }

    /// The whole log, once the server has stopped.
    async fn end(&mut self) -> String {
        soon(&mut self.reader).await.unwrap();
        self.text.borrow().clone()
    }
}

/// The log after a moment in time.
pub struct LogFromHere {
    start: usize,
    text: watch::Receiver<String>,
}

impl LogFromHere {
    /// Waits until it contains this.
    pub async fn contains(mut self, part: &str) {
        let found = self.text.wait_for(|text| text[self.start..].contains(part));
        _ = soon(found).await.expect("the server still runs");
    }
}

/// What waits for a session.
pub struct Mailbox {
    pub epoch: String,
    /// The payloads by seq.
    pub messages: BTreeMap<u64, Value>,
    pub gaps: Vec<Value>,
}
