//! A WebSocket of the server (RFC 6455) on any stream: an upgraded HTTP/1.1 connection, or a stream of HTTP/2.
//!
//! [`decoder::Decoder`] reads, [`output::Output`] writes. A socket at rest holds no buffer: it is read into a buffer on the
//! stack. Only what follows a complete message is kept, until it is decoded too.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::budget::{Budget, Holder, Permit, SMALL, UNPROVED_MOST};

mod decoder;
mod output;

pub(crate) use decoder::{Decoder, ReadError, Received};
pub(crate) use output::{ENCODING, Frame, Output};

/// Most bytes of one read.
const READ: usize = 16 * 1024;

/// What a read has found; `None` at the end of the stream.
pub(super) type Read = Option<Result<Received, ReadError>>;

/// A socket of one client.
#[derive(Debug)]
pub(super) struct Socket<S> {
    stream: S,
    decoder: Decoder,
    /// What was read and not decoded, from `decoded` on.
    unread: Vec<u8>,
    decoded: usize,
    /// Bytes read so far.
    received: u64,
    /// Whether the client cannot be decoded any more.
    failed: bool,
    /// What a message that is not complete takes of the memory budget.
    permit: Permit,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub(super) fn new(stream: S, budget: &Budget) -> Self {
        Self::with_input(stream, Vec::new(), budget)
    }

    /// A socket of which these bytes were read already.
    pub(super) fn with_input(stream: S, unread: Vec<u8>, budget: &Budget) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            received: unread.len() as u64,
            unread,
            decoded: 0,
            failed: false,
            permit: budget.permit(Holder::Unproved),
        }
    }

    /// How many bytes were read so far.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// The next message that is read already.
    pub(super) fn buffered(&mut self, limit: usize) -> Option<Result<Received, ReadError>> {
        if self.unread.is_empty() {
            return None;
        }
        let mut rest = &self.unread[self.decoded..];
        let decoded = self.decoder.decode(&mut rest, limit);
        match rest.len() {
            0 => (self.unread, self.decoded) = (Vec::new(), 0),
            left => self.decoded = self.unread.len() - left,
        }
        self.failed |= decoded.is_err();
        decoded.transpose()
    }

    /// Polls for the next message, of at most `limit` bytes.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<Read> {
        loop {
            if let Some(received) = self.buffered(limit) {
                return Poll::Ready(Some(received));
            }
            let mut space = [MaybeUninit::uninit(); READ];
            let mut buffer = ReadBuf::uninit(&mut space);
            if ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)).is_err() {
                return Poll::Ready(Some(Err(ReadError::Disconnected)));
            }
            let mut input = buffer.filled();
            if input.is_empty() {
                return Poll::Ready(None);
            }
            self.received += input.len() as u64;
            let decoded = self.decoder.decode(&mut input, limit);
            let decoded = if self.has_room(limit) { decoded } else { Err(ReadError::NoRoom) };
            self.unread.extend_from_slice(input);
            self.failed |= decoded.is_err();
            if let Some(received) = decoded.transpose() {
                return Poll::Ready(Some(received));
            }
        }
    }

    /// Takes room for the message that is not complete, or gives back that of the one before. `false` if there is none.
    fn has_room(&mut self, limit: usize) -> bool {
        if limit > UNPROVED_MOST {
            self.permit.prove();
        }
        let held = self.decoder.held();
        // While a message grows, its permit keeps what it was rounded up by.
        if held <= SMALL {
            self.permit.shrink_to(held);
        }
        self.permit.try_cover(held)
    }

    /// Writes all output.
    pub(super) async fn flush(&mut self, output: &mut Output) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx, output)).await
    }

    /// Polls until all output is written.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>, output: &mut Output) -> Poll<io::Result<()>> {
        output.poll_flush(cx, &mut self.stream)
    }

    /// Waits for the client's close frame, or for the end of the stream.
    ///
    /// A client that cannot be decoded is read to its end: closing before that would reset the connection, and it might
    /// not get the close frame.
    pub(super) async fn wait_for_close(&mut self, limit: usize) {
        if self.failed {
            _ = self.stream.shutdown().await;
        }
        while let Some(Ok(received)) = poll_fn(|cx| self.poll_read_to_close(cx, limit)).await
            && !matches!(received, Received::Close(_))
        {}
    }

    fn poll_read_to_close(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<Read> {
        if !self.failed {
            return self.poll_read(cx, limit);
        }
        loop {
            let mut space = [MaybeUninit::uninit(); READ];
            let mut buffer = ReadBuf::uninit(&mut space);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(None);
            }
        }
    }
}

#[cfg(test)]
mod tests;
