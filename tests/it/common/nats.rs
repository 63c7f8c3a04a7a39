//! A NATS server, and nodes on it.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{Host, Http, Proxy, TestServer, soon};

/// Names the binary of the server. Without it, `nats-server` is looked for in PATH.
const BINARY: &str = "X0_MSG_NATS_SERVER";

/// An address that outgoing connections of a busy machine do not take ports of.
const ADDRESS: &str = "127.77.0.1";

/// A NATS server, killed when dropped.
pub struct NatsServer {
    child: Child,
    host: Host,
    port: String,
    /// Where it says how it is.
    monitor: SocketAddr,
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

    /// One that wants a token.
    pub async fn with_token(token: &str) -> Self {
        Self::with(["--auth", token].map(str::to_owned).into()).await
    }

    async fn with(args: Vec<String>) -> Self {
        Self::on(Host::here(ADDRESS), args).await
    }

    async fn on(host: Host, args: Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (child, port, monitor) = Self::spawn(&host, dir.path(), "-1", &args).await;
        Self { child, host, port, monitor, args, dir }
    }

    /// Servers that replicate to each other.
    pub async fn cluster<const N: usize>() -> [Self; N] {
        let ports = [(); N].map(|()| free_port(ADDRESS.parse().unwrap()));
        let routes: Vec<String> = ports.iter().map(|port| format!("nats://{ADDRESS}:{port}")).collect();
        let all = routes.join(",");
        let here = [(); N].map(|()| Host::here(ADDRESS));
        Self::cluster_of(&here, std::array::from_fn(|n| vec!["--cluster", &routes[n], "--routes", &all]))
            .await
    }

    /// Servers on these machines that replicate to each other.
    pub async fn cluster_on<const N: usize>(hosts: &[Host; N]) -> [Self; N] {
        let routes = hosts.each_ref().map(|host| format!("nats://{}:6222", host.inner));
        let all = routes.join(",");
        Self::cluster_of(hosts, std::array::from_fn(|n| vec!["--cluster", &routes[n], "--routes", &all]))
            .await
    }

    /// Three servers that replicate to each other. All that passes between the first one and the others passes these proxies.
    pub async fn cluster_to_cut() -> ([Self; 3], [Proxy; 3]) {
        let ip: IpAddr = ADDRESS.parse().unwrap();
        let at = [(); 3].map(|()| SocketAddr::new(ip, free_port(ip)));
        let proxies =
            [Proxy::start(ip, at[0]).await, Proxy::start(ip, at[1]).await, Proxy::start(ip, at[2]).await];
        let url = |address: SocketAddr| format!("nats://{address}");
        let [first, second, third] = [0, 1, 2].map(|n| url(proxies[n].address));
        let listen = at.map(url);
        let routes =
            [format!("{second},{third}"), format!("{first},{}", listen[2]), format!("{first},{}", listen[1])];
        // Servers tell each other how to reach a third one. Nobody is to find a way around a proxy.
        let nowhere = format!("{ADDRESS}:1");
        let told = [proxies[0].address.to_string(), nowhere.clone(), nowhere];
        let here = [(); 3].map(|()| Host::here(ADDRESS));
        let servers = Self::cluster_of(
            &here,
            std::array::from_fn(|n| {
                vec!["--cluster", &listen[n], "--cluster_advertise", &told[n], "--routes", &routes[n]]
            }),
        );
        (servers.await, proxies)
    }

    async fn cluster_of<const N: usize>(hosts: &[Host; N], args: [Vec<&str>; N]) -> [Self; N] {
        let servers = args.into_iter().enumerate().map(|(n, args)| {
            let name = format!("n{n}");
            let own = ["-n", &name, "--cluster_name", "c"];
            Self::on(hosts[n].clone(), own.into_iter().chain(args).map(str::to_owned).collect())
        });
        let servers = futures::future::join_all(servers).await;
        servers.try_into().unwrap_or_else(|_| unreachable!("there are N"))
    }

    async fn spawn(host: &Host, dir: &Path, port: &str, args: &[String]) -> (Child, String, SocketAddr) {
        let binary = std::env::var(BINARY).unwrap_or_else(|_| "nats-server".to_owned());
        let mut child = host
            .command(&binary)
            .args(["-a", &host.ip.to_string(), "-p", port, "-m", "-1", "-js", "-sd"])
            .arg(dir)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{binary} does not start ({error}); {BINARY} names another one"));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut port, mut monitor) = (None, None);
        soon(async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, address)) = line.split_once("Listening for client connections on ") {
                    port = address.rsplit(':').next().map(str::to_owned);
                }
                if let Some((_, address)) = line.split_once("Starting http monitor on ") {
                    monitor = address.parse().ok();
                }
                if line.contains("Server is ready") {
                    break;
                }
            }
        })
        .await;
        // A full pipe would stop the server.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        (child, port.expect("the server is ready"), monitor.expect("it has told where"))
    }

    /// Kills it.
    pub async fn kill(&mut self) {
        self.child.start_kill().unwrap();
        soon(self.child.wait()).await.unwrap();
    }

    /// Starts it again, on what it stored and on the same port.
    pub async fn restart(&mut self) {
        (self.child, self.port, self.monitor) =
            Self::spawn(&self.host, self.dir.path(), &self.port, &self.args).await;
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        super::signal(self.child.id().expect("still running"), signal);
    }

    /// Asks JetStream, for which `what` is the end of the subject.
    pub async fn ask(&self, what: &str, body: &Value) -> Value {
        let client = soon(async_nats::connect(self.url())).await.unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = soon(client.request(format!("$JS.API.{what}"), body.into())).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }

    /// Waits until it says that it is well, and its copies of all streams up to date.
    async fn healthy(&self) {
        soon(async {
            loop {
                let mut http = Http::connect(self.monitor).await;
                if http.get("/healthz").await.status == 200 {
                    return;
                }
            }
        })
        .await;
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://{}:{}", self.host.ip, self.port)
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
        let answer = self.ask(&format!("STREAM.DELETE.{stream}"), &Value::Null).await;
        assert_eq!(answer["success"], true, "{answer}");
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

/// A node that is connected to this address, with so many replicas and these flags too. Waits until servers have elected
/// leaders.
pub async fn node_with(url: &str, replicas: usize, more: &[&str]) -> TestServer {
    node_at(&Host::here("127.0.0.1"), url, replicas, more).await
}

/// The same on this machine.
pub async fn node_at(host: &Host, url: &str, replicas: usize, more: &[&str]) -> TestServer {
    soon(async {
        loop {
            if let Ok(node) = spawn_node_at(host, &[url], replicas, more).await {
                return node;
            }
        }
    })
    .await
}

/// Waits until all servers say that they are well.
pub async fn all_healthy(servers: &[NatsServer]) {
    futures::future::join_all(servers.iter().map(NatsServer::healthy)).await;
}

async fn spawn_node(urls: &[&str], replicas: usize, more: &[&str]) -> Result<TestServer, String> {
    spawn_node_at(&Host::here("127.0.0.1"), urls, replicas, more).await
}

async fn spawn_node_at(
    host: &Host,
    urls: &[&str],
    replicas: usize,
    more: &[&str],
) -> Result<TestServer, String> {
    // A node stores nothing there.
    let unused = std::env::temp_dir().join("unused");
    let mut command = host.command(super::BINARY);
    command.envs(settings(urls, replicas)).args(more);
    command.env("X0_MSG_LISTEN", format!("{}:0", host.ip)).env("X0_MSG_DATA_DIR", unused);
    TestServer::try_spawn(command).await
}

/// A port of this address that nobody listens to now.
pub fn free_port(ip: IpAddr) -> u16 {
    let listener = std::net::TcpListener::bind((ip, 0)).unwrap();
    listener.local_addr().unwrap().port()
}
