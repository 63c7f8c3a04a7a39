//! A broker with its routes, its listener and its shutdown.

use std::pin::{Pin, pin};
use std::sync::Arc;

use axum::Router;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::{Config, Level};
use crate::edge::Gateway;
use crate::handover::{Listeners, Successor};
use crate::identity::Identity;
use crate::limits::{FailedProofs, ProvedAddresses};
use crate::link::Link;
use crate::reload::SetupError;
use crate::transport::legacy::{Legacy, LegacyReceipts};
use crate::transport::poll::{PollReaders, Polls};

mod answer;
mod checks;
mod connection;
mod direct;
mod entrance;
mod error;
mod head;
mod http1;
mod janitor;
mod listener;
mod opening;
mod ops_port;
#[cfg(test)]
mod parity;
mod passing;
mod reloading;
mod requests;
mod router;
mod routes;
mod settings;
mod starting;
mod stop;
mod streams;
mod systemd;
mod upgrade;

pub use checks::{check_files, derived_settings};
pub use error::{EngineStartError, ServeError, StartError};
pub(crate) use http1::compare;
pub use listener::listen;
pub use reloading::{Reloaded, Reloader};
#[cfg(feature = "nats")]
pub(crate) use settings::nats_options;
pub use settings::{broker_limits, engine_settings, storage};
pub use starting::{Starting, StartingError};
pub use systemd::Watchdog;
pub use upgrade::Upgrades;

use direct::Direct;
use entrance::Entrance;
use http1::Sockets;
use janitor::Janitor;
use listener::Addresses;
use opening::Opening;
use router::HostCheck;
use routes::OpenRoutes;
use upgrade::Serving;

/// How a server has ended.
#[derive(Debug)]
pub enum Ended {
    /// It was stopped.
    Stopped,
    /// Another process goes on.
    HandedOver,
    /// Another process was to go on, and has ended. The store is closed, and clients wait at these sockets.
    Abandoned(Listeners),
}

/// A broker with everything that reaches it over the network. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Server {
    gateway: Arc<Gateway>,
    /// All routes, without the check of hosts.
    router: Router,
    x0: Legacy,
    polls: Polls,
    entrance: Entrance,
    /// Stops the janitor when the last clone is dropped.
    _janitor: Arc<DropGuard>,
}

impl Server {
    /// A server on the embedded engine, with a task that cleans regularly. It waits until the store is open; [`Starting`]
    /// does not. Call it within a tokio runtime.
    ///
    /// # Errors
    /// The store, a key or a certificate cannot be used.
    pub fn new(config: Config, clock: Clock) -> Result<Self, StartError> {
        // Before the store: an invalid key is reported at once, though opening a large store takes time.
        let identity = Identity::new(&config.access)?.into();
        let (config, opening) = Opening::new(config, clock);
        let entrance = Entrance::new(&config, opening.budget().clone())?;
        Ok(Self::assemble(opening.open()?, identity, config, entrance))
    }

    /// A server of a broker on any engine. Call it within a tokio runtime.
    ///
    /// # Errors
    /// A key or a certificate cannot be used.
    pub fn with(broker: Broker, config: Config) -> Result<Self, SetupError> {
        let (identity, config) = (Identity::new(&config.access)?.into(), Arc::new(config));
        let entrance = Entrance::new(&config, broker.budget().clone())?;
        Ok(Self::assemble(broker, identity, config, entrance))
    }

    fn assemble(broker: Broker, identity: Arc<Identity>, config: Arc<Config>, entrance: Entrance) -> Self {
        let gateway = Arc::new(Gateway {
            budget: broker.budget().clone(),
            broker,
            identity,
            rates: Arc::clone(&entrance.rates),
            access: entrance.access.clone(),
            connection_limiter: entrance.connection_limiter.clone(),
            proved_addresses: ProvedAddresses::default(),
            failed_proofs: FailedProofs::default(),
            config,
            shutdown: entrance.shutdown.clone(),
            connections: entrance.acceptor.connections.clone(),
            tasks: TaskTracker::new(),
        });
        let (poll_readers, legacy_receipts) = (PollReaders::default(), Arc::<LegacyReceipts>::default());
        let x0 = Legacy::new(Arc::clone(&gateway), Arc::clone(&legacy_receipts));
        let polls = Polls::new(Arc::clone(&gateway), Arc::clone(&poll_readers));
        let router = router::router(&gateway, &polls, &x0);
        let janitor = Janitor { gateway: Arc::clone(&gateway), poll_readers, legacy_receipts };
        Self { gateway, router, x0, polls, entrance, _janitor: Arc::new(janitor.start()) }
    }

    /// The routes, for tests without a socket.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// The broker.
    #[must_use]
    pub fn broker(&self) -> &Broker {
        &self.gateway.broker
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

    fn open_routes(&self, hosts: Option<HostCheck>) {
        let (router, x0) = (self.router.clone(), self.x0.clone());
        let direct = Direct::new(&self.gateway, x0, self.polls.clone(), hosts.clone());
        let sockets = Some(Sockets::new(&self.gateway, hosts.clone()));
        let router = match hosts {
            Some(hosts) => router::with_host_check(router, hosts),
            None => router,
        };
        self.entrance.routes.open(OpenRoutes { router, direct: Some(direct), sockets });
    }

    /// Serves one connection that speaks HTTP/1.1, on any stream, without the check of hosts.
    pub fn connection<S>(&self, stream: S, link: Arc<Link>) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.open_routes(None);
        self.entrance.acceptor.connection_server.http1_cleartext(stream, link)
    }

    /// Serves until [`Self::shutdown`] is cancelled, or until the store cannot go on. Then it answers pending polls, closes
    /// sockets and waits for both, at most for the drain timeout, or until [`Self::hurry`] is cancelled.
    ///
    /// # Errors
    /// There is no listener, or one has no address. Or the store has failed.
    pub async fn serve(self, listeners: Vec<TcpListener>) -> Result<(), ServeError> {
        let addresses = Addresses::of(&listeners)?;
        let acceptor = self.entrance.acceptor.clone();
        let accepting = pin!(acceptor.accept_all_until_shutdown(listeners));
        self.serve_accepted(accepting, &addresses, None).await.map(drop)
    }

    /// The same, of connections that are accepted already.
    async fn serve_accepted(
        self,
        accepting: Pin<&mut impl Future<Output = ()>>,
        addresses: &Addresses,
        serving: Option<Serving>,
    ) -> Result<Ended, ServeError> {
        self.open_routes(HostCheck::new(&self.gateway, addresses.first().ip()));
        addresses.log_ready(self.entrance.acceptor.tls.is_some(), self.gateway.broker.durability());
        if let Some(serving) = &serving {
            serving.say_so().await;
        }
        let upgrading = serving.map(|serving| serving.upgrading);
        let fatal = self.gateway.broker.fatal().clone();
        let successor = tokio::select! {
            () = accepting => None,
            _ = fatal.declared() => None,
            successor = upgrade::successor(upgrading.as_ref()) => Some(successor),
        };
        let ended = match (successor, upgrading) {
            (Some(successor), Some(upgrading)) => self.hand_over(successor, upgrading.into_listeners()).await,
            (_, upgrading) => {
                // New connections are refused from here on: their clients try again, and do not wait.
                drop(upgrading);
                self.stop().await.map(|()| Ended::Stopped)
            }
        };
        match fatal.reason() {
            Some(reason) => Err(ServeError::Store(reason)),
            None => ended,
        }
    }

    /// Answers what waits, closes sockets and the store.
    async fn stop(&self) -> Result<(), ServeError> {
        tracing::info!("stopping");
        systemd::stopping();
        self.entrance.shutdown.cancel();
        self.entrance.drain(&self.gateway.tasks, self.entrance.drain_timeout()).await;
        self.x0.settle().await;
        stop::close_store(self.gateway.broker.clone(), &self.entrance.hurry).await?;
        tracing::info!("stopped");
        Ok(())
    }

    /// The same, while another process takes new connections, and those on which no request is being answered.
    async fn hand_over(&self, successor: Successor, listeners: Listeners) -> Result<Ended, ServeError> {
        let begun = Instant::now();
        if self.gateway.broker.durability() == Level::Memory.name() {
            tracing::warn!("messages in memory end with this process");
        }
        let connections = self.entrance.passing().begin();
        self.entrance.shutdown.cancel();
        let patience = self.entrance.drain_timeout().min(upgrade::PATIENCE);
        let draining = self.entrance.drain(&self.gateway.tasks, patience);
        upgrade::pass_while(draining, connections, &successor).await;
        self.x0.settle().await;
        stop::close_store(self.gateway.broker.clone(), &self.entrance.hurry).await?;
        systemd::main_process(successor.id());
        let released = begun.elapsed();
        match successor.release().await {
            Ok(()) => {
                tracing::info!(?released, elapsed = ?begun.elapsed(), "another process has taken over");
                drop(listeners);
                // Clients that read slowly have the rest of their answers to come.
                let rest = self.entrance.drain_timeout().saturating_sub(begun.elapsed());
                self.entrance.drain(&self.gateway.tasks, rest).await;
                Ok(Ended::HandedOver)
            }
            Err(error) => {
                systemd::main_process(std::process::id());
                tracing::error!(%error, "the new process has ended before it served; this one serves again");
                Ok(Ended::Abandoned(listeners))
            }
        }
    }
}
