//! The memory of connections that wait.

use std::collections::HashSet;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::common::*;

/// Polls that come first: what the server allocates once for all of them does not count.
const FIRST: usize = 300;

/// Polls that are measured.
const MEASURED: usize = 2_000;

/// Most bytes of a waiting poll of an x0 page. A buffer that is held meanwhile takes 8 KiB.
const MOST_OF_X0: usize = 4_608;

/// Most bytes of a waiting native poll.
const MOST_OF_NATIVE: usize = 5_120;

/// The resident memory of a server in bytes.
fn resident(server: &TestServer) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Sends these requests, each on a connection of its own, and waits until all of their sessions are read.
async fn poll(
    server: &TestServer,
    numbers: std::ops::Range<usize>,
    request: fn(usize) -> String,
) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for n in numbers.clone() {
        let mut stream = soon(TcpStream::connect(server.address)).await.unwrap();
        soon(stream.write_all(request(n).as_bytes())).await.unwrap();
        streams.push(stream);
    }
    let mut http = server.http().await;
    let mut missing: HashSet<usize> = numbers.collect();
    soon(async {
        while let Some(n) = missing.iter().next().copied() {
            let state = http.get(&format!("/v1/sessions/S{n}")).await.json();
            let connections = state["connections"].as_object().into_iter().flatten();
            if connections.into_iter().any(|(_, count)| count.as_u64() > Some(0)) {
                missing.remove(&n);
            }
        }
    })
    .await;
    streams
}

/// Bytes of each poll, as soon as they are no more than `most`. The allocator gives back what it does not need after a while.
async fn each(request: fn(usize) -> String, most: usize) -> usize {
    let args = ["--durability", "memory", "--poll-timeout", "10m", "--connections-per-address", "0"];
    let server = TestServer::with(&args).await;
    let _first = poll(&server, 0..FIRST, request).await;
    let before = resident(&server);
    let _measured = poll(&server, FIRST..FIRST + MEASURED, request).await;
    let mut least = usize::MAX;
    _ = tokio::time::timeout(SOON, async {
        while least > most {
            least = least.min(resident(&server).saturating_sub(before) / MEASURED);
            tokio::task::yield_now().await;
        }
    })
    .await;
    least
}

#[tokio::test]
async fn a_waiting_poll_of_an_x0_page_takes_little() {
    let request = |n| {
        let body = format!(r#"{{"type":"GET","session_src":"S{n}"}}"#);
        format!(
            "POST /python/MsgHandler.py?a__={n} HTTP/1.1\r\nhost: localhost\r\norigin: http://x0-app.x0.localnet\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let each = each(request, MOST_OF_X0).await;
    assert!(each <= MOST_OF_X0, "{each} bytes");
}

#[tokio::test]
async fn a_waiting_native_poll_takes_little() {
    let request = |n| format!("GET /v1/messages?session=S{n}&wait=60 HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let each = each(request, MOST_OF_NATIVE).await;
    assert!(each <= MOST_OF_NATIVE, "{each} bytes");
}
