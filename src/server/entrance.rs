//! Where clients come in: limits of connections, TLS, the listener. It is open before the store is.

use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::Budget;
use crate::config::{Access, Config};
use crate::descriptors;
use crate::limits::{ConnectionLimiter, Rates};
use crate::reload::{Current, SetupError};
use crate::reloadable::Reloadable;
use crate::server::connection::ConnectionServer;
use crate::server::listener::Acceptor;
use crate::server::passing::Passing;
use crate::server::routes::Routes;
use crate::tls;

/// What accepts and serves connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Entrance {
    pub(super) acceptor: Acceptor,
    pub(super) routes: Routes,
    /// The settings of access in force.
    pub(super) access: Reloadable<Access>,
    /// How much each sender may send.
    pub(super) rates: Arc<Rates>,
    /// How many requests of each client address are served at the same time.
    pub(super) connection_limiter: ConnectionLimiter,
    /// Fires when the server stops.
    pub(super) shutdown: CancellationToken,
    /// Ends the wait for connections during a stop.
    pub(super) hurry: CancellationToken,
}

impl Entrance {
    /// An entrance with these settings, without routes yet. Call it within a tokio runtime.
    ///
    /// # Errors
    /// A certificate cannot be used.
    pub(super) fn new(config: &Arc<Config>, budget: Budget) -> Result<Self, SetupError> {
        let tls = config.access.tls_cert.as_ref().zip(config.access.tls_key.as_ref());
        let tls = tls.map(|(cert, key)| tls::server_config(cert, key).map(Reloadable::new)).transpose()?;
        let access = Reloadable::new(config.access.clone());
        let shutdown = CancellationToken::new();
        let routes = Routes::new(Arc::clone(config), budget, shutdown.clone());
        let acceptor = Self::acceptor(config, &routes, shutdown.clone(), (tls, access.clone()));
        let (connection_limiter, _) = limits_of_addresses(&config.access, descriptors::for_connections());
        let rates = Rates::new(config.access.rate(), config.access.bytes_rate()).into();
        let hurry = CancellationToken::new();
        Ok(Self { acceptor, routes, access, rates, connection_limiter, shutdown, hurry })
    }

    /// What accepts connections until a shutdown, and answers their requests by these routes.
    pub(super) fn acceptor(
        config: &Arc<Config>,
        routes: &Routes,
        shutdown: CancellationToken,
        (tls, access): (Option<Reloadable<Current<ServerConfig>>>, Reloadable<Access>),
    ) -> Acceptor {
        let (_, socket_limiter) = limits_of_addresses(&config.access, descriptors::for_connections());
        let connection_server = ConnectionServer {
            routes: routes.clone(),
            shutdown: shutdown.clone(),
            passing: Passing::default(),
            header_timeout: config.header_timeout,
            heartbeat: config.heartbeat,
            access: access.clone(),
            socket_limiter: socket_limiter.clone(),
        };
        Acceptor {
            config: Arc::clone(config),
            access,
            shutdown,
            connection_server: connection_server.into(),
            tls,
            socket_limiter,
            connections: TaskTracker::new(),
        }
    }

    /// What gives connections to a process that takes over.
    pub(super) fn passing(&self) -> &Passing {
        &self.acceptor.connection_server.passing
    }

    /// How long a stop waits for connections.
    pub(super) fn drain_timeout(&self) -> Duration {
        self.acceptor.config.drain_timeout
    }

    /// Waits until all connections have ended, and these sockets, at most for this time and until a second signal.
    pub(super) async fn drain(&self, sockets: &TaskTracker, limit: Duration) {
        let connections = &self.acceptor.connections;
        connections.close();
        sockets.close();
        let drained = async {
            connections.wait().await;
            sockets.wait().await;
        };
        match self.hurry.run_until_cancelled(tokio::time::timeout(limit, drained)).await {
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
pub(super) fn limits_of_addresses(
    access: &Access,
    connections: usize,
) -> (ConnectionLimiter, ConnectionLimiter) {
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
