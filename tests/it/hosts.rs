//! Hosts: an open broker on loopback serves only its own names, so that no site reaches it by DNS rebinding.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::*;
use crate::guarded::*;

/// The host of a site that has given its name the address 127.0.0.1.
const REBOUND: &str = "rebind.example:8080";

/// The handshake of a WebSocket, as headers.
const HANDSHAKE: [(&str, &str); 4] = [
    ("upgrade", "websocket"),
    ("connection", "upgrade"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// One request to this host, by a page of it.
async fn ask(
    server: &TestServer,
    host: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let stream = soon(TcpStream::connect(server.address)).await.unwrap();
    let origin = format!("http://{host}");
    let headers: Vec<_> = headers.iter().copied().chain([("origin", origin.as_str())]).collect();
    Http::on(stream, host).await.request(method, target, &headers, body.to_owned()).await
}

/// The status of a poll that asks for this host.
async fn poll(server: &TestServer, host: &str) -> u16 {
    ask(server, host, "GET", "/v1/messages?session=A&wait=0", &[], "").await.status
}

#[tokio::test]
async fn an_open_broker_on_loopback_refuses_other_hosts_and_names_the_flag() {
    let server = TestServer::start().await;
    server.send("B", "A", 1.into()).await;
    for (method, target, headers, body) in [
        ("GET", "/v1/messages?session=A&wait=0", &[][..], ""),
        ("POST", "/v1/messages?session=B", &[], r#"{"to":{"session":"A"},"payload":2}"#),
        ("GET", "/v1/events?session=A", &[], ""),
        ("POST", "/v1/ack", &[], r#"{"session":"A","seq":1}"#),
        ("DELETE", "/v1/sessions/A", &[], ""),
        ("OPTIONS", "/v1/messages", &[], ""),
        ("GET", "/ws?session=A", &HANDSHAKE, ""),
        ("GET", "/", &[], ""),
        ("GET", "/client.js", &[], ""),
        ("GET", "/docs/", &[], ""),
        ("GET", "/openapi.json", &[], ""),
    ] {
        let reply = ask(&server, REBOUND, method, target, headers, body).await;
        assert_eq!(reply.status, 421, "{method} {target}: {}", reply.body);
        assert_eq!(reply.code(), "forbidden");
        assert!(reply.body.contains("--host") && reply.body.contains(REBOUND), "{}", reply.body);
    }
    // Nothing was read, acknowledged or sent.
    assert_eq!(server.session("A").await.payload().await, 1);
}

#[tokio::test]
async fn loopback_names_and_the_name_of_x0_are_served() {
    let server = TestServer::start().await;
    let port = server.address.port();
    for host in ["localhost", "127.0.0.1", "[::1]", "app.localhost", "x0-msg-server.x0.localnet"] {
        assert_eq!(poll(&server, &format!("{host}:{port}")).await, 200, "{host}");
        assert_eq!(poll(&server, host).await, 200, "{host}");
    }
    // HTTP/1.0 has no `Host`.
    let mut stream = soon(TcpStream::connect(server.address)).await.unwrap();
    stream.write_all(b"GET /v1/messages?session=A&wait=0 HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
}

/// The x0 client stops for good at any status but 200. Monitoring asks by any name.
#[tokio::test]
async fn the_addresses_of_the_x0_client_and_the_health_are_served_under_every_host() {
    let server = TestServer::with(&["--poll-timeout", "100ms"]).await;
    let (handler, poll) = (x0_target(), x0_poll("A").to_string());
    let set = x0_set("B", "A", &serde_json::json!({ "n": 1 })).to_string();
    for (method, target, body, has) in [
        ("POST", handler.as_str(), set.as_str(), "ok"),
        ("POST", &handler, &poll, r#""n":1"#),
        ("POST", "/get", &poll, "messages"),
        ("POST", "/set", &set, "ok"),
        ("GET", "/healthz", "", "ok"),
        ("GET", "/readyz", "", "ok"),
    ] {
        let reply = ask(&server, REBOUND, method, target, &[], body).await;
        assert_eq!(reply.status, 200, "{target}");
        assert!(reply.body.contains(has), "{target}: {}", reply.body);
    }
    assert_eq!(ask(&server, REBOUND, "OPTIONS", &handler, &[], "").await.status, 204);
}

/// A connection to 0.0.0.0 reaches this machine, under a host that is not its name.
#[tokio::test]
async fn a_command_says_why_its_host_is_refused() {
    let server = TestServer::start().await;
    let url = format!("ws://0.0.0.0:{}", server.address.port());
    for args in [&["send", "--to", "A", "1"][..], &["listen", "--session", "A"]] {
        let said = command(&[args, &["--server", &url]].concat()).unwrap_err();
        assert!(said.contains("421") && said.contains("--host"), "{said}");
    }
}

#[tokio::test]
async fn a_flag_another_address_or_the_token_mode_allows_a_host() {
    for flags in [
        &["--host", "other.example,rebind.example"][..],
        &["--host", "*"],
        &["--allow-origin", "https://rebind.example"],
        &["--listen", "0.0.0.0:0"],
    ] {
        let server = TestServer::with(flags).await;
        let reply = ask(&server, REBOUND, "GET", "/v1/messages?session=A&wait=0", &[], "").await;
        let is_host_refused = reply.status == 421;
        assert!(!is_host_refused, "{flags:?}: {}", reply.body);
    }
    let named = TestServer::with(&["--host", "rebind.example"]).await;
    assert_eq!(poll(&named, REBOUND).await, 200);
    assert_eq!(poll(&named, "evil.example").await, 421);
    let guarded = Guarded::start().await;
    assert_eq!(poll(&guarded, REBOUND).await, 401, "a proof is needed instead");
    let refused = command(&["--host", "https://rebind.example"]).unwrap_err();
    assert!(refused.contains("--host") && refused.contains("msg.example"), "{refused}");
}
