//! One client connection as the server sees it: whether what was written arrived, and whether it moves.
//!
//! [`MonitoredStream`] wraps the socket under HTTP and WebSocket alike. It notices how the connection ended, and gives up
//! on a peer that takes nothing for [`WRITE_TIMEOUT`], so no transport needs a rule of its own for slow readers.

use std::future::Future;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

mod outq;

/// How long a peer may take nothing of what is to be written before its connection is dropped.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A client connection.
#[derive(Debug)]
pub struct Link {
    id: u64,
    /// The address of the other end.
    peer: Option<IpAddr>,
    /// Somebody wants to know later whether what is written now arrived.
    watched: AtomicBool,
    /// The connection ended otherwise than by an orderly close.
    broken: AtomicBool,
    /// The peer closed its side first.
    peer_closed: AtomicBool,
    /// Our side was closed: the FIN counts as one more byte to be acknowledged.
    finished: AtomicBool,
    /// A second handle on the socket, made when the link is watched: it can be asked after the end.
    socket: OnceLock<OwnedFd>,
}

impl Link {
    /// A connection that nothing is known about yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::with_peer(None)
    }

    /// A connection with this address at its other end.
    #[must_use]
    pub fn with_peer(peer: Option<IpAddr>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            peer,
            watched: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            peer_closed: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            socket: OnceLock::new(),
        })
    }

    /// Tells this connection from all others of this process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The address of the other end, where there is one.
    #[must_use]
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer
    }

    /// From the next write on, [`Self::all_bytes_acked`] can tell.
    pub fn watch(&self) {
        self.watched.store(true, Ordering::Release);
    }

    /// Whether the peer's TCP has acknowledged every byte written so far, and the connection did not break.
    ///
    /// `false` also means "there is no telling". Behind a reverse proxy this speaks of the proxy.
    #[must_use]
    pub fn all_bytes_acked(&self) -> bool {
        let Some(socket) = self.socket.get() else { return false };
        if self.is_broken() {
            return false;
        }
        let fin = usize::from(self.finished.load(Ordering::Acquire));
        outq::unacknowledged(socket.as_fd()).is_some_and(|bytes| bytes <= fin)
    }

    /// Whether the peer closed the connection, before we did.
    ///
    /// On a watched link this asks the socket: the task that reads the connection may not have run since the close.
    #[must_use]
    pub fn peer_closed(&self) -> bool {
        if !self.finished.load(Ordering::Acquire)
            && let Some(socket) = self.socket.get()
        {
            match SockRef::from(socket).peek(&mut [MaybeUninit::uninit()]) {
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

    /// Whether the connection is known to have ended otherwise than by an orderly close.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        // A reset that came after the server let go of the connection waits as the socket's error.
        if let Some(socket) = self.socket.get()
            && !matches!(SockRef::from(socket).take_error(), Ok(None))
        {
            self.broken.store(true, Ordering::Release);
        }
        self.broken.load(Ordering::Acquire)
    }
}

/// A socket that tells its [`Link`] how it fares.
#[derive(Debug)]
pub struct MonitoredStream<S> {
    stream: S,
    link: Arc<Link>,
    /// A second handle on the stream, where it has one.
    handle: fn(&S) -> Option<OwnedFd>,
    /// Running while the peer takes nothing; allocated at the first stall only.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl MonitoredStream<TcpStream> {
    /// Wraps a TCP connection.
    #[must_use]
    pub fn tcp(stream: TcpStream, link: Arc<Link>) -> Self {
        Self { stream, link, handle: |stream| stream.as_fd().try_clone_to_owned().ok(), stalled: None }
    }
}

impl<S> MonitoredStream<S> {
    /// Wraps a stream that is not a socket of the system: it never gives evidence of arrival.
    #[must_use]
    pub fn opaque(stream: S, link: Arc<Link>) -> Self {
        Self { stream, link, handle: |_| None, stalled: None }
    }

    fn note_progress<T>(&mut self, cx: &mut Context<'_>, written: Poll<Result<T>>) -> Poll<Result<T>> {
        match &written {
            Poll::Ready(result) => {
                self.stalled = None;
                if result.is_err() {
                    self.link.broken.store(true, Ordering::Release);
                }
            }
            Poll::Pending => {
                let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_TIMEOUT)));
                if timer.as_mut().poll(cx).is_ready() {
                    self.link.broken.store(true, Ordering::Release);
                    let text = format!("the peer took nothing for {} s", WRITE_TIMEOUT.as_secs());
                    return Poll::Ready(Err(Error::new(ErrorKind::TimedOut, text)));
                }
            }
        }
        written
    }

    fn before_write(&self) {
        if self.link.watched.load(Ordering::Acquire)
            && self.link.socket.get().is_none()
            && let Some(socket) = (self.handle)(&self.stream)
        {
            _ = self.link.socket.set(socket);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MonitoredStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let before = buf.remaining();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &read {
            Poll::Ready(Err(_)) => self.link.broken.store(true, Ordering::Release),
            // Nothing read although there was room: the end of the stream.
            Poll::Ready(Ok(()))
                if buf.remaining() == before && before > 0 && !self.link.finished.load(Ordering::Acquire) =>
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
        self.before_write();
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note_progress(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.before_write();
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
        // The second handle would keep the connection open towards the peer.
        if let Some(socket) = self.link.socket.get() {
            self.link.finished.store(true, Ordering::Release);
            _ = SockRef::from(socket).shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A watched connection on which an answer was written, and its peer.
    async fn answered() -> (MonitoredStream<TcpStream>, Arc<Link>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let link = Link::new();
        let mut stream = MonitoredStream::tcp(listener.accept().await.unwrap().0, Arc::clone(&link));
        link.watch();
        stream.write_all(b"an answer").await.unwrap();
        (stream, link, peer)
    }

    #[tokio::test]
    async fn a_close_of_the_peer_is_seen_before_the_connection_is_read() {
        let (_stream, link, mut peer) = answered().await;
        peer.read_exact(&mut [0; 9]).await.unwrap();
        assert!(!link.peer_closed());
        drop(peer);
        assert!(link.peer_closed());
        assert!(!link.is_broken());
    }

    #[tokio::test]
    async fn our_own_close_is_not_one_of_the_peer() {
        let (stream, link, peer) = answered().await;
        drop(stream);
        assert!(!link.peer_closed());
        drop(peer);
        assert!(!link.peer_closed());
    }

    #[tokio::test]
    async fn a_reset_is_not_lost_by_looking_for_a_close() {
        let (_stream, link, peer) = answered().await;
        // The answer was not read, so this is a reset.
        drop(peer);
        assert!(!link.peer_closed());
        assert!(link.is_broken());
    }
}
