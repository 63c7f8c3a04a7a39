//! A NATS server of its own for each test.

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::engine::Settings;
use crate::engine::nats::{Feeds, Nats, NatsOptions};
use crate::hub::Hubs;

/// Names the binary of the server. Without it, `nats-server` is looked for in PATH.
const BINARY: &str = "X0_MSG_NATS_SERVER";

/// An address that outgoing connections of a busy machine do not take ports of.
const ADDRESS: &str = "127.77.0.1";

/// Servers that replicate to each other have elected a leader after so long.
const ELECTION: Duration = Duration::from_secs(60);

/// A NATS server, which ends with this.
#[derive(Debug)]
pub(super) struct NatsServer {
    process: Child,
    url: String,
    /// The prefix of the cluster that was made last.
    prefix: RefCell<String>,
    replicas: usize,
    clusters: AtomicUsize,
    _dir: tempfile::TempDir,
}

impl NatsServer {
    /// Starts a server with this configuration beside its address and JetStream, and waits until it is ready.
    pub(super) fn start(configuration: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("nats.conf");
        let store = dir.path().join("store");
        let jetstream = format!("jetstream {{ store_dir: {store:?}, max_file_store: 8GB }}\n");
        std::fs::write(&config, jetstream + configuration).unwrap();
        let binary = std::env::var(BINARY).unwrap_or_else(|_| "nats-server".to_owned());
        let mut process = Command::new(&binary)
            .args(["-a", ADDRESS, "-p", "-1", "-c"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{binary} does not start ({error}); {BINARY} names another one"));
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut port = None;
        for line in lines.by_ref() {
            if let Some((_, address)) = line.split_once("Listening for client connections on ") {
                port = address.rsplit(':').next().map(str::to_owned);
            }
            if line.contains("Server is ready") {
                break;
            }
        }
        // A full pipe would stop the server.
        std::thread::spawn(move || lines.for_each(drop));
        let url = format!("nats://{ADDRESS}:{}", port.expect("the server is ready"));
        Self {
            process,
            url,
            prefix: RefCell::default(),
            replicas: 1,
            clusters: AtomicUsize::new(0),
            _dir: dir,
        }
    }

    /// Three servers that replicate to each other. Nodes are started on the first one.
    pub(super) fn cluster() -> [Self; 3] {
        let free = [(); 3].map(|()| TcpListener::bind((ADDRESS, 0)).unwrap());
        let ports = free.map(|listener| listener.local_addr().unwrap().port());
        let routes = ports.map(|port| format!("\"nats://{ADDRESS}:{port}\"")).join(", ");
        [0, 1, 2].map(|number| {
            let listen = format!("{ADDRESS}:{}", ports[number]);
            let cluster = format!("cluster {{ name: c, listen: {listen:?}, routes: [{routes}] }}\n");
            let mut server = Self::start(&format!("server_name: n{number}\n{cluster}"));
            server.replicas = 3;
            server
        })
    }

    /// Nodes that start from now on are of another cluster.
    pub(super) fn begin_cluster(&self) {
        let number = self.clusters.fetch_add(1, Ordering::Relaxed);
        *self.prefix.borrow_mut() = format!("t{number}");
    }

    /// What a node is told.
    pub(super) fn options(&self) -> NatsOptions {
        if self.prefix.borrow().is_empty() {
            self.begin_cluster();
        }
        NatsOptions {
            url: self.url.clone(),
            credentials: None,
            token: None,
            node: None,
            prefix: self.prefix.borrow().clone(),
            replicas: self.replicas,
            create: false,
            shards: 1,
            max_payload: 64 << 10,
            max_ttl: Duration::from_secs(30 * 86_400),
        }
    }

    /// A node of the cluster.
    pub(super) fn node(&self, settings: Settings, slots: usize) -> (Nats, Hubs) {
        let until = Instant::now() + ELECTION;
        loop {
            let feeds = Arc::new(Feeds::default());
            let hubs = Hubs::watched(slots, feeds.clone());
            match wait(Nats::start(settings, (hubs.clone(), feeds), self.options())) {
                Ok(node) => return (node, hubs),
                // The servers elect a leader first.
                Err(_) if self.replicas > 1 && Instant::now() < until => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Waits on a thread of a runtime that has others.
pub(super) fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}
