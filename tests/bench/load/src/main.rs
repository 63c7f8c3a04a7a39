//! Load generator: one process, one thread, one JSON line per run. See README.md.
mod adapters;
mod connections;
mod drive;
mod frames;
mod limit;
mod stats;
mod token;
mod wire;
mod world;

use adapters::{Proto, Target, Via};
use connections::{churn, idle, raise_nofile};
use drive::*;
use stats::Server;
use std::collections::HashMap;
use world::*;

const USAGE: &str = "load fanout|pairs|longpoll|idle|durable|churn --target NAME [--server-pid PID] [options]
load limit-server --port P [--batch] [--log FILE]
(see README.md)";

struct Args(HashMap<String, String>);

impl Args {
    fn has(&self, k: &str) -> bool {
        self.0.contains_key(k)
    }
    fn s(&self, k: &str) -> Option<&str> {
        self.0.get(k).map(|s| s.as_str())
    }
    fn n<T: std::str::FromStr>(&self, k: &str, d: T) -> T {
        match self.s(k) {
            None => d,
            Some(v) => v.parse().unwrap_or_else(|_| die(&format!("bad value of --{k}: {v}"))),
        }
    }
}

fn die(m: &str) -> ! {
    eprintln!("{m}");
    std::process::exit(2)
}

fn self_cpu() -> f64 {
    let mut r: libc::rusage = unsafe { std::mem::zeroed() };
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut r) };
    let t = |v: libc::timeval| v.tv_sec as f64 + v.tv_usec as f64 / 1e6;
    t(r.ru_utime) + t(r.ru_stime)
}

/// Fields of the JSON line, in order.
struct Out(Vec<String>);

impl Out {
    fn f(&mut self, k: &str, v: f64, digits: usize) {
        self.0.push(format!("\"{k}\":{v:.digits$}"));
    }
    fn u(&mut self, k: &str, v: u64) {
        self.0.push(format!("\"{k}\":{v}"));
    }
    fn t(&mut self, k: &str, v: &str) {
        let v: String = v
            .chars()
            .map(|c| if c == '"' || c == '\\' || c.is_control() { ' ' } else { c })
            .take(200)
            .collect();
        self.0.push(format!("\"{k}\":\"{v}\""));
    }
    fn print(self) {
        println!("{{{}}}", self.0.join(","));
    }
}

fn report_mem(o: &mut Out, a: &stats::Mem, b: &stats::Mem, conns: usize) {
    o.u("rss_start_kb", a.rss_kb);
    o.u("rss_peak_kb", b.peak_kb);
    o.u("rss_end_kb", b.rss_kb);
    o.u("pss_end_kb", b.pss_kb);
    let per = |x: u64, y: u64| (x as f64 - y as f64) / conns.max(1) as f64;
    o.f("rss_per_conn_kb", per(b.rss_kb, a.rss_kb), 2);
    o.f("pss_per_conn_kb", per(b.pss_kb, a.pss_kb), 2);
}

fn main() {
    let mut argv = std::env::args().skip(1);
    let work = argv.next().unwrap_or_else(|| die(USAGE));
    let (mut m, mut key) = (HashMap::new(), None::<String>);
    for a in argv {
        match (a.strip_prefix("--"), key.take()) {
            (Some(k), old) => {
                if let Some(o) = old {
                    m.insert(o, String::new());
                }
                key = Some(k.to_string());
            }
            (None, Some(k)) => {
                m.insert(k, a);
            }
            _ => die(USAGE),
        }
    }
    if let Some(k) = key {
        m.insert(k, String::new());
    }
    let a = Args(m);
    raise_nofile();
    if work == "limit-server" {
        let port = a.n("port", 9171);
        return limit::epoll(limit::Opts { port, batch: a.has("batch"), log: a.s("log").map(String::from) });
    }

    let name = a.s("target").unwrap_or_else(|| die("--target is needed"));
    let mut t = Target::new(name).unwrap_or_else(|| die(&format!("unknown target {name}")));
    t.ws_port = a.n("ws-port", t.ws_port);
    t.lp_port = a.n("lp-port", t.lp_port);
    t.pub_port = a.n("pub-port", t.pub_port);
    t.qos = a.n("qos", if work == "durable" { 1 } else { 0 });
    t.ws_path = a.s("ws-path").map(String::from);
    t.secret = a.s("token-secret").map(|path| {
        let secret = std::fs::read(path).unwrap_or_else(|e| die(&format!("--token-secret {path}: {e}")));
        secret.trim_ascii_end().to_vec()
    });
    t.sse = a.has("sse");
    if (t.sse || t.secret.is_some()) && (t.proto != Proto::X0 || t.legacy()) {
        die("--sse and --token-secret are for target x0");
    }
    t.topic = work == "fanout";
    if work == "longpoll" && t.proto == Proto::X0 {
        t.via = Via::Http;
    }
    match a.s("via") {
        Some("http") => t.via = Via::Http,
        Some("ws") => t.via = Via::Ws,
        None => {}
        Some(v) => die(&format!("unknown --via {v}")),
    }

    let n: usize = a.n("n", 1000);
    let payload = a.n("payload", 128usize).max(50);
    let durable = work == "durable";
    let channels = match work.as_str() {
        "fanout" => 1,
        "churn" => 1_000_000,
        "durable" => a.n("channels", 16),
        _ => n,
    };
    let mut srv = Server::new(a.n("server-pid", 0));
    let mut w = World::new(t, payload, durable, channels);
    w.src_ips = a.n("src-ips", if work == "churn" { 64 } else { 1 + n as u32 / 25_000 });
    w.ack_every = a.n("ack-every", 1);
    w.ack_after = a.n("ack-ms", 20) * 1_000_000;
    w.lp_ack = a.has("lp-ack");
    let default_pubs = match work.as_str() {
        "fanout" | "durable" | "idle" => 1,
        _ => 16,
    };
    let pubs: usize = a.n("pubs", default_pubs);
    let mut o = Out(vec![]);
    o.t("workload", &work);
    o.t("target", a.s("label").unwrap_or(name));
    o.u("n", n as u64);
    o.u("payload", payload as u64);

    if work == "idle" {
        return idle(w, srv, a, o, n);
    }

    let mem0 = srv.mem();
    let kind = if work == "longpoll" { Kind::LpSub } else { Kind::WsSub };
    let fan = work == "fanout";
    let mut connect_s = 0.0;
    if matches!(work.as_str(), "fanout" | "pairs" | "longpoll") {
        connect_s = open_all(&mut w, kind, n, |i| if fan { 0 } else { i as u32 }, a.n("connect-batch", 64));
    }
    let first = w.conns.len();
    open_all(&mut w, Kind::Pub, pubs, |_| u32::MAX, 16);
    let pub_ids: Vec<usize> = (first..first + pubs).collect();
    if durable && w.t.proto == Proto::Nats {
        w.nats_stream(first, channels);
    }
    sleep(&mut w, 0.3);

    if work == "churn" {
        return churn(w, srv, a, o, pub_ids);
    }

    let ws_x0 = w.t.proto == Proto::X0 && w.t.via == Via::Ws;
    let window: u64 = a.n("window", if fan { 16 } else { 64 });
    let l = Load {
        rate: a.s("rate").map(|_| a.n("rate", 0.0)),
        window,
        fan: if fan { n as u64 } else { 1 },
        channels: channels as u32,
        pubs: pub_ids,
        pipeline: a.n(
            "pipeline",
            if durable || ws_x0 {
                u32::MAX
            } else if fan {
                4
            } else {
                1.max(window as u32 / pubs as u32)
            },
        ),
        by_ack: durable,
        warm: a.n("warm", 0.7),
        secs: a.n("secs", 3.0),
    };
    let idle = srv.mem();
    let m = drive(&mut w, &l, &mut srv);
    let mem1 = srv.mem();
    let settle: f64 = a.n("settle", 0.0);
    if settle > 0.0 {
        sleep(&mut w, settle);
        o.u("rss_idle_kb", idle.rss_kb);
        o.u("rss_settled_kb", srv.mem().rss_kb);
    }

    let c = &w.n;
    let expect = if durable { c.published } else { c.published * l.fan };
    let unique = if durable { c.acks } else { c.delivered - c.dup };
    let got = if durable { c.acks_in_window } else { c.in_window };
    match l.rate {
        Some(r) => o.f("rate", r, 0),
        None => o.u("window", window),
    }
    o.u("published", c.published);
    o.u("delivered", if durable { c.acks } else { c.delivered });
    o.u("lost", expect.saturating_sub(unique));
    o.u("duplicated", c.dup);
    o.u("out_of_order", c.ooo);
    o.u("misrouted", c.misrouted);
    o.f("seconds", m.secs, 3);
    o.f("msgs_per_s", got as f64 / m.secs, 1);
    o.f("p50_ms", w.hist.ms(0.5), 3);
    o.f("p99_ms", w.hist.ms(0.99), 3);
    o.f("p999_ms", w.hist.ms(0.999), 3);
    let cpu = m.cpu.0 + m.cpu.1;
    o.f("server_cpu_s", cpu, 3);
    o.f("server_cpu_user_s", m.cpu.0, 3);
    o.f("server_cpu_share", cpu / m.secs, 3);
    o.f("server_us_per_msg", cpu * 1e6 / got.max(1) as f64, 3);
    o.f("client_cpu_share", m.own_cpu / m.secs, 3);
    o.f("client_us_per_msg", m.own_cpu * 1e6 / got.max(1) as f64, 3);
    report_mem(&mut o, &mem0, &mem1, n);
    o.f("connect_per_s", if connect_s > 0.0 { n as f64 / connect_s } else { 0.0 }, 0);
    o.u("stalls", m.stalls);
    o.u("errors", c.errors);
    o.u("dropped_conns", c.dropped_conns);
    o.t("first_error", &w.first_error);
    o.print();
}
