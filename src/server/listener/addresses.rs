//! Where a server listens.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};

use crate::config::Listen;

/// Most connections that wait to be accepted. The operating system may allow fewer (`net.core.somaxconn`).
pub(super) const BACKLOG: u32 = 4096;

/// Where a server listens: at one address or more.
#[derive(Debug)]
pub(in crate::server) struct Addresses(Vec<SocketAddr>);

impl Addresses {
    /// Those of these listeners.
    ///
    /// # Errors
    /// There is no listener, or one has no address.
    pub(in crate::server) fn of(listeners: &[TcpListener]) -> io::Result<Self> {
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
        if addresses.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self(addresses))
    }

    /// The first one. All are of loopback, or none.
    pub(in crate::server) fn first(&self) -> SocketAddr {
        self.0[0]
    }

    /// Logs that the server is ready.
    pub(in crate::server) fn log_ready(&self, tls: bool, durability: &str) {
        let (scheme, address) = (if tls { "https" } else { "http" }, self.first());
        for also in &self.0[1..] {
            tracing::info!(address = %also, "listening here too");
        }
        tracing::info!(%address, url = %format_args!("{scheme}://{address}/"), durability, "ready");
    }
}

/// Listens; on the same port of all addresses. A system without IPv6 listens on IPv4 only.
///
/// # Errors
/// An address cannot be used.
pub fn listen(on: Listen) -> io::Result<Vec<TcpListener>> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    for mut address in on.addresses() {
        if let Some(first) = listeners.first() {
            address.set_port(first.local_addr()?.port());
        }
        match listen_on(address, on) {
            Ok(listener) => listeners.push(listener),
            Err(error) if !listeners.is_empty() && is_missing(&error) => {
                tracing::debug!(%address, %error, "not listening there");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(listeners)
}

fn listen_on(address: SocketAddr, on: Listen) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Without it, a restart would have to wait for the connections of the process before.
    socket.set_reuseaddr(true)?;
    // A single address `[::]` takes IPv4 too where the system says so. Beside a listener of IPv4 it may not.
    if address.is_ipv6() && on != Listen::On(address) {
        SockRef::from(&socket).set_only_v6(true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether the system does not have this address, or no address of its family.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}
