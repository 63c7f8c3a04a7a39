//! Publishes and receives through warm-up and measured time.
use crate::stats::Server;
use crate::world::*;
use crate::{die, self_cpu};

pub fn sleep(w: &mut World, secs: f64) {
    let end = now_ns() + (secs * 1e9) as u64;
    while w.now < end {
        let left = end - w.now;
        w.poll(left);
    }
}

/// Opens `n` connections, at most `batch` of them in their handshake; returns seconds taken.
pub fn open_all(w: &mut World, kind: Kind, n: usize, ch: impl Fn(usize) -> u32, batch: usize) -> f64 {
    let t0 = now_ns();
    let (base, want) = (w.live, w.live + n);
    let mut opened = 0;
    let mut last = (t0, 0);
    while w.live < want {
        while opened < n && opened < (w.live - base) + batch {
            w.open(kind, ch(opened), None);
            opened += 1;
        }
        w.poll(if opened < n { 0 } else { 5_000_000 });
        if w.live != last.1 {
            last = (w.now, w.live);
        }
        if w.n.dropped_conns > 0 || w.now - last.0 > 15_000_000_000 {
            let e = w.first_error.clone();
            die(&format!("only {} of {n} {kind:?} connections became live: {e}", w.live - base));
        }
    }
    (now_ns() - t0) as f64 / 1e9
}

pub struct Rng(u64);
impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Publishes and receives through warm-up and measured time, then drains.
pub struct Load {
    pub rate: Option<f64>,
    pub window: u64,
    /// deliveries of each publish
    pub fan: u64,
    pub channels: u32,
    pub pubs: Vec<usize>,
    pub pipeline: u32,
    pub by_ack: bool,
    pub warm: f64,
    pub secs: f64,
}

pub struct Measured {
    pub secs: f64,
    pub cpu: (f64, f64),
    pub own_cpu: f64,
    pub stalls: u64,
}

pub fn drive(w: &mut World, l: &Load, srv: &mut Server) -> Measured {
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    let start = now_ns();
    let t1 = start + (l.warm * 1e9) as u64;
    let t2 = t1 + (l.secs * 1e9) as u64;
    let np = l.pubs.len() as u32;
    let (mut sent, mut rr, mut forgiven, mut stalls) = (0u64, 0usize, 0u64, 0u64);
    let (mut cpu0, mut own0, mut begun) = ((0.0, 0.0), 0.0, 0u64);
    let mut progress = (start, 0u64);
    let limited = w.acks();
    let mut touched: Vec<usize> = vec![];
    w.now = start;
    loop {
        if begun == 0 && w.now >= t1 {
            srv.reset_peak();
            cpu0 = srv.cpu();
            own0 = self_cpu();
            begun = now_ns();
            w.now = begun;
            w.from = begun;
            w.measuring = true;
        }
        if w.now >= t2 {
            break;
        }
        let mut wait = 5_000_000;
        loop {
            let ts = match l.rate {
                Some(r) => {
                    let due = start + (sent as f64 / r * 1e9) as u64;
                    if due > w.now {
                        wait = (due - w.now).min(wait);
                        break;
                    }
                    due
                }
                None => {
                    let out = if l.by_ack {
                        w.n.published - w.n.acks
                    } else {
                        (w.n.published * l.fan).saturating_sub(w.n.delivered + forgiven).div_ceil(l.fan)
                    };
                    if out >= l.window {
                        break;
                    }
                    now_ns()
                }
            };
            let free = (0..np as usize)
                .map(|k| (rr + k) % np as usize)
                .find(|&k| !limited || w.conns[l.pubs[k]].inflight < l.pipeline);
            let Some(k) = free else { break };
            rr = (k + 1) % np as usize;
            // a channel keeps to one publisher, so that its order is defined
            let per = (l.channels / np).max(1) as u64;
            let ch = ((rng.next() >> 20) % per) as u32 * np.min(l.channels) + (k as u32 % l.channels);
            let p = l.pubs[k];
            w.publish(p, ch, ts);
            touched.push(p);
            sent += 1;
        }
        for p in touched.drain(..) {
            w.flush(p);
        }
        w.poll(wait);
        let done = w.n.delivered + w.n.acks;
        if done != progress.1 {
            progress = (w.now, done);
        } else if l.rate.is_none() && w.now - progress.0 > 1_000_000_000 {
            // nothing came for a second: count the window as lost and go on
            stalls += 1;
            forgiven += (w.n.published * l.fan).saturating_sub(w.n.delivered + forgiven);
            progress.0 = w.now;
        }
    }
    let end = now_ns();
    let cpu1 = srv.cpu();
    w.measuring = false;
    let m = Measured {
        secs: (end - begun) as f64 / 1e9,
        cpu: (cpu1.0 - cpu0.0, cpu1.1 - cpu0.1),
        own_cpu: self_cpu() - own0,
        stalls,
    };
    // drain: up to 2 s without progress, 10 s in all
    let stop = now_ns();
    w.now = stop;
    let mut last = (stop, w.n.delivered + w.n.acks);
    loop {
        let whole = if l.by_ack { w.n.acks >= w.n.published } else { w.n.delivered >= w.n.published * l.fan };
        if whole || w.now - last.0 > 2_000_000_000 || w.now - stop > 10_000_000_000 {
            break;
        }
        w.poll(50_000_000);
        let d = w.n.delivered + w.n.acks;
        if d != last.1 {
            last = (w.now, d);
        }
    }
    // and a moment more for duplicates
    sleep(w, 0.05);
    m
}
