//! Who may see the state of the whole broker: metrics, and lists of users, topics and sessions.

use tokio::net::TcpStream;

use crate::common::*;
use crate::guarded::*;

/// The calls of operators.
const CALLS: [&str; 5] = ["/metrics", "/v1/users", "/v1/topics", "/v1/sessions", "/v1/ops/stats"];

/// The answer to a GET with these headers, by a program that asks for this host.
async fn ask(server: &TestServer, host: &str, target: &str, headers: &[(&str, &str)]) -> Reply {
    let address = (server.address.ip(), server.address.port());
    let stream = soon(TcpStream::connect(address)).await.unwrap();
    Http::on(stream, host).await.request("GET", target, headers, "").await
}

/// A broker with an API key for operators, and another one.
fn with_keys(dir: &std::path::Path) -> String {
    let file = dir.join("keys.toml");
    std::fs::write(&file, key_file()).unwrap();
    file.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn in_open_mode_a_program_on_the_machine_may_see_it_by_a_loopback_name() {
    let server = TestServer::start().await;
    let port = server.address.port();
    for call in CALLS {
        for host in ["localhost", "127.0.0.1", "[::1]", "app.localhost"] {
            assert_eq!(ask(&server, &format!("{host}:{port}"), call, &[]).await.status, 200, "{call} {host}");
        }
    }
}

#[tokio::test]
async fn in_open_mode_a_name_that_others_may_have_or_a_proxy_may_not() {
    // These hosts are served otherwise.
    for flags in [&["--host", "msg.example"][..], &["--host", "*"], &["--listen", "0.0.0.0:0"]] {
        let server = TestServer::with(flags).await;
        for call in CALLS {
            for host in ["msg.example", "x0-msg-server.x0.localnet"] {
                let reply = ask(&server, host, call, &[]).await;
                assert_eq!((reply.status, reply.code().as_str()), (401, "unauthorized"), "{flags:?} {host}");
                assert!(
                    reply.body.contains("ops = true") && reply.body.contains("localhost"),
                    "{}",
                    reply.body
                );
            }
            for header in ["x-forwarded-for", "forwarded", "x-real-ip", "via"] {
                let reply = ask(&server, "localhost", call, &[(header, "127.0.0.1")]).await;
                assert_eq!(reply.status, 401, "{flags:?} {header}");
            }
            assert_eq!(ask(&server, "localhost", call, &[]).await.status, 200, "{flags:?}");
        }
    }
}

#[tokio::test]
async fn in_open_mode_a_page_of_another_site_may_not() {
    let server = TestServer::start().await;
    for call in CALLS {
        let status = async |headers| ask(&server, "localhost", call, headers).await.status;
        assert_ne!(status(&[("origin", "https://evil.example")]).await, 200);
        assert_ne!(status(&[("sec-fetch-site", "cross-site")]).await, 200);
        assert_eq!(status(&[("origin", "http://localhost")]).await, 200, "a page of the broker");
        assert_eq!(status(&[("sec-fetch-site", "none")]).await, 200, "an address that was typed");
    }
}

#[tokio::test]
async fn an_api_key_for_operators_may_see_it_from_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let keys = with_keys(dir.path());
    let open = TestServer::with(&["--host", "*", "--api-key-file", &keys]).await;
    let guarded = Guarded::start().await;
    for call in CALLS {
        for server in [&open, &*guarded] {
            let bearer = |key| ("authorization", format!("Bearer {key}"));
            for (key, status, code) in [
                (OPS, 200, ""),
                (KEY, 403, "forbidden"),
                (SESSIONS_ONLY, 403, "forbidden"),
                ("wrong-key-0123456789abcdef0123456789abcdef", 401, "unauthorized"),
            ] {
                let (name, value) = bearer(key);
                let reply = ask(server, "msg.example", call, &[(name, &value)]).await;
                assert_eq!(reply.status, status, "{call} {key}: {}", reply.body);
                assert!(status == 200 || reply.code() == code, "{}", reply.body);
            }
        }
    }
}

#[tokio::test]
async fn in_token_mode_nothing_but_that_key_may() {
    let server = Guarded::start().await;
    let token = token("ann", "A");
    for call in CALLS {
        let reply = server.call("GET", call, "", "").await;
        assert_eq!((reply.status, reply.code().as_str()), (401, "unauthorized"));
        assert!(reply.body.contains("ops = true"), "{}", reply.body);
        let reply = server.call("GET", call, &token, "").await;
        assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"));
        assert_eq!(server.call("GET", call, OPS, "").await.status, 200);
    }
}
