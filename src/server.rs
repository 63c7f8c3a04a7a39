//! Router, listener, connections, shutdown.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::{Router, body};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::Config;
use crate::edge::{Edge, Refusal};
use crate::engine::OpenError;
use crate::link::{Io, Link};
use crate::protocol::Code;
use crate::transport::{legacy, poll, sse, websocket};
use crate::{api, assets, ops};

/// How often expired messages and readers that did not come back are looked for.
const JANITOR: Duration = Duration::from_secs(1);

/// How long to wait when the system gives no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A broker with its ways in.
#[derive(Debug)]
pub struct Server {
    edge: Edge,
    router: Router,
    connections: TaskTracker,
    /// Stops the janitor with the server.
    _janitor: DropGuard,
}

impl Server {
    /// A server, and the task that keeps it tidy. Call it within a tokio runtime.
    ///
    /// # Errors
    /// The store cannot be used.
    pub fn new(config: Config, clock: Clock) -> Result<Self, OpenError> {
        let settings = config.settings(clock);
        let broker = Broker::new(settings, config.limits(), config.hub_slots, &config.storage())?;
        Ok(Self::with(broker, config))
    }

    /// A server of this broker. Call it within a tokio runtime.
    #[must_use]
    pub fn with(broker: Broker, config: Config) -> Self {
        let edge = Edge {
            broker: broker.clone(),
            config: Arc::new(config),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let (polls, pages) = (poll::Readers::default(), Arc::<legacy::Pages>::default());
        let router = Router::new()
            .merge(websocket::routes(edge.clone()))
            .merge(poll::routes(edge.clone(), Arc::clone(&polls)))
            .merge(sse::routes(edge.clone()))
            .merge(legacy::routes(edge.clone(), Arc::clone(&pages)))
            .merge(api::routes(edge.clone()))
            .merge(ops::routes(edge.clone()))
            .merge(assets::routes())
            .fallback(async || Refusal::new(Code::NotFound, "there is nothing at this address"))
            .method_not_allowed_fallback(async || {
                let text = "this address does not take this method";
                (
                    StatusCode::METHOD_NOT_ALLOWED,
                    body::Body::from(Refusal::new(Code::BadRequest, text).body()),
                )
            });
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            let mut every = interval(JANITOR);
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                every.tick().await;
                broker.expire().await;
                drop(polls.sweep());
                pages.sweep();
            }
        }));
        Self { edge, router, connections: TaskTracker::new(), _janitor: stop.drop_guard() }
    }

    /// The routes, for tests that need no socket.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// The broker behind it.
    #[must_use]
    pub fn broker(&self) -> &Broker {
        &self.edge.broker
    }

    /// Fires when the server is to stop.
    #[must_use]
    pub fn shutdown(&self) -> &CancellationToken {
        &self.edge.shutdown
    }

    /// Serves until [`Self::shutdown`] fires, then answers pending polls, closes sockets and waits for both,
    /// at most for the drain time.
    ///
    /// # Errors
    /// The listener has no address.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        let address = listener.local_addr()?;
        tracing::info!(%address, url = %format_args!("http://{address}/"), durability = self.edge.broker.durability(), "ready");
        let shutdown = self.edge.shutdown.clone();
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
        self.edge.tasks.close();
        let drained = async {
            self.connections.wait().await;
            self.edge.tasks.wait().await;
        };
        let limit = self.edge.config.drain_timeout;
        if timeout(limit, drained).await.is_err() {
            tracing::warn!(seconds = limit.as_secs_f32(), "some connections did not finish in time");
        }
        let broker = self.edge.broker.clone();
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
        let link = Link::new();
        let connection = self.connection(Io::tcp(stream, Arc::clone(&link)), link);
        self.connections.spawn(connection);
    }

    /// Serves one connection on any stream.
    pub fn connection<S>(&self, io: Io<S>, link: Arc<Link>) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let router = self.router.clone();
        let shutdown = self.edge.shutdown.clone();
        let header_timeout = self.edge.config.header_timeout;
        async move {
            let service = service_fn(move |request: hyper::Request<Incoming>| {
                let mut request: Request = request.map(body::Body::new);
                request.extensions_mut().insert(Arc::clone(&link));
                let router = router.clone();
                async move {
                    Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {}))
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(header_timeout)
                .serve_connection(TokioIo::new(io), service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
        }
    }
}

fn is_the_peers_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
