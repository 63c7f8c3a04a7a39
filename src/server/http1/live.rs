//! An answer whose body comes over time, as events do. It is written in chunks (RFC 9112 section 7.1).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::Body as _;
use tokio::io::AsyncWrite;

use crate::link::LentOutput;
use crate::server::http1::output::Output;

/// Whether the body of an answer comes over time.
pub(super) fn is_live(response: &Response) -> bool {
    response.body().size_hint().exact().is_none()
}

/// An answer whose body comes over time.
#[derive(Debug)]
pub(super) struct Live {
    body: Body,
    /// The output of the connection, if the body lets it be lent while everything is written.
    lent: Option<Arc<LentOutput>>,
    is_over: bool,
}

impl Live {
    /// An answer. The connection ends after it if it `closes`.
    pub(super) fn new(response: Response, closes: bool, output: &mut Output) -> Self {
        let (parts, body) = response.into_parts();
        let lent = parts.extensions.get().cloned();
        output.push_chunked_head(parts, closes);
        Self { body, lent, is_over: false }
    }

    /// Writes what there is, until the body ends.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        (output, stream): (&mut Output, &mut S),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(rest) = self.lent.as_ref().and_then(|lent| lent.take_back()) {
            output.push_piece(rest);
        }
        loop {
            ready!(output.poll_write(stream, cx))?;
            if self.is_over {
                return Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(frame)) => {
                    let bytes = frame.map_err(io::Error::other)?.into_data().unwrap_or_default();
                    if !bytes.is_empty() {
                        output.push_chunk(bytes);
                    }
                }
                Poll::Ready(None) => {
                    self.is_over = true;
                    output.push_chunk(Bytes::new());
                }
                Poll::Pending => {
                    if let Some(lent) = &self.lent {
                        lent.lend();
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}
