//! Moves that are interrupted: by their own end, and by the end of NATS servers. They go on, or are repeated.

use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;
use tokio::task::JoinHandle;

use super::{counts, files, passes};
use crate::common::*;
use crate::guarded::now;

/// A proxy to NATS that lets a client send so many bytes, and then holds up the connection.
struct Holdup {
    url: String,
    /// Ends when it is so far.
    held: JoinHandle<Held>,
}

/// What is held up.
struct Held {
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
    to: String,
}

impl Holdup {
    async fn after(bytes: usize, url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let to = url.trim_start_matches("nats://").to_owned();
        let held = tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(&to).await.unwrap();
            let (mut left, mut up, mut down) = (bytes, vec![0; 8192], vec![0; 8192]);
            while left > 0 {
                tokio::select! {
                    read = client.read(&mut up) => {
                        let read = read.unwrap().min(left);
                        server.write_all(&up[..read]).await.unwrap();
                        left -= read;
                    }
                    read = server.read(&mut down) => client.write_all(&down[..read.unwrap()]).await.unwrap(),
                }
            }
            Held { listener, client, server, to }
        });
        Self { url: format!("nats://{address}"), held }
    }

    /// Waits until it is so far.
    async fn held(self) -> Held {
        soon(self.held).await.unwrap()
    }
}

impl Held {
    /// Lets everything pass from here on, until the test ends. What was on its way when it was held up is lost with its connection.
    fn pass_others(self) {
        let Self { listener, to, .. } = self;
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let Ok(mut server) = TcpStream::connect(&to).await else { continue };
                tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
            }
        });
    }

    /// Lets this connection go on, until the test ends.
    fn go_on(self) {
        let Self { listener, mut client, mut server, .. } = self;
        tokio::spawn(async move {
            _ = copy_bidirectional(&mut client, &mut server).await;
            drop(listener);
        });
    }
}

/// A move that runs.
fn begin(url: &str, dir: &Path, more: &[&str]) -> Child {
    let mut command = migration(url, dir, more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// How a move has ended: what it printed, or its error.
async fn ended(migration: Child) -> Result<String, String> {
    let Output { status, stdout, stderr } = soon(migration.wait_with_output()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if status.success() { Ok(text(stdout)) } else { Err(text(stderr)) }
}

const MESSAGES: u64 = 3_000;
const MAILBOXES: u64 = 20;

/// A store with numbered messages in some mailboxes, each with a receipt. Its server was killed.
async fn store() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::at(dir.path(), &[]).await;
    let send = |n: u64| {
        let to = format!("R{}", n % MAILBOXES);
        json!({ "id": n.to_string(), "to": { "session": to }, "payload": n, "receipt": true })
    };
    for first in (0..MESSAGES).step_by(1000) {
        let sends: Vec<Value> = (first..first + 1000).map(send).collect();
        let reply = server.post("/v1/messages?session=S", json!(sends)).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    server.kill().await;
    dir
}

/// Everything is there once: by what the move says, by what NATS has, and by what readers get.
async fn is_complete(said: &str, nats: &NatsServer, node: &TestServer, prefix: &str) {
    assert!(counts(said).values().all(|(wanted, found)| wanted == found), "{said}");
    assert_eq!(counts(said)["messages"], (MESSAGES, MESSAGES), "{said}");
    assert_eq!(counts(said)["mailboxes"], (MAILBOXES, MAILBOXES), "{said}");
    assert!(said.contains(&format!("get a receipt, {MESSAGES} of them at expiry")), "{said}");
    let info = nats.ask(&format!("STREAM.INFO.{prefix}_S"), &Value::Null).await;
    assert_eq!(info["state"]["messages"], MESSAGES, "{info}");
    for reader in 0..MAILBOXES {
        let messages = node.read_all(&format!("R{reader}")).await.messages;
        let expected: Vec<u64> = (0..MESSAGES).filter(|n| n % MAILBOXES == reader).collect();
        assert_eq!(messages.into_values().collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn an_interrupted_move_is_repeated_and_changes_nothing_in_the_store() {
    let nats = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::at(dir.path(), &[]).await;
    let log = nats.migrate(dir.path(), &[]).await.unwrap_err();
    assert!(log.contains("another process uses the store"), "{log}");
    server.stop().await;
    let dir = store().await;
    let before = files(dir.path());
    for bytes in [200_000, 400_000] {
        let holdup = Holdup::after(bytes, &nats.url()).await;
        let mut migration = begin(&holdup.url, dir.path(), &[]);
        let held = holdup.held().await;
        migration.start_kill().unwrap();
        assert!(ended(migration).await.is_err());
        drop(held);
        let log = nats.refused(&[]).await;
        assert!(log.contains("a store is being moved into the streams of --nats-prefix x0"), "{log}");
    }
    let said = nats.migrate(dir.path(), &[]).await.unwrap();
    assert_eq!(files(dir.path()), before);
    is_complete(&said, &nats, &nats.node().await, "x0").await;
}

#[tokio::test]
async fn a_store_that_has_changed_since_an_interrupted_move_is_refused() {
    let nats = NatsServer::start().await;
    let dir = store().await;
    let holdup = Holdup::after(200_000, &nats.url()).await;
    let mut migration = begin(&holdup.url, dir.path(), &[]);
    drop(holdup.held().await);
    migration.start_kill().unwrap();
    assert!(ended(migration).await.is_err());
    let server = TestServer::at(dir.path(), &[]).await;
    server.send("S", "R", json!(200)).await;
    server.stop().await;
    let log = nats.migrate(dir.path(), &[]).await.unwrap_err();
    assert!(log.contains("an interrupted move left a part of store"), "{log}");
}

#[tokio::test]
async fn a_move_goes_on_or_says_so_when_its_server_is_killed_and_starts_again() {
    let mut nats = NatsServer::start().await;
    let dir = store().await;
    // While the streams are made, and while they are filled.
    for (n, bytes) in [600, 4_000, 100_000, 400_000, 700_000].into_iter().enumerate() {
        let prefix = format!("p{n}");
        let flags = ["--nats-prefix", prefix.as_str()];
        let holdup = Holdup::after(bytes, &nats.url()).await;
        let mut migration = begin(&holdup.url, dir.path(), &flags);
        let held = holdup.held().await;
        nats.kill().await;
        assert!(migration.try_wait().unwrap().is_none(), "it is under way");
        nats.restart().await;
        held.pass_others();
        let said = match ended(migration).await {
            Ok(said) => said,
            Err(log) => {
                assert!(n < 2, "filling goes on: {log}");
                assert!(log.contains("NATS does not answer") || log.contains("no connection"), "{log}");
                nats.migrate(dir.path(), &flags).await.unwrap()
            }
        };
        let log = nats.migrate(dir.path(), &flags).await.unwrap_err();
        assert!(log.contains("messages already; choose another --nats-prefix"), "{log}");
        is_complete(&said, &nats, &nats.node_with(&flags).await, &prefix).await;
    }
}

#[tokio::test]
async fn a_move_to_three_servers_goes_on_while_one_of_them_is_killed() {
    let mut servers = NatsServer::cluster::<3>().await;
    all_healthy(&servers).await;
    let dir = store().await;
    let holdup = Holdup::after(300_000, &servers[0].url()).await;
    let migration = begin(&holdup.url, dir.path(), &["--nats-replicas", "3"]);
    let held = holdup.held().await;
    // It leads some of the streams.
    servers[1].kill().await;
    held.go_on();
    let said = ended(migration).await.unwrap();
    servers[1].restart().await;
    all_healthy(&servers).await;
    let node = node_with(&servers[1].url(), 3, &[]).await;
    is_complete(&said, &servers[1], &node, "x0").await;
}

#[tokio::test]
async fn a_receipt_comes_for_what_expires_after_the_move_though_nobody_reads() {
    // On a slow machine it is repeated with more time.
    let mut early = 5;
    while !receipts_come([("early", early), ("late", early * 2)]).await {
        early *= 2;
    }
}

/// Moves messages of which one expires between two attempts, and one in the cluster, after so many seconds. Answers whether they did so
/// in time.
async fn receipts_come(ttls: [(&str, u64); 2]) -> bool {
    let nats = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::at(dir.path(), &[]).await;
    let others: Vec<Value> = (0..1000).map(|n| json!({ "to": { "session": "O" }, "payload": n })).collect();
    assert_eq!(server.post("/v1/messages?session=S", json!(others)).await.status, 200);
    let before = now();
    for (id, ttl) in ttls {
        let body = json!({ "id": id, "to": { "session": "R" }, "payload": 1, "ttl": ttl, "receipt": true });
        let reply = server.post("/v1/messages?session=S", body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    let after = now();
    server.stop().await;
    let [early, late] = ttls.map(|(_, ttl)| ttl);
    let holdup = Holdup::after(100_000, &nats.url()).await;
    let mut migration = begin(&holdup.url, dir.path(), &[]);
    drop(holdup.held().await);
    migration.start_kill().unwrap();
    assert!(ended(migration).await.is_err());
    if now() >= before + early {
        return false;
    }
    passes(after + early).await;
    let said = nats.migrate(dir.path(), &[]).await.unwrap();
    let node = nats.node().await;
    if now() >= before + late {
        return false;
    }
    assert!(
        said.contains(
            "2 messages whose senders get a receipt, 2 of them at expiry even if nobody reads; 0 receipts"
        ),
        "{said}"
    );
    let mut sender = node.session("S").await;
    for (id, ttl) in ttls {
        passes(after + ttl).await;
        let receipt = sender.recv().await;
        assert_eq!((&receipt["type"], &receipt["id"]), (&json!("receipt"), &json!(id)), "{receipt}");
        assert_eq!(receipt["state"], "expired", "{receipt}");
    }
    // They are gone, and not told once more.
    assert!(node.read_all("R").await.messages.is_empty());
    sender.ping().await;
    true
}
