//! Accepts connections, within a limit for each client address, and speaks TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, unconstrained, yield_now};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Access, Config, Level, Listen};
use crate::descriptors::RoomForConnections;
use crate::handover::IdleConnection;
use crate::limits::{ConnectionLimiter, ConnectionPermit, ExtraPlace};
use crate::link::{Link, MonitoredStream, SharedSocket};
use crate::log::Repeated;
use crate::reload::Current;
use crate::reloadable::Reloadable;
use crate::server::connection::ConnectionServer;
use crate::server::http1::{HeadTimer, Replay};

/// Pause after the operating system refused to accept, for example without free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A failure to accept is logged at most once in this time while it lasts.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Most connections that wait to be accepted. The operating system may allow fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// So many connections are accepted before the threads that serve do something else: more than may wait to be accepted. Who
/// finds no place there tries again a second later.
const AT_ONCE: usize = 2 * BACKLOG as usize;

/// Where a server listens: at one address or more.
#[derive(Debug)]
pub(super) struct Addresses(Vec<SocketAddr>);

impl Addresses {
    /// Those of these listeners.
    ///
    /// # Errors
    /// There is no listener, or one has no address.
    pub(super) fn of(listeners: &[TcpListener]) -> io::Result<Self> {
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
        if addresses.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self(addresses))
    }

    /// The first one. All are of loopback, or none.
    pub(super) fn first(&self) -> SocketAddr {
        self.0[0]
    }

    /// Logs what begins here, with which settings.
    pub(super) fn log_start(&self, config: &Config) {
        let limits = config.sources.changed_limits().join(" ");
        let data_dir = match config.durability {
            Level::Memory => "none".to_owned(),
            _ if !config.is_embedded() => "none".to_owned(),
            _ => config.data_dir.display().to_string(),
        };
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            address = %self.first(),
            auth = config.access.auth.name(),
            durability = config.durability.name(),
            engine = if config.is_embedded() { "embedded" } else { "nats" },
            data_dir,
            limits,
            "starting: the store is being opened"
        );
    }

    /// Logs that the server is ready.
    pub(super) fn log_ready(&self, tls: bool, durability: &str) {
        let (scheme, address) = (if tls { "https" } else { "http" }, self.first());
        for also in &self.0[1..] {
            tracing::info!(address = %also, "listening here too");
        }
        tracing::info!(%address, url = %format_args!("{scheme}://{address}/"), durability, "ready");
    }
}

/// Listens; on the same port of all addresses. A system without IPv6 listens on IPv4 only. Of `given` sockets, which listen already,
/// those with the right addresses are taken.
///
/// # Errors
/// An address cannot be used.
pub fn listen(on: Listen, given: &mut Vec<std::net::TcpListener>) -> io::Result<Vec<std::net::TcpListener>> {
    let mut listeners: Vec<std::net::TcpListener> = Vec::new();
    for mut address in on.addresses() {
        if let Some(first) = listeners.first() {
            address.set_port(first.local_addr()?.port());
        }
        let is_there = |listener: &std::net::TcpListener| {
            listener.local_addr().is_ok_and(|there| {
                there.ip() == address.ip() && (address.port() == 0 || there.port() == address.port())
            })
        };
        if let Some(place) = given.iter().position(is_there) {
            listeners.push(given.swap_remove(place));
            continue;
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

fn listen_on(address: SocketAddr, on: Listen) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Without it, a restart would have to wait for the connections of the process before.
    socket.set_reuse_address(true)?;
    // A single address `[::]` takes IPv4 too where the system says so. Beside a listener of IPv4 it may not.
    if address.is_ipv6() && on != Listen::On(address) {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Listening sockets for this runtime.
///
/// # Errors
/// The operating system refuses it.
pub(super) fn for_runtime(listeners: Vec<std::net::TcpListener>) -> io::Result<Vec<TcpListener>> {
    let for_runtime = |listener: std::net::TcpListener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    listeners.into_iter().map(for_runtime).collect()
}

/// Whether the system does not have this address, or no address of its family.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Whether a connection has TCP_NODELAY if its listener has it. Otherwise it takes a system call for each one.
const INHERITS_NODELAY: bool = cfg!(target_os = "linux");

/// Accepts connections and serves each in a task of its own. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Acceptor {
    pub(super) config: Arc<Config>,
    /// The settings of access in force.
    pub(super) access: Reloadable<Access>,
    /// Fires when the server stops.
    pub(super) shutdown: CancellationToken,
    pub(super) connection_server: Arc<ConnectionServer>,
    /// The certificate; `None` without TLS.
    pub(super) tls: Option<Reloadable<Current<ServerConfig>>>,
    /// Limits TCP connections for each client address. It is above the limit of the gateway, so that a client can still
    /// be told why it is refused.
    pub(super) socket_limiter: ConnectionLimiter,
    /// The tasks of all connections.
    pub(super) connections: TaskTracker,
}

impl Acceptor {
    /// Accepts connections of all listeners until the shutdown.
    pub(super) async fn accept_all_until_shutdown(&self, listeners: Vec<TcpListener>) {
        // In tasks: whoever waits here may do so on another thread than those that serve connections. Then each connection
        // would wake up two threads.
        let mut accepting = JoinSet::new();
        for listener in listeners {
            let acceptor = self.clone();
            accepting.spawn(async move { acceptor.accept_until_shutdown(listener).await });
        }
        while accepting.join_next().await.is_some() {}
    }

    /// Accepts connections until the shutdown.
    async fn accept_until_shutdown(&self, listener: TcpListener) {
        if let Err(error) = SockRef::from(&listener).set_tcp_nodelay(INHERITS_NODELAY) {
            tracing::warn!(%error, "no TCP_NODELAY for the connections of a listener");
        }
        // Tokio's own bound is 128 at once: then each of those is served before the next ones are accepted.
        self.shutdown.run_until_cancelled(unconstrained(self.accept_all(listener))).await;
    }

    async fn accept_all(&self, listener: TcpListener) {
        let (mut failures, mut room) = (Repeated::every(REPORT_INTERVAL), RoomForConnections::new());
        for n in 1_usize.. {
            if n.is_multiple_of(AT_ONCE) {
                yield_now().await;
            }
            match without_panic(self.accept_one(&listener, &mut room)).await {
                Ok(()) => {}
                Err(error) if is_peer_error(&error) => tracing::debug!(%error, "not accepted"),
                Err(error) => {
                    if let Some(unlogged) = failures.note(Instant::now()) {
                        tracing::error!(%error, unlogged, "cannot accept connections; trying again");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn accept_one(&self, listener: &TcpListener, room: &mut RoomForConnections) -> io::Result<()> {
        // What is left is for the store.
        room.check(listener)?;
        let (stream, peer) = listener.accept().await?;
        room.note(&stream);
        self.accept(stream, peer, Vec::new());
        Ok(())
    }

    /// Goes on with a connection of the process that hands over.
    ///
    /// # Errors
    /// Its peer has gone.
    pub(super) fn take(&self, IdleConnection { socket, input }: IdleConnection) -> io::Result<()> {
        let stream = std::net::TcpStream::from(socket);
        let peer = stream.peer_addr()?;
        stream.set_nonblocking(true)?;
        self.accept(TcpStream::from_std(stream)?, peer, input);
        Ok(())
    }

    /// Serves a connection, of whose first request this was read already. It is nothing with TLS.
    fn accept(&self, stream: TcpStream, peer: SocketAddr, input: Vec<u8>) {
        if !INHERITS_NODELAY && let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "no TCP_NODELAY");
        }
        let link = Link::with_peer(Some(peer.ip()));
        let stream = MonitoredStream::tcp(stream, Arc::clone(&link));
        // Many clients share the address of a proxy.
        let counted = Some(peer.ip()).filter(|address| !self.access.get().is_trusted_proxy(*address));
        match (&self.tls, self.socket_limiter.try_acquire(counted)) {
            (None, Some(permit)) => {
                let connection = self.connection_server.http1_cleartext_from(stream, link, input);
                self.connections.spawn(connection.map(move |()| drop(permit)));
            }
            (_, permit) => {
                let (acceptor, stream) = (self.clone(), Replay::new(stream, input));
                self.connections.spawn(async move {
                    if let Err(error) = acceptor.serve(stream, link, counted, permit).await {
                        tracing::debug!(%peer, %error, "connection ended");
                    }
                });
            }
        }
    }

    /// Serves a connection that has no permit, or speaks TLS.
    async fn serve(
        self,
        stream: Replay<MonitoredStream<SharedSocket>>,
        link: Arc<Link>,
        counted: Option<IpAddr>,
        permit: Option<ConnectionPermit>,
    ) -> io::Result<()> {
        // Without a place the connection is closed: this many are above the limits of their addresses already.
        let place = match &permit {
            Some(_) => None,
            None => match self.socket_limiter.try_extra() {
                Some(place) => Some((counted, place)),
                None => return Ok(()),
            },
        };
        // Each stage is boxed, so that the connection's future is only as large as its current stage.
        let Some(tls) = &self.tls else {
            return Box::pin(self.http1(stream, link, place)).await;
        };
        let patience = self.config.header_timeout;
        let accepting = Box::pin(timeout(patience, TlsAcceptor::from(tls.get().get()).accept(stream)));
        let Some(Ok(accepted)) = self.shutdown.run_until_cancelled(accepting).await else { return Ok(()) };
        let stream = accepted?;
        match stream.get_ref().1.alpn_protocol() {
            // Each of its streams needs a permit.
            Some(b"h2") => Box::pin(self.connection_server.http2(stream, link, counted)).await,
            _ => return Box::pin(self.http1(stream, link, place)).await,
        }
        Ok(())
    }

    async fn http1<S>(
        &self,
        stream: S,
        link: Arc<Link>,
        place: Option<(Option<IpAddr>, ExtraPlace)>,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match place {
            None => self.connection_server.http1(stream, link, HeadTimer::default()).await,
            Some(place) => self.connection_server.http1_above_limit(stream, link, place).await,
        }
        Ok(())
    }
}

/// A panic as an error. The connection that is being accepted is lost, and no other one.
async fn without_panic(accepting: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let accepted = AssertUnwindSafe(accepting).catch_unwind().await;
    accepted.unwrap_or_else(|_| Err(io::Error::other("accepting has panicked")))
}

/// Whether the peer ended the connection before it was accepted.
fn is_peer_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::clock::Clock;
    use crate::config::{Config, Level};
    use crate::server::Server;

    /// Accepts one connection from each address; others wait for this long.
    async fn acceptor(patience: Duration) -> (Acceptor, SocketAddr) {
        let config = Config { durability: Level::Memory, header_timeout: patience, ..Config::default() };
        let mut acceptor = Server::new(config, Clock::Wall).unwrap().entrance.acceptor;
        acceptor.socket_limiter = ConnectionLimiter::new(1);
        let mut connection_server = ConnectionServer::clone(&acceptor.connection_server);
        connection_server.socket_limiter = acceptor.socket_limiter.clone();
        acceptor.connection_server = connection_server.into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = acceptor.clone();
        tokio::spawn(async move { accepting.accept_until_shutdown(listener).await });
        (acceptor, address)
    }

    /// Connects and asks for the health; the answer is read by [`is_answered`].
    async fn ask(address: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        stream
    }

    /// Whether the connection is answered, rather than closed.
    async fn is_answered(stream: &mut TcpStream) -> bool {
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer).await.unwrap_or(0);
        buffer[..length].starts_with(b"HTTP/1.1 200")
    }

    #[tokio::test]
    async fn a_connection_above_the_limit_is_served_when_another_one_ends() {
        let (acceptor, address) = acceptor(Duration::from_secs(60)).await;
        let mut first = ask(address).await;
        assert!(is_answered(&mut first).await);
        let mut second = ask(address).await;
        // Both have a task, but only the first one has a permit.
        while acceptor.connections.len() < 2 {
            tokio::task::yield_now().await;
        }
        assert!(acceptor.socket_limiter.try_acquire(Some(address.ip())).is_none());
        drop(first);
        assert!(is_answered(&mut second).await);
    }

    #[tokio::test]
    async fn a_connection_above_the_limit_is_refused_if_no_other_one_ends() {
        let (acceptor, address) = acceptor(Duration::from_millis(200)).await;
        let permit = acceptor.socket_limiter.try_acquire(Some(address.ip())).unwrap();
        let mut answer = String::new();
        ask(address).await.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 429") && answer.contains("--connections-per-address"),
            "{answer}"
        );
        drop(permit);
    }

    #[tokio::test]
    async fn a_connection_without_a_place_is_closed() {
        let (mut acceptor, _) = acceptor(Duration::from_secs(60)).await;
        acceptor.socket_limiter = ConnectionLimiter::new(0).with_waiting(0);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { acceptor.accept_until_shutdown(listener).await });
        assert_eq!(ask(address).await.read(&mut [0; 16]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn accepting_ends_with_the_shutdown() {
        let (acceptor, address) = acceptor(Duration::from_secs(60)).await;
        assert!(is_answered(&mut ask(address).await).await);
        acceptor.shutdown.cancel();
        acceptor.connections.close();
        acceptor.connections.wait().await;
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_panic_while_accepting_is_an_error_and_the_next_connection_is_accepted() {
        let panics = async |panics: bool| {
            assert!(!panics, "this panic is part of the test");
            Ok(())
        };
        let error = without_panic(panics(true)).await.unwrap_err();
        assert!(!is_peer_error(&error), "it is logged, and after a pause the loop goes on");
        without_panic(panics(false)).await.unwrap();
    }

    #[test]
    fn a_peer_that_is_gone_is_no_error_of_the_system() {
        assert!(is_peer_error(&io::ErrorKind::ConnectionAborted.into()));
        assert!(!is_peer_error(&io::Error::other("too many open files")));
    }
}
