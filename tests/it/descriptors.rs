//! Open files: the limit is raised, one client cannot take all, and the store keeps what it needs.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::Command;

use crate::common::*;

/// A server that starts with these limits of open files.
async fn limited(limits: &str, dir: &std::path::Path) -> TestServer {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{limits} && exec \"$0\""), BINARY]);
    TestServer::spawn(dir, command).await
}

/// Connects from an address of this machine that is not 127.0.0.1.
async fn from_another_address(to: SocketAddr) -> Http {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    Http::on(soon(socket.connect(to)).await.unwrap(), &to.to_string()).await
}

#[tokio::test]
async fn the_limit_of_open_files_is_raised_and_logged() {
    let dir = tempfile::tempdir().unwrap();
    let server = limited("ulimit -Sn 100", dir.path()).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.child.id().unwrap())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers[0], numbers[1], "{line}");
    let log = server.stop().await;
    let logged = log.lines().find(|line| line.contains("limit of open files")).expect("it is logged");
    let logged: Value = serde_json::from_str(logged).unwrap();
    assert_eq!((logged["was"].as_u64(), logged["limit"].to_string().as_str()), (Some(100), numbers[0]));
}

/// With 128 descriptors, and more idle connections from one address than that.
#[tokio::test]
async fn idle_connections_of_one_address_lock_out_neither_others_nor_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let server = limited("ulimit -n 128", dir.path()).await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(soon(TcpStream::connect(server.address)).await.unwrap());
    }
    // Stored messages are read by connections to the database that open when they are needed.
    let mut http = from_another_address(server.address).await;
    for n in 0..20 {
        let to = format!("session-{n}");
        let sent = http.post("/v1/messages", json!({ "to": { "session": to }, "payload": n })).await;
        assert_eq!(sent.status, 200, "{}", sent.body);
    }
    for n in 0..20 {
        let reply = http.get(&format!("/v1/messages?session=session-{n}&wait=0")).await;
        assert_eq!(reply.payloads(), [json!(n)]);
    }
    drop(idle);
}

/// The process is stopped, so that it accepts nothing meanwhile.
#[tokio::test]
async fn a_thousand_connections_may_wait_to_be_accepted() {
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    assert!(most.trim().parse::<usize>().unwrap() >= 1024, "this system allows {most}");
    let server = TestServer::start().await;
    server.signal(19);
    let mut waiting = Vec::new();
    for _ in 0..1000 {
        waiting.push(soon(TcpStream::connect(server.address)).await.unwrap());
    }
    server.signal(18);
    assert_eq!(server.get("/healthz").await.status, 200);
}
