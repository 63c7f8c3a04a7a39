//! One client connection as the server sees it: whether what was written arrived, and whether the peer takes anything.
//!
//! [`MonitoredStream`] wraps the socket below HTTP and WebSocket. It notes how the connection ends, and breaks a
//! connection whose peer takes nothing for `WRITE_TIMEOUT`. So no transport needs a rule of its own for slow readers.

use std::future::Future;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::descriptors;

mod lent;
mod outq;
mod socket;

pub(crate) use lent::{Lendable, LentOutput};
pub use socket::SharedSocket;
use socket::Socket;

/// How long a peer may take nothing of the pending output before its connection is broken.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a stalled connection is asked whether the peer's TCP has taken something. A socket is writable again only
/// when much of its buffer is free, which takes a slow peer longer than [`WRITE_TIMEOUT`].
const STALL_CHECK: Duration = Duration::from_secs(5);

/// Fewest bytes that a slow peer sends or takes in a second, where its progress cannot be seen.
pub(crate) const MIN_RATE: u64 = 16 * 1024;

/// How long so many bytes may take besides a timeout.
pub(crate) fn time_for(bytes: u64) -> Duration {
    Duration::from_secs(bytes / MIN_RATE)
}

/// Output that waits for the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unacknowledged {
    /// Bytes that the peer's TCP has not acknowledged.
    pub bytes: usize,
    /// All bytes that it has acknowledged so far.
    pub acked: u64,
}

/// A client connection.
#[derive(Debug)]
pub struct Link {
    id: u64,
    /// The address of the peer.
    peer: Option<IpAddr>,
    /// Whether a client has proved on it who it is.
    proved: AtomicBool,
    /// Whether what is written goes to the socket as it is.
    cleartext: AtomicBool,
    /// Whether a write waits for the peer.
    write_blocked: AtomicBool,
    /// Whether another process goes on with the connection.
    given_away: AtomicBool,
    /// The connection did not end by an orderly close.
    broken: AtomicBool,
    /// The peer has closed its side first.
    peer_closed: AtomicBool,
    /// Our side is closed. Its FIN counts as one more byte to be acknowledged.
    finished: AtomicBool,
    /// The socket, while the connection lasts.
    live: OnceLock<Weak<Socket>>,
    /// The socket of a watched link. It can be asked after the end of the connection.
    socket: OnceLock<Arc<Socket>>,
}

impl Link {
    /// A connection whose peer has no address.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_peer(None)
    }

    /// A connection to the peer at this address.
    #[must_use]
    pub(crate) fn with_peer(peer: Option<IpAddr>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            peer,
            proved: AtomicBool::new(false),
            cleartext: AtomicBool::new(false),
            write_blocked: AtomicBool::new(false),
            given_away: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            peer_closed: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            live: OnceLock::new(),
            socket: OnceLock::new(),
        })
    }

    /// The id of this connection, unique in this process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The address of the peer, if known.
    #[must_use]
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer
    }

    /// Notes that a client has proved on this connection who it is.
    pub(crate) fn prove(&self) {
        self.proved.store(true, Ordering::Relaxed);
    }

    /// Whether a client has proved on this connection who it is.
    #[must_use]
    pub(crate) fn is_proved(&self) -> bool {
        self.proved.load(Ordering::Relaxed)
    }

    /// Makes `all_bytes_acked` possible, also after the end of the connection. Its descriptor stays open as long as this link,
    /// unless new connections may need the descriptor more.
    pub fn watch(&self) {
        if self.socket.get().is_none()
            && let Some(socket) = self.live().filter(descriptors::may_be_kept)
        {
            _ = self.socket.set(socket);
        }
    }

    /// The socket, while the connection lasts.
    fn live(&self) -> Option<Arc<Socket>> {
        self.live.get().and_then(Weak::upgrade)
    }

    /// The socket, for another process that goes on with the connection. This process does not close it then. `None` if nothing but
    /// this process can go on: with TLS, or without a socket.
    pub(crate) fn give_away(&self) -> Option<OwnedFd> {
        let socket = self.live().filter(|_| self.is_cleartext())?.as_fd().try_clone_to_owned().ok()?;
        self.given_away.store(true, Ordering::Release);
        Some(socket)
    }

    /// Closes the connection, whoever else holds its socket.
    fn finish(&self) {
        if self.given_away.load(Ordering::Acquire) {
            return;
        }
        // One is held by the connection, and one here.
        if let Some(socket) = self.live().filter(|socket| Arc::strong_count(socket) > 2) {
            self.finished.store(true, Ordering::Release);
            _ = SockRef::from(&*socket).shutdown(Shutdown::Both);
        }
    }

    /// Whether the peer's TCP has acknowledged every byte written so far, and the connection is not broken.
    ///
    /// `false` also means that this is not known. Behind a reverse proxy the peer is the proxy.
    #[must_use]
    pub(crate) fn all_bytes_acked(&self) -> bool {
        let Some(socket) = self.socket.get() else { return false };
        if self.is_broken() {
            return false;
        }
        let fin = usize::from(self.finished.load(Ordering::Acquire));
        outq::unacknowledged(socket.as_fd()).is_some_and(|bytes| bytes <= fin)
    }

    /// Whether a write waits for the peer's TCP now.
    #[must_use]
    pub(crate) fn is_write_blocked(&self) -> bool {
        self.write_blocked.load(Ordering::Relaxed)
    }

    /// Notes whether a write waits for the peer's TCP.
    pub(crate) fn note_write_blocked(&self, blocked: bool) {
        self.write_blocked.store(blocked, Ordering::Relaxed);
    }

    /// The output that waits for the peer. `None` if this is not known, or the connection has ended.
    #[must_use]
    pub(crate) fn unacknowledged(&self) -> Option<Unacknowledged> {
        let socket = self.live()?;
        let bytes = outq::unacknowledged(socket.as_fd())?;
        Some(Unacknowledged { bytes, acked: socket.written().saturating_sub(bytes as u64) })
    }

    /// Whether the peer closed the connection before the server did.
    ///
    /// On a watched link this asks the socket, since the task that reads it may not have run after the close.
    #[must_use]
    pub(crate) fn peer_closed(&self) -> bool {
        if !self.finished.load(Ordering::Acquire)
            && let Some(socket) = self.socket.get()
        {
            match SockRef::from(&**socket).peek(&mut [MaybeUninit::uninit()]) {
                Ok(0) => self.peer_closed.store(true, Ordering::Release),
                // Reading the error of a socket clears it.
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    self.broken.store(true, Ordering::Release)
                }
                _ => {}
            }
        }
        self.peer_closed.load(Ordering::Acquire)
    }

    /// Whether the connection is known to have ended without an orderly close.
    #[must_use]
    pub(crate) fn is_broken(&self) -> bool {
        // A reset after the server has dropped the connection is the pending error of the socket.
        if let Some(socket) = self.socket.get()
            && !matches!(SockRef::from(&**socket).take_error(), Ok(None))
        {
            self.broken.store(true, Ordering::Release);
        }
        self.broken.load(Ordering::Acquire)
    }
}

/// A stream that notes in its [`Link`] what happens to it.
#[derive(Debug)]
pub struct MonitoredStream<S> {
    stream: S,
    link: Arc<Link>,
    /// The written bytes that the peer has not acknowledged, if the stream knows.
    unacknowledged: fn(&S) -> Option<usize>,
    /// Lasts while a write waits. Allocated at the first stall.
    stalled: Option<Box<Stall>>,
}

/// A write that waits for the peer.
#[derive(Debug)]
struct Stall {
    /// When the peer took something last, or the wait began.
    since: Instant,
    /// What the peer had not acknowledged then.
    unacknowledged: Option<usize>,
    /// The next look.
    timer: Pin<Box<Sleep>>,
}

impl Stall {
    fn new(unacknowledged: Option<usize>) -> Self {
        let since = Instant::now();
        Self { since, unacknowledged, timer: Box::pin(sleep_until(since + STALL_CHECK)) }
    }

    /// Ready when the peer has taken nothing for [`WRITE_TIMEOUT`]. `unacknowledged` asks for what it still has to take.
    fn poll_end(&mut self, cx: &mut Context<'_>, unacknowledged: impl Fn() -> Option<usize>) -> Poll<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let (now, left) = (Instant::now(), unacknowledged());
            if left < self.unacknowledged {
                (self.since, self.unacknowledged) = (now, left);
            }
            let end = self.since + WRITE_TIMEOUT;
            if now >= end {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(end.min(now + STALL_CHECK));
        }
        Poll::Pending
    }
}

impl MonitoredStream<SharedSocket> {
    /// Wraps a TCP connection.
    #[must_use]
    pub(crate) fn tcp(stream: TcpStream, link: Arc<Link>) -> Self {
        let stream = SharedSocket::new(stream);
        _ = link.live.set(stream.downgrade());
        Self { stream, link, unacknowledged: |stream| outq::unacknowledged(stream.as_fd()), stalled: None }
    }
}

impl<S> MonitoredStream<S> {
    /// Wraps a stream that is no socket. It gives no evidence of arrival.
    #[must_use]
    pub fn opaque(stream: S, link: Arc<Link>) -> Self {
        Self { stream, link, unacknowledged: |_| None, stalled: None }
    }

    /// Notes the result of a write, and breaks a connection that is stalled for too long.
    fn note_progress<T>(&mut self, cx: &mut Context<'_>, written: Poll<Result<T>>) -> Poll<Result<T>> {
        if let Poll::Ready(result) = written {
            if self.stalled.take().is_some() {
                self.link.note_write_blocked(false);
            }
            if result.is_err() {
                self.link.broken.store(true, Ordering::Release);
            }
            return Poll::Ready(result);
        }
        let Self { stream, link, unacknowledged, stalled, .. } = self;
        let stall = stalled.get_or_insert_with(|| {
            link.note_write_blocked(true);
            Box::new(Stall::new(unacknowledged(stream)))
        });
        if stall.poll_end(cx, || unacknowledged(stream)).is_pending() {
            return Poll::Pending;
        }
        self.link.broken.store(true, Ordering::Release);
        let text = format!("the peer took nothing for {} s", WRITE_TIMEOUT.as_secs());
        Poll::Ready(Err(Error::new(ErrorKind::TimedOut, text)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MonitoredStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let room = buf.remaining();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &read {
            Poll::Ready(Err(_)) => self.link.broken.store(true, Ordering::Release),
            // Nothing read although there was room: the end of the stream.
            Poll::Ready(Ok(()))
                if buf.remaining() == room && room > 0 && !self.link.finished.load(Ordering::Acquire) =>
            {
                self.link.peer_closed.store(true, Ordering::Release);
            }
            _ => {}
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MonitoredStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note_progress(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note_progress(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.note_progress(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.link.finished.store(true, Ordering::Release);
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.note_progress(cx, shut)
    }
}

impl<S> Drop for MonitoredStream<S> {
    fn drop(&mut self) {
        self.link.finish();
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use tokio::net::TcpListener;

    use super::*;

    /// Both ends of a TCP connection, and the link of the first one.
    pub(crate) async fn tcp_pair() -> (MonitoredStream<SharedSocket>, Arc<Link>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, client) = tokio::join!(listener.accept(), TcpStream::connect(address));
        let (server, peer) = accepted.unwrap();
        let link = Link::with_peer(Some(peer.ip()));
        (MonitoredStream::tcp(server, Arc::clone(&link)), link, client.unwrap())
    }
}

#[cfg(test)]
mod tests;
