//! Serves one connection: HTTP/1.1 with upgrades, or HTTP/2, whose streams are in [`streams`].
//!
//! hyper-util's `server::conn::auto` is not used. It finds out the version from the first bytes and has no deadline for
//! them, and it would speak HTTP/2 without TLS. Here ALPN decides.

use std::convert::Infallible;
use std::future::ready;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::future::Either;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::Access;
use crate::edge::Refusal;
use crate::limits::{ConnectionLimiter, ConnectionPermit, ExtraPlace};
use crate::link::Link;
use crate::metrics::{self, Limit};
use crate::protocol::Code;
use crate::reloadable::Reloadable;
use crate::server::direct::Door;
use crate::server::head;
use crate::server::http1::HeadTimer;
use crate::server::passing::{Busy, BusyBody, Passing};
use crate::server::requests::{self, Logged};
use crate::server::routes::Routes;
use crate::server::streams::{self, Streams, TrackedBody};
use crate::sync::lock;
use crate::transport::legacy;

/// Most bytes of the headers of one request.
const HEADERS: usize = 64 * 1024;

/// Most concurrent streams of one HTTP/2 connection.
const STREAMS: u32 = 100;

/// Most bytes that a peer may send on one stream before its request is read. A body of the largest size takes a round
/// trip for each of these.
const STREAM_WINDOW: u32 = 64 * 1024;

/// Most bytes that it may send so on all streams of a connection together.
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;

/// Bytes of a response that a stream holds besides those that wait in its body.
const SEND_BUFFER: usize = 16 * 1024;

/// Most bytes of the headers of one request on a connection above the limit of its address.
const HEADERS_ABOVE_LIMIT: usize = 16 * 1024;

/// How long the end of an idle connection may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a peer may take to answer a ping over HTTP/2.
const PONG_TIMEOUT: Duration = Duration::from_secs(20);

/// How connections are served. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ConnectionServer {
    /// Answers the requests.
    pub(super) routes: Routes,
    /// Fires when connections end after the request that they serve.
    pub(super) shutdown: CancellationToken,
    /// Takes those that serve none then.
    pub(super) passing: Passing,
    /// How long the headers of a request may take, and how long a connection may idle between requests.
    pub(super) header_timeout: Duration,
    /// Interval of pings over HTTP/2.
    pub(super) heartbeat: Duration,
    /// The settings of access in force.
    pub(super) access: Reloadable<Access>,
    /// Counts the streams of HTTP/2 as connections of their address.
    pub(super) socket_limiter: ConnectionLimiter,
}

/// How a connection of an address at its limit counts.
enum Seat {
    /// Its address has no permit for it yet.
    Extra(#[expect(dead_code, reason = "it is held")] ExtraPlace),
    /// As any other.
    Counted(#[expect(dead_code, reason = "it is held")] ConnectionPermit),
}

impl ConnectionServer {
    /// Serves a connection that speaks HTTP/1.1.
    pub(super) fn http1<S>(
        &self,
        stream: S,
        link: Arc<Link>,
        timer: HeadTimer,
    ) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let server = self.clone();
        async move {
            let ConnectionServer { shutdown, passing, header_timeout, .. } = server.clone();
            let busy = Busy::default();
            let service = {
                let (link, busy) = (Arc::clone(&link), busy.clone());
                service_fn(move |request| {
                    let guard = busy.begin();
                    let answering = server.answer(&link, request);
                    answering
                        .map(|answer| answer.map(|response| response.map(|body| BusyBody::new(body, guard))))
                })
            };
            let mut connection = http1::Builder::new()
                .timer(timer)
                .header_read_timeout(header_timeout)
                .max_buf_size(HEADERS)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            // The connection first: what was read before it began may be a request.
            let ended = tokio::select! {
                biased;
                ended = &mut connection => ended,
                () = shutdown.cancelled() => {
                    if busy.is_idle() && passing.takes(&link) {
                        if let Some(parts) = connection.into_parts() {
                            passing.pass(&link, parts.read_buf.to_vec());
                        }
                        return;
                    }
                    Pin::new(&mut connection).graceful_shutdown();
                    connection.await
                }
            };
            log_end(ended);
        }
    }

    /// Serves a connection that speaks HTTP/1.1, of an address that is at its limit. Requests wait for a permit, and are
    /// refused when they have waited. Those of the x0 client do not: its page would stop for good. Its polls are held.
    pub(super) async fn http1_above_limit<S>(
        &self,
        stream: S,
        link: Arc<Link>,
        (counted, place): (Option<IpAddr>, ExtraPlace),
    ) where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (server, seat) = (self.clone(), Arc::new(Mutex::new(Seat::Extra(place))));
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let seated = server.clone().seat(Arc::clone(&seat), counted);
            let is_x0 = legacy::is_path(request.uri().path());
            let logged = server.logged(&link, &request);
            let answering = server.answer(&link, request);
            async move {
                match is_x0 || seated.await {
                    true => answering.await,
                    false => Ok(closing(too_many_connections(logged))),
                }
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(HEADERS_ABOVE_LIMIT)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        serve_until_shutdown(connection, &self.shutdown, |connection| connection.graceful_shutdown()).await;
    }

    /// Waits for a permit, which the connection keeps. Returns whether it has one.
    async fn seat(self, seat: Arc<Mutex<Seat>>, counted: Option<IpAddr>) -> bool {
        if matches!(*lock(&seat), Seat::Counted(_)) {
            return true;
        }
        let acquired = timeout(self.header_timeout, self.socket_limiter.acquire(counted));
        let Some(Ok(Some(permit))) = self.shutdown.run_until_cancelled(acquired).await else { return false };
        *lock(&seat) = Seat::Counted(permit);
        true
    }

    /// Serves a connection that speaks HTTP/2, with WebSockets in it (RFC 8441). Its streams count for this address. Without
    /// any stream for the header timeout it ends.
    pub(super) async fn http2<S>(&self, stream: S, link: Arc<Link>, counted: Option<IpAddr>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let streams = Streams::new(Arc::clone(&link));
        let server = self.clone();
        let service = service_fn(move |request| server.answer_stream(&link, counted, request));
        let connection = http2::Builder::new(streams.clone())
            .timer(TokioTimer::new())
            .enable_connect_protocol()
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(HEADERS).expect("it is below 2^32"))
            .keep_alive_interval(self.heartbeat)
            .keep_alive_timeout(PONG_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = streams.idle(self.header_timeout) => {
                connection.as_mut().graceful_shutdown();
                timeout(GOODBYE_TIMEOUT, connection).await.unwrap_or(Ok(()))
            }
        };
        log_end(ended);
    }

    /// Answers the request of one stream, once its address may have another connection.
    fn answer_stream(
        &self,
        link: &Arc<Link>,
        counted: Option<IpAddr>,
        request: hyper::Request<Incoming>,
    ) -> impl Future<Output = Result<hyper::Response<TrackedBody>, Infallible>> + Send + use<> {
        let is_x0 = legacy::is_path(request.uri().path());
        let permit = self.socket_limiter.try_acquire(counted);
        let waiting = permit.is_none().then(|| {
            let (limiter, patience) = (self.socket_limiter.clone(), self.header_timeout);
            Box::pin(async move { timeout(patience, limiter.acquire(counted)).await.ok().flatten() })
        });
        let logged = self.logged(link, &request);
        let answering = self.answer(link, request);
        async move {
            let permit = match waiting {
                Some(waiting) => waiting.await,
                None => permit,
            };
            let response = match permit {
                Some(permit) => {
                    streams::keep(permit);
                    answering.await
                }
                // Its page would stop for good. It has waited.
                None if is_x0 => answering.await,
                None => Ok(too_many_connections(logged)),
            };
            response.map(streams::track)
        }
    }

    fn logged<B>(&self, link: &Link, request: &hyper::Request<B>) -> Logged {
        let name = Door::name_of(request.uri().path(), request.method());
        Logged::new(name, &self.access.get(), link, request.headers().into())
    }

    /// Answers one request. Not an async function: its future would hold the request while it is answered.
    fn answer(
        &self,
        link: &Arc<Link>,
        request: hyper::Request<Incoming>,
    ) -> impl Future<Output = Result<Response, Infallible>> + Send + use<> {
        let logged = self.logged(link, &request);
        let authority = request.uri().authority().map(|authority| authority.as_str());
        if let Err(text) = head::check(request.version(), authority, request.headers().into()) {
            return Either::Left(ready(Ok(refuse_for_good(text, logged))));
        }
        let mut request: Request = request.map(body::Body::new);
        let door = Door::of(request.method(), request.uri().path());
        let span = logged.span(request.headers().into());
        request.extensions_mut().insert(Arc::clone(link));
        let answering = requests::traced_response(span, self.routes.answer(door, request));
        Either::Right(answering.map(move |response| {
            logged.answered(&response);
            Ok(response)
        }))
    }
}

/// Serves a connection until it ends. After the shutdown it ends as soon as its requests are answered.
async fn serve_until_shutdown<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    shutdown: &CancellationToken,
    graceful_shutdown: impl FnOnce(Pin<&mut C>),
) {
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            graceful_shutdown(connection.as_mut());
            connection.await
        }
    };
    log_end(ended);
}

fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// The answer to a request above the limit of its address.
fn too_many_connections(logged: Logged) -> Response {
    metrics::limited(Limit::ConnectionsOfAddress).count();
    let text = "too many connections from this address already, streams of HTTP/2 included (see --connections-per-address)";
    refused(Refusal::new(Code::RateLimited, text), logged)
}

fn refused(refusal: Refusal, logged: Logged) -> Response {
    let response = refusal.into_response();
    logged.answered(&response);
    response
}

/// Refuses a request whose end is in doubt: nothing else is read from its connection.
fn refuse_for_good(text: &'static str, logged: Logged) -> Response {
    closing(refused(Refusal::new(Code::BadRequest, text), logged))
}

/// A response after which its connection ends.
fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use tokio::sync::Notify;

    use super::*;
    use crate::budget::Budget;
    use crate::config::Config;
    use crate::server::routes::OpenRoutes;

    const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

    /// Answers `/` at once, and `/wait` as soon as the notification comes.
    fn server(answer: &Arc<Notify>) -> ConnectionServer {
        let answer = Arc::clone(answer);
        let wait = async move || {
            answer.notified().await;
            "waited"
        };
        let (config, shutdown) = (Config::default(), CancellationToken::new());
        let access = Reloadable::new(config.access.clone());
        let routes = Routes::new(config.into(), Budget::new(Budget::MOST), shutdown.clone());
        let router = Router::new().route("/", get(async || "hello")).route("/wait", get(wait));
        routes.open(OpenRoutes::all(router));
        ConnectionServer {
            routes,
            shutdown,
            passing: Passing::default(),
            header_timeout: HEADER_TIMEOUT,
            heartbeat: Duration::from_secs(25),
            access,
            socket_limiter: ConnectionLimiter::new(usize::MAX),
        }
    }

    fn link() -> Arc<Link> {
        Link::with_peer(None)
    }

    /// Reads until the text comes; fails at the end of the stream.
    async fn read_until(stream: &mut DuplexStream, text: &str) {
        let mut read = String::new();
        while !read.contains(text) {
            let mut buffer = [0; 1024];
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "{text} is not in {read}");
            read.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_ends_after_the_header_timeout() {
        let server = server(&Arc::default());
        let (_client, stream) = duplex(1024);
        let begun = Instant::now();
        server.http1(stream, link(), HeadTimer::default()).await;
        assert_eq!(begun.elapsed(), HEADER_TIMEOUT);
        let (_client, stream) = duplex(1024);
        let begun = Instant::now();
        server.http2(stream, link(), None).await;
        assert_eq!(begun.elapsed(), HEADER_TIMEOUT + GOODBYE_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_may_idle_for_the_header_timeout_between_requests() {
        let server = server(&Arc::default());
        let (mut client, stream) = duplex(1024);
        let serving = tokio::spawn(server.http1(stream, link(), HeadTimer::default()));
        for _ in 0..2 {
            tokio::time::sleep(HEADER_TIMEOUT / 2).await;
            client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            read_until(&mut client, "hello").await;
        }
        let begun = Instant::now();
        serving.await.unwrap();
        assert_eq!(begun.elapsed(), HEADER_TIMEOUT);
    }

    #[tokio::test]
    async fn a_shutdown_waits_for_the_answer_of_a_request() {
        let answer = Arc::new(Notify::new());
        let server = server(&answer);
        let (mut client, stream) = duplex(1024);
        let serving = tokio::spawn(server.http1(stream, link(), HeadTimer::default()));
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        read_until(&mut client, "hello").await;
        server.shutdown.cancel();
        answer.notify_one();
        read_until(&mut client, "waited").await;
        serving.await.unwrap();
        assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0, "closed after the answer");
    }

    #[tokio::test]
    async fn a_shutdown_ends_an_idle_connection() {
        let server = server(&Arc::default());
        let (_client, stream) = duplex(1024);
        server.shutdown.cancel();
        server.http1(stream, link(), HeadTimer::default()).await;
    }
}
