//! The memory of the server while clients connect once and never return: in `open` mode, and with tokens. The session
//! of a token stays registered until the token expires.
//!
//!     cargo bench --bench abandoned [-- SESSIONS]
//!
//! Each client opens a WebSocket, says hello, is welcomed, and drops the connection without a close frame.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::{SinkExt, StreamExt};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use server::Server;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

#[path = "memory.rs"]
mod memory;
#[path = "server.rs"]
mod server;

/// The number of clients at the same time.
const AT_ONCE: usize = 64;

/// The lifetime of a token in seconds. The server adds 30 seconds of clock skew.
const GOOD: u64 = 10;

const SECRET: &str = "the secret of this measurement, which is nobody's";

/// In MiB.
fn memory(server: &Server) -> f64 {
    memory::kib(&server.child, "VmRSS") / 1024.0
}

async fn come_and_go(address: &str, n: usize, key: Option<&EncodingKey>) {
    let (mut socket, _) = connect_async(format!("ws://{address}/ws")).await.expect("the server listens");
    let session = format!("guest-{n}-that-never-comes-back");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
    let hello = match key {
        None => json!({ "type": "hello", "session": session }),
        Some(key) => {
            let claims = json!({ "sub": format!("user-{n}"), "sid": session, "exp": now + GOOD });
            json!({ "type": "hello", "token": encode(&Header::default(), &claims, key).expect("claims encode") })
        }
    };
    socket.send(Message::text(hello.to_string())).await.expect("connected");
    let welcome = socket.next().await.expect("an answer").expect("connected");
    let welcome: Value = serde_json::from_str(welcome.to_text().expect("a text frame")).expect("JSON");
    assert_eq!(welcome["type"], "welcome", "{welcome}");
}

fn main() {
    let sessions = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(200_000);
    let dir = tempfile::tempdir().expect("a directory for the key");
    let path = dir.path().join("secret");
    std::fs::write(&path, SECRET).expect("it can be written");
    let path = path.to_str().expect("a path");
    let guarded = ["--auth", "token", "--token-key-file", path, "--connections-per-address", "0"];
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for (name, args, key) in [
        ("open", &[][..], None),
        ("with tokens", &guarded[..], Some(EncodingKey::from_secret(SECRET.as_bytes()))),
    ] {
        let (server, address) = server::start(args);
        let empty = memory(&server);
        let begun = Instant::now();
        for quarter in 0..4 {
            let clients =
                (0..sessions / 4).map(|n| come_and_go(&address, quarter * (sessions / 4) + n, key.as_ref()));
            runtime
                .block_on(futures::stream::iter(clients).buffer_unordered(AT_ONCE).for_each(async |()| {}));
            println!(
                "{name}: {} sessions came and left within {:.0} s: {:.1} MiB above {empty:.1}",
                (quarter + 1) * (sessions / 4),
                begun.elapsed().as_secs_f64(),
                memory(&server) - empty
            );
        }
        for seconds in [20, 40, 60] {
            std::thread::sleep(Duration::from_secs(20));
            println!("{name}: {seconds} s later: {:.1} MiB above {empty:.1}", memory(&server) - empty);
        }
    }
}
