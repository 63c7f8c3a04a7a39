//! Workloads about connections: `idle` and `churn`.
use crate::drive::{open_all, sleep};
use crate::stats::{self, Server};
use crate::world::*;
use crate::{Args, Out, report_mem, self_cpu};
use std::collections::HashMap;

pub fn idle(mut w: World, mut srv: Server, a: Args, mut o: Out, n: usize) {
    let lp = a.has("longpoll");
    let kind = if lp { Kind::LpSub } else { Kind::WsSub };
    sleep(&mut w, 0.3);
    let mem0 = srv.mem();
    let (tcp0, slab0) = stats::kernel_kb();
    let cpu0 = srv.cpu();
    let secs = open_all(&mut w, kind, n, |i| i as u32, a.n("connect-batch", 64));
    sleep(&mut w, 0.5);
    let cpu1 = srv.cpu();
    let mem1 = srv.mem();
    let (tcp1, slab1) = stats::kernel_kb();
    sleep(&mut w, a.n("hold", 2.0));
    let cpu2 = srv.cpu();
    let mem2 = srv.mem();
    let d = |x: (f64, f64), y: (f64, f64)| (y.0 - x.0) + (y.1 - x.1);
    o.t("kind", if lp { "longpoll" } else { "websocket" });
    o.u("live", w.live as u64);
    o.f("connect_s", secs, 3);
    o.f("connect_per_s", n as f64 / secs, 0);
    o.f("server_us_per_connect", d(cpu0, cpu1) * 1e6 / n as f64, 1);
    o.f("hold_s", a.n("hold", 2.0), 1);
    o.f("server_cpu_hold_s", d(cpu1, cpu2), 3);
    report_mem(&mut o, &mem0, &mem2, n);
    o.f("rss_per_conn_after_connect_kb", (mem1.rss_kb as f64 - mem0.rss_kb as f64) / n as f64, 2);
    o.f("slab_both_ends_per_conn_kb", (slab1 as f64 - slab0 as f64) / n as f64, 2);
    o.f("tcp_mem_per_conn_kb", (tcp1 as f64 - tcp0 as f64) / n as f64, 2);
    o.u("errors", w.n.errors);
    o.u("dropped_conns", w.n.dropped_conns);
    o.t("first_error", &w.first_error);
    o.print();
}

/// Loops of connect, subscribe, receive one message, disconnect.
pub fn churn(mut w: World, mut srv: Server, a: Args, mut o: Out, pubs: Vec<usize>) {
    let loops: usize = a.n("loops", 32);
    let (warm, secs): (f64, f64) = (a.n("warm", 0.7), a.n("secs", 3.0));
    let mut next_ch = 0u32;
    let mut slots: HashMap<usize, u64> = HashMap::new();
    let mut hist = stats::Hist::new();
    w.track = true;
    let mem0 = srv.mem();
    let start = now_ns();
    let (t1, t2) = (start + (warm * 1e9) as u64, start + ((warm + secs) * 1e9) as u64);
    let (mut cycles, mut counted) = (0u64, 0u64);
    let (mut cpu0, mut own0, mut begun) = ((0.0, 0.0), 0.0, 0u64);
    let mut last = start;
    let mut free: Vec<usize> = vec![];
    while w.now < t2 {
        if begun == 0 && w.now >= t1 {
            cpu0 = srv.cpu();
            own0 = self_cpu();
            begun = now_ns();
            counted = cycles;
        }
        while slots.len() < loops {
            let t = now_ns();
            let i = w.open(Kind::WsSub, next_ch, free.pop());
            next_ch = (next_ch + 1) % 1_000_000;
            slots.insert(i, t);
        }
        w.poll(5_000_000);
        for i in std::mem::take(&mut w.newly_live) {
            let ch = w.conns[i].ch;
            if ch == u32::MAX || !slots.contains_key(&i) {
                continue;
            }
            let p = pubs[ch as usize % pubs.len()];
            let t = now_ns();
            w.publish(p, ch, t);
            w.flush(p);
        }
        for i in std::mem::take(&mut w.newly_got) {
            if let Some(t) = slots.remove(&i) {
                w.close(i);
                free.push(i);
                cycles += 1;
                last = w.now;
                if begun > 0 && t >= begun {
                    hist.add(w.now - t);
                }
            }
        }
        // a connection that lost its message would hold its loop for ever
        if w.now - last > 2_000_000_000 || w.n.dropped_conns > 1000 {
            break;
        }
        let dead: Vec<usize> = slots.keys().copied().filter(|i| w.conns[*i].phase == DEAD).collect();
        for i in dead {
            slots.remove(&i);
            free.push(i);
        }
    }
    let s = (now_ns() - begun) as f64 / 1e9;
    let cpu1 = srv.cpu();
    let own = self_cpu() - own0;
    let c = cycles - counted;
    let cpu = (cpu1.0 - cpu0.0) + (cpu1.1 - cpu0.1);
    let mem1 = srv.mem();
    o.u("loops", loops as u64);
    o.u("cycles", c);
    o.u("lost", slots.len().saturating_sub(loops) as u64);
    o.f("seconds", s, 3);
    o.f("cycles_per_s", c as f64 / s, 1);
    o.f("p50_ms", hist.ms(0.5), 3);
    o.f("p99_ms", hist.ms(0.99), 3);
    o.f("server_cpu_s", cpu, 3);
    o.f("server_us_per_cycle", cpu * 1e6 / c.max(1) as f64, 2);
    o.f("server_cpu_share", cpu / s, 3);
    o.f("client_cpu_share", own / s, 3);
    o.u("duplicated", w.n.dup);
    o.u("misrouted", w.n.misrouted);
    o.u("rss_start_kb", mem0.rss_kb);
    o.u("rss_end_kb", mem1.rss_kb);
    o.u("errors", w.n.errors);
    o.u("dropped_conns", w.n.dropped_conns);
    o.t("first_error", &w.first_error);
    o.print();
}

pub fn raise_nofile() {
    unsafe {
        let mut r: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut r);
        r.rlim_cur = r.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &r);
    }
}
