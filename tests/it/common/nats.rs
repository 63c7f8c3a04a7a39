//! A NATS server, and nodes on it.

use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{TestServer, soon};

/// Names the binary of the server. Without it, `nats-server` is looked for in PATH.
const BINARY: &str = "X0_MSG_NATS_SERVER";

/// An address that outgoing connections of a busy machine do not take ports of.
const ADDRESS: &str = "127.77.0.1";

/// A NATS server, killed when dropped.
pub struct NatsServer {
    child: Child,
    port: String,
    /// What it is told beside its address and its directory.
    args: Vec<String>,
    dir: TempDir,
}

impl NatsServer {
    pub async fn start() -> Self {
        Self::with(Vec::new()).await
    }

    /// One that wants a name and a password.
    pub async fn guarded(name: &str, password: &str) -> Self {
        Self::with(["--user", name, "--pass", password].map(str::to_owned).into()).await
    }

    async fn with(args: Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (child, port) = Self::spawn(dir.path(), "-1", &args).await;
        Self { child, port, args, dir }
    }

    /// Servers that replicate to each other.
    pub async fn cluster<const N: usize>() -> [Self; N] {
        let ports = [(); N].map(|()| free_port());
        let routes: Vec<String> = ports.iter().map(|port| format!("nats://{ADDRESS}:{port}")).collect();
        let servers = (0..N).map(|n| {
            let name = format!("n{n}");
            let args =
                ["-n", &name, "--cluster_name", "c", "--cluster", &routes[n], "--routes", &routes.join(",")];
            Self::with(args.map(str::to_owned).into())
        });
        let servers = futures::future::join_all(servers).await;
        servers.try_into().unwrap_or_else(|_| unreachable!("there are N"))
    }

    async fn spawn(dir: &Path, port: &str, args: &[String]) -> (Child, String) {
        let binary = std::env::var(BINARY).unwrap_or_else(|_| "nats-server".to_owned());
        let mut child = Command::new(&binary)
            .args(["-a", ADDRESS, "-p", port, "-js", "-sd"])
            .arg(dir)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{binary} does not start ({error}); {BINARY} names another one"));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut port = None;
        soon(async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, address)) = line.split_once("Listening for client connections on ") {
                    port = address.rsplit(':').next().map(str::to_owned);
                }
                if line.contains("Server is ready") {
                    break;
                }
            }
        })
        .await;
        // A full pipe would stop the server.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        (child, port.expect("the server is ready"))
    }

    /// Kills it.
    pub async fn kill(&mut self) {
        self.child.start_kill().unwrap();
        soon(self.child.wait()).await.unwrap();
    }

    /// Starts it again, on what it stored and on the same port.
    pub async fn restart(&mut self) {
        (self.child, self.port) = Self::spawn(self.dir.path(), &self.port, &self.args).await;
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://{ADDRESS}:{}", self.port)
    }

    /// A node.
    pub async fn node(&self) -> TestServer {
        node_on(std::slice::from_ref(self)).await.unwrap_or_else(|log| panic!("it does not start: {log}"))
    }

    /// A node with these flags too.
    pub async fn node_with(&self, more: &[&str]) -> TestServer {
        let node = spawn_node(&[&self.url()], 1, more).await;
        node.unwrap_or_else(|log| panic!("it does not start: {log}"))
    }

    /// Moves the store in a directory here; what that prints, or its error.
    pub async fn migrate(&self, dir: &Path, more: &[&str]) -> Result<String, String> {
        let output = migration(&self.url(), dir, more).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Deletes a stream.
    pub async fn delete_stream(&self, stream: &str) {
        let client = async_nats::connect(self.url()).await.unwrap();
        let answer = client.request(format!("$JS.API.STREAM.DELETE.{stream}"), "".into()).await.unwrap();
        assert!(answer.payload.windows(14).any(|part| part == b"\"success\":true"), "{answer:?}");
    }

    /// The log of a node that does not start with these flags too.
    pub async fn refused(&self, more: &[&str]) -> String {
        match spawn_node(&[&self.url()], 1, more).await {
            Ok(_) => panic!("it starts with {more:?}"),
            Err(log) => log,
        }
    }
}

/// A node on all these servers; its log if it does not start.
pub async fn node_on(servers: &[NatsServer]) -> Result<TestServer, String> {
    let urls: Vec<String> = servers.iter().map(NatsServer::url).collect();
    spawn_node(&urls.iter().map(String::as_str).collect::<Vec<_>>(), servers.len(), &[]).await
}

/// Moves the store in a directory to NATS at this address.
pub fn migration(url: &str, dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(super::BINARY);
    command.arg("migrate").args(more).envs(settings(&[url], 1)).env("X0_MSG_DATA_DIR", dir);
    command.kill_on_drop(true);
    command
}

/// What a node on these servers is told.
fn settings(urls: &[&str], replicas: usize) -> [(&'static str, String); 5] {
    [
        ("X0_MSG_ENGINE", "nats".to_owned()),
        ("X0_MSG_MAX_PAYLOAD", "65536".to_owned()),
        ("X0_MSG_STORE_LIMIT", "67108864".to_owned()),
        ("X0_MSG_NATS_URL", urls.join(",")),
        ("X0_MSG_NATS_REPLICAS", replicas.to_string()),
    ]
}

async fn spawn_node(urls: &[&str], replicas: usize, more: &[&str]) -> Result<TestServer, String> {
    // A node stores nothing there.
    let unused = std::env::temp_dir().join("unused");
    let mut command = Command::new(super::BINARY);
    command.envs(settings(urls, replicas)).args(more);
    command.env("X0_MSG_LISTEN", "127.0.0.1:0").env("X0_MSG_DATA_DIR", unused);
    TestServer::try_spawn(command).await
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((ADDRESS, 0)).unwrap();
    listener.local_addr().unwrap().port()
}
