//! Accepts connections, within a limit for each client address, and speaks TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::task::TaskTracker;

use crate::edge::Gateway;
use crate::limits::{ConnectionLimiter, ConnectionPermit};
use crate::link::{Link, MonitoredStream};
use crate::reload::Current;
use crate::server::connection::ConnectionServer;

/// Pause after the operating system refused to accept, for example without free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections and serves each in a task of its own. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Acceptor {
    pub(super) gateway: Arc<Gateway>,
    pub(super) connection_server: ConnectionServer,
    /// The certificate; `None` without TLS.
    pub(super) tls: Option<Current<ServerConfig>>,
    /// Limits TCP connections for each client address. It is above the limit of the gateway, so that a client can still
    /// be told why it is refused.
    pub(super) socket_limiter: ConnectionLimiter,
    /// The tasks of all connections.
    pub(super) connections: TaskTracker,
}

impl Acceptor {
    /// Accepts connections until the shutdown.
    pub(super) async fn accept_until_shutdown(&self, listener: TcpListener) {
        let shutdown = self.gateway.shutdown.clone();
        while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => self.accept(stream, peer),
                Err(error) if is_peer_error(&error) => tracing::debug!(%error, "not accepted"),
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections; trying again");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn accept(&self, stream: TcpStream, peer: SocketAddr) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "no TCP_NODELAY");
        }
        let link = Link::with_peer(Some(peer.ip()));
        let stream = MonitoredStream::tcp(stream, Arc::clone(&link));
        // Many clients share the address of a proxy.
        let counted =
            Some(peer.ip()).filter(|address| !self.gateway.config.access.is_trusted_proxy(*address));
        match (&self.tls, self.socket_limiter.try_acquire(counted)) {
            (None, Some(permit)) => {
                let connection = self.connection_server.http1(stream, link);
                self.connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            (_, permit) => {
                let acceptor = self.clone();
                self.connections.spawn(async move {
                    if let Err(error) = acceptor.serve(stream, link, counted, permit).await {
                        tracing::debug!(%peer, %error, "connection ended");
                    }
                });
            }
        }
    }

    /// Serves a connection that has to wait for its permit, or speaks TLS.
    async fn serve(
        self,
        stream: MonitoredStream<TcpStream>,
        link: Arc<Link>,
        counted: Option<IpAddr>,
        permit: Option<ConnectionPermit>,
    ) -> io::Result<()> {
        let patience = self.gateway.config.header_timeout;
        let shutdown = &self.gateway.shutdown;
        // A connection above the limit waits until another one of its address ends.
        let _permit = match permit {
            Some(permit) => permit,
            None => {
                let waiting = timeout(patience, self.socket_limiter.acquire(counted));
                match shutdown.run_until_cancelled(waiting).await {
                    Some(Ok(Some(permit))) => permit,
                    _ => return Ok(()),
                }
            }
        };
        // Each stage is boxed, so that the connection's future is only as large as its current stage.
        let Some(tls) = &self.tls else {
            Box::pin(self.connection_server.http1(stream, link)).await;
            return Ok(());
        };
        let accepting = Box::pin(timeout(patience, TlsAcceptor::from(tls.get()).accept(stream)));
        let Some(Ok(accepted)) = shutdown.run_until_cancelled(accepting).await else { return Ok(()) };
        let stream = accepted?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Box::pin(self.connection_server.http2(stream, link)).await,
            _ => Box::pin(self.connection_server.http1(stream, link)).await,
        }
        Ok(())
    }
}

/// Whether the peer ended the connection before it was accepted.
fn is_peer_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
