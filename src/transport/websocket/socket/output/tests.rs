use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, DuplexStream, duplex};

use super::*;
use crate::message::{Address, Kind, Message, Seq, SessionId};

fn publication(size: usize) -> Arc<Publication> {
    let payload = RawValue::from_string(format!("\"{}\"", "x".repeat(size))).unwrap();
    let message = Message { kind: Kind::Message, from: None, payload, ts: 1, reference: None };
    Arc::new(Publication::encode(&Address::Session(SessionId::new("A").unwrap()), Some(Seq(1)), &message))
}

/// A stream that takes so many bytes with one write, and keeps them.
struct Sink {
    taken: Vec<u8>,
    at_once: usize,
    vectored: bool,
    writes: usize,
}

impl Sink {
    fn new(at_once: usize, vectored: bool) -> Self {
        Self { taken: Vec::new(), at_once, vectored, writes: 0 }
    }
}

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let before = self.taken.len();
        for slice in slices {
            let room = self.at_once - (self.taken.len() - before);
            self.taken.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        self.writes += 1;
        Poll::Ready(Ok(self.taken.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

async fn flush<S: AsyncWrite + Unpin>(output: &mut Output, stream: &mut S) {
    std::future::poll_fn(|cx| output.poll_flush(cx, stream)).await.unwrap();
}

/// Frames of all kinds and sizes, and their bytes.
fn fill(output: &mut Output) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut add = |first: u8, payload: &[u8], frame: Frame| {
        bytes.push(first);
        match payload.len() {
            length @ 0..126 => bytes.push(u8::try_from(length).unwrap()),
            length @ 126..65_536 => {
                bytes.push(126);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                bytes.push(127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(payload);
        output.push(frame);
    };
    for size in [1, 300, 200_000, 5, 20_000, 70_000, 2] {
        let publication = publication(size);
        let frame = publication.frame().as_bytes().to_owned();
        add(0x81, &frame, Frame::publication(publication));
        let text = "t".repeat(size % 1000);
        add(0x81, text.as_bytes(), Frame::text(text.clone()));
        add(0x89, b"", Frame::ping());
    }
    add(0x8a, b"pong", Frame::pong(b"pong".to_vec()));
    add(0x88, &[3, 232], Frame::close(vec![3, 232]));
    bytes
}

#[tokio::test]
async fn every_byte_is_written_once_and_in_order_whatever_the_stream_takes() {
    for vectored in [true, false] {
        for at_once in [97, 1000, 16_384, 1 << 20] {
            let mut output = Output::default();
            let expected = fill(&mut output);
            assert_eq!(output.waiting(), expected.len());
            let mut sink = Sink::new(at_once, vectored);
            flush(&mut output, &mut sink).await;
            assert!(sink.taken == expected, "{vectored} {at_once}");
            assert_eq!((output.waiting(), output.owned(), output.len()), (0, 0, 0));
            assert!(output.is_flushed());
        }
    }
}

#[tokio::test]
async fn small_frames_are_written_together() {
    let mut output = Output::default();
    for _ in 0..100 {
        output.push(Frame::publication(publication(100)));
    }
    let mut sink = Sink::new(usize::MAX, true);
    flush(&mut output, &mut sink).await;
    assert_eq!(sink.writes, 1);
    assert_eq!(output.frames.capacity(), 0, "a client at rest holds no memory");
}

#[tokio::test]
async fn a_waiting_publication_is_shared_and_let_go() {
    let large = publication(1 << 20);
    let mut outputs: Vec<(Output, DuplexStream, DuplexStream)> = Vec::new();
    for _ in 0..10 {
        let (mut ours, theirs) = duplex(1000);
        let mut output = Output::default();
        output.push(Frame::publication(Arc::clone(&large)));
        assert!(futures::poll!(std::pin::pin!(flush(&mut output, &mut ours))).is_pending());
        assert_eq!(output.owned(), 0);
        outputs.push((output, ours, theirs));
    }
    assert_eq!(Arc::strong_count(&large), 11);
    let (mut output, mut ours, mut theirs) = outputs.pop().unwrap();
    let mut taken = vec![0; output.waiting() + 1000];
    tokio::join!(flush(&mut output, &mut ours), async { theirs.read_exact(&mut taken).await.unwrap() });
    assert_eq!(Arc::strong_count(&large), 10);
    drop(outputs);
    assert_eq!(Arc::strong_count(&large), 1);
}

#[tokio::test(start_paused = true)]
async fn output_is_blocked_from_the_last_byte_taken() {
    let (mut ours, mut theirs) = duplex(1000);
    let mut output = Output::default();
    assert!(output.is_flushed());
    output.push(Frame::publication(publication(10_000)));
    assert!(!output.is_flushed() && output.blocked().is_none());
    let mut poll = async || futures::poll!(std::pin::pin!(flush(&mut output, &mut ours))).is_ready();
    assert!(!poll().await);
    let begun = Instant::now();
    tokio::time::advance(std::time::Duration::from_secs(5)).await;
    assert!(!poll().await);
    assert_eq!(output.blocked(), Some(begun));
    theirs.read_exact(&mut [0; 10]).await.unwrap();
    let mut poll = async || futures::poll!(std::pin::pin!(flush(&mut output, &mut ours))).is_ready();
    assert!(!poll().await);
    assert_eq!(output.blocked(), Some(Instant::now()));
    tokio::join!(flush(&mut output, &mut ours), async {
        let mut rest = vec![0; 10_000];
        theirs.read_exact(&mut rest).await.unwrap();
    });
    assert_eq!(output.blocked(), None);
}

#[tokio::test]
async fn a_stream_that_takes_nothing_is_an_error() {
    let mut output = Output::default();
    output.push(Frame::ping());
    let mut sink = Sink::new(0, true);
    let flushed = std::future::poll_fn(|cx| output.poll_flush(cx, &mut sink)).await;
    assert_eq!(flushed.unwrap_err().kind(), io::ErrorKind::WriteZero);
}
