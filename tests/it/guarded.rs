//! A server with `--auth token`, and the credentials that it accepts.

use std::ops::Deref;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::*;

pub const SECRET: &str = "the secret that all tokens of these tests are signed with";

/// An API key without limits, and three with limits.
pub const KEY: &str = "key-all-0123456789abcdef0123456789abcdef";
pub const SEND_ONLY: &str = "key-send-0123456789abcdef0123456789abcdef";
pub const TOPICS_ONLY: &str = "key-topics-0123456789abcdef0123456789abcdef";
pub const SESSIONS_ONLY: &str = "key-sessions-0123456789abcdef0123456789abcdef";

/// Two API keys of one backend with a mailbox. The second one may send nowhere.
pub const SHOP: &str = "key-shop-0123456789abcdef0123456789abcdef";
pub const SHOP_READER: &str = "key-shop-reader-0123456789abcdef0123456789abcdef";

/// An API key for operators, that may do nothing else.
pub const OPS: &str = "key-ops-0123456789abcdef0123456789abcdef";

/// One for operators, that may do everything.
pub const OPERATOR: &str = "key-operator-0123456789abcdef0123456789abcdef";

pub fn key_file() -> String {
    format!(
        r#"
        [[key]]
        name = "all"
        key = "{KEY}"
        from = "the shop"
        [[key]]
        name = "send"
        key = "{SEND_ONLY}"
        sessions = false
        topics = []
        [[key]]
        name = "topics"
        key = "{TOPICS_ONLY}"
        send = ["topic:*"]
        sessions = false
        [[key]]
        name = "sessions"
        key = "{SESSIONS_ONLY}"
        send = []
        topics = []
        [[key]]
        name = "shop"
        key = "{SHOP}"
        mailbox = true
        [[key]]
        name = "shop"
        key = "{SHOP_READER}"
        mailbox = true
        send = []
        topics = []
        sessions = false
        [[key]]
        name = "operator"
        key = "{OPERATOR}"
        ops = true
        [[key]]
        name = "ops"
        key = "{OPS}"
        ops = true
        send = []
        topics = []
        sessions = false
        "#
    )
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Signs claims with [`SECRET`].
pub fn signed(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
}

/// A token of a user for a session, valid for an hour, with further claims.
pub fn token_with(user: &str, session: &str, more: Value) -> String {
    let mut claims = json!({ "sub": user, "sid": session, "exp": now() + 3600 });
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    signed(&claims)
}

pub fn token(user: &str, session: &str) -> String {
    token_with(user, session, json!({}))
}

pub struct Guarded {
    server: TestServer,
    dir: TempDir,
    args: Vec<String>,
}

impl Deref for Guarded {
    type Target = TestServer;

    fn deref(&self) -> &TestServer {
        &self.server
    }
}

impl Guarded {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    pub async fn with(args: &[&str]) -> Self {
        let (dir, args) = Self::prepare(args);
        let server = Self::run(&dir, &args).await;
        Self { server, dir, args }
    }

    /// One that meets these faults.
    pub async fn with_faults(faults: &Faults, args: &[&str]) -> Self {
        let (dir, args) = Self::prepare(args);
        let all: Vec<&str> = args.iter().map(String::as_str).collect();
        let server = faults.server(&dir.path().join("store"), &all).await;
        Self { server, dir, args }
    }

    /// Its files and its arguments.
    pub fn prepare(args: &[&str]) -> (TempDir, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), SECRET).unwrap();
        std::fs::write(dir.path().join("keys.toml"), key_file()).unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (secret, keys) = (path("secret"), path("keys.toml"));
        let own = ["--auth", "token", "--token-key-file", &secret, "--api-key-file", &keys];
        let args = own.iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        (dir, args)
    }

    async fn run(dir: &TempDir, args: &[String]) -> TestServer {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        TestServer::at(&dir.path().join("store"), &args).await
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Kills the server and starts it again on its store.
    pub async fn restart(self) -> Self {
        let Self { server, dir, args } = self;
        server.kill().await;
        let server = Self::run(&dir, &args).await;
        Self { server, dir, args }
    }

    /// Stops the server, waits for something, moves its store to NATS, and starts a node there. Answers what the move printed too.
    #[cfg(feature = "nats")]
    pub async fn moved_to(self, nats: &NatsServer, after: impl Future<Output = ()>) -> (Self, String) {
        let Self { server, dir, args } = self;
        server.stop().await;
        after.await;
        let flags: Vec<&str> = args.iter().map(String::as_str).collect();
        let said = nats.migrate(&dir.path().join("store"), &flags).await.unwrap();
        let server = nats.node_with(&flags).await;
        (Self { server, dir, args }, said)
    }

    /// One HTTP call with this bearer token; without one if it is empty.
    pub async fn call(&self, method: &str, target: &str, bearer: &str, body: impl ToString) -> Reply {
        let bearer = format!("Bearer {bearer}");
        let headers: &[_] = if bearer.len() > 7 { &[("authorization", bearer.as_str())] } else { &[] };
        self.server.http().await.request(method, target, headers, body.to_string()).await
    }

    pub async fn register(&self, session: &str, body: Value) -> Value {
        let reply = self.call("PUT", &format!("/v1/sessions/{session}"), KEY, body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()
    }

    /// A socket after its hello, and the answer.
    pub async fn hello(&self, token: &str) -> (Ws, Value) {
        let mut ws = self.server.ws("").await;
        ws.send(json!({ "type": "hello", "token": token })).await;
        let answer = ws.recv().await;
        (ws, answer)
    }

    pub async fn welcomed(&self, token: &str) -> Ws {
        let (ws, welcome) = self.hello(token).await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        ws
    }

    pub async fn stop(self) -> String {
        self.server.stop().await
    }
}
