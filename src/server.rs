//! A broker with its routes, its listener and its shutdown.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::{Access, Config};
use crate::descriptors;
use crate::edge::Gateway;
use crate::engine::embedded::{Embedded, OpenError};
use crate::hub::Hubs;
use crate::identity::Identity;
use crate::limits::{ConnectionLimiter, ProvedAddresses, Rates};
use crate::link::Link;
use crate::reload::SetupError;
use crate::tls;
use crate::transport::legacy::LegacyReceipts;
use crate::transport::poll::PollReaders;

mod connection;
mod head;
mod janitor;
mod listener;
#[cfg(test)]
mod parity;
mod router;
mod settings;
mod streams;

pub use listener::listen;
pub use settings::{broker_limits, engine_settings, storage};

use connection::ConnectionServer;
use janitor::Janitor;
use listener::Acceptor;

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// A key or a certificate cannot be used.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// Why a server has ended other than by a stop in order.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It could not listen.
    #[error(transparent)]
    Listen(#[from] io::Error),
    /// The store cannot go on, for this reason.
    #[error("the store has failed: {0}; start the server again to recover what is stored")]
    Store(Arc<str>),
}

/// How long the store may take to be closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long it may take after a second signal.
const HURRIED_CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A broker with everything that reaches it over the network. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Server {
    gateway: Arc<Gateway>,
    acceptor: Acceptor,
    /// Ends the wait for connections during a stop.
    hurry: CancellationToken,
    /// Stops the janitor when the last clone is dropped.
    _janitor: Arc<DropGuard>,
}

impl Server {
    /// A server on the embedded engine, with a task that cleans regularly. Call it within a tokio runtime.
    ///
    /// # Errors
    /// The store, a key or a certificate cannot be used.
    pub fn new(config: Config, clock: Clock) -> Result<Self, StartError> {
        // Before the store: an invalid key is reported at once, though opening a large store takes time.
        let identity = Identity::new(&config.access)?;
        let hubs = Hubs::new(config.hub_slots).within(settings::budget(&config));
        let engine = Embedded::start(engine_settings(&config, clock), hubs.clone(), &storage(&config))?;
        let broker = Broker::new(engine.into(), hubs, broker_limits(&config), clock);
        Ok(Self::assemble(broker, identity, config)?)
    }

    /// A server of a broker on any engine. Call it within a tokio runtime.
    ///
    /// # Errors
    /// A key or a certificate cannot be used.
    pub fn with(broker: Broker, config: Config) -> Result<Self, SetupError> {
        let identity = Identity::new(&config.access)?;
        Self::assemble(broker, identity, config)
    }

    fn assemble(broker: Broker, identity: Identity, config: Config) -> Result<Self, SetupError> {
        let tls = config.access.tls_cert.as_ref().zip(config.access.tls_key.as_ref());
        let tls = tls.map(|(cert, key)| tls::server_config(cert, key)).transpose()?;
        let (connection_limiter, socket_limiter) =
            limits_of_addresses(&config.access, descriptors::for_connections());
        let gateway = Arc::new(Gateway {
            budget: broker.budget().clone(),
            broker,
            identity,
            rates: Rates::new(config.access.rate(), config.access.bytes_rate()),
            connection_limiter,
            proved_addresses: ProvedAddresses::default(),
            config,
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let (poll_readers, legacy_receipts) = (PollReaders::default(), Arc::<LegacyReceipts>::default());
        let connection_server = ConnectionServer {
            router: router::router(&gateway, &poll_readers, &legacy_receipts),
            shutdown: gateway.shutdown.clone(),
            header_timeout: gateway.config.header_timeout,
            heartbeat: gateway.config.heartbeat,
            socket_limiter: socket_limiter.clone(),
        };
        let acceptor = Acceptor {
            gateway: Arc::clone(&gateway),
            connection_server,
            tls,
            socket_limiter,
            connections: TaskTracker::new(),
        };
        let janitor = Janitor { gateway: Arc::clone(&gateway), poll_readers, legacy_receipts };
        Ok(Self { gateway, acceptor, hurry: CancellationToken::new(), _janitor: Arc::new(janitor.start()) })
    }

    /// The routes, for tests without a socket.
    pub fn router(&self) -> Router {
        self.acceptor.connection_server.router.clone()
    }

    /// The broker.
    #[must_use]
    pub fn broker(&self) -> &Broker {
        &self.gateway.broker
    }

    /// Cancelling this token stops the server.
    #[must_use]
    pub fn shutdown(&self) -> &CancellationToken {
        &self.gateway.shutdown
    }

    /// Cancelling this token too stops it without waiting for connections.
    #[must_use]
    pub fn hurry(&self) -> &CancellationToken {
        &self.hurry
    }

    /// Serves one connection that speaks HTTP/1.1, on any stream.
    pub fn connection<S>(&self, stream: S, link: Arc<Link>) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.acceptor.connection_server.http1(stream, link)
    }

    /// Serves until [`Self::shutdown`] is cancelled, or until the store cannot go on. Then it answers pending polls, closes
    /// sockets and waits for both, at most for the drain timeout, or until [`Self::hurry`] is cancelled.
    ///
    /// # Errors
    /// There is no listener, or one has no address. Or the store has failed.
    pub async fn serve(mut self, listeners: Vec<TcpListener>) -> Result<(), ServeError> {
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
        let address = *addresses.first().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let router = &mut self.acceptor.connection_server.router;
        // All addresses are of loopback, or none.
        *router = router::with_host_check(std::mem::take(router), &self.gateway, address.ip());
        let scheme = if self.acceptor.tls.is_some() { "https" } else { "http" };
        for also in &addresses[1..] {
            tracing::info!(address = %also, "listening here too");
        }
        tracing::info!(%address, url = %format_args!("{scheme}://{address}/"), durability = self.gateway.broker.durability(), "ready");
        let fatal = self.gateway.broker.fatal().clone();
        tokio::select! {
            () = self.acceptor.accept_all_until_shutdown(listeners) => {}
            _ = fatal.declared() => self.gateway.shutdown.cancel(),
        }
        tracing::info!("stopping");
        self.drain().await;
        self.close_store().await?;
        match fatal.reason() {
            Some(reason) => Err(ServeError::Store(reason)),
            None => {
                tracing::info!("stopped");
                Ok(())
            }
        }
    }

    /// Closes the store. A disk that does not answer is not waited for any longer: the next start recovers the store.
    async fn close_store(&self) -> Result<(), ServeError> {
        let broker = self.gateway.broker.clone();
        let closing = timeout(CLOSE_TIMEOUT, tokio::task::spawn_blocking(move || broker.close()));
        let hurried = async {
            self.hurry.cancelled().await;
            sleep(HURRIED_CLOSE_TIMEOUT).await;
        };
        let closed = tokio::select! {
            closed = closing => closed.ok(),
            () = hurried => None,
        };
        match closed {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(ServeError::Store(format!("closing it has panicked ({error})").into())),
            None => Err(ServeError::Store(
                "the disk of --data-dir does not answer; the store was not closed".into(),
            )),
        }
    }

    /// Waits until all connections have ended, at most for the drain timeout and until a second signal.
    async fn drain(&self) {
        let (connections, sockets) = (&self.acceptor.connections, &self.gateway.tasks);
        connections.close();
        sockets.close();
        let drained = async {
            connections.wait().await;
            sockets.wait().await;
        };
        let limit = self.gateway.config.drain_timeout;
        match self.hurry.run_until_cancelled(timeout(limit, drained)).await {
            Some(Ok(())) => {}
            Some(Err(_)) => {
                tracing::warn!(seconds = limit.as_secs_f32(), "some connections did not finish in time");
            }
            None => tracing::warn!("a second signal: not waiting for connections"),
        }
    }
}

/// The limits of requests and of sockets of one client address, if the process may have so many connections.
///
/// Unless the limit is set, one address gets at most a quarter of them for requests, half of them for sockets, and an
/// eighth for sockets that wait. So it cannot take all. There may be more sockets than requests, so that a client can
/// still be told why it is refused.
fn limits_of_addresses(access: &Access, connections: usize) -> (ConnectionLimiter, ConnectionLimiter) {
    let limit = access.max_connections_per_address();
    let sockets = |requests: usize| requests.saturating_mul(2).saturating_add(64);
    let (requests, sockets) = match access.connections_per_address {
        Some(_) => (limit, sockets(limit)),
        None => {
            let requests = limit.min(connections / 4).max(1);
            (requests, sockets(requests).min(connections / 2).max(1))
        }
    };
    let waiting = connections / 8;
    (ConnectionLimiter::new(requests), ConnectionLimiter::new(sockets).with_waiting(waiting))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Auth;

    #[test]
    fn one_address_cannot_take_all_connections_unless_its_limit_is_set() {
        let limits = |auth, set, connections| {
            let access = Access { auth, connections_per_address: set, ..Config::default().access };
            let (requests, sockets) = limits_of_addresses(&access, connections);
            (requests.limit(), sockets.limit())
        };
        assert_eq!(limits(Auth::Token, None, 500_000), (1024, 2112));
        assert_eq!(limits(Auth::Token, None, 960), (240, 480));
        assert_eq!(limits(Auth::Open, None, 960), (240, 480));
        assert_eq!(limits(Auth::Open, None, 2), (1, 1));
        assert_eq!(limits(Auth::Open, Some(0), 960), (usize::MAX, usize::MAX));
        assert_eq!(limits(Auth::Token, Some(5000), 960), (5000, 10_064));
    }
}
