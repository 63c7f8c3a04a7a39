//! The new process, as the old one sees it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::config::HANDOVER_FROM;
use crate::handover::channel::{Channel, Note};
use crate::handover::{IdleConnection, Listeners};

/// How long a new process may take until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a new process does not take over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// It does not start.
    #[error("{} cannot be started: {error}", binary.display())]
    Spawn {
        /// The program.
        binary: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// It has ended.
    #[error("the new process ended before it was ready; its lines in the log say why")]
    Ended,
    /// It takes too long.
    #[error("the new process was not ready within {} s", READY_TIMEOUT.as_secs())]
    TimedOut,
    /// The operating system refused something.
    #[error("sockets cannot be handed over: {0}")]
    Io(#[from] io::Error),
}

/// The new process. Dropping it before it serves ends it.
#[derive(Debug)]
pub(crate) struct Successor {
    channel: Channel,
    process: Process,
}

#[derive(Debug)]
struct Process {
    child: Option<Child>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // It may have ended already.
        _ = child.kill();
        // So that no zombie is left.
        std::thread::spawn(move || child.wait());
    }
}

impl Successor {
    /// Starts this program with the arguments of this process, gives it the listening sockets, and waits until it is ready.
    ///
    /// # Errors
    /// It does not get ready. Then it has ended.
    pub(crate) async fn start(binary: &Path, listeners: Listeners) -> Result<Self, StartError> {
        let (channel, theirs) = Channel::pair()?;
        let mut command = Command::new(binary);
        command.args(std::env::args_os().skip(1)).stdin(Stdio::from(theirs));
        command.env(HANDOVER_FROM, std::process::id().to_string());
        // Sockets of systemd come through the channel, and its watchdog watches whichever process is the main one.
        for variable in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(variable);
        }
        let spawned = spawn_blocking(move || command.spawn()).await.map_err(io::Error::other)?;
        let child = spawned.map_err(|error| StartError::Spawn { binary: binary.to_owned(), error })?;
        let successor = Self { channel, process: Process { child: Some(child) } };
        match timeout(READY_TIMEOUT, successor.get_ready(listeners)).await {
            Ok(Ok(())) => Ok(successor),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Err(error.into()),
            // A version that knows nothing of all this ends too: the address is in use.
            Ok(Err(_)) => Err(StartError::Ended),
            Err(_) => Err(StartError::TimedOut),
        }
    }

    async fn get_ready(&self, listeners: Listeners) -> io::Result<()> {
        for listener in listeners.clients {
            self.channel.send(&Note::Clients(listener.into())).await?;
        }
        for listener in listeners.operators {
            self.channel.send(&Note::Operators(listener.into())).await?;
        }
        self.channel.send(&Note::Listeners).await?;
        match self.channel.receive().await? {
            Note::Ready => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The id of the process.
    pub(crate) fn id(&self) -> u32 {
        self.process.child.as_ref().map_or(0, Child::id)
    }

    /// Gives it a connection.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) async fn pass(&self, IdleConnection { socket, input }: IdleConnection) -> io::Result<()> {
        self.channel.send(&Note::Connection(socket, input)).await
    }

    /// Tells it that the store is closed, and waits until it serves. It then goes on without this process.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) async fn release(mut self) -> io::Result<()> {
        self.channel.send(&Note::Released).await?;
        match self.channel.receive().await? {
            Note::Serving => {
                self.process.child = None;
                Ok(())
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
