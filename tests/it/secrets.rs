//! Secrets are in no log, no help text, no report and no argument; the defaults are secure.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use http_body_util::Empty;
use serde_json::json;
use tokio::process::Command;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::common::*;
use crate::guarded::*;
use crate::tls::{certificate, http2, tls, ws_over_http2, ws_over_tls};

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
    let mut events = Events::with_bearer(server.address, "", &token).await;
    assert_eq!(events.next().await.name, "welcome");
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

/// Writes keys, a certificate and a file of settings that names them, with the level trace. Returns the certificate.
fn settings_with_secrets(
    dir: &Path,
    (api_key, secret, password): (&str, &str, &str),
) -> CertificateDer<'static> {
    let trusted = certificate(dir);
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    file("secret", secret);
    file(
        "keys.toml",
        &format!("[[key]]\nname = \"shop\"\nkey = \"{api_key}\"\nops = true\nmailbox = true\n"),
    );
    let path = |name: &str| format!("{:?}", dir.join(name).to_str().unwrap());
    let lines = [
        ("auth", "\"token\"".to_owned()),
        ("log-level", "\"trace\"".to_owned()),
        ("token-key-file", path("secret")),
        ("api-key-file", path("keys.toml")),
        ("tls-cert", path("cert.pem")),
        ("tls-key", path("key.pem")),
        ("data-dir", path("store")),
        ("nats-url", format!("\"nats://x0:{password}@127.0.0.1:4222\"")),
    ];
    file("settings.toml", &lines.map(|(name, value)| format!("{name} = {value}\n")).concat());
    trusted
}

#[tokio::test]
async fn secrets_are_in_no_log_over_tls_and_from_a_file_of_settings() {
    let (api_key, secret, password) = (
        "a-key-in-a-file-0123456789abcdef",
        "a secret in a file 0123456789abcdef",
        "a-password-of-nats-4711",
    );
    let dir = tempfile::tempdir().unwrap();
    let trusted = settings_with_secrets(dir.path(), (api_key, secret, password));
    let mut start = Command::new(BINARY);
    start.arg("--config").arg(dir.path().join("settings.toml")).env("X0_MSG_LISTEN", "127.0.0.1:0");
    start.env_remove("RUST_LOG");
    let server = TestServer::try_spawn_as_is(start).await.unwrap();
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    let claims = json!({ "sub": "ann", "sid": SESSION, "exp": now() + 60 });
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
    let wrong = [format!("{token}x"), format!("{api_key}x"), format!("{PROOF}x")];
    let stream = soon(tls(server.address, &trusted, "http/1.1")).await.unwrap();
    let (mut http, bearer) = (Http::on(stream, "localhost").await, format!("Bearer {api_key}"));
    let body = r#"{"user":"ann","proof":true}"#;
    let headers = [("authorization", bearer.as_str())];
    let reply = http.request("PUT", &format!("/v1/sessions/{PROOF}"), &headers, body).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(http.request("GET", "/v1/ops/stats", &headers, "").await.status, 200);
    let mut over_2 = http2(server.address, &trusted).await;
    let right = [api_key, &token, PROOF].map(|bearer| (bearer, 200));
    for (bearer, status) in right.into_iter().chain(wrong.iter().map(|wrong| (wrong.as_str(), 401))) {
        let bearer = format!("Bearer {bearer}");
        let target = "/v1/topics/news";
        let reply = http.request("GET", target, &[("authorization", &bearer)], "").await;
        assert_eq!(reply.status == 401, status == 401, "{}", reply.body);
        for target in [target, "/v1/messages?wait=0", "/v1/events?topic=news"] {
            let request = hyper::Request::get(format!("https://localhost{target}"));
            let request = request.header("authorization", &bearer).body(Empty::new()).unwrap();
            let reply = soon(over_2.send_request(request)).await.unwrap();
            assert_eq!(reply.status() == 401, status == 401, "{target}");
        }
    }
    let hellos = [json!({ "type": "hello", "token": token }), json!({ "type": "hello", "session": PROOF })];
    let refused = wrong.iter().map(|wrong| json!({ "type": "hello", "token": wrong }));
    for (hello, answer) in
        hellos.into_iter().map(|hello| (hello, "welcome")).chain(refused.map(|hello| (hello, "error")))
    {
        let mut over_tls = ws_over_tls(server.address, &trusted, "").await;
        over_tls.send(hello.clone()).await;
        assert_eq!(over_tls.recv().await["type"], answer);
        let mut over_2 = ws_over_http2(&mut over_2, "").await;
        over_2.send(hello).await;
        assert_eq!(over_2.recv().await["type"], answer);
    }
    let settings = dir.path().join("settings.toml");
    let printed = command(&["config", "print", "--config", settings.to_str().unwrap()]).unwrap();
    // It is read again: what is wrong with it is told, and not what it holds.
    let log = server.log_from_here();
    let text = std::fs::read_to_string(&settings).unwrap();
    std::fs::write(&settings, format!("{text}api-keys = \"shop:{api_key}\"\n")).unwrap();
    server.signal(1);
    log.contains("all of them stay as they are").await;
    let log = server.stop().await;
    assert!(log.contains("\"TRACE\""), "{log}");
    for (what, hidden) in [
        ("API key", api_key),
        ("secret", secret),
        ("password", password),
        ("token", &token),
        ("session id", SESSION),
        ("proof", PROOF),
    ] {
        assert!(!log.contains(hidden), "the {what} is in the log: {log}");
        assert!(!printed.contains(hidden), "the {what} is printed: {printed}");
    }
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
    assert_eq!(std::fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o600);
}
