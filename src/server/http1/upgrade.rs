//! WebSocket handshakes on a connection of the loop. The socket then has the connection for itself.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::edge::Gateway;
use crate::server::http1::output::with_date;
use crate::server::router::HostCheck;
use crate::transport::websocket::{Opened, Opening};

/// Serves sockets whose handshakes the loop has read. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::server) struct Sockets {
    gateway: Arc<Gateway>,
    hosts: Option<HostCheck>,
}

impl Sockets {
    /// The sockets of a broker that checks hosts like this.
    pub(in crate::server) fn new(gateway: &Arc<Gateway>, hosts: Option<HostCheck>) -> Self {
        Self { gateway: Arc::clone(gateway), hosts }
    }

    /// Whether a handshake gets beyond the check of hosts. If not, hyper reads it again, and the routes refuse it.
    pub(super) fn admits(&self, opening: &Opening) -> bool {
        self.hosts.as_ref().is_none_or(|hosts| hosts.serves(opening.request().check))
    }

    /// Accepts a handshake, after which this was read. What is returned serves the socket.
    ///
    /// Boxed: a connection would make room for it before its first request.
    pub(super) fn accept<S>(
        &self,
        opening: Opening,
        stream: S,
        input: Vec<u8>,
    ) -> BoxFuture<'static, BoxFuture<'static, ()>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let answer = answer(&opening);
        Box::pin(opening.accept(Arc::clone(&self.gateway), Opened { stream, input, answer }))
    }
}

/// The same bytes that hyper writes.
fn answer(opening: &Opening) -> Vec<u8> {
    let mut answer = Vec::with_capacity(256);
    answer.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\n");
    opening.offer.write_headers(&mut answer);
    answer.extend_from_slice(b"date: ");
    with_date(|date| answer.extend_from_slice(date.as_bytes()));
    answer.extend_from_slice(b"\r\n\r\n");
    answer
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::server::http1::twin::{fates_of, server_of};
    use crate::server::router::with_host_check;
    use crate::server::routes::OpenRoutes;
    use crate::transport::testing::gateway;
    use crate::transport::websocket;

    const KEY: &str = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    /// A handshake with this target, and with these headers instead of the usual ones.
    fn handshake(target: &str, changes: &[(&str, &str)]) -> String {
        let usual = [
            ("host", "localhost"),
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let mut head = format!("GET {target} HTTP/1.1\r\n");
        let kept = usual.iter().filter(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
        for (name, value) in kept.chain(changes) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head + "\r\n"
    }

    /// Handshakes, and the status that answers them.
    fn handshakes() -> Vec<(String, u16)> {
        let ws = |name, value| handshake("/ws", &[(name, value)]);
        let plain = handshake("/ws", &[]);
        vec![
            // Taken by the loop.
            (plain.clone(), 101),
            (handshake("/ws?session=A", &[]), 101),
            (handshake("/ws?session=A&after=0", &[]), 101),
            (ws("connection", "keep-alive, Upgrade"), 101),
            (ws("connection", "upgrade,keep-alive"), 101),
            (ws("upgrade", "WebSocket"), 101),
            (ws("sec-websocket-protocol", "x0-msg.v1"), 101),
            (ws("sec-websocket-protocol", "other,\tx0-msg.v1 , x0-msg.v2"), 101),
            (ws("sec-websocket-protocol", "x0-msg.v2"), 101),
            (
                handshake("/ws", &[("sec-websocket-protocol", "a"), ("sec-websocket-protocol", "x0-msg.v1")]),
                101,
            ),
            (ws("sec-websocket-extensions", "permessage-deflate"), 101),
            (ws("origin", "http://localhost"), 101),
            // Refused in the socket.
            (ws("origin", "http://other.test"), 101),
            (handshake("/ws?session=A", &[("sec-fetch-site", "cross-site")]), 101),
            (handshake("/ws?session=", &[]), 101),
            (handshake("/ws?token=abc", &[]), 101),
            (handshake("/ws?session=A&window=0", &[]), 101),
            // Answered by hyper and the routes.
            (ws("connection", "Upgrade, close"), 101),
            (ws("connection", "upgraded"), 101),
            (ws("connection", "keep-alive"), 426),
            (plain.replace("connection", "x"), 426),
            (ws("upgrade", "h2c"), 426),
            (ws("upgrade", "websocket, h2c"), 426),
            (ws("sec-websocket-version", "8"), 426),
            (ws("sec-websocket-version", "13, 8"), 426),
            (plain.replace("sec-websocket-version", "x"), 426),
            (plain.replace(KEY, ""), 400),
            (plain.replace(KEY, &KEY.repeat(2)), 400),
            (ws("sec-websocket-key", "c2hvcnQ="), 400),
            (ws("content-length", "0"), 101),
            (ws("transfer-encoding", "gzip"), 400),
            (plain.replace("GET", "POST"), 426),
            (plain.replace("HTTP/1.1", "HTTP/1.0"), 426),
            (plain.replace("/ws", "/ws/"), 200),
            (plain.replace("/ws", "/w%73"), 200),
            (ws("host", "other.test"), 421),
            (ws("host", "a b"), 400),
            (handshake("/ws", &[("host", "localhost"), ("host", "localhost")]), 400),
            (plain.replace("host", "x"), 400),
        ]
    }

    /// A text frame with a mask of zeros.
    fn frame(text: &str) -> Vec<u8> {
        [&[0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0], text.as_bytes()].concat()
    }

    #[tokio::test]
    async fn handshakes_are_answered_as_by_hyper_and_the_routes() {
        let gateway = gateway(&[]);
        let hosts = HostCheck::new(&gateway, Ipv4Addr::LOCALHOST.into()).unwrap();
        let routes = websocket::routes(Arc::clone(&gateway)).fallback(async || "other");
        let router = with_host_check(routes, hosts.clone());
        let sockets = Some(Sockets::new(&gateway, Some(hosts)));
        let server = server_of(OpenRoutes { router, direct: None, sockets });
        let frames = [frame(r#"{"type":"hello","session":"A"}"#), frame(r#"{"type":"ping"}"#)].concat();
        for (head, status) in handshakes() {
            let with_frames = [head.as_bytes(), &frames].concat();
            let begun = [head.as_bytes(), &frames[..3]].concat();
            let (first, rest) = head.as_bytes().split_at(head.len() / 2);
            let (most, last) = head.as_bytes().split_at(head.len() - 1);
            for parts in [
                &[head.as_bytes()][..],
                &[first, rest],
                &[most, last, &frames],
                &[&with_frames],
                &[&begun, &frames[3..]],
                &[&with_frames, &frame("no JSON"), &[0x88, 0x80, 0, 0, 0, 0]],
            ] {
                for closes in [false, true] {
                    let [ours, theirs] = fates_of(&server, parts, closes).await;
                    assert_eq!(ours, theirs, "{head}");
                    assert_eq!(ours.answers.get(9..12), Some(&*status.to_string()), "{head} {ours:?}");
                }
            }
        }
    }
}
