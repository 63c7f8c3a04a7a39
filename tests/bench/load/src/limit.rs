//! The `limit` server: what fan-out costs when a server does nothing but write(2).
//!
//! One thread, one small struct per socket, one write per message and subscriber. With `--batch` all messages that were read in
//! one go are written together.
use crate::wire::*;
use memchr::memmem;
use std::collections::VecDeque;
use std::io::Write;

const UPGRADED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Http,
    Sub,
    Pub,
    Poll,
}

struct Sock {
    fd: i32,
    role: Role,
    ch: u32,
    input: Vec<u8>,
    pending: Vec<u8>,
}

#[derive(Default)]
struct Chan {
    subs: Vec<u32>,
    polls: Vec<u32>,
    queue: VecDeque<Vec<u8>>,
    acc: Vec<u8>,
}

pub struct Opts {
    pub port: u16,
    pub batch: bool,
    pub log: Option<String>,
}

fn ch_of(b: &[u8]) -> u32 {
    b.iter().skip(1).take(6).fold(0, |a, c| a * 10 + (c & 15) as u32)
}

fn listen(port: u16) -> i32 {
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
        let one = 1i32;
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &one as *const i32 as *const _, 4);
        let a = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from(std::net::Ipv4Addr::LOCALHOST).to_be() },
            sin_zero: [0; 8],
        };
        assert!(
            libc::bind(fd, &a as *const _ as *const _, 16) == 0,
            "bind: {}",
            std::io::Error::last_os_error()
        );
        libc::listen(fd, 65535);
        fd
    }
}

struct Srv {
    ep: i32,
    s: Vec<Option<Box<Sock>>>,
    chans: Vec<Chan>,
    dirty: Vec<u32>,
    batch: bool,
    log: Option<std::fs::File>,
    logbuf: Vec<u8>,
    waiting: Vec<(u32, usize)>,
}

impl Srv {
    fn chan(&mut self, ch: u32) -> &mut Chan {
        if self.chans.len() <= ch as usize {
            self.chans.resize_with(ch as usize + 1, Chan::default);
        }
        &mut self.chans[ch as usize]
    }

    fn send(&mut self, k: u32, b: &[u8]) {
        let Some(c) = self.s[k as usize].as_mut() else { return };
        if !c.pending.is_empty() {
            c.pending.extend_from_slice(b);
            return;
        }
        let r = unsafe { libc::send(c.fd, b.as_ptr() as *const _, b.len(), libc::MSG_NOSIGNAL) };
        let n = r.max(0) as usize;
        if n < b.len() {
            c.pending.extend_from_slice(&b[n..]);
            let mut ev = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLOUT) as u32, u64: k as u64 };
            unsafe { libc::epoll_ctl(self.ep, libc::EPOLL_CTL_MOD, c.fd, &mut ev) };
        }
    }

    fn publish(&mut self, ch: u32, body: &[u8]) {
        let batch = self.batch;
        let c = self.chan(ch);
        if !c.polls.is_empty() {
            let p = std::mem::take(&mut c.polls);
            let r = poll_answer(body);
            for k in p {
                self.send(k, &r);
            }
        } else if c.subs.is_empty() {
            if c.queue.len() < 1000 {
                c.queue.push_back(body.to_vec());
            }
        } else if batch {
            if c.acc.is_empty() {
                server_head(1, body.len(), &mut c.acc);
                c.acc.extend_from_slice(body);
                self.dirty.push(ch);
            } else {
                server_head(1, body.len(), &mut c.acc);
                c.acc.extend_from_slice(body);
            }
        } else {
            let mut f = Vec::with_capacity(body.len() + 10);
            server_head(1, body.len(), &mut f);
            f.extend_from_slice(body);
            let subs = std::mem::take(&mut c.subs);
            for &k in &subs {
                self.send(k, &f);
            }
            self.chans[ch as usize].subs = subs;
        }
    }

    fn flush(&mut self) {
        for ch in std::mem::take(&mut self.dirty) {
            let c = &mut self.chans[ch as usize];
            let (subs, acc) = (std::mem::take(&mut c.subs), std::mem::take(&mut c.acc));
            for &k in &subs {
                self.send(k, &acc);
            }
            let c = &mut self.chans[ch as usize];
            c.subs = subs;
            c.acc = acc;
            c.acc.clear();
        }
        if !self.waiting.is_empty() {
            if let Some(f) = self.log.as_mut() {
                f.write_all(&self.logbuf).unwrap();
                f.sync_data().unwrap();
            }
            self.logbuf.clear();
            for (k, n) in std::mem::take(&mut self.waiting) {
                let mut f = vec![];
                server_head(2, n, &mut f);
                f.resize(f.len() + n, b'.');
                self.send(k, &f);
            }
        }
    }

    fn drop_sock(&mut self, k: u32) {
        if let Some(c) = self.s[k as usize].take() {
            unsafe { libc::close(c.fd) };
            let ch = self.chan(c.ch);
            ch.subs.retain(|x| *x != k);
            ch.polls.retain(|x| *x != k);
        }
    }

    /// Handles the bytes of socket `k`; returns how many were used, or None to close.
    fn input(&mut self, k: u32, b: &[u8]) -> Option<usize> {
        let role = self.s[k as usize].as_ref()?.role;
        let mut off = 0;
        match role {
            Role::Http | Role::Poll => {
                while let Some(p) = memmem::find(&b[off..], b"\r\n\r\n") {
                    let path = b[off..].split(|c| *c == b' ').nth(1)?.to_vec();
                    off += p + 4;
                    let ch = memmem::find(&path, b"c=").map(|q| ch_of(&path[q + 2..])).unwrap_or(0);
                    let c = self.s[k as usize].as_mut()?;
                    c.ch = ch;
                    if path.starts_with(b"/ws") {
                        c.role = Role::Sub;
                        c.input = Vec::new();
                        self.chan(ch).subs.push(k);
                        self.send(k, UPGRADED);
                    } else if path.starts_with(b"/pub") {
                        c.role = Role::Pub;
                        self.send(k, UPGRADED);
                    } else {
                        c.role = Role::Poll;
                        let c = self.chan(ch);
                        match c.queue.pop_front() {
                            Some(m) => self.send(k, &poll_answer(&m)),
                            None => c.polls.push(k),
                        }
                    }
                }
            }
            Role::Sub => off = b.len(),
            Role::Pub => {
                let mut acks = 0;
                while let Some((op, s, e, _)) = ws_frame(&b[off..]) {
                    let f = &b[off + s..off + e];
                    match op {
                        1 => self.publish(ch_of(f), &f[7..]),
                        2 => {
                            self.logbuf.extend_from_slice(&(f.len() as u32).to_le_bytes());
                            self.logbuf.extend_from_slice(f);
                            acks += 1;
                        }
                        8 => return None,
                        _ => {}
                    }
                    off += e;
                }
                if acks > 0 {
                    self.waiting.push((k, acks));
                }
            }
        }
        Some(off)
    }
}

fn poll_answer(body: &[u8]) -> Vec<u8> {
    let mut r = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    r.extend_from_slice(body);
    r
}

pub fn epoll(o: Opts) {
    let lfd = listen(o.port);
    let ep = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    let add = |fd: i32, k: u64| {
        let mut ev = libc::epoll_event { events: libc::EPOLLIN as u32, u64: k };
        unsafe { libc::epoll_ctl(ep, libc::EPOLL_CTL_ADD, fd, &mut ev) };
    };
    add(lfd, u64::MAX);
    let mut srv = Srv {
        ep,
        s: vec![],
        chans: vec![],
        dirty: vec![],
        batch: o.batch,
        log: o.log.map(|p| std::fs::File::create(p).expect("log file")),
        logbuf: vec![],
        waiting: vec![],
    };
    let mut free: Vec<u32> = vec![];
    let mut rb = vec![0u8; 1 << 18];
    let mut evs: Vec<libc::epoll_event> = vec![unsafe { std::mem::zeroed() }; 1024];
    loop {
        let n = unsafe { libc::epoll_wait(ep, evs.as_mut_ptr(), evs.len() as i32, -1) };
        for e in evs.clone().iter().take(n.max(0) as usize) {
            if e.u64 == u64::MAX {
                loop {
                    let fd = unsafe {
                        libc::accept4(
                            lfd,
                            std::ptr::null_mut(),
                            std::ptr::null_mut(),
                            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                        )
                    };
                    if fd < 0 {
                        break;
                    }
                    let one = 1i32;
                    unsafe {
                        libc::setsockopt(
                            fd,
                            libc::IPPROTO_TCP,
                            libc::TCP_NODELAY,
                            &one as *const i32 as *const _,
                            4,
                        )
                    };
                    let c = Box::new(Sock { fd, role: Role::Http, ch: 0, input: vec![], pending: vec![] });
                    let k = free.pop().unwrap_or(srv.s.len() as u32);
                    if k as usize == srv.s.len() {
                        srv.s.push(Some(c));
                    } else {
                        srv.s[k as usize] = Some(c);
                    }
                    add(fd, k as u64);
                }
                continue;
            }
            let k = e.u64 as u32;
            let Some(c) = srv.s[k as usize].as_mut() else { continue };
            let fd = c.fd;
            if e.events & libc::EPOLLOUT as u32 != 0 && !c.pending.is_empty() {
                let r = unsafe {
                    libc::send(fd, c.pending.as_ptr() as *const _, c.pending.len(), libc::MSG_NOSIGNAL)
                };
                c.pending.drain(..r.max(0) as usize);
                if c.pending.is_empty() {
                    c.pending = Vec::new();
                    let mut ev = libc::epoll_event { events: libc::EPOLLIN as u32, u64: k as u64 };
                    unsafe { libc::epoll_ctl(ep, libc::EPOLL_CTL_MOD, fd, &mut ev) };
                }
            }
            if e.events & !(libc::EPOLLOUT as u32) == 0 {
                continue;
            }
            let have = c.input.len();
            rb[..have].copy_from_slice(&c.input);
            c.input.clear();
            let r = unsafe { libc::recv(fd, rb[have..].as_mut_ptr() as *mut _, rb.len() - have, 0) };
            if r <= 0 {
                srv.drop_sock(k);
                free.push(k);
                continue;
            }
            let n = have + r as usize;
            match srv.input(k, &rb[..n]) {
                Some(u) if u < n => {
                    if let Some(c) = srv.s[k as usize].as_mut() {
                        c.input.extend_from_slice(&rb[u..n]);
                    }
                }
                Some(_) => {}
                None => {
                    srv.drop_sock(k);
                    free.push(k);
                }
            }
        }
        srv.flush();
    }
}
