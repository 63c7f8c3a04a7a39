//! The latency of a message on loopback at 100 messages a second: from a legacy SET to the answer of a waiting legacy
//! poll, and from a WebSocket send to the WebSocket message.
//!
//!     cargo bench --bench latency [-- MESSAGES]
//!
//! It starts the release binary on a free port, and measures both in turn, message by message.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use http::Http;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

#[path = "http.rs"]
mod http;
#[path = "server.rs"]
mod server;

const PAUSE: Duration = Duration::from_millis(10);

/// Sends a request as an x0 page does.
fn x0(http: &mut Http, body: &Value) {
    http.request("POST", &format!("/python/MsgHandler.py?a__={}", fastrand::u64(..)), &body.to_string());
}

fn socket(address: &str, session: &str) -> WebSocket<TcpStream> {
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_nodelay(true).expect("a TCP socket");
    let (mut socket, _) = client(format!("ws://{address}/ws?session={session}"), stream).expect("an upgrade");
    receive(&mut socket, "welcome");
    socket
}

fn receive(socket: &mut WebSocket<TcpStream>, kind: &str) -> Value {
    loop {
        if let Message::Text(text) = socket.read().expect("connected") {
            let frame: Value = serde_json::from_str(&text).expect("frames are JSON");
            if frame["type"] == kind {
                return frame;
            }
        }
    }
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    println!(
        "{name}: p50 {:.3} ms, p99 {:.3} ms, max {:.3} ms ({} messages)",
        at(50),
        at(99),
        at(100),
        times.len()
    );
}

fn main() {
    let count = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(5_000);
    let (_server, address) = server::start(&[]);
    let (mut setter, mut poller) = (Http::connect(&address), Http::connect(&address));
    let (mut from, mut to) = (socket(&address, "from"), socket(&address, "to"));
    let (mut polls, mut sockets) = (Vec::new(), Vec::new());
    for n in 0..count {
        x0(&mut poller, &json!({ "type": "GET", "session_src": "poller" }));
        std::thread::sleep(PAUSE);
        let begun = Instant::now();
        let set =
            json!({ "type": "SET", "session_src": "A", "session_dst": "poller", "payload": { "n": n } });
        x0(&mut setter, &set);
        let answer = poller.answer();
        polls.push(begun.elapsed());
        assert!(answer.contains(&format!("\"n\":{n},")), "{answer}");
        setter.answer();

        let send = json!({ "type": "send", "to": { "session": "to" }, "payload": { "n": n } }).to_string();
        let begun = Instant::now();
        from.send(Message::text(send)).expect("connected");
        let message = receive(&mut to, "message");
        sockets.push(begun.elapsed());
        assert_eq!(message["payload"]["n"], n);
        to.send(Message::text(json!({ "type": "ack", "seq": message["seq"] }).to_string()))
            .expect("connected");
        receive(&mut from, "sent");
    }
    report("legacy SET to poll answer", polls);
    report("WebSocket send to message", sockets);
}
