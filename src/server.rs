//! Router, listener, connections, shutdown.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Router, body, middleware};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::Config;
use crate::edge::{Gateway, OriginCheck, Refusal, json, origin_refused, peer_of};
use crate::engine::OpenError;
use crate::identity::Identity;
use crate::limits::{ConnectionLimiter, ConnectionPermit, Rates};
use crate::link::{Link, MonitoredStream};
use crate::protocol::Code;
use crate::reload::{Current, SetupError};
use crate::transport::{legacy, poll, sse, websocket};
use crate::{api, assets, ops, tls};

/// How often expired messages and readers that did not come back are looked for.
const JANITOR: Duration = Duration::from_secs(1);

/// Room for the headers of one request, in bytes.
const HEADERS: usize = 64 * 1024;

/// Streams of one HTTP/2 connection at the same time.
const STREAMS: u32 = 100;

/// How long a peer may take to answer a ping over HTTP/2.
const PONG: Duration = Duration::from_secs(20);

/// How long a browser need not ask again whether a page may call `/v1`.
const PREFLIGHT: Duration = Duration::from_secs(3600);

/// How long to wait when the system gives no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a server cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// Keys or certificates cannot be used.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// A broker with its ways in.
#[derive(Debug, Clone)]
pub struct Server {
    gateway: Arc<Gateway>,
    router: Router,
    /// With which certificate TLS is spoken, if it is.
    tls: Option<Current<ServerConfig>>,
    /// Connections of the system, by client address: more of them than may be used, so that a refusal can be told.
    socket_limiter: ConnectionLimiter,
    connections: TaskTracker,
    /// Stops the janitor with the server.
    _janitor: Arc<DropGuard>,
}

impl Server {
    /// A server, and the task that keeps it tidy. Call it within a tokio runtime.
    ///
    /// # Errors
    /// The store, a key or a certificate cannot be used.
    pub fn new(config: Config, clock: Clock) -> Result<Self, StartError> {
        // Before the store: what is wrong with a key must not cost the time that takes.
        let identity = Identity::new(&config.access)?;
        let settings = config.settings(clock);
        let broker = Broker::new(settings, config.limits(), config.hub_slots, &config.storage())?;
        Ok(Self::of(broker, identity, config)?)
    }

    /// A server of this broker. Call it within a tokio runtime.
    ///
    /// # Errors
    /// A key or a certificate cannot be used.
    pub fn with(broker: Broker, config: Config) -> Result<Self, SetupError> {
        Self::of(broker, Identity::new(&config.access)?, config)
    }

    fn of(broker: Broker, identity: Identity, config: Config) -> Result<Self, SetupError> {
        let access = &config.access;
        let tls = access.tls_cert.as_ref().zip(access.tls_key.as_ref());
        let tls = tls.map(|(cert, key)| tls::server_config(cert, key)).transpose()?;
        let per_address = access.per_address();
        let rates = Rates::new(access.rate());
        let gateway = Arc::new(Gateway {
            broker: broker.clone(),
            identity,
            rates,
            connection_limiter: ConnectionLimiter::new(per_address),
            config,
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let (polls, pages) = (poll::PollReaders::default(), Arc::<legacy::LegacyReceipts>::default());
        let mut v1 = Router::new()
            .merge(poll::routes(gateway.clone(), Arc::clone(&polls)))
            .merge(sse::routes(gateway.clone()))
            .merge(api::routes(gateway.clone()))
            // Inside of what answers preflights.
            .method_not_allowed_fallback(wrong_method)
            .layer(middleware::from_fn_with_state(gateway.clone(), check_origin));
        if let Some(cors) = cors(&gateway.config.access.allow_origin) {
            v1 = v1.layer(cors);
        }
        let router = Router::new()
            .merge(v1)
            .merge(websocket::routes(gateway.clone()))
            .merge(legacy::routes(gateway.clone(), Arc::clone(&pages)))
            .merge(ops::routes(gateway.clone()))
            .merge(assets::routes())
            .fallback(async || Refusal::new(Code::NotFound, "there is nothing at this address"))
            .method_not_allowed_fallback(wrong_method);
        let (stop, swept) = (CancellationToken::new(), gateway.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            let mut every = interval(JANITOR);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                every.tick().await;
                broker.expire().await;
                drop(polls.sweep());
                pages.sweep();
                swept.rates.sweep();
            }
        }));
        let socket_limiter = ConnectionLimiter::new(per_address.saturating_mul(2).saturating_add(64));
        let _janitor = Arc::new(stop.drop_guard());
        Ok(Self { gateway, router, tls, socket_limiter, connections: TaskTracker::new(), _janitor })
    }

    /// The routes, for tests that need no socket.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// The broker behind it.
    #[must_use]
    pub fn broker(&self) -> &Broker {
        &self.gateway.broker
    }

    /// Fires when the server is to stop.
    #[must_use]
    pub fn shutdown(&self) -> &CancellationToken {
        &self.gateway.shutdown
    }

    /// Serves until [`Self::shutdown`] fires, then answers pending polls, closes sockets and waits for both,
    /// at most for the drain time.
    ///
    /// # Errors
    /// The listener has no address.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        let address = listener.local_addr()?;
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        tracing::info!(%address, url = %format_args!("{scheme}://{address}/"), durability = self.gateway.broker.durability(), "ready");
        let shutdown = self.gateway.shutdown.clone();
        while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => self.accept(stream, peer),
                // The connection died before it was taken.
                Err(error) if is_the_peers_fault(&error) => tracing::debug!(%error, "not accepted"),
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections; trying again");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        tracing::info!("stopping");
        self.connections.close();
        self.gateway.tasks.close();
        let drained = async {
            self.connections.wait().await;
            self.gateway.tasks.wait().await;
        };
        let limit = self.gateway.config.drain_timeout;
        if timeout(limit, drained).await.is_err() {
            tracing::warn!(seconds = limit.as_secs_f32(), "some connections did not finish in time");
        }
        let broker = self.gateway.broker.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || broker.close()).await {
            tracing::error!(%error, "the store was not closed");
        }
        tracing::info!("stopped");
        Ok(())
    }

    fn accept(&self, stream: TcpStream, peer: SocketAddr) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "no TCP_NODELAY");
        }
        let link = Link::with_peer(Some(peer.ip()));
        let io = MonitoredStream::tcp(stream, Arc::clone(&link));
        // Behind a proxy there are many.
        let counted =
            Some(peer.ip()).filter(|address| !self.gateway.config.access.is_trusted_proxy(*address));
        match (&self.tls, self.socket_limiter.try_acquire(counted)) {
            (None, Some(place)) => {
                let connection = self.connection(io, link);
                self.connections.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            (_, place) => {
                let server = self.clone();
                self.connections.spawn(async move {
                    if let Err(error) = server.receive(io, link, counted, place).await {
                        tracing::debug!(%peer, %error, "connection ended");
                    }
                });
            }
        }
    }

    /// Receives a connection that has to wait for its place, or speaks TLS.
    async fn receive(
        self,
        io: MonitoredStream<TcpStream>,
        link: Arc<Link>,
        counted: Option<IpAddr>,
        place: Option<ConnectionPermit>,
    ) -> io::Result<()> {
        let patience = self.gateway.config.header_timeout;
        let shutdown = &self.gateway.shutdown;
        // One too many from its address is held, and served as soon as another one leaves.
        let _place = match place {
            Some(place) => place,
            None => match shutdown
                .run_until_cancelled(timeout(patience, self.socket_limiter.acquire(counted)))
                .await
            {
                Some(Ok(Some(place))) => place,
                _ => return Ok(()),
            },
        };
        // Each step boxed: a connection keeps the room of the one it is at only.
        let Some(tls) = &self.tls else {
            Box::pin(self.connection(io, link)).await;
            return Ok(());
        };
        let accepting = Box::pin(timeout(patience, TlsAcceptor::from(tls.get()).accept(io)));
        let Some(Ok(accepted)) = shutdown.run_until_cancelled(accepting).await else { return Ok(()) };
        let stream = accepted?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Box::pin(self.connection_h2(stream, link)).await,
            _ => Box::pin(self.connection(stream, link)).await,
        }
        Ok(())
    }

    /// Serves one connection on any stream that speaks HTTP/1.1.
    pub fn connection<S>(&self, stream: S, link: Arc<Link>) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (router, shutdown) = (self.router.clone(), self.gateway.shutdown.clone());
        let header_timeout = self.gateway.config.header_timeout;
        async move {
            let service = service_fn(move |request| answer(router.clone(), Arc::clone(&link), request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(header_timeout)
                .max_buf_size(HEADERS)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            until_ended(connection, &shutdown, |connection| connection.graceful_shutdown()).await;
        }
    }

    /// Serves one connection that speaks HTTP/2; WebSockets too (RFC 8441).
    async fn connection_h2<S>(&self, stream: S, link: Arc<Link>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (router, shutdown) = (self.router.clone(), self.gateway.shutdown.clone());
        let first = Arc::new(Notify::new());
        let asked = Arc::clone(&first);
        let service = service_fn(move |request| {
            asked.notify_one();
            answer(router.clone(), Arc::clone(&link), request)
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .enable_connect_protocol()
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(u32::try_from(HEADERS).expect("it is below 2^32"))
            .keep_alive_interval(self.gateway.config.heartbeat)
            .keep_alive_timeout(PONG)
            .serve_connection(TokioIo::new(stream), service);
        let serving = until_ended(connection, &shutdown, |connection| connection.graceful_shutdown());
        let mut serving = std::pin::pin!(serving);
        // One that never asks for anything is given up like one that sends half a request.
        tokio::select! {
            () = &mut serving => return,
            asked = timeout(self.gateway.config.header_timeout, first.notified()) => {
                if asked.is_err() {
                    return;
                }
            }
        }
        serving.await;
    }
}

/// Serves a connection until it ends; from the shutdown on, until what it is at is answered.
async fn until_ended<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    shutdown: &CancellationToken,
    stop: impl FnOnce(Pin<&mut C>),
) {
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            stop(connection.as_mut());
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Refuses requests from pages of origins that are not allowed, also those whose answer the page does not need.
async fn check_origin(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let (uri, headers, peer) = (request.uri(), request.headers(), peer_of(request.extensions()));
    if (OriginCheck { uri, headers, peer }).origin_allowed(&gateway.config.access) {
        return next.run(request).await;
    }
    origin_refused(headers).into_response()
}

async fn wrong_method() -> Response {
    let refusal = Refusal::new(Code::BadRequest, "this address does not take this method");
    json(StatusCode::METHOD_NOT_ALLOWED, refusal.body())
}

/// Not an async function: that would keep the request's room while it is answered.
fn answer(
    router: Router,
    link: Arc<Link>,
    request: hyper::Request<Incoming>,
) -> impl Future<Output = Result<Response, Infallible>> {
    let mut request: Request = request.map(body::Body::new);
    request.extensions_mut().insert(link);
    router.oneshot(request)
}

/// What browsers are told of pages of other origins that call `/v1`.
fn cors(allowed: &[String]) -> Option<CorsLayer> {
    let origins = match allowed {
        [] => return None,
        some if some.iter().any(|origin| origin == "*") => AllowOrigin::any(),
        some => AllowOrigin::list(some.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    let headers = [header::AUTHORIZATION, header::CONTENT_TYPE, HeaderName::from_static("last-event-id")];
    Some(
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
            .allow_headers(headers)
            .max_age(PREFLIGHT),
    )
}

fn is_the_peers_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
