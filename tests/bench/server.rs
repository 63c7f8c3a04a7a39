//! The release binary on a free port, stopped when dropped.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A running server and its store.
pub(crate) struct Server {
    pub(crate) child: Child,
    /// The directory of its store.
    _dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Starts the server. Returns the address on which it listens.
pub(crate) fn start(args: &[&str]) -> (Server, String) {
    let dir = tempfile::tempdir().expect("a directory for the store");
    let mut child = Command::new(env!("CARGO_BIN_EXE_x0-msg-server"))
        .args(["--listen", "127.0.0.1:0"])
        .env("X0_MSG_DATA_DIR", dir.path())
        .args(args)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut line = String::new();
    let mut log = BufReader::new(child.stderr.take().expect("piped"));
    log.read_line(&mut line).expect("the server says where it listens");
    let entry: Value = serde_json::from_str(&line).expect("logs are JSON");
    let address = entry["address"].as_str().expect("the first line names the address").to_owned();
    // Otherwise the pipe fills up, and the server waits for it.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    (Server { child, _dir: dir }, address)
}
