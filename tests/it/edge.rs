//! Access to the listener: origins, TLS and HTTP/2, timeouts of headers and bodies, limits of connections and sends.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::{WebSocketStream, connect_async};

use crate::common::*;
use crate::guarded::*;

/// Opens a WebSocket as a page of this origin does.
async fn from_origin(address: SocketAddr, origin: Option<&str>) -> Ws {
    let mut request = format!("ws://{address}/ws?session=A").into_client_request().unwrap();
    if let Some(origin) = origin {
        request.headers_mut().insert("origin", origin.parse().unwrap());
    }
    let (socket, _) = soon(connect_async(request)).await.unwrap();
    Ws { socket, epoch: String::new() }
}

#[tokio::test]
async fn pages_of_other_origins_are_refused_unless_configured() {
    let server = TestServer::with(&["--allow-origin", "https://app.example,http://localhost:3000"]).await;
    let own = format!("http://{}", server.address);
    for (origin, allowed) in [
        (None, true),
        (Some(own.as_str()), true),
        (Some("https://app.example"), true),
        (Some("http://localhost:3000"), true),
        (Some("http://app.example"), false),
        (Some("https://app.example:8443"), false),
        (Some("https://app.example.evil.example"), false),
        (Some("http://localhost:3001"), false),
        (Some("null"), false),
        (Some("https://evil.example"), false),
    ] {
        let mut ws = from_origin(server.address, origin).await;
        if allowed {
            assert_eq!(ws.recv().await["type"], "welcome", "{origin:?}");
        } else {
            let (code, reason) = ws.closed().await;
            assert_eq!(code, 4503, "{origin:?}");
            assert!(reason.contains("--allow-origin"), "{reason}");
        }
        // The same for the calls of `/v1`, also those whose answer a page need not read.
        let headers: Vec<_> = origin.map(|origin| ("origin", origin)).into_iter().collect();
        let body = r#"{"to":{"session":"B"},"payload":1}"#;
        let reply = server.http().await.request("POST", "/v1/messages", &headers, body).await;
        assert_eq!(reply.status, if allowed { 200 } else { 403 }, "{origin:?}");
        let cross = origin.is_some_and(|origin| origin != own);
        let told = reply.header("access-control-allow-origin");
        assert_eq!(told, if allowed && cross { origin.unwrap() } else { "" }, "{origin:?}");
        // The x0 client may come from any origin.
        let body = x0_set("A", "C", &json!({})).to_string();
        let reply = server.http().await.request("POST", &x0_target(), &headers, body).await;
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, "*"));
    }
    // The request of an image has no `Origin`, but `Sec-Fetch-Site` names another site.
    let headers = [("sec-fetch-site", "cross-site")];
    let reply = server.http().await.request("GET", "/v1/messages?session=B&wait=0", &headers, "").await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"));
    // Preflights of allowed origins are answered.
    let headers = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization"),
    ];
    let reply = server.http().await.request("OPTIONS", "/v1/messages", &headers, "").await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, "https://app.example"));
    assert!(reply.header("access-control-allow-headers").contains("authorization"));
}

#[tokio::test]
async fn the_origins_of_x0_pages_can_be_configured() {
    let server = TestServer::with(&["--legacy-allow-origin", "http://x0-app.x0.localnet"]).await;
    for (origin, told) in
        [("http://x0-app.x0.localnet", "http://x0-app.x0.localnet"), ("https://evil.example", "")]
    {
        for (method, body) in [("OPTIONS", String::new()), ("POST", x0_set("A", "B", &json!({})).to_string())]
        {
            let reply = server.http().await.request(method, &x0_target(), &[("origin", origin)], body).await;
            assert_eq!(reply.header("access-control-allow-origin"), told, "{method} {origin}");
            assert_eq!(reply.header("vary"), "origin");
            let refused = method == "POST" && told.is_empty();
            assert_eq!(reply.body.contains("--legacy-allow-origin"), refused, "{}", reply.body);
        }
    }
}

/// Writes a certificate of this machine to files. Returns it, to be trusted.
fn certificate(dir: &Path) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("key.pem"), signing_key.serialize_pem()).unwrap();
    std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
    cert.der().clone()
}

async fn tls(
    address: SocketAddr,
    trusted: &CertificateDer<'static>,
    alpn: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config =
        ClientConfig::builder_with_provider(default_provider().into()).with_safe_default_protocol_versions();
    let mut config = config.unwrap().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

#[tokio::test]
async fn tls_carries_http_1_and_2_and_websockets_over_both() {
    let dir = tempfile::tempdir().unwrap();
    let trusted = certificate(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let server = TestServer::with(&["--tls-cert", &path("cert.pem"), "--tls-key", &path("key.pem")]).await;
    let address = server.address;
    // HTTP/1.1 and a WebSocket over it.
    let stream = soon(tls(address, &trusted, "http/1.1")).await.unwrap();
    let mut http = Http::on(stream, "localhost").await;
    let sent = http.post("/v1/messages?session=A", json!({ "to": { "session": "B" }, "payload": 1 })).await;
    assert_eq!(sent.status, 200);
    let stream = soon(tls(address, &trusted, "http/1.1")).await.unwrap();
    let (socket, _) =
        soon(tokio_tungstenite::client_async("wss://localhost/ws?session=B", stream)).await.unwrap();
    let mut over_1 = Ws { socket, epoch: String::new() };
    assert_eq!(over_1.recv().await["type"], "welcome");
    assert_eq!(over_1.payload().await, 1);
    // HTTP/2: calls and a WebSocket (RFC 8441) on one connection.
    let stream = soon(tls(address, &trusted, "h2")).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = |method: &str, target: &str| {
        hyper::Request::builder().method(method).uri(format!("https://localhost{target}"))
    };
    let health = sender.send_request(request("GET", "/healthz").body(Empty::<Bytes>::new()).unwrap());
    let health = soon(health).await.unwrap();
    assert_eq!((health.status().as_u16(), health.version()), (200, hyper::Version::HTTP_2));
    let body = soon(health.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["status"], "ok");
    let connect = request("CONNECT", "/ws?session=C")
        .extension(hyper::ext::Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "x0-msg.v1")
        .header("origin", "https://localhost");
    let mut upgraded = soon(sender.send_request(connect.body(Empty::new()).unwrap())).await.unwrap();
    assert_eq!(
        (upgraded.status().as_u16(), &upgraded.headers()["sec-websocket-protocol"]),
        (200, &"x0-msg.v1".parse().unwrap())
    );
    let stream = TokioIo::new(soon(hyper::upgrade::on(&mut upgraded)).await.unwrap());
    let mut over_2 = Ws {
        socket: WebSocketStream::from_raw_socket(stream, Role::Client, None).await,
        epoch: String::new(),
    };
    assert_eq!(over_2.recv().await["type"], "welcome");
    over_2.send_to("B", json!("from h2")).await;
    assert_eq!(over_1.payload().await, "from h2");
    over_1.send_to("C", json!("from h1")).await;
    assert_eq!(over_2.payload().await, "from h1");
    // A long-poll on the same connection.
    let target = "/v1/messages?session=D&wait=0";
    let poll = soon(sender.send_request(request("GET", target).body(Empty::new()).unwrap())).await.unwrap();
    assert_eq!(poll.status(), 200);
    // The commands of the binary trust the configured certificate.
    let said = tokio::process::Command::new(BINARY)
        .args(["send", "--to", "B", "7", "--server", &format!("https://localhost:{}", address.port())])
        .env("SSL_CERT_FILE", path("cert.pem"))
        .output();
    let said = soon(said).await.unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(over_1.payload().await, 7);
    let healthy = tokio::process::Command::new(BINARY)
        .args(["health", "--server", &format!("wss://127.0.0.1:{}", address.port())])
        .output();
    assert!(soon(healthy).await.unwrap().status.success(), "on this machine it asks for no certificate");
    // A new certificate holds for new connections. Open connections stay.
    let renewed = certificate(dir.path());
    soon(async { while tls(address, &renewed, "h2").await.is_err() {} }).await;
    assert!(tls(address, &trusted, "h2").await.is_err());
    over_1.ping().await;
    over_2.ping().await;
    // A broken file does not replace the certificate.
    let log = server.log_from_here();
    std::fs::write(dir.path().join("cert.pem"), "-----BEGIN").unwrap();
    log.contains("cannot be read again").await;
    soon(tls(address, &renewed, "h2")).await.unwrap();
    // A request without TLS gets no answer.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    _ = soon(plain.read_to_end(&mut rest)).await;
    assert!(!rest.starts_with(b"HTTP"), "{rest:?}");
    let log = server.stop().await;
    assert!(log.contains("https://127.0.0.1"), "{log}");
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("empty"), "").unwrap();
    let other = generate_simple_self_signed(["localhost".to_owned()]).unwrap().signing_key.serialize_pem();
    std::fs::write(path("other"), other).unwrap();
    for (cert, key, names) in [
        ("nowhere", "key.pem", "--tls-cert"),
        ("empty", "key.pem", "no certificate"),
        ("cert.pem", "nowhere", "--tls-key"),
        ("cert.pem", "empty", "no private key"),
        ("cert.pem", "other", "does not belong"),
    ] {
        let args = [
            "--durability",
            "memory",
            "--listen",
            "127.0.0.1:0",
            "--tls-cert",
            &path(cert),
            "--tls-key",
            &path(key),
        ];
        let said = command(&args).unwrap_err();
        assert!(said.contains(names), "{cert} {key}: {said}");
    }
}

#[tokio::test]
async fn connections_of_one_address_are_limited() {
    let server = Guarded::with(&[
        "--connections-per-address",
        "3",
        "--trust-proxy",
        "127.0.0.1",
        "--poll-timeout",
        "300ms",
    ])
    .await;
    let connect = async |forwarded: &[(&'static str, &str)], session: &str| {
        let mut request = format!("ws://{}/ws", server.address).into_client_request().unwrap();
        for (name, value) in forwarded {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        let (socket, _) = soon(connect_async(request)).await.unwrap();
        let mut ws = Ws { socket, epoch: String::new() };
        ws.send(json!({ "type": "hello", "token": token("ann", session) })).await;
        let answer = ws.recv().await;
        (ws, answer)
    };
    let one = [("x-forwarded-for", "6.6.6.6, 1.2.3.4")];
    let mut sockets = Vec::new();
    for n in 0..3 {
        let (ws, answer) = connect(&one, &n.to_string()).await;
        assert_eq!(answer["type"], "welcome");
        sockets.push(ws);
    }
    // These name the same client: only the last address comes from the trusted proxy.
    for forwarded in [
        &[("x-forwarded-for", "1.2.3.4")][..],
        &[("x-forwarded-for", "9.9.9.9"), ("x-forwarded-for", "1.2.3.4")],
        &[("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=7.7.7.7")],
        &[("x-forwarded-for", "1.2.3.4, 127.0.0.1")],
    ] {
        let (mut ws, answer) = connect(forwarded, "more").await;
        assert_eq!(answer["code"], "rate_limited", "{forwarded:?} {answer}");
        assert!(answer["message"].as_str().unwrap().contains("--connections-per-address"));
        assert_eq!(ws.closed().await.0, 1013);
    }
    let bearer = format!("Bearer {}", token("ann", "0"));
    for target in ["/v1/messages?wait=0", "/v1/events"] {
        let headers = [("authorization", bearer.as_str()), one[0]];
        let reply = server.http().await.request("GET", target, &headers, "").await;
        assert_eq!((reply.status, reply.code().as_str()), (429, "rate_limited"), "{target}");
        assert_eq!(reply.header("retry-after"), "1");
    }
    // The poll of an x0 page waits until its timeout.
    server.register("x", json!({})).await;
    let begun = Instant::now();
    let reply = server.http().await.request("POST", &x0_target(), &one, x0_poll("x").to_string()).await;
    assert_eq!((reply.status, reply.json()), (200, json!({ "messages": null })));
    assert!(begun.elapsed() >= Duration::from_millis(290));
    // Another client may connect, and the same one after a connection has ended.
    assert_eq!(connect(&[("x-forwarded-for", "1.2.3.5")], "other").await.1["type"], "welcome");
    drop(sockets.pop());
    soon(async { while connect(&one, "2").await.1["type"] != "welcome" {} }).await;
    // With RFC 7239's header, the other header is ignored.
    let proxy = ["--trust-proxy", "127.0.0.1", "--proxy-header", "forwarded"];
    let server = Guarded::with(&[&["--connections-per-address", "1"][..], &proxy].concat()).await;
    let from = async |forwarded: &str, session: &str| {
        let mut request = format!("ws://{}/ws", server.address).into_client_request().unwrap();
        request.headers_mut().insert("forwarded", forwarded.parse().unwrap());
        request.headers_mut().insert("x-forwarded-for", "7.7.7.7".parse().unwrap());
        request
            .headers_mut()
            .insert("authorization", format!("Bearer {}", token("ann", session)).parse().unwrap());
        let (socket, _) = soon(connect_async(request)).await.unwrap();
        let mut ws = Ws { socket, epoch: String::new() };
        let answer = ws.recv().await;
        (ws, answer)
    };
    let (_held, answer) = from("for=1.2.3.4", "1").await;
    assert_eq!(answer["type"], "welcome");
    assert_eq!(from("for=8.8.8.8, for=\"1.2.3.4:4711\";proto=https", "2").await.1["code"], "rate_limited");
    assert_eq!(from("for=1.2.3.5", "3").await.1["type"], "welcome");
    // The header of an untrusted peer is ignored: the peer itself is counted.
    let server = Guarded::with(&["--connections-per-address", "1"]).await;
    let _first = server.welcomed(&token("ann", "1")).await;
    let mut request = format!("ws://{}/ws", server.address).into_client_request().unwrap();
    request.headers_mut().insert("x-forwarded-for", "1.2.3.4".parse().unwrap());
    let (socket, _) = soon(connect_async(request)).await.unwrap();
    assert_eq!(Ws { socket, epoch: String::new() }.closed().await.0, 1013);
}

/// Silent connections are limited too. Further connections wait, and are served when others close.
#[tokio::test]
async fn connections_beyond_the_limit_wait_and_are_served_later() {
    let server = Guarded::with(&["--connections-per-address", "1", "--header-timeout", "20s"]).await;
    // The server accepts 66 connections at once with this limit.
    let mut idle = Vec::new();
    for _ in 0..66 {
        idle.push(TcpStream::connect(server.address).await.unwrap());
    }
    let address = server.address;
    let mut late = tokio::spawn(async move { Http::connect(address).await.get("/healthz").await.status });
    let early = tokio::time::timeout(Duration::from_millis(300), &mut late).await;
    assert!(early.is_err(), "it is held");
    idle.pop();
    assert_eq!(soon(late).await.unwrap(), 200);
}

#[tokio::test]
async fn connections_of_one_session_are_limited() {
    let server = Guarded::with(&["--connections-per-session", "2"]).await;
    let proof = token("ann", "s");
    let _first = server.welcomed(&proof).await;
    let second = server.welcomed(&proof).await;
    let (mut third, answer) = server.hello(&proof).await;
    assert_eq!(answer["code"], "rate_limited", "{answer}");
    assert_eq!(third.closed().await.0, 1013);
    for target in ["/v1/messages?wait=0", "/v1/events"] {
        let reply = server.call("GET", target, &proof, "").await;
        assert_eq!((reply.status, reply.code().as_str()), (429, "rate_limited"), "{target}");
    }
    server.welcomed(&token("ann", "another")).await;
    drop(second);
    soon(async { while server.hello(&proof).await.1["type"] != "welcome" {} }).await;
}

#[tokio::test]
async fn sends_of_a_session_have_a_rate_limit_and_those_of_backends_have_none() {
    let server = Guarded::with(&["--send-rate", "1", "--send-burst", "3"]).await;
    let mut ws = server.welcomed(&token("ann", "a")).await;
    let send = |id: &str| json!({ "type": "send", "id": id, "to": { "user": "ann" }, "payload": 1 });
    let mut refused = None;
    for n in 0..4 {
        ws.send(send(&n.to_string())).await;
        let answer = loop {
            let answer = ws.recv().await;
            if answer["type"] != "message" {
                break answer;
            }
        };
        assert_eq!(answer["id"], n.to_string());
        match n {
            3 => refused = Some(answer),
            _ => assert_eq!(answer["type"], "sent", "{answer}"),
        }
    }
    let refused = refused.unwrap();
    assert_eq!(refused["code"], "rate_limited");
    assert!(refused["message"].as_str().unwrap().contains("--send-rate"), "{refused}");
    // All transports share a bucket, and each message of an array takes one token.
    let reply = server.call("POST", "/v1/messages", &token("ann", "a"), send("5")).await;
    assert_eq!((reply.status, reply.code().as_str()), (429, "rate_limited"));
    let many: Vec<Value> = (0..6).map(|n| send(&format!("b{n}"))).collect();
    let answers = server.call("POST", "/v1/messages", &token("bob", "b"), json!(many)).await.json();
    let codes: Vec<&Value> = answers.as_array().unwrap().iter().map(|one| &one["error"]["code"]).collect();
    assert_eq!(codes[..3], [&json!(null); 3]);
    assert_eq!(codes[5], "rate_limited");
    let many: Vec<Value> = (0..100).map(|n| send(&n.to_string())).collect();
    let answers = server.call("POST", "/v1/messages", KEY, json!(many)).await.json();
    assert!(answers.as_array().unwrap().iter().all(|one| one["sessions"].is_u64()), "{answers}");
    // The bucket fills again.
    soon(async {
        loop {
            ws.send(send("later")).await;
            let answer = ws.recv().await;
            match answer["type"].as_str().unwrap() {
                "message" => {}
                "sent" => break,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    })
    .await;
}

/// Requests whose head or body does not come are closed.
#[tokio::test]
async fn half_sent_requests_time_out() {
    let server = TestServer::with(&["--header-timeout", "2s"]).await;
    let mut head = TcpStream::connect(server.address).await.unwrap();
    head.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    let mut body = TcpStream::connect(server.address).await.unwrap();
    body.write_all(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").await.unwrap();
    let mut rest = Vec::new();
    soon(head.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
    let mut seen = vec![0; 1024];
    let count = soon(body.read(&mut seen)).await.unwrap();
    let seen = String::from_utf8_lossy(&seen[..count]);
    assert!(seen.starts_with("HTTP/1.1 400") && seen.contains("--header-timeout"), "{seen}");
    // Endless headers are refused before they fill the memory.
    let mut large = TcpStream::connect(server.address).await.unwrap();
    let flood = async {
        large.write_all(b"GET / HTTP/1.1\r\n").await?;
        for _ in 0..10_000 {
            large.write_all(format!("x: {}\r\n", "x".repeat(1000)).as_bytes()).await?;
        }
        std::io::Result::Ok(())
    };
    assert!(soon(flood).await.is_err(), "10 MB of headers are not taken");
}

/// An HTTP/2 connection without a request is closed.
#[tokio::test]
async fn an_http_2_connection_without_a_request_times_out() {
    let dir = tempfile::tempdir().unwrap();
    let trusted = certificate(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let server = TestServer::with(&["--tls-cert", &cert, "--tls-key", &key, "--header-timeout", "2s"]).await;
    let mut silent = soon(tls(server.address, &trusted, "h2")).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        TokioExecutor::new(),
        TokioIo::new(soon(tls(server.address, &trusted, "h2")).await.unwrap()),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let mut ask = async || {
        let request = hyper::Request::get("https://localhost/healthz").body(Empty::<Bytes>::new()).unwrap();
        soon(sender.send_request(request)).await.unwrap().status()
    };
    assert_eq!(ask().await, 200);
    let mut rest = Vec::new();
    _ = soon(silent.read_to_end(&mut rest)).await;
    // A connection with requests stays.
    assert_eq!(ask().await, 200);
}

/// 500 half-sent requests and 500 sockets without a hello do not keep 100 other clients from working.
#[tokio::test]
async fn slow_clients_do_not_stop_other_clients() {
    const SLOW: usize = 500;
    let server = Guarded::with(&["--connections-per-address", "2000"]).await;
    let mut half_sent = Vec::new();
    for n in 0..SLOW {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let part: &[u8] = match n % 3 {
            0 => b"GET /ws HTTP/1.1\r\nhost: x\r\nupgr",
            1 => b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{\"to\":",
            _ => b"",
        };
        stream.write_all(part).await.unwrap();
        half_sent.push(stream);
    }
    let mut silent = Vec::new();
    for _ in 0..SLOW {
        silent.push(server.ws("").await);
    }
    let mut good = Vec::new();
    for n in 0..100 {
        good.push(server.welcomed(&token("ann", &format!("good-{n}"))).await);
    }
    let begun = Instant::now();
    for round in 0..5 {
        for n in 0..100 {
            let to = format!("good-{}", (n + 1) % 100);
            good[n].send_to(&to, json!([round, n])).await;
            assert_eq!(good[(n + 1) % 100].payload().await, json!([round, n]));
        }
    }
    eprintln!("500 messages, one after the other, beside 1,000 slow clients: {:?}", begun.elapsed());
    // The sockets without a hello are closed with their code.
    for ws in silent.iter_mut().take(20) {
        assert_eq!(ws.closed().await.0, 4001);
    }
}
