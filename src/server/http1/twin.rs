//! The loop and hyper side by side, on a server that answers with what it was asked. For tests and fuzzers.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::StatusCode;
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::runtime;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use crate::budget::Budget;
use crate::config::Config;
use crate::limits::ConnectionLimiter;
use crate::link::Link;
use crate::reloadable::Reloadable;
use crate::server::connection::ConnectionServer;
use crate::server::http1::HeadTimer;
use crate::server::http1::head::MOST;
use crate::server::passing::Passing;
use crate::server::routes::{OpenRoutes, Routes};

/// Bytes on their way in each direction.
const ROOM: usize = 1 << 20;

/// How often the server may go on after each part. It waits for nothing else.
const TURNS: usize = 24;

/// What a connection did with some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fate {
    /// All answers, without their dates.
    pub(super) answers: String,
    /// Whether the server has ended the connection.
    pub(super) ended: bool,
}

/// What the loop does with bytes that come in these parts, and what hyper alone does. With `closes`, the client then closes
/// its side.
pub(super) async fn fates(parts: &[&[u8]], closes: bool) -> [Fate; 2] {
    fates_of(&server(), parts, closes).await
}

/// The same, of a connection to this server.
pub(super) async fn fates_of(server: &Arc<ConnectionServer>, parts: &[&[u8]], closes: bool) -> [Fate; 2] {
    let link = Link::new();
    let (peer, stream) = duplex(ROOM);
    let ours = fate(server.http1_cleartext(stream, Arc::clone(&link)), peer, parts, closes).await;
    let (peer, stream) = duplex(ROOM);
    let theirs = fate(server.http1(stream, link, HeadTimer::default()), peer, parts, closes).await;
    [ours, theirs]
}

/// Compares both on arbitrary bytes. The first one says how they are split, and whether the client closes.
pub(crate) fn compare(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else { return };
    // Of a longer head, hyper gets a larger part at once than it would read.
    if bytes.len() >= MOST {
        return;
    }
    let size = bytes.len().div_ceil(1 + usize::from(how >> 1) % 8).max(1);
    let parts: Vec<&[u8]> = bytes.chunks(size).collect();
    let runtime = runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let [ours, theirs] = runtime.block_on(fates(&parts, how & 1 == 1));
    assert_eq!(
        ours,
        theirs,
        "{:?}",
        parts.iter().map(|part| part.escape_ascii().to_string()).collect::<Vec<_>>()
    );
}

/// A server that answers with what it was asked.
pub(super) fn server() -> Arc<ConnectionServer> {
    server_of(OpenRoutes { router: Router::new().fallback(echo), direct: None, sockets: None })
}

/// A server with these routes.
pub(super) fn server_of(open: OpenRoutes) -> Arc<ConnectionServer> {
    let (config, shutdown) = (Config::default(), CancellationToken::new());
    let access = Reloadable::new(config.access.clone());
    let routes = Routes::new(config.into(), Budget::new(Budget::MOST), shutdown.clone());
    routes.open(open);
    Arc::new(ConnectionServer {
        routes,
        shutdown,
        passing: Passing::default(),
        header_timeout: Duration::from_secs(30),
        heartbeat: Duration::from_secs(25),
        access,
        socket_limiter: ConnectionLimiter::new(usize::MAX),
    })
}

/// Answers with the request.
async fn echo(request: Request) -> (StatusCode, String) {
    let (head, body) = request.into_parts();
    match to_bytes(body, ROOM).await {
        Ok(body) => {
            let said = (head.method, head.uri, head.version, head.headers, body);
            (StatusCode::OK, format!("{said:?}"))
        }
        Err(_) => (StatusCode::BAD_REQUEST, "cut off".to_owned()),
    }
}

async fn fate(
    serving: impl Future<Output = ()> + Send + 'static,
    mut peer: DuplexStream,
    parts: &[&[u8]],
    closes: bool,
) -> Fate {
    let serving = tokio::spawn(serving);
    for part in parts {
        // The server may have ended the connection.
        _ = peer.write_all(part).await;
        turns().await;
    }
    if closes {
        _ = peer.shutdown().await;
        turns().await;
    }
    let mut bytes = Vec::new();
    let ended = loop {
        match peer.read_buf(&mut bytes).now_or_never() {
            None => break false,
            Some(Ok(0) | Err(_)) => break true,
            Some(Ok(_)) => {}
        }
    };
    serving.abort();
    let text = String::from_utf8_lossy(&bytes);
    Fate {
        answers: text.split("\r\n").filter(|line| !line.starts_with("date: ")).collect::<Vec<_>>().join("\n"),
        ended,
    }
}

async fn turns() {
    for _ in 0..TURNS {
        yield_now().await;
    }
}
