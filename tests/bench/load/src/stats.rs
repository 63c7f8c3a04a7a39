//! Latency histogram, and CPU and memory of the server process tree.
use std::fs;

/// Log-linear histogram of nanoseconds: 32 steps per power of two (3 % wide).
pub struct Hist {
    n: u64,
    max: u64,
    b: Vec<u64>,
}

impl Hist {
    pub fn new() -> Self {
        Hist { n: 0, max: 0, b: vec![0; 64 * 32] }
    }
    fn slot(v: u64) -> usize {
        if v < 32 {
            return v as usize;
        }
        let e = 63 - v.leading_zeros() as usize;
        (e - 4) * 32 + ((v >> (e - 5)) & 31) as usize
    }
    fn value(s: usize) -> u64 {
        if s < 32 {
            return s as u64;
        }
        let e = s / 32 + 4;
        (32 + (s % 32) as u64) << (e - 5)
    }
    pub fn add(&mut self, v: u64) {
        self.n += 1;
        self.max = self.max.max(v);
        self.b[Self::slot(v)] += 1;
    }
    /// Percentile in milliseconds.
    pub fn ms(&self, p: f64) -> f64 {
        let want = (self.n as f64 * p).ceil() as u64;
        let mut c = 0;
        for (i, k) in self.b.iter().enumerate() {
            c += k;
            if c >= want && *k > 0 {
                return (Self::value(i) as f64 / 1e6).min(self.max as f64 / 1e6);
            }
        }
        0.0
    }
}

/// `pid` and all its descendants.
fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![];
    for e in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Some(p) = e.file_name().to_str().and_then(|s| s.parse::<u32>().ok())
            && let Some(f) = stat(p)
        {
            all.push((p, f[1].parse::<u32>().unwrap_or(0)));
        }
    }
    let mut out = vec![pid];
    let mut i = 0;
    while i < out.len() {
        for (p, pp) in &all {
            if *pp == out[i] && !out.contains(p) {
                out.push(*p);
            }
        }
        i += 1;
    }
    out
}

/// Fields of /proc/<pid>/stat after the command name (0 = state, 1 = ppid, 11 = utime ...).
fn stat(pid: u32) -> Option<Vec<String>> {
    let s = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(s.rsplit_once(')')?.1.split_whitespace().map(String::from).collect())
}

#[derive(Clone, Copy, Default, Debug)]
pub struct Mem {
    pub rss_kb: u64,
    pub pss_kb: u64,
    pub peak_kb: u64,
}

/// The measured server: process tree of one pid; all zero without a pid.
pub struct Server {
    pids: Vec<u32>,
    root: u32,
}

impl Server {
    pub fn new(root: u32) -> Self {
        Server { pids: if root == 0 { vec![] } else { tree(root) }, root }
    }
    /// CPU seconds of the tree (user, system).
    pub fn cpu(&mut self) -> (f64, f64) {
        if self.root == 0 {
            return (0.0, 0.0);
        }
        self.pids = tree(self.root);
        let hz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        let (mut u, mut s) = (0.0, 0.0);
        for &p in &self.pids {
            if let Some(f) = stat(p) {
                let g = |i: usize| f[i].parse::<f64>().unwrap_or(0.0) / hz;
                u += g(11) + g(13);
                s += g(12) + g(14);
            }
        }
        (u, s)
    }
    pub fn reset_peak(&self) {
        for p in &self.pids {
            let _ = fs::write(format!("/proc/{p}/clear_refs"), "5");
        }
    }
    pub fn mem(&mut self) -> Mem {
        if self.root == 0 {
            return Mem::default();
        }
        self.pids = tree(self.root);
        let mut m = Mem::default();
        for p in &self.pids {
            let get = |file: &str, key: &str| -> u64 {
                fs::read_to_string(format!("/proc/{p}/{file}"))
                    .unwrap_or_default()
                    .lines()
                    .find(|l| l.starts_with(key))
                    .and_then(|l| l.split_whitespace().nth(1)?.parse().ok())
                    .unwrap_or(0)
            };
            m.rss_kb += get("status", "VmRSS:");
            m.peak_kb += get("status", "VmHWM:");
            m.pss_kb += get("smaps_rollup", "Pss:");
        }
        m
    }
}

/// Kernel memory held by TCP sockets and by unreclaimable slab, whole machine, kB.
pub fn kernel_kb() -> (u64, u64) {
    let tcp = fs::read_to_string("/proc/net/sockstat")
        .unwrap_or_default()
        .lines()
        .find(|l| l.starts_with("TCP:"))
        .and_then(|l| l.split_whitespace().last()?.parse::<u64>().ok())
        .unwrap_or(0)
        * 4;
    let slab = fs::read_to_string("/proc/meminfo")
        .unwrap_or_default()
        .lines()
        .find(|l| l.starts_with("Slab:"))
        .and_then(|l| l.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0);
    (tcp, slab)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn percentiles() {
        let mut h = Hist::new();
        for i in 1..=1000u64 {
            h.add(i * 1_000_000);
        }
        assert!((h.ms(0.5) - 500.0).abs() < 20.0, "{}", h.ms(0.5));
        assert!((h.ms(0.99) - 990.0).abs() < 35.0, "{}", h.ms(0.99));
        for v in [0u64, 31, 32, 33, 1000, 123_456_789] {
            let w = Hist::value(Hist::slot(v));
            assert!(w <= v && v - w <= v / 32 + 1, "{v} {w}");
        }
    }
}
