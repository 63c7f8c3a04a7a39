//! The command line: arguments and answers that are not what they should be.

use std::process::Output;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::common::*;

/// Runs the binary with these arguments; whether it succeeded, and what it says on standard error.
async fn run(args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(BINARY);
    let Output { status, stderr, .. } = soon(command.args(args).kill_on_drop(true).output()).await.unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

/// A server that gives every request this answer, as anybody may run one.
async fn any_server(status: &str, body: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            _ = stream.read(&mut [0; 4096]).await;
            _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

#[tokio::test]
async fn the_text_of_a_server_does_not_control_the_terminal() {
    let body = "{\"error\":{\"message\":\"a\u{9b}31mb\u{202e}c\\u001b[2Jd\\nsent, seq 7\"}}";
    let server = any_server("403 Forbidden", body).await;
    for args in [&["send", "--to", "A", "1"][..], &["listen", "--session", "A"]] {
        let (code, text) = run(&[args, &["--server", &server]].concat()).await;
        assert_eq!(code, Some(1));
        assert!(text.ends_with("a\\u009b31mb\\u202ec\\u001b[2Jd\\u000asent, seq 7\n"), "{text:?}");
    }
    // A broker repeats the names of a request.
    let broker = TestServer::start().await;
    let broker = format!("ws://{}", broker.address);
    let (code, text) = run(&["send", "--server", &broker, "--user", "u\u{202e}", "1"]).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("user `u\\u202e` has no registered session"), "{text:?}");
}

#[tokio::test]
async fn an_answer_without_an_end_is_no_health() {
    let server = any_server("200 OK", &"x".repeat(1 << 20)).await;
    let (code, text) = run(&["health", "--server", &server]).await;
    assert!(code == Some(1) && text.contains("not that of a broker"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_no_address_is_refused_before_anything_is_sent() {
    let broker = TestServer::start().await;
    let address = broker.address;
    for server in [
        "ws://".to_owned(),
        "ws://:80".to_owned(),
        format!("ws://127.0.0.1:{}{}", address.port(), "0000"),
        format!("ws://ann:secret@{address}"),
        format!("ws://{address}/?session=A"),
        format!("ws://{address}#A"),
    ] {
        for args in [&["send", "--to", "A", "1"][..], &["listen", "--session", "A"], &["health"]] {
            let (code, text) = run(&[args, &["--server", &server]].concat()).await;
            assert!(code == Some(1) && text.contains("--server"), "{server}: {text}");
        }
    }
    let (code, text) = run(&["health", "--server", &format!(" WS://{address}")]).await;
    assert_eq!(code, Some(0), "{text}");
}

#[tokio::test]
async fn a_file_that_holds_no_token_is_refused() {
    let broker = TestServer::start().await;
    let server = format!("ws://{}", broker.address);
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (empty, long) = (file("empty", " \n"), file("long", &"x".repeat(100_000)));
    for (path, reason) in [
        (empty.as_str(), "is empty"),
        (&long, "too long"),
        ("/dev/zero", "larger than 1 MiB"),
        ("/", "cannot read"),
    ] {
        let (code, text) = run(&["send", "--server", &server, "--to", "A", "--token-file", path, "1"]).await;
        assert!(code == Some(1) && text.contains("--token-file") && text.contains(reason), "{path}: {text}");
    }
    let key = file("key", &"k".repeat(32));
    for (flags, reason) in [
        (["--user", "h-BwcHBwcHBwcHBwcHBwcHBw"], "shape of a handle"),
        (["--user", ""], "--user"),
        (["--ttl", "0"], "--ttl"),
    ] {
        let user = if flags[0] == "--user" { &[][..] } else { &["--user", "ann"] };
        let (code, text) = run(&[&["token", "--key-file", &key], user, &flags].concat()).await;
        assert!(code == Some(1) && text.contains(reason), "{flags:?}: {text}");
    }
}

/// A start that reads such a file would never end, and take all memory.
#[tokio::test]
async fn a_broker_does_not_start_with_a_key_file_without_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "k".repeat(32)).unwrap();
    let key = key.to_str().unwrap();
    for flags in [
        &["--auth", "token", "--token-key-file", "/dev/zero"][..],
        &["--auth", "token", "--token-key-file", key, "--api-key-file", "/dev/zero"],
        &["--tls-cert", "/dev/zero", "--tls-key", key],
    ] {
        let serve = ["serve", "--listen", "127.0.0.1:0", "--durability", "memory"];
        let (code, text) = run(&[&serve, flags].concat()).await;
        assert!(code == Some(1) && text.contains("/dev/zero: is larger than 1 MiB"), "{flags:?}: {text}");
    }
}

/// A setting that no request can match looks like access, and gives none.
#[tokio::test]
async fn names_that_no_request_can_have_are_refused_at_the_start() {
    for (flag, value) in [
        ("--allow-origin", "https://*.example"),
        ("--allow-origin", "https://münchen.example"),
        ("--allow-origin", "https://x:99999"),
        ("--legacy-allow-origin", "http://*.x0.localnet"),
        ("--host", "*.example"),
        ("--host", "münchen.example"),
        ("--token-audience", ""),
        ("--token-issuer", " "),
    ] {
        let (code, text) = run(&["serve", "--listen", "127.0.0.1:0", flag, value]).await;
        assert!(code == Some(2) && text.contains(flag), "{flag} {value}: {text}");
    }
}

#[tokio::test]
async fn what_is_not_stored_has_no_time_to_live() {
    let send = ["send", "--server", "ws://127.0.0.1:1", "--to", "A", "--volatile", "--ttl", "9", "1"];
    let (code, text) = run(&send).await;
    assert!(code == Some(2) && text.contains("--ttl has no effect with --volatile"), "{text}");
    // The reply to a request is waited for that long.
    let (code, text) = run(&[&send[..], &["--request"]].concat()).await;
    assert!(code == Some(1) && text.contains("is the broker running"), "{text}");
}

/// Random ids and the `reply_to` of a request may begin with a hyphen.
#[tokio::test]
async fn names_and_numbers_may_begin_with_a_hyphen() {
    let broker = TestServer::start().await;
    let url = format!("ws://{}", broker.address);
    let args = ["send", "--to", "-ab", "--from", "-cd", "--id", "-ef", "-1", "--server", &url];
    assert_eq!(run(&args).await, (Some(0), String::new()));
    let mut reader = broker.session("-ab").await;
    let message = reader.message().await;
    assert_eq!((&message["from"], &message["payload"]), (&json!("-cd"), &json!(-1)));
    let (code, text) = run(&["send", "--reply", "-gh", "1", "--server", &url]).await;
    assert!(code == Some(1) && !text.contains("unexpected argument"), "{text}");
}
