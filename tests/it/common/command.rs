//! The binary as a command, and commands of the system.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

pub const BINARY: &str = env!("CARGO_BIN_EXE_x0-msg-server");

/// Runs the binary with these arguments; what it prints, or its error.
pub fn command(args: &[&str]) -> Result<String, String> {
    output_of(BINARY, args)
}

/// Runs a program; what it prints, or its error.
pub fn output_of(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

/// Sends a process a signal.
pub fn signal(pid: u32, signal: i32) {
    output_of("kill", &[&format!("-{signal}"), &pid.to_string()]).unwrap();
}

/// Whether `check` finds a store intact, and its report.
pub fn check(dir: &Path) -> (bool, String) {
    let Output { status, stdout, stderr } = run_check(&[], dir);
    (status.success(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

/// The report of `check --json` on a store.
pub fn check_json(dir: &Path) -> Value {
    let output = run_check(&["--json"], dir);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

fn run_check(args: &[&str], dir: &Path) -> Output {
    Command::new(BINARY).arg("check").args(args).arg("--data-dir").arg(dir).output().unwrap()
}
