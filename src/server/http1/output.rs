//! The answers of the loop: the same bytes that hyper writes, in one write.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::response::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Buf;
use futures::FutureExt;
use http_body_util::BodyExt;
use tokio::io::AsyncWrite;

/// A body up to this size is copied behind its head.
const COPIED: usize = 4 * 1024;

/// Most pieces of one write.
const PIECES: usize = 64;

/// An answer on its way.
#[derive(Debug)]
pub(super) struct Output {
    pieces: VecDeque<Bytes>,
}

impl Output {
    /// The bytes of a response. The connection ends after it if it `closes`.
    ///
    /// # Errors
    /// The body is not there yet. Those of polls and sends are whole from the beginning.
    pub(super) fn new(response: Response, closes: bool) -> io::Result<Self> {
        let (mut parts, body) = response.into_parts();
        if closes {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let mut pieces = pieces(body)?;
        let len: usize = pieces.iter().map(Bytes::len).sum();
        let mut head = encode(&parts, len);
        if len <= COPIED {
            pieces.drain(..).for_each(|piece| head.extend_from_slice(&piece));
        }
        pieces.push_front(head.into());
        Ok(Self { pieces })
    }

    /// Writes all of it.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while let Some(first) = self.pieces.front() {
            let stream = Pin::new(&mut *stream);
            let written = if self.pieces.len() == 1 || !stream.is_write_vectored() {
                ready!(stream.poll_write(cx, first))?
            } else {
                let mut slices = [IoSlice::new(&[]); PIECES];
                for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                    *slice = IoSlice::new(piece);
                }
                let count = self.pieces.len().min(PIECES);
                ready!(stream.poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        Pin::new(stream).poll_flush(cx)
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.pieces.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.pieces.pop_front();
        }
    }
}

/// The pieces of a body, none of which is empty.
fn pieces(mut body: Body) -> io::Result<VecDeque<Bytes>> {
    let mut pieces = VecDeque::new();
    loop {
        let frame = body.frame().now_or_never();
        let Some(frame) = frame.ok_or_else(|| io::Error::other("the answer is not whole"))? else {
            return Ok(pieces);
        };
        if let Ok(bytes) = frame.map_err(io::Error::other)?.into_data()
            && !bytes.is_empty()
        {
            pieces.push_back(bytes);
        }
    }
}

/// The head of an answer with so many bytes of body.
fn encode(Parts { status, headers, .. }: &Parts, len: usize) -> Vec<u8> {
    // Most heads, with a small body behind them.
    let mut head = Vec::with_capacity(512 + if len <= COPIED { len } else { 0 });
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(status.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(status.canonical_reason().unwrap_or("<none>").as_bytes());
    head.extend_from_slice(b"\r\n");
    encode_headers(&mut head, headers);
    let may_have_length = !matches!(*status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if may_have_length && !headers.contains_key(header::CONTENT_LENGTH) {
        // Writing to memory does not fail.
        _ = write!(head, "content-length: {len}\r\n");
    }
    if !headers.contains_key(header::DATE) {
        head.extend_from_slice(b"date: ");
        with_date(|date| head.extend_from_slice(date.as_bytes()));
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

fn encode_headers(head: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
}

/// Calls this with the date of now. It is encoded once a second in each thread.
pub(super) fn with_date(used: impl FnOnce(&str)) {
    thread_local! {
        static DATE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    DATE.with_borrow_mut(|(at, text)| {
        if *at != seconds || text.is_empty() {
            *at = seconds;
            *text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
        }
        used(text);
    });
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    /// What is written to a stream that takes so many bytes at once.
    async fn written(response: Response, closes: bool, room: usize) -> String {
        let (mut stream, mut peer) = duplex(room);
        let mut output = Output::new(response, closes).unwrap();
        let writing = async move {
            poll_fn(|cx| output.poll_write(&mut stream, cx)).await.unwrap();
        };
        let mut text = String::new();
        let (_, read) = tokio::join!(writing, peer.read_to_string(&mut text));
        read.unwrap();
        text
    }

    #[tokio::test]
    async fn an_answer_has_a_length_and_a_date() {
        let text = written(Response::new("hello".into()), true, 7).await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let (begin, date) = head.split_once("date: ").unwrap();
        assert_eq!(begin, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n");
        assert_eq!((body, httpdate::parse_http_date(date).is_ok()), ("hello", true));
    }

    #[tokio::test]
    async fn a_large_body_follows_in_pieces() {
        let text = written(Response::new("x".repeat(3 * COPIED).into()), false, 1000).await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", 3 * COPIED)), "{head}");
        assert!(body.len() == 3 * COPIED && body.bytes().all(|byte| byte == b'x'));
    }
}
