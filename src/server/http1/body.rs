//! The body of a request, of which a part may still be on its way.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::oneshot;

/// A body that comes later than its head, as a whole. It is cut off if its sender is dropped.
struct LateBody {
    bytes: oneshot::Receiver<Bytes>,
    /// Bytes that are to come.
    left: usize,
}

/// A body of so many bytes, and what it is sent to once it is there.
pub(super) fn late(len: usize) -> (Body, oneshot::Sender<Bytes>) {
    let (sender, bytes) = oneshot::channel();
    (Body::new(LateBody { bytes, left: len }), sender)
}

impl HttpBody for LateBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let received = ready!(Pin::new(&mut self.bytes).poll(cx));
        self.left = 0;
        Poll::Ready(Some(match received {
            Ok(bytes) => Ok(Frame::data(bytes)),
            Err(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}
