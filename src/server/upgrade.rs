//! The old process of a hand-over: it starts the new one, gives it its connections and its store, and ends.

use std::io;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::handover::{IdleConnection, Listeners, Predecessor, Successor};
use crate::server::systemd;

/// How long the store is kept open for connections that take long: a client that reads slowly, or is not there any more. All
/// other clients wait meanwhile.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// The program that this process runs: its path at the start, where a package puts the next version. Once that has happened, the system
/// does not tell the path any more.
static PROGRAM: LazyLock<io::Result<PathBuf>> = LazyLock::new(std::env::current_exe);

/// Asks a server to hand over to a new process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Upgrades(mpsc::Sender<Upgrade>);

/// One such request.
#[derive(Debug)]
struct Upgrade {
    binary: Option<PathBuf>,
    /// Told the id of the new process once that is ready, or why there is none.
    told: oneshot::Sender<Result<u32, String>>,
}

impl Upgrades {
    /// Starts this program, or the one that runs, as the process that takes over. Returns its id once it has valid settings.
    ///
    /// # Errors
    /// Why it does not take over. Then nothing has changed for anybody.
    pub async fn request(&self, binary: Option<PathBuf>) -> Result<u32, String> {
        let (told, answer) = oneshot::channel();
        let stopping = || "this process is stopping, or hands over already".to_owned();
        self.0.try_send(Upgrade { binary, told }).map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }
}

/// Hands over when it is asked to.
#[derive(Debug)]
pub(super) struct Upgrading {
    requests: mpsc::Receiver<Upgrade>,
    listeners: Listeners,
}

impl Upgrading {
    /// Hands these sockets over.
    pub(super) fn new(listeners: Listeners) -> (Upgrades, Self) {
        LazyLock::force(&PROGRAM);
        let (sender, requests) = mpsc::channel(1);
        (Upgrades(sender), Self { requests, listeners })
    }

    /// The sockets.
    pub(super) fn into_listeners(self) -> Listeners {
        self.listeners
    }

    /// The process that takes over, once it is asked for and ready.
    pub(super) async fn successor(&mut self) -> Successor {
        loop {
            let Some(Upgrade { binary, told }) = self.requests.recv().await else {
                std::future::pending().await
            };
            match self.start(binary).await {
                Ok(successor) => {
                    tracing::info!(pid = successor.id(), "a new process is ready; handing over to it");
                    // Whether somebody still wants to know does not matter.
                    _ = told.send(Ok(successor.id()));
                    return successor;
                }
                Err(error) => {
                    tracing::error!(error, "the hand-over has failed; this process goes on");
                    _ = told.send(Err(error));
                }
            }
        }
    }

    async fn start(&self, binary: Option<PathBuf>) -> Result<Successor, String> {
        let binary = match (&binary, &*PROGRAM) {
            (Some(named), _) => named,
            (None, Ok(running)) => running,
            (None, Err(error)) => return Err(format!("the path of this program is not known: {error}")),
        };
        let listeners = self.listeners.try_clone().map_err(|error| error.to_string())?;
        Successor::start(binary, listeners).await.map_err(|error| error.to_string())
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
pub(super) async fn successor(upgrading: &mut Option<Upgrading>) -> Successor {
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
