//! The port of operators (`--ops-listen`): metrics and health, without TLS and without keys.
//!
//! It is open while the store is being opened, and until the server has stopped.

use std::io;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::budget::Budget;
use crate::config::Config;
use crate::edge::Gateway;
use crate::ops;
use crate::reloadable::Reloadable;
use crate::server::entrance::Entrance;
use crate::server::listener::Addresses;
use crate::server::router::{self, HostCheck};
use crate::server::routes::{OpenRoutes, Routes};

/// The port of operators. Dropping it closes it.
#[derive(Debug)]
pub(super) struct OpsPort {
    routes: Routes,
    addresses: Addresses,
    _open: DropGuard,
}

impl OpsPort {
    /// Accepts connections of these listeners. Call it within a tokio runtime.
    ///
    /// # Errors
    /// There is no listener, or one has no address.
    pub(super) fn open(
        listeners: Vec<TcpListener>,
        config: &Arc<Config>,
        budget: Budget,
        shutdown: &CancellationToken,
    ) -> io::Result<Self> {
        let addresses = Addresses::of(&listeners)?;
        let open = CancellationToken::new();
        let routes = Routes::new(Arc::clone(config), budget, shutdown.clone());
        let acceptor =
            Entrance::acceptor(config, &routes, open.clone(), (None, Reloadable::new(config.access.clone())));
        tokio::spawn(async move { acceptor.accept_all_until_shutdown(listeners).await });
        tracing::info!(address = %addresses.first(), "operators are served at another port");
        Ok(Self { routes, addresses, _open: open.drop_guard() })
    }

    /// Another process hands over to this one: see [`Routes::take_over`].
    pub(super) fn take_over(&self) {
        self.routes.take_over();
    }

    /// The store is open: everything is answered from now on.
    pub(super) fn serve(&self, gateway: &Arc<Gateway>) {
        let router = Router::new().merge(ops::port_routes(Arc::clone(gateway))).fallback(router::not_found);
        // A page of any site reaches a loopback address by a name of its own.
        let router = match HostCheck::for_operators(gateway, self.addresses.first().ip()) {
            Some(hosts) => router::with_host_check(router, hosts),
            None => router,
        };
        self.routes.open(OpenRoutes { router, direct: None, sockets: None });
    }
}
