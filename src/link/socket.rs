//! The socket of a connection, shared by its task and by who writes to it or asks it while the task rests.
//!
//! tokio reads and writes through a stream that one task owns. A second descriptor for others costs system calls at the
//! beginning and at the end of each connection.

use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// The socket of a connection. One task reads and writes it asynchronously.
#[derive(Debug)]
pub struct SharedSocket(Arc<TcpStream>);

impl SharedSocket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    /// The same socket, as long as the connection has it.
    pub(super) fn downgrade(&self) -> Weak<TcpStream> {
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
        let result = self.0.try_io(interest, || {
            let count = operation(&self.0)?;
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
            ready!(self.0.poll_read_ready(cx))?;
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
            ready!(self.0.poll_write_ready(cx))?;
            if let Some(written) = self.attempt(Interest::WRITABLE, possible, &write) {
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
