//! The answers of the loop: the same bytes that hyper writes, in one write.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::response::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Buf;
use futures::FutureExt;
use http_body_util::BodyExt;
use tokio::io::AsyncWrite;

use crate::message::SharedText;
use crate::server::answer::{Answer, encode_headers};

/// A body up to this size is copied behind its head.
const COPIED: usize = 4 * 1024;

/// Bytes of most heads, besides the lines that are encoded once.
const HEAD: usize = 256;

/// Most pieces of one write.
const PIECES: usize = 64;

/// Answers on their way.
#[derive(Debug, Default)]
pub(super) struct Output {
    pieces: VecDeque<Bytes>,
    /// What comes after the pieces.
    tail: Vec<u8>,
    /// How much of the tail is written.
    written: usize,
}

impl Output {
    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.tail.is_empty()
    }

    /// Whether more answers are not to be added before it is written.
    pub(super) fn is_large(&self) -> bool {
        !self.pieces.is_empty() || self.tail.len() > COPIED
    }

    /// Adds an answer. The connection ends after it if it `closes`.
    ///
    /// # Errors
    /// The body is not there yet. Those of polls and sends are whole from the beginning.
    pub(super) fn push(&mut self, answer: Answer, closes: bool) -> io::Result<()> {
        match answer {
            Answer::Text(lines, text) => self.push_text(&lines, text, closes),
            Answer::Response(response) => self.push_response(response, closes)?,
        }
        Ok(())
    }

    /// Adds a status 200 with these lines of headers.
    fn push_text(&mut self, lines: &[u8], text: SharedText, closes: bool) {
        let (head, len) = (&mut self.tail, text.len());
        head.reserve(HEAD + lines.len() + if len <= COPIED { len } else { 0 });
        head.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        head.extend_from_slice(lines);
        if closes {
            head.extend_from_slice(b"connection: close\r\n");
        }
        end_head(head, Some(len), true);
        match len <= COPIED {
            true => text.copy_to(head),
            false => text.into_pieces().for_each(|piece| self.push_piece(piece)),
        }
    }

    fn push_response(&mut self, response: Response, closes: bool) -> io::Result<()> {
        let (mut parts, body) = response.into_parts();
        note_end(&mut parts, closes);
        let pieces = pieces(body)?;
        let len: usize = pieces.iter().map(Bytes::len).sum();
        encode(&mut self.tail, &parts, Some(len));
        self.push_body(pieces, len);
        Ok(())
    }

    /// Adds a body of this length. A small one is copied.
    fn push_body(&mut self, pieces: impl IntoIterator<Item = Bytes>, len: usize) {
        if len <= COPIED {
            return pieces.into_iter().for_each(|piece| self.tail.extend_from_slice(&piece));
        }
        pieces.into_iter().for_each(|piece| self.push_piece(piece));
    }

    /// Adds what is to be written as it is.
    pub(super) fn push_piece(&mut self, piece: Bytes) {
        let mut tail = Bytes::from(std::mem::take(&mut self.tail));
        tail.advance(std::mem::take(&mut self.written));
        self.pieces.extend([tail, piece].into_iter().filter(|piece| !piece.is_empty()));
    }

    /// Adds the head of an answer whose body comes in chunks. The connection ends after it if it `closes`.
    pub(super) fn push_chunked_head(&mut self, mut parts: Parts, closes: bool) {
        note_end(&mut parts, closes);
        encode(&mut self.tail, &parts, None);
    }

    /// Adds a chunk (RFC 9112 section 7.1). An empty one is the last one.
    pub(super) fn push_chunk(&mut self, bytes: Bytes) {
        // Writing to memory does not fail.
        _ = write!(self.tail, "{:X}\r\n", bytes.len());
        match bytes.len() <= COPIED {
            true => self.tail.extend_from_slice(&bytes),
            false => self.push_piece(bytes),
        }
        self.tail.extend_from_slice(b"\r\n");
    }

    /// Writes all of it.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let stream = Pin::new(&mut *stream);
            let tail = &self.tail[self.written..];
            let written = match self.pieces.front() {
                None => ready!(stream.poll_write(cx, tail))?,
                Some(first) if !stream.is_write_vectored() => ready!(stream.poll_write(cx, first))?,
                Some(_) => {
                    let mut slices = [IoSlice::new(&[]); PIECES];
                    let all = self.pieces.iter().map(|piece| &piece[..]).chain([tail]);
                    let mut count = 0;
                    for (slice, piece) in slices.iter_mut().zip(all) {
                        *slice = IoSlice::new(piece);
                        count += 1;
                    }
                    ready!(stream.poll_write_vectored(cx, &slices[..count]))?
                }
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
        self.written += written;
        if self.written == self.tail.len() {
            // A connection at rest holds no memory.
            *self = Self::default();
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

/// Says in the head if the connection ends after the answer.
fn note_end(parts: &mut Parts, closes: bool) {
    if closes {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// The head of an answer with so many bytes of body; `None` for one in chunks.
fn encode(head: &mut Vec<u8>, Parts { status, headers, .. }: &Parts, len: Option<usize>) {
    // Most heads, with a small body behind them.
    head.reserve(2 * HEAD + len.filter(|len| *len <= COPIED).unwrap_or(0));
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(status.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(status.canonical_reason().unwrap_or("<none>").as_bytes());
    head.extend_from_slice(b"\r\n");
    encode_headers(head, headers);
    let may_have_length = !matches!(*status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let needs_length = may_have_length && !headers.contains_key(header::CONTENT_LENGTH);
    if needs_length && len.is_none() {
        head.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    end_head(head, len.filter(|_| needs_length), !headers.contains_key(header::DATE));
}

/// The last lines of a head: the length of the body, and the date of now.
fn end_head(head: &mut Vec<u8>, len: Option<usize>, dated: bool) {
    if let Some(len) = len {
        // Writing to memory does not fail.
        _ = write!(head, "content-length: {len}\r\n");
    }
    if dated {
        head.extend_from_slice(b"date: ");
        with_date(|date| head.extend_from_slice(date.as_bytes()));
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
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
    use crate::server::answer::header_lines;

    /// What is written to a stream that takes so many bytes at once.
    async fn written(response: Response, closes: bool, room: usize) -> String {
        bytes(Answer::Response(response), closes, room).await
    }

    async fn bytes(answer: Answer, closes: bool, room: usize) -> String {
        let (mut stream, mut peer) = duplex(room);
        let mut output = Output::default();
        output.push(answer, closes).unwrap();
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
    async fn answers_are_written_one_after_the_other() {
        for room in [7, 100, 100_000] {
            let (mut stream, mut peer) = duplex(room);
            let mut output = Output::default();
            let lens = [3, 2 * COPIED, 5, 0, 2 * COPIED, 3 * COPIED, 7];
            for len in lens {
                output.push(Answer::Response(Response::new("x".repeat(len).into())), false).unwrap();
                // A part of it may be written before the next one comes.
                _ = futures::poll!(std::pin::pin!(poll_fn(|cx| output.poll_write(&mut stream, cx))));
            }
            let writing = async move {
                poll_fn(|cx| output.poll_write(&mut stream, cx)).await.unwrap();
                assert!(output.is_empty());
            };
            let mut text = String::new();
            let (_, read) = tokio::join!(writing, peer.read_to_string(&mut text));
            read.unwrap();
            let mut rest = &text[..];
            for len in lens {
                let (head, body) = rest.split_once("\r\n\r\n").unwrap();
                assert!(
                    head.starts_with("HTTP/1.1 200") && head.contains(&format!("length: {len}\r\n")),
                    "{head}"
                );
                assert!(body.as_bytes()[..len].iter().all(|byte| *byte == b'x'));
                rest = &body[len..];
            }
            assert_eq!(rest, "");
        }
    }

    #[tokio::test]
    async fn a_text_is_written_as_the_response_that_holds_it() {
        for (len, closes) in [(5, false), (5, true), (3 * COPIED, false)] {
            let mut response = Response::new(Body::from("x".repeat(len)));
            response.headers_mut().insert(header::VARY, HeaderValue::from_static("origin"));
            let lines = header_lines(response.headers());
            let mut text = SharedText::default();
            text.push_str(&"x".repeat(len));
            let ours = bytes(Answer::Text(lines, text), closes, 1000).await;
            let theirs = written(response, closes, 1000).await;
            assert_eq!(ours, theirs);
        }
    }

    #[tokio::test]
    async fn a_large_body_follows_in_pieces() {
        let text = written(Response::new("x".repeat(3 * COPIED).into()), false, 1000).await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", 3 * COPIED)), "{head}");
        assert!(body.len() == 3 * COPIED && body.bytes().all(|byte| byte == b'x'));
    }
}
