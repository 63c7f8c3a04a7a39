//! The log never harms: standard error that is closed, full, without a reader or never read.

use std::io::{BufRead, BufReader, Write, pipe};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::common::*;

/// A server whose log the test does not read; killed when dropped.
struct Unread {
    address: SocketAddr,
    child: Child,
    _dir: TempDir,
}

impl Unread {
    /// Starts it with this command and these levels of the log. Without the log, only an address of its own is known:
    /// each test names another `host`.
    async fn start(mut command: Command, host: u8, levels: &str) -> Self {
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = SocketAddr::from((Ipv4Addr::new(127, 64 + host, high, low), 8080));
        let dir = tempfile::tempdir().unwrap();
        let child = command
            .env("X0_MSG_LISTEN", address.to_string())
            .env("X0_MSG_DATA_DIR", dir.path())
            .env("RUST_LOG", levels)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // The command holds the test's end of the log.
        drop(command);
        let server = Self { address, child, _dir: dir };
        soon(async {
            while TcpStream::connect(address).await.is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        server
    }

    /// Sends a message and reads it.
    async fn works(&self) {
        let mut http = Http::connect(self.address).await;
        let sent = http.post("/v1/messages", json!({ "to": { "session": "A" }, "payload": "works" })).await;
        assert_eq!(sent.status, 200, "{}", sent.body);
        let received = http.get("/v1/messages?session=A&wait=0").await;
        assert!(received.payloads().contains(&json!("works")), "{}", received.body);
        // The janitor works as well: it runs once in a second, and the message of one second goes.
        let short = json!({ "to": { "session": "B" }, "payload": "short", "ttl": 1 });
        assert_eq!(http.post("/v1/messages", short).await.status, 200);
        soon(async { while http.get("/v1/sessions/B").await.json()["pending"]["messages"] == 1 {} }).await;
    }

    /// Stops it in order.
    async fn stop(mut self) {
        let pid = self.child.id().unwrap().to_string();
        output_of("kill", &["-15", &pid]).unwrap();
        let status = soon(self.child.wait()).await.unwrap();
        assert!(status.success(), "{status}");
    }
}

#[tokio::test]
async fn a_full_disk_under_the_log_harms_nothing() {
    let mut command = Command::new(BINARY);
    command.stderr(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let server = Unread::start(command, 1, "debug").await;
    server.works().await;
    server.stop().await;
}

#[tokio::test]
async fn a_log_without_a_reader_harms_nothing() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let mut command = Command::new(BINARY);
    command.stderr(writer);
    let server = Unread::start(command, 2, "debug").await;
    server.works().await;
    server.stop().await;
}

#[tokio::test]
async fn a_closed_standard_error_harms_nothing() {
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" 2>&-", BINARY]);
    let server = Unread::start(command, 3, "debug").await;
    server.works().await;
    server.stop().await;
}

/// A pipe that nobody reads blocks nobody. What does not fit is counted, and the count is logged when there is space.
#[tokio::test]
async fn a_log_that_nobody_reads_blocks_nothing_and_lost_lines_are_counted() {
    let (reader, writer) = pipe().unwrap();
    let mut command = Command::new(BINARY);
    command.args(["--durability", "memory"]).stderr(writer);
    let server = Unread::start(command, 4, "debug").await;
    let mut http = Http::connect(server.address).await;
    // Each end of a session is logged with its name: in all more than the pipe and the queue hold.
    let target = format!("/v1/sessions/{}", "x".repeat(250));
    for _ in 0..4500 {
        assert_eq!(http.request("DELETE", &target, &[], "").await.status, 204);
    }
    server.works().await;
    let lost = tokio::task::spawn_blocking(move || {
        for line in BufReader::new(reader).lines() {
            let entry: Value = serde_json::from_str(&line.unwrap()).expect("whole lines");
            if let Some(lost) = entry["lost"].as_u64() {
                return lost;
            }
        }
        panic!("the log ended");
    });
    assert!(soon(lost).await.unwrap() > 0);
    assert!(http.get("/healthz").await.json()["lost_log_lines"].as_u64().unwrap() > 0);
    server.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_log_that_nobody_reads() {
    let (reader, writer) = pipe().unwrap();
    // All that the pipe holds.
    (&writer).write_all(&[b'\n'; 65_536]).unwrap();
    let mut command = Command::new(BINARY);
    command.stderr(writer);
    let server = Unread::start(command, 5, "debug").await;
    server.works().await;
    server.stop().await;
    drop(reader);
}

#[tokio::test]
async fn levels_that_are_no_levels_are_named() {
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0", "--durability", "memory"]).env("RUST_LOG", "x0_msg_server=loud");
    let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(child.stderr.take().unwrap()).lines();
    let line: Value = serde_json::from_str(&soon(lines.next_line()).await.unwrap().unwrap()).unwrap();
    assert!(line["message"].as_str().unwrap().starts_with("RUST_LOG is not valid"), "{line}");
    // The level is that of no levels.
    soon(async { while !lines.next_line().await.unwrap().unwrap().contains(r#""ready""#) {} }).await;
}

/// The commands go on as well, or fail in order: a panic has the exit code 101.
#[tokio::test]
async fn a_command_that_cannot_print_does_not_panic() {
    let dir = tempfile::tempdir().unwrap();
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let token = |name: &str| {
        let mut command = Command::new(BINARY);
        command.args(["token", "--new-key", "--user", "ann", "--key-file"]).arg(dir.path().join(name));
        command
    };
    let noted = token("1").stdout(Stdio::piped()).stderr(full()).spawn().unwrap();
    let noted = soon(noted.wait_with_output()).await.unwrap();
    assert!(noted.status.success() && !noted.stdout.is_empty(), "only the note is lost");
    for stderr in [Stdio::piped(), full().into()] {
        let unprinted = soon(token("2").stdout(full()).stderr(stderr).status()).await.unwrap();
        assert_eq!(unprinted.code(), Some(1));
    }
}

/// The lines of a log whose text begins with this.
fn lines(log: &str, message: &str) -> Vec<Value> {
    let entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    entries.filter(|entry| entry["message"].as_str().is_some_and(|text| text.starts_with(message))).collect()
}

#[tokio::test]
async fn the_first_line_says_what_begins_with_which_settings() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--durability", "os", "--max-payload", "2MiB", "--send-rate", "7", "--ttl", "7d"];
    let server = TestServer::at(dir.path(), &flags).await;
    let address = server.address.to_string();
    let log = server.stop().await;
    let starting = &lines(&log, "starting")[0];
    for (field, value) in [
        ("version", env!("CARGO_PKG_VERSION")),
        ("address", &address),
        ("auth", "open"),
        ("durability", "os"),
        ("engine", "embedded"),
        ("data_dir", dir.path().to_str().unwrap()),
        ("limits", "max-payload=2MiB send-rate=7"),
    ] {
        assert_eq!(starting[field], value, "{starting}");
    }
}

#[tokio::test]
async fn a_refusal_is_logged_with_its_code_door_and_client_and_a_flood_of_them_once() {
    let server = TestServer::with(&["--durability", "memory"]).await;
    for _ in 0..20 {
        assert_eq!(server.post("/v1/messages?session=A", "{").await.status, 400);
    }
    assert_eq!(server.get("/v1/messages?session=A&after=x").await.status, 400);
    assert_eq!(server.get("/v1/events?session=A&window=x&topic=").await.status, 400);
    let mut ws = server.session("A").await;
    ws.send(json!({ "type": "send", "to": { "user": "nobody" }, "payload": 1 })).await;
    assert_eq!(ws.recv().await["code"], "not_found");
    let log = server.stop().await;
    let refused: Vec<_> = lines(&log, "refused")
        .iter()
        .map(|line| {
            assert!(
                line["client"] == "127.0.0.1" && line["level"] == "INFO" && line["unlogged"] == 0,
                "{line}"
            );
            format!("{} {}", line["door"].as_str().unwrap(), line["code"].as_str().unwrap())
        })
        .collect();
    assert_eq!(
        refused,
        ["http bad_request", "poll bad_request", "sse bad_request", "websocket not_found"],
        "{log}"
    );
}

#[tokio::test]
async fn a_refusal_behind_a_proxy_names_the_client_at_each_door() {
    let flags = ["--trust-proxy", "127.0.0.1", "--connections-per-address", "1", "--poll-timeout", "50ms"];
    let server = TestServer::with(&flags).await;
    let client = ("x-forwarded-for", "192.0.2.7");
    let call = async |method: &str, target: &str, body: String| {
        server.http().await.request(method, target, &[client], body).await.status
    };
    assert_eq!(call("POST", "/v1/messages?session=A", "{".to_owned()).await, 400);
    assert_eq!(call("GET", "/v1/messages?session=A&after=x", String::new()).await, 400);
    assert_eq!(call("GET", "/v1/events?session=A&topic=", String::new()).await, 400);
    assert_eq!(call("DELETE", "/v1/topics", String::new()).await, 405);
    let sends = json!([{ "to": { "user": "nobody" }, "payload": 1 }]);
    assert_eq!(call("POST", "/v1/messages", sends.to_string()).await, 200);
    let mut other = server.http().await;
    let headers = [client, ("host", "rebind.example"), ("connection", "close")];
    assert_eq!(other.request("GET", "/v1/users", &headers, "").await.status, 400, "two hosts");
    assert_eq!(call("POST", &x0_target(), "no JSON".to_owned()).await, 400);
    let mut ws = Ws::with_headers(server.address, "?session=A&window=x", &[client]).await;
    assert_eq!(ws.recv().await["code"], "bad_request");
    ws.closed().await;
    let mut ws = Ws::with_headers(server.address, "?session=A", &[client]).await;
    assert_eq!(ws.recv().await["type"], "welcome");
    // A poll of a page beyond the limit is held, and gets no error.
    assert_eq!(call("POST", &x0_target(), x0_poll("A").to_string()).await, 200);
    ws.send(json!({ "type": "send", "to": { "user": "nobody" }, "payload": 1 })).await;
    assert_eq!(ws.recv().await["code"], "not_found");
    drop(ws);
    let log = server.stop().await;
    let mut refused: Vec<_> = lines(&log, "refused")
        .iter()
        .map(|line| {
            assert_eq!(line["client"], "192.0.2.7", "{line}");
            format!("{} {}", line["door"].as_str().unwrap(), line["code"].as_str().unwrap())
        })
        .collect();
    refused.sort();
    let expected = [
        "http bad_request",
        "http not_found",
        "legacy bad_request",
        "legacy rate_limited",
        "poll bad_request",
        "sse bad_request",
        "websocket bad_request",
        "websocket not_found",
    ];
    assert_eq!(refused, expected, "{log}");
}

#[tokio::test]
async fn requests_are_logged_at_debug_within_the_trace_of_their_caller() {
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let traceparent = format!("00-{trace}-b7ad6b7169203331-01");
    let body = json!({ "to": { "session": "B" }, "payload": 1 }).to_string();
    for (level, is_logged) in [("debug", true), ("info", false)] {
        let mut command = Command::new(BINARY);
        command.args(["--durability", "memory", "--listen", "127.0.0.1:0", "--log-level", level]);
        let server = TestServer::try_spawn_as_is(command).await.unwrap();
        let headers = [("traceparent", traceparent.as_str())];
        let mut http = server.http().await;
        // One goes through the routes, and one skips them.
        for target in ["/v1/sessions/A", "/v1/messages?session=a-name-in-an-address"] {
            let method = if target.contains('?') { "POST" } else { "GET" };
            http.request(
                method,
                target,
                &headers,
                if method == "POST" { body.clone() } else { String::new() },
            )
            .await;
        }
        http.close().await;
        let log = server.stop().await;
        let traced = lines(&log, "answered").into_iter().chain(lines(&log, "accepted"));
        let traced = traced.filter(|line| line["span"]["trace_id"] == trace).count();
        assert_eq!(traced, if is_logged { 2 } else { 0 }, "{log}");
        assert!(!log.contains("a-name-in-an-address"), "addresses of requests may name sessions: {log}");
    }
}
