//! The text of an answer, made of pieces. The bytes of large messages are shared with it and not copied.

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::budget::Permit;
use crate::message::Publication;

/// Fewer bytes of a message are copied: a reference to them would take as much.
const SHARED: usize = 256;

/// Text in pieces. The messages in it count in the memory budget until the last piece of them is dropped.
#[derive(Debug, Default)]
pub(crate) struct SharedText {
    pieces: Vec<Bytes>,
    /// Bytes of the pieces.
    len: usize,
    /// What comes after the pieces.
    tail: String,
}

/// Part of the frame of a publication.
struct Slice(Arc<Publication>, Range<usize>);

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.0.frame().as_str().as_bytes()[self.1.clone()]
    }
}

/// Text that counts in the memory budget by itself.
struct Counted(String, #[expect(dead_code, reason = "it is held")] Permit);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl SharedText {
    /// Its bytes.
    pub(crate) fn len(&self) -> usize {
        self.len + self.tail.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes room for so many bytes that are pushed.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.tail.reserve(bytes);
    }

    pub(crate) fn push_str(&mut self, text: &str) {
        self.tail.push_str(text);
    }

    /// What comes last, to be written at. It becomes a piece as it is if it has no spare capacity.
    pub(crate) fn tail(&mut self) -> &mut String {
        &mut self.tail
    }

    /// Adds the frame of a message.
    pub(crate) fn push_frame(&mut self, publication: &Arc<Publication>) {
        self.push_slice(publication, 0..publication.frame().as_str().len());
    }

    /// Adds part of the payload of a message.
    pub(crate) fn push_payload(&mut self, publication: &Arc<Publication>, part: Range<usize>) {
        let start = publication.payload_start();
        self.push_slice(publication, start + part.start..start + part.end);
    }

    fn push_slice(&mut self, publication: &Arc<Publication>, part: Range<usize>) {
        if publication.is_large() && part.len() >= SHARED {
            self.push_piece(Bytes::from_owner(Slice(Arc::clone(publication), part)));
        } else {
            self.tail.push_str(&publication.frame().as_str()[part]);
        }
    }

    /// Adds other text.
    pub(crate) fn push_text(&mut self, other: Self) {
        self.flush();
        self.len += other.len;
        self.pieces.extend(other.pieces);
        self.tail = other.tail;
    }

    /// Adds text that counts in the memory budget with this permit.
    pub(crate) fn push_counted(&mut self, text: String, permit: Permit) {
        self.push_piece(Bytes::from_owner(Counted(text, permit)));
    }

    fn push_piece(&mut self, piece: Bytes) {
        self.flush();
        self.len += piece.len();
        self.pieces.push(piece);
    }

    fn flush(&mut self) {
        if !self.tail.is_empty() {
            self.len += self.tail.len();
            self.pieces.push(std::mem::take(&mut self.tail).into());
        }
    }

    /// Copies all of it.
    pub(crate) fn copy_to(&self, bytes: &mut Vec<u8>) {
        self.pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
        bytes.extend_from_slice(self.tail.as_bytes());
    }

    /// The pieces, none of which is empty.
    pub(crate) fn into_pieces(self) -> impl Iterator<Item = Bytes> {
        let tail = (!self.tail.is_empty()).then(|| self.tail.into());
        self.pieces.into_iter().chain(tail)
    }
}

impl From<String> for SharedText {
    fn from(tail: String) -> Self {
        Self { tail, ..Self::default() }
    }
}

impl From<SharedText> for Body {
    fn from(text: SharedText) -> Self {
        let left = text.len() as u64;
        if text.pieces.is_empty() {
            return text.tail.into();
        }
        let pieces = text.into_pieces().collect::<Vec<_>>();
        match <[Bytes; 1]>::try_from(pieces) {
            Ok([piece]) => piece.into(),
            Err(pieces) => Self::new(Pieces { pieces: pieces.into_iter(), left }),
        }
    }
}

/// A body of known length.
struct Pieces {
    pieces: std::vec::IntoIter<Bytes>,
    left: u64,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.next();
        self.left -= piece.as_ref().map_or(0, Bytes::len) as u64;
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::value::RawValue;

    use super::*;
    use crate::budget::{Budget, Holder};
    use crate::message::{Address, Kind, Message, Seq, SessionId};

    fn publication(size: usize) -> Arc<Publication> {
        let payload = RawValue::from_string(format!("\"{}\"", "x".repeat(size - 2))).unwrap();
        let message = Message { kind: Kind::Message, from: None, payload, ts: 1, reference: None };
        let mailbox = Address::Session(SessionId::new("A").unwrap());
        Arc::new(Publication::encode(&mailbox, Some(Seq(1)), &message))
    }

    #[test]
    fn large_messages_are_shared_and_counted_until_their_last_piece_is_dropped() {
        let budget = Budget::new(100_000);
        let (large, small) = (publication(60_000), publication(100));
        let on_its_way = large.delivery(|bytes| budget.try_acquire(Holder::Proved, bytes)).unwrap();
        let mut text = SharedText::default();
        text.push_str("[");
        text.push_frame(&on_its_way);
        text.push_str(",");
        text.push_frame(&small);
        text.push_payload(&on_its_way, 0..50_000);
        text.push_payload(&on_its_way, 50_000..50_100);
        text.push_str("]");
        let len = text.len();
        let whole =
            [large.frame().as_str(), ",", small.frame().as_str(), &large.payload()[..50_100]].concat();
        drop(on_its_way);
        let mut outer = SharedText::default();
        outer.push_text(text);
        let text = outer;
        assert_eq!(text.len(), len);
        let mut copied = Vec::new();
        text.copy_to(&mut copied);
        assert_eq!(copied, format!("[{whole}]").into_bytes());
        let pieces: Vec<Bytes> = text.into_pieces().collect();
        assert_eq!(pieces.concat(), format!("[{whole}]").into_bytes());
        assert_eq!((pieces.len(), pieces.concat().len()), (5, len));
        assert_eq!(pieces[1].as_ptr(), large.frame().as_str().as_ptr());
        assert!(budget.used() > 60_000);
        drop(pieces);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn a_body_tells_its_length_and_text_of_its_own_is_counted() {
        let budget = Budget::new(100_000);
        let mut text = SharedText::default();
        assert!(text.is_empty() && SharedText::default().into_pieces().next().is_none());
        text.push_str("ab");
        text.push_counted("c".repeat(9_000), budget.try_acquire(Holder::Proved, 20_000).unwrap());
        let body = Body::from(text);
        assert_eq!((HttpBody::size_hint(&body).exact(), budget.used()), (Some(9_002), 20_000));
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 9_002);
        assert_eq!(budget.used(), 0);
        assert!(HttpBody::is_end_stream(&Body::from(SharedText::default())));
    }
}
