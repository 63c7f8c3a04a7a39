//! NATS servers, and what they use.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// An address that outgoing connections of a busy machine do not take ports of.
const ADDRESS: &str = "127.77.0.2";

/// A server, and its store.
struct Server {
    child: Child,
    port: u16,
    monitor: u16,
    dir: TempDir,
}

/// Servers that replicate to each other; killed when dropped.
pub(crate) struct Servers {
    all: Vec<Server>,
    is_always: bool,
}

fn free_port() -> u16 {
    TcpListener::bind((ADDRESS, 0)).and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// Processor time of a process so far, in seconds.
pub(crate) fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("Linux, and the process runs");
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // Linux counts in hundredths of a second, whatever its own ticks are.
    Duration::from_millis(10 * ticks).as_secs_f64()
}

fn spawn(dir: &Path, port: u16, monitor: u16, more: &str) -> Child {
    let config = dir.join("nats.conf");
    let store = dir.join("store");
    let text = format!(
        "listen: \"{ADDRESS}:{port}\"\nhttp: \"{ADDRESS}:{monitor}\"\nmax_payload: 2MB\n{}",
        more.replace("STORE", &format!("store_dir: {store:?}, max_file_store: 20GB"))
    );
    std::fs::write(&config, text).expect("a configuration");
    let binary = std::env::var("X0_MSG_NATS_SERVER").unwrap_or_else(|_| "nats-server".to_owned());
    let mut child =
        Command::new(&binary).arg("-c").arg(&config).stderr(Stdio::piped()).spawn().unwrap_or_else(|error| {
            panic!("{binary} does not start ({error}); X0_MSG_NATS_SERVER names another")
        });
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("Server is ready")), "the server ends");
    // A full pipe would stop the server.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

impl Servers {
    /// So many servers. With `is_always`, each write is on the disk before it is answered.
    pub(crate) fn start(count: usize, is_always: bool) -> Self {
        let routes: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let list: Vec<String> = routes.iter().map(|port| format!("\"nats://{ADDRESS}:{port}\"")).collect();
        let sync = if is_always { ", sync_interval: always" } else { "" };
        let all = (0..count).map(|n| {
            let (dir, port, monitor) = (TempDir::new().expect("a directory"), free_port(), free_port());
            let cluster = match count {
                1 => String::new(),
                _ => format!(
                    "cluster {{ name: c, listen: \"{ADDRESS}:{}\", routes: [{}] }}\n",
                    routes[n],
                    list.join(", ")
                ),
            };
            let more = format!("server_name: n{n}\njetstream {{ STORE{sync} }}\n{cluster}");
            Server { child: spawn(dir.path(), port, monitor, &more), port, monitor, dir }
        });
        Self { all: all.collect(), is_always }
    }

    /// Their addresses.
    pub(crate) fn url(&self) -> String {
        self.all
            .iter()
            .map(|server| format!("nats://{ADDRESS}:{}", server.port))
            .collect::<Vec<_>>()
            .join(",")
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// How many there are and when they write, for people.
    pub(crate) fn name(&self) -> String {
        format!("R{}{}", self.all.len(), if self.is_always { " always" } else { "" })
    }

    /// Processor time of all so far, in seconds.
    pub(crate) fn cpu(&self) -> f64 {
        self.all.iter().map(|server| cpu(server.child.id())).sum()
    }

    /// Messages that came to all of them from clients so far.
    pub(crate) fn messages_in(&self) -> u64 {
        self.all.iter().map(|server| number(&monitor(server.monitor, "/varz"), "in_msgs")).sum()
    }

    /// How many subjects each stream has, for people.
    pub(crate) fn subjects(&self) -> String {
        let answer = monitor(self.all[0].monitor, "/jsz?streams=true");
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        let answer: serde_json::Value = serde_json::from_str(body).expect("JSON");
        let streams = answer["account_details"][0]["stream_detail"].as_array().into_iter().flatten();
        // A stream without any does not name their number.
        let count = |stream: &serde_json::Value| stream["state"]["num_subjects"].as_u64().unwrap_or_default();
        let each = streams.map(|stream| format!("{} {}", stream["name"], count(stream)));
        each.collect::<Vec<_>>().join(", ")
    }

    /// Resident memory of all, in MiB.
    pub(crate) fn memory(&self) -> f64 {
        let of = |server: &Server| crate::memory::kib(&server.child, "VmRSS") / 1024.0;
        self.all.iter().map(of).sum()
    }

    /// What the first one says that the messages take which it holds, in MiB.
    pub(crate) fn live(&self) -> f64 {
        number(&monitor(self.all[0].monitor, "/jsz"), "bytes") as f64 / f64::from(1 << 20)
    }

    /// What their stores take on the disk, in MiB.
    pub(crate) fn disk(&self) -> f64 {
        self.all.iter().map(|server| size(server.dir.path())).sum::<u64>() as f64 / f64::from(1 << 20)
    }

    /// Stops a server in order, starts it again, and returns how long it took until it was ready.
    pub(crate) fn restart(&mut self) -> Duration {
        let server = &mut self.all[0];
        let pid = rustix::process::Pid::from_child(&server.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        server.child.wait().expect("it runs");
        let begun = std::time::Instant::now();
        let config = server.dir.path().join("nats.conf");
        let text = std::fs::read_to_string(config).expect("a configuration");
        let more = text.splitn(4, '\n').nth(3).unwrap_or_default();
        server.child = spawn(server.dir.path(), server.port, server.monitor, more);
        begun.elapsed()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.all {
            _ = server.child.kill();
            _ = server.child.wait();
        }
    }
}

fn monitor(port: u16, path: &str) -> String {
    let mut answer = String::new();
    let mut stream = TcpStream::connect((ADDRESS, port)).expect("the server monitors");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("the server monitors");
    stream.read_to_string(&mut answer).expect("the server monitors");
    answer
}

fn number(json: &str, field: &str) -> u64 {
    let at = json.find(&format!("\"{field}\":")).expect("the server has the field") + field.len() + 3;
    let digits: String = json[at..].trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

fn size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => size(&entry.path()),
        Ok(data) => data.blocks() * 512,
        Err(_) => 0,
    };
    entries.map_while(Result::ok).map(of).sum()
}
