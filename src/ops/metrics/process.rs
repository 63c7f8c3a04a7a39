//! The metrics of the process, under the names that all of Prometheus' clients give them.

use std::fmt::Result;

#[cfg(target_os = "linux")]
use crate::descriptors;
use crate::ops::metrics::page::Page;

/// Writes what the system knows of this process; nothing where it does not say.
#[cfg(target_os = "linux")]
pub(super) fn encode(page: &mut Page<'_>) -> Result {
    let Ok(process) = Process::now() else { return Ok(()) };
    page.counter(
        "process_cpu_seconds",
        "Time that the process has used CPUs, in user and in system mode",
        process.cpu,
    )?;
    page.gauge("process_resident_memory_bytes", "Memory that the process holds", process.resident)?;
    page.gauge(
        "process_virtual_memory_bytes",
        "Address space that the process has reserved",
        process.virtual_size,
    )?;
    page.gauge("process_open_fds", "Files and sockets that the process has open", process.open)?;
    page.gauge("process_max_fds", "Files and sockets that the process may have open", process.most_open)?;
    page.gauge("process_threads", "Threads of the process", process.threads)?;
    page.gauge("process_start_time_seconds", "Unix time of the start of the process", process.start)
}

/// Other systems say this in other ways.
#[cfg(not(target_os = "linux"))]
pub(super) fn encode(_: &mut Page<'_>) -> Result {
    Ok(())
}

/// What the system knows of this process.
#[cfg(target_os = "linux")]
struct Process {
    cpu: f64,
    resident: u64,
    virtual_size: u64,
    open: u64,
    most_open: u64,
    threads: i64,
    start: f64,
}

#[cfg(target_os = "linux")]
impl Process {
    #[expect(clippy::cast_precision_loss, reason = "seconds are written with fractions")]
    fn now() -> procfs::ProcResult<Self> {
        let process = procfs::process::Process::myself()?;
        let stat = process.stat()?;
        let ticks = procfs::ticks_per_second() as f64;
        Ok(Self {
            cpu: (stat.utime + stat.stime) as f64 / ticks,
            resident: stat.rss.saturating_mul(procfs::page_size()),
            virtual_size: stat.vsize,
            open: process.fd_count()? as u64,
            most_open: descriptors::limit(),
            threads: stat.num_threads,
            start: procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks,
        })
    }
}
