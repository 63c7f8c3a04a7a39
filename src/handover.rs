//! A running broker hands its sockets over to a new process, so that no client notices an upgrade.
//!
//! The order of the steps, as the two processes see it:
//!
//! 1. The old process starts the new one, which gets a channel as its standard input, and sends it the listening sockets.
//! 2. The new one validates its settings. It says that it is ready, accepts connections, and holds requests that need the store.
//! 3. The old one accepts no more. It answers the polls that wait and closes WebSockets and event streams. Connections on which no
//!    request is being answered are sent to the new process as they are.
//! 4. The old one closes the store and says so. The new one opens the store, says that it serves, and the old one ends.
//!
//! If the new process ends before it is ready, nothing has changed for anybody. If it ends later, the old one opens the store
//! again and serves at the same sockets.

use std::io;
use std::net::TcpListener;

mod channel;
mod predecessor;
mod successor;

pub(crate) use predecessor::Event;
pub use predecessor::Predecessor;
pub(crate) use successor::Successor;

/// The listening sockets of a broker.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Those of clients.
    pub clients: Vec<TcpListener>,
    /// Those of `--ops-listen`.
    pub operators: Vec<TcpListener>,
}

impl Listeners {
    /// Those that a service manager has opened for this process (`sd_listen_fds(3)`): one that is named `operators` is for operators,
    /// all others are for clients.
    ///
    /// # Errors
    /// One is no socket that listens for TCP.
    pub fn of_service_manager() -> io::Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut given = listenfd::ListenFd::from_env();
        let mut listeners = Self::default();
        for place in 0..given.len() {
            let Some(listener) = given.take_tcp_listener(place)? else { continue };
            match names.next() {
                Some("operators") => listeners.operators.push(listener),
                _ => listeners.clients.push(listener),
            }
        }
        Ok(listeners)
    }

    /// The same sockets once more. Closing these does not close those.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn try_clone(&self) -> io::Result<Self> {
        let clones = |listeners: &[TcpListener]| -> io::Result<Vec<_>> {
            listeners.iter().map(TcpListener::try_clone).collect()
        };
        Ok(Self { clients: clones(&self.clients)?, operators: clones(&self.operators)? })
    }
}

/// A connection of a client on which no request is being answered.
#[derive(Debug)]
pub(crate) struct IdleConnection {
    pub(crate) socket: std::os::fd::OwnedFd,
    /// What was read of its next request.
    pub(crate) input: Vec<u8>,
}
