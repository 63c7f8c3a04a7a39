//! The release binary on a free port, stopped when dropped.

use std::io::{BufRead, BufReader, Read};
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

/// Starts the server, and waits until it serves. Returns the address on which it listens.
pub(crate) fn start(args: &[&str]) -> (Server, String) {
    let dir = tempfile::tempdir().expect("a directory for the store");
    let mut child = Command::new(env!("CARGO_BIN_EXE_x0-msg-server"))
        .args(["--listen", "127.0.0.1:0"])
        .env("X0_MSG_DATA_DIR", dir.path())
        .args(args)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut log = BufReader::new(child.stderr.take().expect("piped"));
    let ready = log.by_ref().lines().map_while(Result::ok).find_map(|line| {
        let entry: Value = serde_json::from_str(&line).ok()?;
        (entry["message"] == "ready").then(|| entry["address"].as_str().map(str::to_owned))?
    });
    let address = ready.expect("the server says where it serves");
    // Otherwise the pipe fills up, and the server waits for it.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    (Server { child, _dir: dir }, address)
}
