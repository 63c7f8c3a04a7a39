//! The memory of the server with many idle WebSockets, and with many waiting legacy polls.
//!
//!     cargo bench --bench idle [-- CONNECTIONS]
//!
//! It starts the release binary on a free port, once for each case, and reads its peak resident memory (`VmHWM`, the
//! maximum resident set size of `/usr/bin/time -v`).

use std::io::{Read, Write};
use std::net::TcpStream;

use server::Server;

#[path = "memory.rs"]
mod memory;
#[path = "server.rs"]
mod server;

fn peak_kib(server: &Server) -> f64 {
    memory::kib(&server.child, "VmHWM")
}

fn connect(address: &str, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.write_all(request.as_bytes()).expect("connected");
    stream
}

fn report(name: &str, count: u32, empty: f64, peak: f64) {
    let each = (peak - empty) / f64::from(count);
    println!(
        "{name}: {count} connections, peak {:.1} MiB ({each:.1} KiB each above {:.1} MiB)",
        peak / 1024.0,
        empty / 1024.0
    );
}

fn main() {
    let count: u32 = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(1_000);

    let (server, address) = server::start(&["--poll-timeout", "60s"]);
    let empty = peak_kib(&server);
    let sockets: Vec<TcpStream> = (0..count)
        .map(|n| {
            let request = format!(
                "GET /ws?session=S{n} HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            let mut stream = connect(&address, &request);
            // Reads the welcome frame, so that the socket is idle.
            let mut seen = Vec::new();
            while !seen.ends_with(b"\"}") {
                let mut byte = [0; 1];
                stream.read_exact(&mut byte).expect("a welcome");
                seen.push(byte[0]);
            }
            stream
        })
        .collect();
    report("idle WebSockets", count, empty, peak_kib(&server));
    drop((sockets, server));

    let (server, address) = server::start(&["--poll-timeout", "60s"]);
    let empty = peak_kib(&server);
    let body = |n| format!(r#"{{"type":"GET","session_src":"S{n}"}}"#);
    let mut polls: Vec<TcpStream> = (0..count)
        .map(|n| {
            let body = body(n);
            let head = format!(
                "POST /python/MsgHandler.py?a__={n} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            connect(&address, &(head + &body))
        })
        .collect();
    // Each of them is answered when its message comes, so all of them waited.
    let waiting = peak_kib(&server);
    for (n, poll) in polls.iter_mut().enumerate() {
        let body = format!(r#"{{"type":"SET","session_src":"A","session_dst":"S{n}","payload":{{}}}}"#);
        let head = format!(
            "POST /set HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut sent = String::new();
        connect(&address, &(head + &body)).read_to_string(&mut sent).expect("an answer");
        assert!(sent.contains("\"ok\""), "{sent}");
        let mut start = [0; 12];
        poll.read_exact(&mut start).expect("an answer");
        assert_eq!(&start, b"HTTP/1.1 200");
    }
    report("waiting polls", count, empty, waiting);
    report("the same, after each was answered", count, empty, peak_kib(&server));
}
