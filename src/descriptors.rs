//! How many files and sockets this process may have open, and how many of them connections may take.
//!
//! The operating system gives the lowest free number to a new descriptor. So a number also says how many are open.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that connections leave to the listener, the log, the store, keys and certificates.
const RESERVE: u64 = 2 * ON_DEMAND;

/// How many of these open later, when messages are read or files are read again.
const ON_DEMAND: u64 = 32;

/// Fewer than these are worth a warning: connections of browsers soon take them.
const FEW: u64 = 4096;

/// Raises the limit of open files as far as the process may, and logs it.
pub fn raise_limit() {
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..before })
    {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    let (limit, connections) = (limit(), for_connections());
    tracing::info!(limit, was = before.current.unwrap_or(u64::MAX), connections, "limit of open files");
    if limit < FEW {
        tracing::warn!(
            limit,
            connections,
            "few files may be open; `ulimit -Hn` or LimitNOFILE= raises the limit"
        );
    }
}

/// Most connections that all clients together may have.
pub(crate) fn for_connections() -> usize {
    let limit = limit();
    usize::try_from(limit - RESERVE.min(limit / 2)).unwrap_or(usize::MAX)
}

/// Whether another connection leaves enough descriptors to the store.
#[derive(Debug)]
pub(crate) struct RoomForConnections {
    /// Below this number there is much room.
    ample: usize,
    /// Whether the last connection had such a number. Only near the limit the next number is asked for: that takes several
    /// system calls.
    is_ample: bool,
}

impl RoomForConnections {
    pub(crate) fn new() -> Self {
        Self { ample: for_connections() / 4 * 3, is_ample: false }
    }

    /// Fails if another connection would leave too few descriptors to the store.
    ///
    /// # Errors
    /// Says which limit is reached; or no descriptor is free.
    pub(crate) fn check(&self, listener: &impl AsFd) -> io::Result<()> {
        if self.is_ample {
            return Ok(());
        }
        let next = listener.as_fd().try_clone_to_owned()?;
        let connections = for_connections();
        if is_below(&next, connections.saturating_add(opened_early())) {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "the limit of open files allows {connections} connections; `ulimit -Hn` or LimitNOFILE= raises it"
        )))
    }

    /// Notes a connection that was accepted.
    pub(crate) fn note(&mut self, connection: &impl AsFd) {
        // Between two connections no more than a few files are opened.
        self.is_ample = is_below(connection, self.ample);
    }
}

/// Whether the descriptor of a connection may stay open after its end, and leaves enough of them to new connections.
pub(crate) fn may_be_kept(connection: &impl AsFd) -> bool {
    is_below(connection, (for_connections() / 4 * 3).saturating_add(opened_early()))
}

/// How many descriptors the process has at most before its first connection.
fn opened_early() -> usize {
    usize::try_from((RESERVE - ON_DEMAND).min(limit() / 4)).unwrap_or(usize::MAX)
}

fn is_below(descriptor: &impl AsFd, most: usize) -> bool {
    usize::try_from(descriptor.as_fd().as_raw_fd()).is_ok_and(|number| number < most)
}

/// How many may be open.
pub(crate) fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_a_reserve() {
        let connections = for_connections() as u64;
        assert!(connections + RESERVE.min(limit() / 2) == limit(), "{connections} of {}", limit());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut room = RoomForConnections::new();
        room.check(&listener).unwrap();
        room.note(&listener);
        assert!(room.is_ample, "{listener:?}");
        room.check(&listener).unwrap();
        let second = listener.as_fd().try_clone_to_owned().unwrap();
        assert!(may_be_kept(&second));
        assert!(!is_below(&second, usize::try_from(second.as_raw_fd()).unwrap()));
    }
}
