//! A broker that cannot hand over is replaced, as a container is: HAProxy holds its requests meanwhile.

use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::clients::{Load, Reader};
use crate::common::*;

/// HAProxy, killed when dropped.
struct Haproxy {
    address: SocketAddr,
    _dir: TempDir,
    _child: Child,
}

impl Haproxy {
    /// In front of this broker, with the configuration that comes with this program.
    fn start(broker: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // HAProxy binds the port a moment later.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docker/haproxy.one.cfg");
        let changes = [("bind :80", format!("bind {address}")), ("x0-msg-server:8080", broker.to_string())];
        let text = changes.into_iter().fold(std::fs::read_to_string(path).unwrap(), |text, (from, to)| {
            assert!(text.contains(from), "{path} has no {from:?}");
            text.replace(from, &to)
        });
        let file = dir.path().join("haproxy.cfg");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let child =
            command.spawn().unwrap_or_else(|error| panic!("haproxy does not start: {error}; install it"));
        Self { address, _dir: dir, _child: child }
    }
}

#[tokio::test]
async fn no_x0_page_behind_haproxy_notices_that_a_broker_is_replaced() {
    const PAGES: usize = 10;
    let dir = tempfile::tempdir().unwrap();
    let limits = ["--connections-per-address", "0", "--send-rate", "0"];
    let mut server = TestServer::at(dir.path(), &limits).await;
    let broker = server.address;
    let haproxy = Haproxy::start(broker);
    soon(async { while tokio::net::TcpStream::connect(haproxy.address).await.is_err() {} }).await;
    let load = Load::new(haproxy.address);
    let names: Vec<String> = (0..PAGES).map(|n| format!("page-{n}")).collect();
    let mut readers = Vec::new();
    let mut expected = Vec::new();
    for name in &names {
        let (sender, receiver) = tokio::sync::watch::channel(None);
        readers.push(tokio::spawn(load.clone().read(Reader::X0, name.clone(), receiver)));
        expected.push(sender);
    }
    let sender = tokio::spawn(load.clone().send(names, 50));
    let listen = broker.to_string();
    for _ in 0..2 {
        server.attached("page-0", 1).await;
        let log = server.stop().await;
        assert!(!log.contains("did not finish in time"), "{log}");
        server = TestServer::at(dir.path(), &[&limits[..], &["--listen", &listen]].concat()).await;
    }
    server.attached("page-0", 1).await;
    load.end();
    for (expected, sent) in expected.iter().zip(soon(sender).await.expect("no send has failed")) {
        expected.send_replace(Some(sent));
    }
    for reader in readers {
        soon(reader).await.expect("every message comes once and in order");
    }
    println!("slowest delivery {:?}", load.slowest()[0]);
}
