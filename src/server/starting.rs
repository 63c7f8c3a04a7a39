//! A server before its store is open: the port is open, checks are answered, polls of the x0 client are held.

use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::Config;
use crate::handover::{Event, Listeners, Predecessor};
use crate::identity::Identity;
use crate::reload::SetupError;
use crate::server::entrance::Entrance;
use crate::server::error::{EngineStartError, ServeError};
use crate::server::listener::{Acceptor, Addresses, for_runtime};
use crate::server::opening::Opening;
use crate::server::ops_port::OpsPort;
use crate::server::reloading::{Parts, Reloader};
use crate::server::upgrade::{Serving, Upgrades, Upgrading};
use crate::server::{Ended, Server, stop};

/// A server whose store is not open yet.
#[derive(Debug)]
pub struct Starting {
    config: Arc<Config>,
    identity: Arc<Identity>,
    reloader: Reloader,
    entrance: Entrance,
    opening: Opening,
    ops_port: Option<OpsPort>,
    clients: Vec<TcpListener>,
    upgrades: Upgrades,
    upgrading: Upgrading,
}

impl Starting {
    /// A server with these settings and sockets. Keys and certificates are checked at once. Operators are served from now on. Call it
    /// within a tokio runtime.
    ///
    /// # Errors
    /// A key or a certificate cannot be used, or a socket.
    pub fn new(config: Config, listeners: Listeners, clock: Clock) -> Result<Self, StartingError> {
        let identity = Arc::new(Identity::new(&config.access)?);
        let (config, opening) = Opening::new(config, clock);
        let entrance = Entrance::new(&config, opening.budget().clone())?;
        let reloader = Reloader::new(Parts {
            config: Mutex::new((*config).clone()),
            access: entrance.access.clone(),
            identity: Arc::clone(&identity),
            rates: Arc::clone(&entrance.rates),
            tls: entrance.acceptor.tls.clone(),
            connection_limiter: entrance.connection_limiter.clone(),
            socket_limiter: entrance.acceptor.socket_limiter.clone(),
        });
        let (upgrades, upgrading) = Upgrading::new(listeners.try_clone()?);
        let operators = for_runtime(listeners.operators)?;
        let ops_port = match operators.is_empty() {
            true => None,
            false => {
                let budget = opening.budget().clone();
                Some(OpsPort::open(operators, &config, budget, &entrance.shutdown)?)
            }
        };
        let clients = for_runtime(listeners.clients)?;
        Ok(Self { config, identity, reloader, entrance, opening, ops_port, clients, upgrades, upgrading })
    }

    /// Takes changed settings over while the server runs.
    #[must_use]
    pub fn reloader(&self) -> &Reloader {
        &self.reloader
    }

    /// Hands over to a new process.
    #[must_use]
    pub fn upgrades(&self) -> &Upgrades {
        &self.upgrades
    }

    /// Cancelling this token stops the server.
    #[must_use]
    pub fn shutdown(&self) -> &CancellationToken {
        &self.entrance.shutdown
    }

    /// Cancelling this token too stops it without waiting for connections.
    #[must_use]
    pub fn hurry(&self) -> &CancellationToken {
        &self.entrance.hurry
    }

    /// Accepts connections, opens the store once a `predecessor` has closed it, and serves; see [`Server::serve`].
    ///
    /// # Errors
    /// The store cannot be opened, and those of [`Server::serve`].
    pub async fn serve(self, predecessor: Option<Predecessor>) -> Result<Ended, ServeError> {
        let Self { config, identity, entrance, opening, ops_port, clients, upgrading, .. } = self;
        let addresses = Addresses::of(&clients)?;
        addresses.log_start(&config);
        let acceptor = entrance.acceptor.clone();
        let mut accepting = pin!(acceptor.accept_all_until_shutdown(clients));
        if let Some(predecessor) = &predecessor {
            entrance.routes.take_over();
            if let Some(ops_port) = &ops_port {
                ops_port.take_over();
            }
            tokio::select! {
                () = take_over(predecessor, &acceptor) => {}
                () = accepting.as_mut() => {
                    drop(upgrading);
                    tracing::info!("stopping");
                    entrance.drain(&TaskTracker::new(), entrance.drain_timeout()).await;
                    return Ok(Ended::Stopped);
                }
            }
        }
        let mut opening = spawn_blocking(move || opening.open());
        let opened = tokio::select! {
            opened = &mut opening => opened,
            () = accepting.as_mut() => {
                drop(upgrading);
                return stop_early(&entrance, opening).await;
            }
        };
        let broker = without_panic(opened)?;
        let server = Server::assemble(broker, identity, config, entrance);
        if let Some(ops_port) = &ops_port {
            ops_port.serve(&server.gateway);
        }
        // The port of operators is closed at the end of this.
        server.serve_accepted(accepting, &addresses, Some(Serving { upgrading, predecessor })).await
    }
}

/// Takes connections of the process that hands over, until it has closed the store.
async fn take_over(predecessor: &Predecessor, acceptor: &Acceptor) {
    // If it has ended, it has released the store too.
    _ = predecessor.say_ready().await;
    let mut taken: usize = 0;
    while let Event::Connection(connection) = predecessor.next().await {
        match acceptor.take(connection) {
            Ok(()) => taken += 1,
            Err(error) => tracing::debug!(%error, "a connection has ended before it was taken over"),
        }
    }
    tracing::info!(connections = taken, "the store is free");
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartingError {
    /// A key or a certificate.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A socket.
    #[error("a listening socket cannot be used: {0}")]
    Socket(#[from] io::Error),
}

/// Stops before the store is open. It is waited for as long as for the close of one.
async fn stop_early(
    entrance: &Entrance,
    opening: JoinHandle<Result<Broker, EngineStartError>>,
) -> Result<Ended, ServeError> {
    tracing::info!("stopping");
    entrance.drain(&TaskTracker::new(), entrance.drain_timeout()).await;
    match stop::in_time(opening, &entrance.hurry).await {
        Some(opened) => stop::close_store(without_panic(opened)?, &entrance.hurry).await?,
        None => tracing::warn!("the store was not opened yet; the next start begins again"),
    }
    tracing::info!("stopped");
    Ok(Ended::Stopped)
}

/// The result of a task; its panic goes on.
fn without_panic<T>(result: Result<T, JoinError>) -> T {
    result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
