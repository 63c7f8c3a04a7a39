//! One epoll loop with all client connections: connect, parse, deliver, publish.
use crate::adapters::*;
use crate::frames;
use crate::stats::Hist;
use crate::wire::*;
use memchr::memmem;
use std::collections::VecDeque;
use std::net::Ipv4Addr;

mod delivery;
mod http;
mod streams;
mod websocket;

pub fn now_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    WsSub,
    LpSub,
    Pub,
}

/// Phases of a connection. 0: its request is sent, 1: it is upgraded.
pub const LIVE: u8 = 9;
pub const DEAD: u8 = 10;

pub struct Conn {
    fd: i32,
    pub kind: Kind,
    pub ch: u32,
    pub phase: u8,
    carry: Vec<u8>,
    stream: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    poll: Vec<u8>,
    next_seq: u32,
    seen: u64,
    got: u32,
    /// publishers: sent and not yet acknowledged
    pub inflight: u32,
    tag: u32,
    stamps: VecDeque<u64>,
    by_tag: Vec<u64>,
    /// x0: the newest seq received, and how many are not acknowledged
    newest: u64,
    unacked: u32,
    acks_due: bool,
}

#[derive(Default)]
pub struct Counts {
    pub delivered: u64,
    pub in_window: u64,
    pub dup: u64,
    pub ooo: u64,
    pub misrouted: u64,
    pub acks: u64,
    pub acks_in_window: u64,
    pub published: u64,
    pub errors: u64,
    pub dropped_conns: u64,
}

pub struct World {
    ep: i32,
    host: Ipv4Addr,
    pub conns: Vec<Conn>,
    pub t: Target,
    rbuf: Vec<u8>,
    pub now: u64,
    pub n: Counts,
    pub hist: Hist,
    /// messages stamped from here on count for latency
    pub from: u64,
    pub measuring: bool,
    pub live: usize,
    pub seqs: Vec<u32>,
    pub tpl: Template,
    pub durable: bool,
    /// churn: connections that became live, and that got a message, since last looked at
    pub newly_live: Vec<usize>,
    pub newly_got: Vec<usize>,
    pub track: bool,
    pub first_error: String,
    pub src_ips: u32,
    opened: u32,
    /// x0: a subscriber acknowledges after so many messages, or so many nanoseconds
    pub ack_every: u32,
    pub ack_after: u64,
    /// x0 native long-poll: acknowledge with a call of its own, as client.js does, not only with the next cursor
    pub lp_ack: bool,
    acks_due: VecDeque<(u64, usize)>,
    lp_requests: u32,
}

impl World {
    pub fn new(t: Target, payload: usize, durable: bool, channels: usize) -> World {
        let tpl = t.template(payload, durable);
        World {
            ep: unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) },
            host: Ipv4Addr::LOCALHOST,
            conns: vec![],
            t,
            rbuf: vec![0; 1 << 20],
            now: now_ns(),
            n: Counts::default(),
            hist: Hist::new(),
            from: 0,
            measuring: false,
            live: 0,
            seqs: vec![0; channels],
            tpl,
            durable,
            newly_live: vec![],
            newly_got: vec![],
            track: false,
            first_error: String::new(),
            src_ips: 1,
            opened: 0,
            ack_every: 1,
            ack_after: 0,
            lp_ack: false,
            acks_due: VecDeque::new(),
            lp_requests: 0,
        }
    }

    pub fn ch_name(ch: u32) -> String {
        let mut b = [0; 7];
        put_ch(&mut b, ch);
        String::from_utf8_lossy(&b).into_owned()
    }

    fn error(&mut self, what: String) {
        self.n.errors += 1;
        if self.first_error.is_empty() {
            self.first_error = what;
        }
    }

    fn dial(&mut self, port: u16) -> i32 {
        unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
            assert!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
            let one = 1i32;
            let set = |l, o| libc::setsockopt(fd, l, o, &one as *const i32 as *const _, 4);
            set(libc::IPPROTO_TCP, libc::TCP_NODELAY);
            let addr = |ip: Ipv4Addr, port: u16| libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: port.to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(ip).to_be() },
                sin_zero: [0; 8],
            };
            let len = std::mem::size_of::<libc::sockaddr_in>() as u32;
            if self.src_ips > 1 {
                set(libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT);
                let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 1, 0)) + self.opened % self.src_ips);
                let a = addr(ip, 0);
                libc::bind(fd, &a as *const _ as *const _, len);
            }
            self.opened = self.opened.wrapping_add(1);
            let a = addr(self.host, port);
            if libc::connect(fd, &a as *const _ as *const _, len) != 0 {
                let e = std::io::Error::last_os_error();
                eprintln!("connect to port {port}: {e}");
                std::process::exit(2);
            }
            libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK);
            fd
        }
    }

    /// Opens a connection; a given `slot` reuses a closed one.
    pub fn open(&mut self, kind: Kind, ch: u32, slot: Option<usize>) -> usize {
        let port = match kind {
            Kind::WsSub => self.t.ws_port,
            Kind::LpSub => self.t.lp_port,
            Kind::Pub => self.t.pub_port,
        };
        let fd = self.dial(port);
        let name = Self::ch_name(ch);
        let (out, phase, poll) = match kind {
            Kind::WsSub if self.t.sse => (self.t.sse_get(&name, slot.unwrap_or(self.conns.len())), 0, vec![]),
            Kind::WsSub => (self.t.sub_upgrade(&name), 0, vec![]),
            Kind::LpSub => {
                let g = self.t.lp_get(&name);
                (g.clone(), LIVE, g)
            }
            Kind::Pub => match (self.t.proto, self.t.via) {
                (_, Via::Http) => (vec![], LIVE, vec![]),
                (_, Via::Ws) => (self.t.pub_upgrade(self.conns.len()), 0, vec![]),
                (Proto::Nats, _) => (
                    b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":false}\r\nSUB _I.* 1\r\nPING\r\n".to_vec(),
                    1,
                    vec![],
                ),
                (Proto::Mqtt, _) => (mqtt_connect(&format!("p{}-{}", std::process::id(), self.conns.len())), 1, vec![]),
                _ => unreachable!(),
            },
        };
        let c = Conn {
            fd,
            kind,
            ch,
            phase,
            carry: vec![],
            stream: vec![],
            out,
            sent: 0,
            poll,
            next_seq: 0,
            seen: 0,
            got: 0,
            inflight: 0,
            tag: 0,
            stamps: VecDeque::new(),
            by_tag: vec![],
            newest: 0,
            unacked: 0,
            acks_due: false,
        };
        let i = match slot {
            Some(i) => {
                self.conns[i] = c;
                i
            }
            None => {
                self.conns.push(c);
                self.conns.len() - 1
            }
        };
        let mut ev = libc::epoll_event { events: libc::EPOLLIN as u32, u64: i as u64 };
        unsafe { libc::epoll_ctl(self.ep, libc::EPOLL_CTL_ADD, fd, &mut ev) };
        if phase == LIVE {
            self.live += 1;
            if self.track {
                self.newly_live.push(i);
            }
        }
        self.flush(i);
        i
    }

    pub fn close(&mut self, i: usize) {
        if self.conns[i].phase == DEAD {
            return;
        }
        if self.conns[i].phase == LIVE {
            self.live -= 1;
        }
        self.conns[i].phase = DEAD;
        unsafe { libc::close(self.conns[i].fd) };
    }

    /// A fresh connection for an HTTP publisher that the server closed between requests.
    fn redial(&mut self, i: usize) {
        let (ch, tag) = (self.conns[i].ch, self.conns[i].tag);
        self.close(i);
        self.open(Kind::Pub, ch, Some(i));
        self.conns[i].tag = tag;
    }

    pub fn flush(&mut self, i: usize) {
        let c = &mut self.conns[i];
        if c.phase == DEAD || c.sent == c.out.len() {
            return;
        }
        let was = c.sent > 0;
        let b = &c.out[c.sent..];
        let r = unsafe { libc::send(c.fd, b.as_ptr() as *const _, b.len(), libc::MSG_NOSIGNAL) };
        if r > 0 {
            c.sent += r as usize;
        }
        let want = c.sent < c.out.len();
        if !want {
            c.out.clear();
            c.sent = 0;
        }
        if want || was {
            let e = if want { libc::EPOLLIN | libc::EPOLLOUT } else { libc::EPOLLIN };
            let mut ev = libc::epoll_event { events: e as u32, u64: i as u64 };
            unsafe { libc::epoll_ctl(self.ep, libc::EPOLL_CTL_MOD, c.fd, &mut ev) };
        }
    }

    fn say(&mut self, i: usize, b: &[u8]) {
        self.conns[i].out.extend_from_slice(b);
        self.flush(i);
    }

    /// Waits up to `wait` nanoseconds and handles what came.
    pub fn poll(&mut self, wait: u64) {
        let mut evs: [libc::epoll_event; 512] = unsafe { std::mem::zeroed() };
        let due = self.acks_due.front().map_or(u64::MAX, |(due, _)| due.saturating_sub(self.now));
        let wait = wait.min(due);
        let ts =
            libc::timespec { tv_sec: (wait / 1_000_000_000) as i64, tv_nsec: (wait % 1_000_000_000) as i64 };
        // epoll_pwait2 (441): nanosecond timeouts, so that a paced sender needs no spinning
        let n =
            unsafe { libc::syscall(441, self.ep, evs.as_mut_ptr(), 512, &ts as *const _, 0usize, 8usize) };
        for e in evs.iter().take(n.max(0) as usize) {
            let i = e.u64 as usize;
            if e.events & libc::EPOLLOUT as u32 != 0 {
                self.flush(i);
            }
            if e.events & !(libc::EPOLLOUT as u32) != 0 {
                self.readable(i);
            }
        }
        self.now = now_ns();
        while self.acks_due.front().is_some_and(|(due, _)| *due <= self.now) {
            let Some((_, i)) = self.acks_due.pop_front() else { break };
            self.conns[i].acks_due = false;
            if self.conns[i].phase == LIVE && self.conns[i].unacked > 0 {
                self.acknowledge(i);
            }
        }
    }

    fn readable(&mut self, i: usize) {
        if self.conns[i].phase == DEAD {
            return;
        }
        let mut rb = std::mem::take(&mut self.rbuf);
        loop {
            let c = &mut self.conns[i];
            let k = c.carry.len();
            if k * 2 > rb.len() {
                rb.resize(k * 4, 0);
            }
            rb[..k].copy_from_slice(&c.carry);
            c.carry.clear();
            let room = rb.len() - k;
            let r = unsafe { libc::recv(c.fd, rb[k..].as_mut_ptr() as *mut _, room, 0) };
            if r < 0 {
                let e = std::io::Error::last_os_error();
                if k > 0 {
                    self.conns[i].carry.extend_from_slice(&rb[..k]);
                }
                if e.kind() != std::io::ErrorKind::WouldBlock {
                    self.gone(i, e.to_string());
                }
                break;
            }
            if r == 0 {
                self.gone(i, format!("closed by the server in phase {}", self.conns[i].phase));
                break;
            }
            self.now = now_ns();
            let n = k + r as usize;
            let used = self.consume(i, &rb[..n]);
            if self.conns[i].phase == DEAD {
                break;
            }
            if used < n {
                self.conns[i].carry.extend_from_slice(&rb[used..n]);
            }
            if (r as usize) < room {
                break;
            }
        }
        self.rbuf = rb;
    }

    fn gone(&mut self, i: usize, why: String) {
        let c = &self.conns[i];
        if c.kind == Kind::Pub && self.t.via == Via::Http && c.inflight == 0 && c.tag > 0 {
            return self.redial(i);
        }
        self.n.dropped_conns += 1;
        let k = self.conns[i].kind;
        self.error(format!("{k:?} {i}: {why}"));
        self.close(i);
    }

    fn consume(&mut self, i: usize, b: &[u8]) -> usize {
        match (self.conns[i].kind, self.t.proto, self.t.via) {
            (Kind::LpSub, ..) | (Kind::Pub, _, Via::Http) => self.http(i, b),
            (Kind::WsSub, ..) if self.t.sse => self.sse(i, b),
            (Kind::WsSub, ..) | (Kind::Pub, _, Via::Ws) => self.ws(i, b),
            (Kind::Pub, Proto::Nats, _) => self.nats(i, b),
            (Kind::Pub, ..) => self.mqtt(i, b),
        }
    }
}
