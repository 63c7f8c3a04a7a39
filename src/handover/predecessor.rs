//! The old process, as the new one sees it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::process::getppid;
use rustix::stdio::dup2_stdin;

use crate::config::HANDOVER_FROM;
use crate::handover::channel::{Channel, Note};
use crate::handover::{IdleConnection, Listeners};

/// The process that hands over to this one.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
}

/// What the old process does.
#[derive(Debug)]
pub(crate) enum Event {
    /// It gives a connection away.
    Connection(IdleConnection),
    /// It has closed the store, or has ended.
    Released,
}

impl Predecessor {
    /// The process that hands over to this one, if one does. Call it within a tokio runtime, before standard input is used.
    ///
    /// # Errors
    /// Standard input is not what such a process makes it.
    pub fn of_this_process() -> io::Result<Option<Self>> {
        let parent = getppid().map(|parent| parent.as_raw_nonzero().get().to_string());
        let named = std::env::var(HANDOVER_FROM).ok();
        // A process that was started by hand from such a process has another parent.
        if named.is_none() || named != parent {
            return Ok(None);
        }
        let channel = Channel::new(io::stdin().as_fd().try_clone_to_owned()?)?;
        // No process that this one starts inherits the channel: its close tells the old process that this one has ended.
        dup2_stdin(File::open("/dev/null")?)?;
        Ok(Some(Self { channel }))
    }

    /// The sockets that the old process listens at.
    ///
    /// # Errors
    /// It has ended.
    pub async fn listeners(&self) -> io::Result<Listeners> {
        let mut listeners = Listeners::default();
        loop {
            match self.channel.receive().await? {
                Note::Clients(socket) => listeners.clients.push(socket.into()),
                Note::Operators(socket) => listeners.operators.push(socket.into()),
                Note::Listeners => return Ok(listeners),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }

    /// Says that this process accepts connections.
    ///
    /// # Errors
    /// The old process has ended.
    pub(crate) async fn say_ready(&self) -> io::Result<()> {
        self.channel.send(&Note::Ready).await
    }

    /// What the old process does next. If it has ended, that has released the store.
    pub(crate) async fn next(&self) -> Event {
        match self.channel.receive().await {
            Ok(Note::Connection(socket, input)) => Event::Connection(IdleConnection { socket, input }),
            Ok(Note::Released) => Event::Released,
            Ok(note) => {
                tracing::error!(?note, "the process that hands over says something unknown");
                Event::Released
            }
            Err(error) => {
                tracing::warn!(%error, "the process that hands over has ended early");
                Event::Released
            }
        }
    }

    /// Says that this process serves.
    ///
    /// # Errors
    /// The old process has ended. That does not matter any more.
    pub(crate) async fn say_serving(&self) -> io::Result<()> {
        self.channel.send(&Note::Serving).await
    }
}
