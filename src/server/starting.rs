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
use crate::identity::Identity;
use crate::reload::SetupError;
use crate::server::entrance::Entrance;
use crate::server::error::{EngineStartError, ServeError};
use crate::server::listener::Addresses;
use crate::server::opening::Opening;
use crate::server::ops_port::OpsPort;
use crate::server::reloading::{Parts, Reloader};
use crate::server::{Server, stop};

/// A server whose store is not open yet.
#[derive(Debug)]
pub struct Starting {
    config: Arc<Config>,
    identity: Arc<Identity>,
    reloader: Reloader,
    entrance: Entrance,
    opening: Opening,
    ops_port: Option<OpsPort>,
}

impl Starting {
    /// A server with these settings. Keys and certificates are checked at once. Call it within a
    /// tokio runtime.
    ///
    /// # Errors
    /// A key or a certificate cannot be used.
    pub fn new(config: Config, clock: Clock) -> Result<Self, SetupError> {
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
        Ok(Self { config, identity, reloader, entrance, opening, ops_port: None })
    }

    /// Takes changed settings over while the server runs.
    #[must_use]
    pub fn reloader(&self) -> &Reloader {
        &self.reloader
    }

    /// Serves operators at these listeners too, from now on: see `--ops-listen`.
    ///
    /// # Errors
    /// There is no listener, or one has no address.
    pub fn open_ops_port(&mut self, listeners: Vec<TcpListener>) -> io::Result<()> {
        let budget = self.opening.budget().clone();
        self.ops_port = Some(OpsPort::open(listeners, &self.config, budget, &self.entrance.shutdown)?);
        Ok(())
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

    /// Accepts connections, opens the store, and serves; see [`Server::serve`].
    ///
    /// # Errors
    /// The store cannot be opened, and those of [`Server::serve`].
    pub async fn serve(self, listeners: Vec<TcpListener>) -> Result<(), ServeError> {
        let addresses = Addresses::of(&listeners)?;
        addresses.log_start(&self.config);
        let Self { config, identity, entrance, opening, ops_port, .. } = self;
        let acceptor = entrance.acceptor.clone();
        let mut accepting = pin!(acceptor.accept_all_until_shutdown(listeners));
        let mut opening = spawn_blocking(move || opening.open());
        let opened = tokio::select! {
            opened = &mut opening => opened,
            () = accepting.as_mut() => return stop_early(&entrance, opening).await,
        };
        let broker = without_panic(opened)?;
        let server = Server::assemble(broker, identity, config, entrance);
        if let Some(ops_port) = &ops_port {
            ops_port.serve(&server.gateway);
        }
        // The port of operators is closed at the end of this.
        server.serve_accepted(accepting, &addresses).await
    }
}

/// Stops before the store is open. It is waited for as long as for the close of one.
async fn stop_early(
    entrance: &Entrance,
    opening: JoinHandle<Result<Broker, EngineStartError>>,
) -> Result<(), ServeError> {
    tracing::info!("stopping");
    entrance.drain(&TaskTracker::new()).await;
    match stop::in_time(opening, &entrance.hurry).await {
        Some(opened) => stop::close_store(without_panic(opened)?, &entrance.hurry).await?,
        None => tracing::warn!("the store was not opened yet; the next start begins again"),
    }
    tracing::info!("stopped");
    Ok(())
}

/// The result of a task; its panic goes on.
fn without_panic<T>(result: Result<T, JoinError>) -> T {
    result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
