//! The old process of a hand-over: it starts the new one, gives it its connections and its store, and ends.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use crate::handover::{IdleConnection, Listeners, Predecessor, Successor};
use crate::server::systemd;

/// How long the store is kept open for connections that take long: a client that reads slowly, or is not there any more. All
/// other clients wait meanwhile.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// The program that this process runs: its path at the start, where a package puts the next version. Once that has happened, the system
/// does not tell the path any more.
static PROGRAM: LazyLock<io::Result<PathBuf>> = LazyLock::new(std::env::current_exe);

/// Asks a server to hand over to a new process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Upgrades(Arc<Notify>);

impl Upgrades {
    /// Starts the program of this process again, as the process that takes over. What comes of it is logged. If it does not take over,
    /// nothing has changed for anybody. Several requests at once are one.
    pub fn request(&self) {
        self.0.notify_one();
    }
}

/// Hands over when it is asked to.
#[derive(Debug)]
pub(super) struct Upgrading {
    requests: Upgrades,
    listeners: Listeners,
}

impl Upgrading {
    /// Hands these sockets over.
    pub(super) fn new(listeners: Listeners) -> (Upgrades, Self) {
        LazyLock::force(&PROGRAM);
        let requests = Upgrades::default();
        (requests.clone(), Self { requests, listeners })
    }

    /// The sockets.
    pub(super) fn into_listeners(self) -> Listeners {
        self.listeners
    }

    /// The process that takes over, once it is asked for and ready.
    pub(super) async fn successor(&self) -> Successor {
        loop {
            self.requests.0.notified().await;
            match self.start().await {
                Ok(successor) => {
                    tracing::info!(pid = successor.id(), "a new process is ready; handing over to it");
                    return successor;
                }
                Err(error) => tracing::error!(error, "the hand-over has failed; this process goes on"),
            }
        }
    }

    async fn start(&self) -> Result<Successor, String> {
        let program = PROGRAM.as_ref();
        let program = program.map_err(|error| format!("the path of this program is not known: {error}"))?;
        let listeners = self.listeners.try_clone().map_err(|error| error.to_string())?;
        Successor::start(program, listeners).await.map_err(|error| error.to_string())
    }
}

/// Who wants to know that the server serves, and what may end that.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) upgrading: Upgrading,
    pub(super) predecessor: Option<Predecessor>,
}

impl Serving {
    pub(super) async fn say_so(&self) {
        systemd::ready();
        if let Some(predecessor) = &self.predecessor
            && let Err(error) = predecessor.say_serving().await
        {
            tracing::debug!(%error, "the process before has ended already");
        }
    }
}

/// The process that takes over from a server that hands over at all.
pub(super) async fn successor(upgrading: Option<&Upgrading>) -> Successor {
    match upgrading {
        Some(upgrading) => upgrading.successor().await,
        None => std::future::pending().await,
    }
}

/// Gives connections away while the others end.
pub(super) async fn pass_while(
    draining: impl Future<Output = ()>,
    mut connections: mpsc::UnboundedReceiver<IdleConnection>,
    successor: &Successor,
) {
    let mut draining = std::pin::pin!(draining);
    loop {
        tokio::select! {
            Some(connection) = connections.recv() => pass(connection, successor).await,
            () = draining.as_mut() => break,
        }
    }
    connections.close();
    while let Some(connection) = connections.recv().await {
        pass(connection, successor).await;
    }
}

async fn pass(connection: IdleConnection, successor: &Successor) {
    if let Err(error) = successor.pass(connection).await {
        tracing::debug!(%error, "a connection is closed: nobody takes it over");
    }
}
