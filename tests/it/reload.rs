//! SIGHUP: what a running broker takes over, what it names, and what it ignores.

use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use crate::common::*;
use crate::tls::{certificate, tls};

const READ_AGAIN: &str = "the settings were read again";

/// A broker with a file of settings.
struct Reloading {
    server: TestServer,
    dir: TempDir,
}

impl Reloading {
    /// Starts it; the file holds these lines.
    async fn start(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(path(dir.path()), settings).unwrap();
        let mut command = Command::new(BINARY);
        command.arg("--config").arg(path(dir.path())).env_remove("RUST_LOG");
        command.env("X0_MSG_LISTEN", "127.0.0.1:0").env("X0_MSG_DURABILITY", "memory");
        let server = TestServer::try_spawn_as_is(command).await.unwrap();
        Self { server, dir }
    }

    /// Writes the file, sends SIGHUP, and waits until the log says this.
    async fn reload(&self, settings: &str, said: &str) {
        std::fs::write(path(self.dir.path()), settings).unwrap();
        let log = self.server.log_from_here();
        self.server.signal(1);
        log.contains(said).await;
    }

    /// The status of a send.
    async fn send(&self, headers: &[(&str, &str)]) -> u16 {
        let body = json!({ "to": { "session": "B" }, "payload": 1 }).to_string();
        self.server.http().await.request("POST", "/v1/messages?session=A", headers, body).await.status
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("settings.toml")
}

#[tokio::test]
async fn limits_origins_and_levels_change_and_the_rest_is_named() {
    let broker = Reloading::start("send-rate = 1\nsend-burst = 1\n").await;
    let page = [("origin", "https://app.example")];
    assert_eq!(broker.send(&page).await, 403);
    assert_eq!((broker.send(&[]).await, broker.send(&[]).await), (200, 429));
    let log = broker.server.log_from_here();
    let settings = "allow-origin = [\"https://app.example\"]\nlog-level = \"debug\"\nheartbeat = \"30s\"\n";
    broker.reload(settings, READ_AGAIN).await;
    for _ in 0..3 {
        assert_eq!(broker.send(&page).await, 200);
    }
    log.contains("\"door\":\"http\"").await;
    let preflight = [("origin", "https://app.example"), ("access-control-request-method", "POST")];
    let preflight = broker.server.http().await.request("OPTIONS", "/v1/messages", &preflight, "").await;
    assert_eq!(preflight.header("access-control-allow-origin"), "https://app.example");
    // What is taken back ends too. What needs a restart is named each time.
    broker.reload("heartbeat = \"30s\"\nconnections-per-address = 100\n", READ_AGAIN).await;
    assert_eq!(broker.send(&page).await, 403);
    let log = broker.server.stop().await;
    let named =
        |line: &&str| line.contains("a restart is needed") && line.contains("\"setting\":\"heartbeat\"");
    assert_eq!(log.lines().filter(named).count(), 2, "{log}");
    assert_eq!(log.matches("a restart is needed").count(), 2, "{log}");
    assert!(log.contains("\"changed\":\"log-level allow-origin send-rate send-burst\""), "{log}");
}

#[tokio::test]
async fn operators_see_the_rates_that_are_in_force() {
    let broker = Reloading::start("send-rate = 7\n").await;
    let limits = async || {
        let stats = broker.server.get("/v1/ops/stats").await.json();
        let limit = |name: &str| {
            let limits = stats["limits"].as_array().unwrap();
            limits.iter().find(|limit| limit["name"] == name).unwrap()["limit"].clone()
        };
        ["send_rate", "send_bytes_rate", "connections_per_address"].map(limit)
    };
    assert_eq!(limits().await[0], json!(7));
    let settings = "send-rate = 9\nsend-bytes-rate = \"2MiB\"\nconnections-per-address = 50\n";
    broker.reload(settings, READ_AGAIN).await;
    // The figures are made at most once a second.
    let expected = [json!(9), json!(2 << 20), json!(50)];
    soon(async { while limits().await != expected {} }).await;
}

#[tokio::test]
async fn a_file_that_is_wrong_changes_nothing_and_says_why() {
    let broker = Reloading::start("send-rate = 1\nsend-burst = 1\n").await;
    assert_eq!((broker.send(&[]).await, broker.send(&[]).await), (200, 429));
    for (settings, reason) in [
        ("send-rate = 0\nttl = \"soon\"\n", "settings.toml:2: ttl: "),
        ("send-rate = 0\nttl = \"60d\"\n", "is longer than --max-ttl"),
        ("send-rate = 0\napi-key-file = \"/nowhere\"\n", "--api-key-file /nowhere: No such file"),
    ] {
        broker.reload(settings, reason).await;
    }
    std::fs::remove_file(path(broker.dir.path())).unwrap();
    let log = broker.server.log_from_here();
    broker.server.signal(1);
    log.contains("settings.toml: No such file").await;
    broker.reload("send-rate = 1\nsend-burst = 1\n", READ_AGAIN).await;
    let log = broker.server.stop().await;
    let errors = log.lines().filter(|line| line.contains("\"level\":\"ERROR\""));
    assert!(errors.clone().all(|line| line.contains("all of them stay as they are")), "{log}");
    assert_eq!(errors.count(), 4, "{log}");
    assert!(log.contains("\"changed\":\"\""), "nothing was taken over before: {log}");
}

#[tokio::test]
async fn keys_and_certificates_of_other_files_are_taken_over() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let trusted = dirs.each_ref().map(|dir| certificate(dir.path()));
    let keys = ["first-key-0123456789abcdef0123456789", "second-key-0123456789abcdef0123456789"];
    for (dir, key) in dirs.iter().zip(keys) {
        std::fs::write(dir.path().join("keys.toml"), format!("[[key]]\nname = \"shop\"\nkey = \"{key}\"\n"))
            .unwrap();
    }
    let settings = |dir: &TempDir| {
        let dir = dir.path().display();
        format!(
            "auth = \"token\"\napi-key-file = \"{dir}/keys.toml\"\ntls-cert = \"{dir}/cert.pem\"\ntls-key = \"{dir}/key.pem\"\n"
        )
    };
    let broker = Reloading::start(&settings(&dirs[0])).await;
    let accepts = async |n: usize, key: &str| {
        let stream = soon(tls(broker.server.address, &trusted[n], "http/1.1")).await?;
        let bearer = format!("Bearer {key}");
        let mut http = Http::on(stream, "localhost").await;
        let reply = http.request("GET", "/v1/users/ann", &[("authorization", &bearer)], "").await;
        std::io::Result::Ok(reply.status != 401)
    };
    assert_eq!((accepts(0, keys[0]).await.unwrap(), accepts(0, keys[1]).await.unwrap()), (true, false));
    broker.reload(&settings(&dirs[1]), READ_AGAIN).await;
    assert_eq!((accepts(1, keys[1]).await.unwrap(), accepts(1, keys[0]).await.unwrap()), (true, false));
    assert!(accepts(0, keys[1]).await.is_err(), "the first certificate is not shown any more");
    broker.server.stop().await;
}
