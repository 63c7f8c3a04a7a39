//! The socket of a connection, shared by its task and by who writes to it or asks it while the task rests.
//!
//! tokio reads and writes through a stream that one task owns. A second descriptor for others costs system calls at the
//! beginning and at the end of each connection.

use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A socket, and how much was written to it. They are together since each write needs both, and 10,000 sockets do not fit in
/// the caches of a processor.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    /// Bytes written so far.
    written: AtomicU64,
}

impl Socket {
    /// One write outside the task of the connection. The bytes that were taken: 0 if the socket takes none now, or is broken.
    /// An error comes again when the task writes.
    pub(super) fn write_now(&self, bytes: &[u8]) -> usize {
        let written = SockRef::from(&self.stream).send(bytes).unwrap_or(0);
        self.note_written(written);
        written
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn note_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The socket of a connection. One task reads and writes it asynchronously.
#[derive(Debug)]
pub struct SharedSocket(Arc<Socket>);

impl SharedSocket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(Socket { stream, written: AtomicU64::new(0) }))
    }

    /// The same socket, as long as the connection has it.
    pub(super) fn downgrade(&self) -> Weak<Socket> {
        Arc::downgrade(&self.0)
    }

    /// One attempt, after the socket was ready. `None` if it was not. A result of fewer bytes than were possible says that
    /// the next attempt would find nothing: then the socket is waited for without that attempt, as tokio's own stream does.
    fn attempt(
        &self,
        interest: Interest,
        possible: usize,
        operation: impl FnOnce(&TcpStream) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        let mut done = None;
        let stream = &self.0.stream;
        let result = stream.try_io(interest, || {
            let count = operation(stream)?;
            done = Some(count);
            // Clears the readiness, unless the system has told a new one since the attempt began.
            if 0 < count && count < possible { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match (done, result) {
            (Some(count), _) => Some(Ok(count)),
            (None, Err(error)) if error.kind() != ErrorKind::WouldBlock => Some(Err(error)),
            (None, _) => None,
        }
    }
}

impl AsFd for SharedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsyncRead for SharedSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.stream.poll_read_ready(cx))?;
            let room = buf.remaining();
            if let Some(read) =
                self.attempt(Interest::READABLE, room, |stream| stream.try_read_buf(&mut &mut *buf))
            {
                return Poll::Ready(read.map(drop));
            }
        }
    }
}

impl SharedSocket {
    fn poll_attempt(
        &self,
        cx: &mut Context<'_>,
        possible: usize,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(cx))?;
            if let Some(written) = self.attempt(Interest::WRITABLE, possible, &write) {
                if let Ok(bytes) = written {
                    self.0.note_written(bytes);
                }
                return Poll::Ready(written);
            }
        }
    }
}

impl AsyncWrite for SharedSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_attempt(cx, buf.len(), |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let possible = bufs.iter().map(|buf| buf.len()).sum();
        self.poll_attempt(cx, possible, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}
