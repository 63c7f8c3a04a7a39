//! What systemd gives and is told: sockets, readiness, the main process, the watchdog. The other end is what systemd has: a datagram
//! socket and descriptors.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use serde_json::json;
use tokio::net::UnixDatagram;
use tokio::process::Command;

use crate::common::*;

/// Waits for a datagram with this line; all its lines.
async fn told(manager: &UnixDatagram, line: &str) -> String {
    soon(async {
        let mut buffer = [0; 4096];
        loop {
            let length = manager.recv(&mut buffer).await.unwrap();
            let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
            if text.lines().any(|said| said == line) {
                return text;
            }
        }
    })
    .await
}

#[tokio::test]
async fn systemd_is_told_what_the_broker_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut command = Command::new(BINARY);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
    let server = TestServer::spawn(&dir.path().join("data"), command).await;
    let first = server.child.id().unwrap();
    let ready = told(&manager, "READY=1").await;
    assert!(ready.contains(&format!("MAINPID={first}")), "{ready}");
    for _ in 0..2 {
        told(&manager, "WATCHDOG=1").await;
    }
    let log = server.log_from_here();
    signal(first, 12);
    log.contains("another process has taken over").await;
    // The old process names the new one, as only the main process may do that.
    let ready = told(&manager, "READY=1").await;
    let main = ready.lines().find_map(|line| line.strip_prefix("MAINPID=")).unwrap().parse().unwrap();
    assert_ne!(main, first);
    told(&manager, "WATCHDOG=1").await;
    signal(main, 15);
    told(&manager, "STOPPING=1").await;
}

#[tokio::test]
async fn the_broker_serves_at_the_sockets_of_systemd() {
    let dir = tempfile::tempdir().unwrap();
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (clients, operators) = (listen(), listen());
    let addresses: [SocketAddr; 2] = [clients.local_addr().unwrap(), operators.local_addr().unwrap()];
    let mut command = Command::new("sh");
    // The descriptors of standard input and output become 3 and 4.
    let script =
        "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=clients:operators exec \"$0\" 3<&0 4<&1 0</dev/null 1>&2";
    command.args(["-c", script, BINARY]);
    command.env("X0_MSG_DATA_DIR", dir.path()).env("X0_MSG_LISTEN", "127.0.0.1:1").env("RUST_LOG", "info");
    command.stdin(Stdio::from(OwnedFd::from(clients))).stdout(Stdio::from(OwnedFd::from(operators)));
    command.stderr(Stdio::piped()).kill_on_drop(true);
    hide_variables_of_tests(&mut command);
    let mut child = command.spawn().unwrap();
    // It waits at the socket until the broker accepts.
    let mut http = Http::connect(addresses[0]).await;
    let body = json!({ "to": { "session": "A" }, "payload": 1 });
    assert_eq!(http.post("/v1/messages?session=A", body).await.status, 200);
    let mut operator = Http::connect(addresses[1]).await;
    assert_eq!(operator.get("/metrics").await.status, 200);
    signal(child.id().unwrap(), 15);
    assert!(soon(child.wait()).await.unwrap().success());
}
