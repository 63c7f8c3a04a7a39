//! HAProxy in front of two nodes: x0 pages by client address, everything else at any node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Mutex;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UnixStream};
use tokio::process::{Child, Command};

use crate::common::*;
use crate::legacy::Door;

/// HAProxy, killed when dropped.
pub struct Haproxy {
    address: SocketAddr,
    dir: TempDir,
    _child: Child,
    /// An address whose pages belong to the first node, and one whose pages belong to the second.
    clients: [IpAddr; 2],
    /// Sessions in the order in which they came: they belong to the nodes in turn.
    sessions: Mutex<Vec<String>>,
}

impl Haproxy {
    pub async fn start(nodes: &[TestServer; 2]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port(Ipv4Addr::LOCALHOST.into()));
        let file = dir.path().join("haproxy.cfg");
        std::fs::write(&file, configuration(address, dir.path().to_str().unwrap(), nodes)).unwrap();
        let child = Command::new("haproxy")
            .args(["-db", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("haproxy does not start: {error}; install it"));
        let unknown = IpAddr::from(Ipv4Addr::LOCALHOST);
        let mut haproxy =
            Self { address, dir, _child: child, clients: [unknown; 2], sessions: Mutex::default() };
        haproxy.clients = haproxy.find_clients().await;
        haproxy
    }

    /// Finds an address for each node.
    async fn find_clients(&self) -> [IpAddr; 2] {
        let mut found = [None; 2];
        for last in 2..=254 {
            let client = IpAddr::from([127, 0, 0, last]);
            let mut http = self.from(client).await;
            let node = http.request("OPTIONS", HANDLER, &[("origin", "http://page")], "").await;
            let node = usize::from(node.header("x-node") == "node2");
            found[node].get_or_insert(client);
            if let [Some(one), Some(two)] = found {
                return [one, two];
            }
        }
        panic!("all addresses belong to one node: {found:?}")
    }

    /// A connection from this address, as soon as HAProxy listens.
    async fn from(&self, client: IpAddr) -> Http {
        let stream = soon(async {
            loop {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind((client, 0).into()).unwrap();
                match socket.connect(self.address).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        });
        Http::on(stream.await, &self.address.to_string()).await
    }

    /// How many requests of pages are at a node.
    async fn requests(&self) -> usize {
        let mut socket = UnixStream::connect(self.dir.path().join("stats")).await.unwrap();
        socket.write_all(b"show stat x0_pages 2 -1\n").await.unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        let mut lines = text.lines().filter(|line| !line.is_empty());
        let column = lines.next().unwrap().split(',').position(|name| name == "scur").unwrap();
        lines.next().unwrap().split(',').nth(column).unwrap().parse().unwrap()
    }
}

impl Door for Haproxy {
    /// HAProxy does not pass on that a client closes its connection. Then it ends the one to the node too, as it does when a page
    /// goes before it has read its answer. Pages keep their connections.
    const UNSENT: &[&str] = &["host", "content-length", "connection"];

    async fn connect(&self, session: Option<&str>) -> Http {
        let client = session.map_or(0, |session| {
            let mut sessions = self.sessions.lock().unwrap();
            sessions.iter().position(|known| known == session).unwrap_or_else(|| {
                sessions.push(session.to_owned());
                sessions.len() - 1
            })
        });
        self.from(self.clients[client % 2]).await
    }

    async fn noticed(&self, left: usize) {
        soon(async { while self.requests().await > left {} }).await;
    }
}

/// The configuration that comes with this program, for these addresses. Answers to pages name their node.
fn configuration(address: SocketAddr, dir: &str, [one, two]: &[TestServer; 2]) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docker/haproxy.cfg");
    let changes = [
        ("global\n", format!("global\n    stats socket {dir}/stats\n")),
        ("bind :8080", format!("bind {address}")),
        ("balance source\n", "balance source\n    http-response set-header x-node %s\n".to_owned()),
        ("node1:8080", one.address.to_string()),
        ("node2:8080", two.address.to_string()),
    ];
    changes.into_iter().fold(std::fs::read_to_string(path).unwrap(), |text, (from, to)| {
        assert!(text.contains(from), "{path} has no {from:?}");
        text.replace(from, &to)
    })
}
