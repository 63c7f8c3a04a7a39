//! TLS and HTTP/2: WebSockets over both, renewed certificates, invalid files, timeouts.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::SendRequest;
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
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::common::*;

/// Writes a certificate of this machine to files. Returns it, to be trusted.
pub fn certificate(dir: &Path) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.join("key.pem"), signing_key.serialize_pem()).unwrap();
    std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
    cert.der().clone()
}

pub async fn tls(
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

/// A connection of HTTP/2.
pub async fn http2(address: SocketAddr, trusted: &CertificateDer<'static>) -> SendRequest<Empty<Bytes>> {
    let stream = soon(tls(address, trusted, "h2")).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A WebSocket on such a connection (RFC 8441).
pub async fn ws_over_http2(
    sender: &mut SendRequest<Empty<Bytes>>,
    query: &str,
) -> Ws<TokioIo<hyper::upgrade::Upgraded>> {
    let connect = hyper::Request::builder()
        .method("CONNECT")
        .uri(format!("https://localhost/ws{query}"))
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
    let socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    Ws { socket, epoch: String::new() }
}

/// A WebSocket over HTTP/1.1 and TLS.
pub async fn ws_over_tls(
    address: SocketAddr,
    trusted: &CertificateDer<'static>,
    query: &str,
) -> Ws<TlsStream<TcpStream>> {
    let stream = soon(tls(address, trusted, "http/1.1")).await.unwrap();
    let request = format!("wss://localhost/ws{query}");
    let (socket, _) = soon(tokio_tungstenite::client_async(request, stream)).await.unwrap();
    Ws { socket, epoch: String::new() }
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
    let mut over_1 = ws_over_tls(address, &trusted, "?session=B").await;
    assert_eq!(over_1.recv().await["type"], "welcome");
    assert_eq!(over_1.payload().await, 1);
    // HTTP/2: calls and a WebSocket (RFC 8441) on one connection.
    let mut sender = http2(address, &trusted).await;
    let request = |method: &str, target: &str| {
        hyper::Request::builder().method(method).uri(format!("https://localhost{target}"))
    };
    let health = sender.send_request(request("GET", "/healthz").body(Empty::<Bytes>::new()).unwrap());
    let health = soon(health).await.unwrap();
    assert_eq!((health.status().as_u16(), health.version()), (200, hyper::Version::HTTP_2));
    let body = soon(health.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["status"], "ok");
    let mut over_2 = ws_over_http2(&mut sender, "?session=C").await;
    assert_eq!(over_2.recv().await["type"], "welcome");
    over_2.send_to("B", json!("from h2")).await;
    assert_eq!(over_1.payload().await, "from h2");
    over_1.send_to("C", json!("from h1")).await;
    assert_eq!(over_2.payload().await, "from h1");
    // A host that is named twice, and not the same, is nobody's.
    for hosts in [&["localhost", "localhost"][..], &["rebind.example"], &["127.0.0.1"]] {
        let mut two = request("GET", "/healthz");
        for host in hosts {
            two = two.header("host", *host);
        }
        let refused = soon(sender.send_request(two.body(Empty::new()).unwrap())).await.unwrap();
        assert_eq!(refused.status(), 400, "{hosts:?}");
    }
    // Over HTTP/2 the host is in the address. Another one than this broker's is refused.
    let other = |method: &str, target: &str| {
        hyper::Request::builder().method(method).uri(format!("https://rebind.example{target}"))
    };
    let connect = other("CONNECT", "/ws?session=C").extension(hyper::ext::Protocol::from_static("websocket"));
    for request in [other("GET", "/v1/messages?session=B&wait=0"), connect] {
        let request = request.body(Empty::new()).unwrap();
        assert_eq!(soon(sender.send_request(request)).await.unwrap().status(), 421);
    }
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
    plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
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
    let connection = tokio::spawn(connection);
    let mut ask = |path: &str| {
        let uri = format!("https://localhost{path}");
        sender.send_request(hyper::Request::get(uri).body(Empty::<Bytes>::new()).unwrap())
    };
    let waiting = ask("/v1/messages?session=A&wait=60");
    assert_eq!(soon(ask("/healthz")).await.unwrap().status(), 200);
    let mut rest = Vec::new();
    _ = soon(silent.read_to_end(&mut rest)).await;
    // A connection with a request stays.
    assert_eq!(soon(ask("/healthz")).await.unwrap().status(), 200);
    drop(waiting);
    // Without one it ends.
    soon(connection).await.unwrap().unwrap();
}

/// What `health` and `send` say of a broker at this address; both fail.
async fn refusals(url: &str, trusted: &Path) -> [String; 2] {
    let say = async |args: &[&str]| {
        let command = tokio::process::Command::new(BINARY)
            .args(args)
            .args(["--server", url])
            .env("SSL_CERT_FILE", trusted)
            .output();
        let said = soon(command).await.unwrap();
        assert!(!said.status.success(), "{url} {args:?}");
        String::from_utf8(said.stderr).unwrap()
    };
    [say(&["send", "--to", "B", "1"]).await, say(&["health"]).await]
}

#[tokio::test]
async fn commands_say_what_helps_where_tls_cannot_be_spoken() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificate(dir.path());
    certificate(other.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let server = TestServer::with(&["--tls-cert", &path("cert.pem"), "--tls-key", &path("key.pem")]).await;
    let (plain, port) = (TestServer::start().await, server.address.port());
    let trusted = dir.path().join("cert.pem");
    for text in refusals(&format!("ws://localhost:{port}"), &trusted).await {
        assert!(text.contains("a server with TLS has an address with wss://"), "{text}");
    }
    for text in refusals(&format!("wss://localhost:{}", plain.address.port()), &trusted).await {
        assert!(text.contains("a server without TLS has an address with ws://"), "{text}");
    }
    // `health` verifies nothing on this machine.
    let say = async |url: String, trusted: &Path| {
        let mut command = tokio::process::Command::new(BINARY);
        command.args(["send", "--to", "B", "1", "--server", &url]).env("SSL_CERT_FILE", trusted);
        String::from_utf8(soon(command.output()).await.unwrap().stderr).unwrap()
    };
    let unknown = say(format!("wss://localhost:{port}"), &other.path().join("cert.pem")).await;
    assert!(unknown.contains("invalid peer certificate") && unknown.contains("; --ca"), "{unknown}");
    let other_name = say(format!("wss://127.0.0.1:{port}"), &trusted).await;
    assert!(other_name.contains("not valid for name") && !other_name.contains("--ca"), "{other_name}");
}

/// A certificate as `openssl req -x509` makes it without more: it is that of a CA, and signs itself.
fn plain_certificate(dir: &Path, days: &str) -> [String; 2] {
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| dir.join(name).to_str().unwrap().to_owned());
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", days, "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost", "-keyout", &key, "-out", &cert])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    [cert, key]
}

#[tokio::test]
async fn commands_trust_a_plain_certificate_that_is_named() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [cert, key] = plain_certificate(dir.path(), "2");
    let [other, _] = plain_certificate(other.path(), "2");
    let server = TestServer::with(&["--tls-cert", &cert, "--tls-key", &key]).await;
    let send = async |host: &str, flags: &[&str]| {
        let url = format!("wss://{host}:{}", server.address.port());
        let mut command = tokio::process::Command::new(BINARY);
        command.args(["send", "--to", "B", "1", "--server", &url]).args(flags);
        let output = soon(command.output()).await.unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(send("localhost", &["--ca", &cert]).await.0);
    assert!(send("127.0.0.1", &["--insecure"]).await.0);
    for (host, flags, reason) in [
        ("localhost", &[][..], "; "),
        ("localhost", &["--ca", &other], "invalid peer certificate"),
        ("127.0.0.1", &["--ca", &cert], "not valid for name"),
        ("localhost", &["--ca", &key], "holds no certificate"),
        ("localhost", &["--ca", "/nowhere"], "--ca /nowhere"),
        ("localhost", &["--ca", &cert, "--insecure"], "cannot be used with"),
    ] {
        let (ok, text) = send(host, flags).await;
        assert!(!ok && text.contains(reason), "{flags:?}: {text}");
    }
}
