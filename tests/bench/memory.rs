//! The memory of a process, as Linux counts it.

use std::process::Child;

/// A field of `/proc/PID/status`, in KiB: `VmRSS` is the resident memory, `VmHWM` its peak.
pub(crate) fn kib(process: &Child, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()))
        .expect("Linux, and the process runs");
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value = value.expect("Linux has the field").trim().trim_end_matches(" kB");
    value.parse().expect("a number")
}
