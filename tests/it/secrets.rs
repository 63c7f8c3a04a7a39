//! Secrets are in no log, no help text, no report and no argument; the defaults are secure.

use serde_json::json;
use tokio::process::Command;

use crate::common::*;
use crate::guarded::*;

const SESSION: &str = "session-id-that-is-a-secret-4711";

/// The id of a session that proves itself.
const PROOF: &str = "Zk3vQ8hTn2LxWc7RbYp5JdMg9sFaUe4t";

#[tokio::test]
async fn secrets_are_in_no_log_no_argument_no_help_and_no_report() {
    let dir = tempfile::tempdir().unwrap();
    let (api_key, secret) =
        ("an api key in the environment 0123456789", "a secret in the environment 0123456789");
    let api_key = api_key.replace(' ', "-");
    let mut start = Command::new(BINARY);
    start
        .args(["--auth", "token", "--poll-timeout", "200ms"])
        .env("X0_MSG_API_KEYS", format!("shop:{api_key}"))
        .env("X0_MSG_TOKEN_SECRET", secret)
        .env("X0_MSG_LISTEN", "127.0.0.1:0")
        .env("X0_MSG_DATA_DIR", dir.path())
        .env("RUST_LOG", "trace");
    let server = TestServer::try_spawn_as_is(start).await.unwrap();
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    let claims = json!({ "sub": "ann", "sid": SESSION, "exp": now() + 60 });
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
    let mut ws = server.ws("").await;
    ws.send(json!({ "type": "hello", "token": token })).await;
    assert_eq!(ws.recv().await["type"], "welcome");
    let mut http = server.http().await;
    for bearer in [&api_key, &token, &format!("{token}x")] {
        let bearer = format!("Bearer {bearer}");
        let headers = [("authorization", bearer.as_str())];
        http.request("PUT", &format!("/v1/sessions/{SESSION}"), &headers, r#"{"user":"ann"}"#).await;
        http.request("POST", "/v1/messages", &headers, r#"{"to":{"user":"ann"},"payload":1}"#).await;
    }
    let bearer = format!("Bearer {api_key}");
    let registered = format!("/v1/sessions/{PROOF}");
    let body = r#"{"user":"ann","proof":true}"#;
    let reply = http.request("PUT", &registered, &[("authorization", &bearer)], body).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let mut proved = server.ws("").await;
    proved.send(json!({ "type": "hello", "session": PROOF })).await;
    assert_eq!(proved.recv().await["type"], "welcome");
    let wrong = format!("{PROOF}x");
    for proof in [PROOF, &wrong] {
        let bearer = format!("Bearer {proof}");
        let headers = [("authorization", bearer.as_str())];
        http.request("GET", "/v1/messages?wait=0", &headers, "").await;
        let poll = json!({ "session": proof, "wait": 0 }).to_string();
        http.request("POST", "/v1/messages/poll", &[], poll).await;
        http.request("GET", &format!("/v1/messages?session={proof}&wait=0"), &[], "").await;
        server.http().await.request("GET", &format!("/v1/events?session={proof}"), &[], "").await;
        let mut ws = server.ws(&format!("?session={proof}")).await;
        assert_eq!(ws.recv().await["code"], "unauthorized");
        server.http().await.post(&x0_target(), x0_poll(proof)).await;
    }
    // A repeated request shows that its answer was lost, which is logged.
    let target = x0_target();
    for _ in 0..2 {
        server.http().await.post(&target, x0_poll(SESSION)).await;
    }
    let pid = server.child.id().unwrap();
    let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    let headers = format!("Bearer {api_key}");
    http.request("DELETE", &format!("/v1/sessions/{SESSION}"), &[("authorization", &headers)], "").await;
    let log = server.stop().await;
    let help = Command::new(BINARY)
        .args(["serve", "--help"])
        .env("X0_MSG_API_KEYS", format!("shop:{api_key}"))
        .env("X0_MSG_TOKEN_SECRET", secret)
        .env("X0_MSG_TOKEN", &token)
        .output();
    let help = String::from_utf8(soon(help).await.unwrap().stdout).unwrap();
    assert!(help.contains("--token-key-file") && help.contains("X0_MSG_API_KEYS"), "{help}");
    let listen = Command::new(BINARY).args(["listen", "--help"]).env("X0_MSG_TOKEN", &token).output();
    let listen = String::from_utf8(soon(listen).await.unwrap().stdout).unwrap();
    let report = command(&["check", "--data-dir", dir.path().to_str().unwrap()]).unwrap();
    for (where_, text) in [
        ("log", &log),
        ("arguments", &arguments),
        ("help", &help),
        ("help of listen", &listen),
        ("report", &report),
    ] {
        assert!(!text.is_empty());
        for (what, hidden) in [
            ("API key", api_key.as_str()),
            ("secret", secret),
            ("token", &token),
            ("session id", SESSION),
            ("proof", PROOF),
        ] {
            assert!(!text.contains(hidden), "the {what} is in the {where_}: {text}");
        }
    }
    assert!(log.contains("delivering again"), "the log has the line of a repeat: {log}");
}

#[tokio::test]
async fn an_open_broker_listens_on_this_machine_and_warns_beyond() {
    let server = TestServer::start().await;
    assert!(server.address.ip().is_loopback());
    let log = server.stop().await;
    assert!(!log.contains("WARN"), "{log}");
    let warned = |log: &str| log.lines().filter(|line| line.contains("\"WARN\"")).count();
    let dir = tempfile::tempdir().unwrap();
    let beyond = |args: &[&str]| {
        let mut start = Command::new(BINARY);
        start.args(args).env("X0_MSG_LISTEN", "0.0.0.0:0").env("X0_MSG_DATA_DIR", dir.path());
        start
    };
    let log = TestServer::try_spawn_as_is(beyond(&[])).await.unwrap().stop().await;
    assert_eq!(warned(&log), 1, "{log}");
    assert!(log.contains("--listen") && log.contains("--auth token"), "{log}");
    assert!(log.contains("DNS rebinding") && log.contains("any web page may read"), "{log}");
    let path = dir.path().join("secret");
    std::fs::write(&path, SECRET).unwrap();
    let guarded = beyond(&["--auth", "token", "--token-key-file", path.to_str().unwrap()]);
    let log = TestServer::try_spawn_as_is(guarded).await.unwrap().stop().await;
    assert_eq!(warned(&log), 0, "{log}");
}

#[tokio::test]
async fn a_command_says_that_an_open_broker_ignores_its_token() {
    let server = TestServer::start().await;
    let url = format!("ws://{}", server.address);
    let run = |args: &[&str]| {
        let mut command = Command::new(BINARY);
        command.args(args).args(["--server", &url]).env("X0_MSG_TOKEN", token("ann", "A"));
        command.output()
    };
    for args in [&["send", "--to", "A", "1"][..], &["listen", "--session", "A", "--count", "1"]] {
        let output = soon(run(args)).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("--auth open"), "{args:?}: {said}");
    }
    // Without the session of the token there is nothing to listen to.
    let output = soon(run(&["listen"])).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--session"), "{said}");
}

/// The commands with tokens: send to a user, listen as a session, and go on with a renewed token.
#[tokio::test]
async fn the_command_line_shows_a_token_from_a_file() {
    let server = Guarded::start().await;
    let url = format!("ws://{}", server.address);
    let (secret, made) = (server.path("secret"), server.path("made"));
    let mint = |user: &str, session: &str, more: &[&str]| {
        let secret = secret.to_str().unwrap();
        let args = ["token", "--key-file", secret, "--user", user, "--session", session];
        let args: Vec<&str> = args.into_iter().chain(more.iter().copied()).collect();
        command(&args).unwrap()
    };
    std::fs::write(&made, mint("ann", "a1", &["--topic", "news", "--ttl", "1h"])).unwrap();
    let listen = Command::new(BINARY)
        .args(["listen", "--topic", "news", "--count", "3", "--payload", "--server", &url, "--token-file"])
        .arg(&made)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    soon(async {
        loop {
            let session = server.call("GET", "/v1/sessions/a1", KEY, "").await;
            if session.status == 200 && session.json()["connections"]["websocket"] == 1 {
                break;
            }
        }
    })
    .await;
    let send = |args: &[&str], token: &str| {
        let mut send = Command::new(BINARY);
        send.arg("send").args(args).args(["--server", &url]).env("X0_MSG_TOKEN", token);
        send
    };
    let output = soon(send(&["--user", "ann", "1"], KEY).output()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "sent to 1 session\n", "{output:?}");
    let output = soon(send(&["--user", "ann", "2"], &mint("bob", "b1", &[])).output()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = soon(send(&["--topic", "news", "3"], &mint("bob", "b1", &[])).output()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("forbidden") && said.contains("topic:news"), "{said}");
    let output = soon(send(&["--topic", "news", "3"], &mint("bob", "b1", &["--send", "topic:*"])).output())
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = soon(listen.wait_with_output()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n2\n3\n");
    let output = soon(send(&["--user", "ann", "1"], "wrong").output()).await.unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("unauthorized"), "{output:?}");
    // A new key, for first steps.
    let new = server.path("new");
    let said = command(&["token", "--key-file", new.to_str().unwrap(), "--user", "x"]).unwrap_err();
    assert!(said.contains("--new-key"), "{said}");
    command(&["token", "--key-file", new.to_str().unwrap(), "--user", "x", "--new-key"]).unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o600);
}
