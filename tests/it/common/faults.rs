//! Faults of the disk and of the clock of a broker, by a library that is preloaded into it.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tokio::process::Command;

use super::{BINARY, TestServer, output_of};

/// The library, and the faults that are on.
pub struct Faults {
    dir: TempDir,
}

impl Faults {
    /// No faults yet.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/common/faults.c");
        let library = dir.path().join("faults.so");
        output_of("cc", &["-shared", "-fPIC", "-o", library.to_str().unwrap(), source]).unwrap();
        Self { dir }
    }

    /// Starts a broker that meets these faults.
    pub async fn server(&self, store: &Path, args: &[&str]) -> TestServer {
        TestServer::spawn(store, self.command(args)).await
    }

    /// Starts a broker that meets these faults. Returns before its store is open.
    pub async fn starting(&self, store: &Path, args: &[&str]) -> TestServer {
        let mut command = self.command(args);
        command.env("X0_MSG_LISTEN", "127.0.0.1:0").env("X0_MSG_DATA_DIR", store).env("RUST_LOG", "info");
        let started = TestServer::try_spawn_until("starting", command).await;
        started.unwrap_or_else(|log| panic!("the server did not start: {log}"))
    }

    /// The same as [`Self::server`]; its log if it does not start.
    pub async fn try_server(&self, store: &Path) -> Result<TestServer, String> {
        let mut command = self.command(&[]);
        command.env("X0_MSG_LISTEN", "127.0.0.1:0").env("X0_MSG_DATA_DIR", store);
        TestServer::try_spawn(command).await
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(args).env("LD_PRELOAD", self.dir.path().join("faults.so"));
        command.env("X0_FAULTS", self.dir.path());
        command
    }

    /// Turns a fault on; see `faults.c`.
    pub fn set(&self, name: &str, value: &str) {
        // Written elsewhere, so that it is there as a whole.
        let new = self.dir.path().join("new");
        fs::write(&new, value).unwrap();
        fs::rename(new, self.dir.path().join(name)).unwrap();
    }

    /// Turns a fault off.
    pub fn clear(&self, name: &str) {
        fs::remove_file(self.dir.path().join(name)).unwrap();
    }
}
