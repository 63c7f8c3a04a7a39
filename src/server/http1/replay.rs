//! A stream that gives some bytes again before it goes on.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream of which a part was read already.
#[derive(Debug)]
pub(in crate::server) struct Replay<S> {
    stream: S,
    /// What was read, and how much of that was given again.
    read: Option<Box<(Vec<u8>, usize)>>,
}

impl<S> Replay<S> {
    pub(in crate::server) fn new(stream: S, read: Vec<u8>) -> Self {
        Self { stream, read: (!read.is_empty()).then(|| Box::new((read, 0))) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let Some(read) = &mut self.read else { return Pin::new(&mut self.stream).poll_read(cx, buf) };
        let (bytes, given) = &mut **read;
        let end = bytes.len().min(*given + buf.remaining());
        buf.put_slice(&bytes[*given..end]);
        *given = end;
        if end == bytes.len() {
            self.read = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_was_read_comes_first() {
        let (mut peer, stream) = duplex(64);
        peer.write_all(b"cd").await.unwrap();
        let mut replay = Replay::new(stream, b"ab".to_vec());
        let mut read = [0; 1];
        let mut all = Vec::new();
        for _ in 0..4 {
            replay.read_exact(&mut read).await.unwrap();
            all.push(read[0]);
        }
        assert_eq!(all, b"abcd");
        replay.write_all(b"e").await.unwrap();
        peer.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"e");
    }
}
