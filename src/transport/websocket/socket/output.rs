//! The frames that wait to be written to one client.
//!
//! A publication is not copied: its frame is a header and the bytes that all its subscribers share. Small frames are
//! written together, out of a buffer on the stack that lasts for the call.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::hub::Encoding;
use crate::message::Publication;

/// Most bytes that are copied together into one write.
const COPIED: usize = 16 * 1024;

/// Most bytes of one write to a stream without vectored writes. Over HTTP/2 this is the unit in which progress is seen.
const PART: usize = 8 * 1024;

/// Most frames of one vectored write.
const FRAMES: usize = 8;

/// Most bytes of the header of a server's frame.
const MAX_HEADER: usize = 10;

/// Publications as frames.
pub(crate) static ENCODING: Encoding = Encoding { append };

/// Appends a publication as a frame.
fn append(publication: &Publication, bytes: &mut Vec<u8>) {
    let (payload, mut buffer) = (publication.frame().as_bytes(), [0; MAX_HEADER]);
    let header = FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
    bytes.extend_from_slice(write_header(&header, payload.len(), &mut buffer));
    bytes.extend_from_slice(payload);
}

/// Writes the header of a frame into a buffer. Returns the part that it takes.
fn write_header<'a>(header: &FrameHeader, length: usize, buffer: &'a mut [u8; MAX_HEADER]) -> &'a [u8] {
    let length = length as u64;
    header.format(length, &mut &mut buffer[..]).expect("the header of a server has at most ten bytes");
    &buffer[..header.len(length)]
}

/// The payload of a frame.
#[derive(Debug)]
enum Payload {
    Shared(Arc<Publication>),
    Text(String),
    Control(Control, Vec<u8>),
    /// No frame, but what is written before the first one.
    Preamble(Vec<u8>),
    /// Frames with their headers, or the rest of them.
    Rest(Bytes),
}

/// A frame to be written.
#[derive(Debug)]
pub(crate) struct Frame(Payload);

impl Frame {
    /// The frame of a publication, whose bytes are shared.
    pub(crate) fn publication(publication: Arc<Publication>) -> Self {
        Self(Payload::Shared(publication))
    }

    /// A text frame.
    pub(crate) fn text(text: String) -> Self {
        Self(Payload::Text(text))
    }

    /// Bytes that come before the first frame: the answer to the handshake.
    pub(crate) fn preamble(bytes: Vec<u8>) -> Self {
        Self(Payload::Preamble(bytes))
    }

    /// What is left of frames that were written in part.
    pub(crate) fn rest(bytes: Bytes) -> Self {
        Self(Payload::Rest(bytes))
    }

    /// A ping.
    pub(crate) fn ping() -> Self {
        Self(Payload::Control(Control::Ping, Vec::new()))
    }

    /// A pong with the payload of the ping.
    pub(crate) fn pong(payload: Vec<u8>) -> Self {
        Self(Payload::Control(Control::Pong, payload))
    }

    /// A close frame: a code and a reason, or nothing.
    pub(crate) fn close(payload: Vec<u8>) -> Self {
        Self(Payload::Control(Control::Close, payload))
    }

    fn payload(&self) -> &[u8] {
        match &self.0 {
            Payload::Shared(publication) => publication.frame().as_bytes(),
            Payload::Text(text) => text.as_bytes(),
            Payload::Control(_, payload) | Payload::Preamble(payload) => payload,
            Payload::Rest(bytes) => bytes,
        }
    }

    /// The header; `None` if there is none, or the payload has it.
    fn header(&self) -> Option<FrameHeader> {
        let opcode = match &self.0 {
            Payload::Shared(_) | Payload::Text(_) => OpCode::Data(Data::Text),
            Payload::Control(control, _) => OpCode::Control(*control),
            Payload::Preamble(_) | Payload::Rest(_) => return None,
        };
        Some(FrameHeader { opcode, ..FrameHeader::default() })
    }

    /// Writes the header into a buffer. Returns the part that it takes.
    fn write_header<'a>(&self, buffer: &'a mut [u8; MAX_HEADER]) -> &'a [u8] {
        self.header().map_or(&[], |header| write_header(&header, self.payload().len(), buffer))
    }

    /// Bytes of header and payload.
    fn size(&self) -> usize {
        let length = self.payload().len();
        self.header().map_or(0, |header| header.len(length as u64)) + length
    }

    /// Bytes that this frame holds for itself.
    fn owned(&self) -> usize {
        if matches!(self.0, Payload::Shared(_) | Payload::Rest(_)) { 0 } else { self.size() }
    }
}

#[cfg(test)]
impl Frame {
    /// The JSON of a text frame.
    pub(crate) fn json(&self) -> serde_json::Value {
        let opcode = self.header().map(|header| header.opcode);
        assert_eq!(opcode, Some(OpCode::Data(Data::Text)), "{self:?}");
        serde_json::from_slice(self.payload()).unwrap()
    }

    pub(crate) fn is_ping(&self) -> bool {
        matches!(&self.0, Payload::Control(Control::Ping, _))
    }
}

/// The frames that wait, and how far they are written.
#[derive(Debug, Default)]
pub(crate) struct Output {
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that are written.
    written: usize,
    /// Bytes that are not written.
    waiting: usize,
    /// Bytes of the frames that are not shared.
    owned: usize,
    /// Whether something was pushed and is not flushed.
    unflushed: bool,
    /// Since when the stream takes nothing.
    blocked: Option<Instant>,
}

impl Output {
    /// Adds a frame.
    pub(crate) fn push(&mut self, frame: Frame) {
        self.waiting += frame.size();
        self.owned += frame.owned();
        self.unflushed = true;
        self.frames.push_back(frame);
    }

    /// Whether everything is flushed.
    pub(crate) fn is_flushed(&self) -> bool {
        !self.unflushed
    }

    /// How many frames wait.
    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Bytes of the waiting frames that are not shared.
    pub(crate) fn owned(&self) -> usize {
        self.owned
    }

    /// Since when the stream takes nothing, though something waits.
    pub(crate) fn blocked(&self) -> Option<Instant> {
        self.blocked
    }

    /// Writes everything and flushes the stream.
    pub(crate) fn poll_flush<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<()>> {
        let flushed = self.poll_write_all(cx, stream);
        match &flushed {
            Poll::Pending => _ = self.blocked.get_or_insert_with(Instant::now),
            Poll::Ready(_) => (self.blocked, self.unflushed) = (None, false),
        }
        flushed
    }

    fn poll_write_all<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<()>> {
        while let Some(front) = self.frames.front() {
            let rest = front.size() - self.written;
            let written = match stream.is_write_vectored() {
                true if rest > COPIED => self.poll_write_vectored(cx, stream),
                true => self.poll_write_copied::<COPIED, _>(cx, stream),
                false => self.poll_write_copied::<PART, _>(cx, stream),
            };
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.advance(count),
            }
        }
        // A client at rest holds no memory.
        self.frames = VecDeque::new();
        Pin::new(stream).poll_flush(cx)
    }

    /// Writes the first frames without copying them.
    fn poll_write_vectored<S: AsyncWrite + Unpin>(
        &self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<usize>> {
        let mut headers = [[0; MAX_HEADER]; FRAMES];
        let mut slices = [IoSlice::new(&[]); 2 * FRAMES];
        for ((frame, header), slices) in self.frames.iter().zip(&mut headers).zip(slices.chunks_mut(2)) {
            slices[0] = IoSlice::new(frame.write_header(header));
            slices[1] = IoSlice::new(frame.payload());
        }
        let mut rest = &mut slices[..2 * self.frames.len().min(FRAMES)];
        IoSlice::advance_slices(&mut rest, self.written);
        Pin::new(stream).poll_write_vectored(cx, rest)
    }

    /// Writes the first bytes that wait, at most `N`.
    fn poll_write_copied<const N: usize, S: AsyncWrite + Unpin>(
        &self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<usize>> {
        let mut space = [MaybeUninit::uninit(); N];
        let mut buffer = ReadBuf::uninit(&mut space);
        let mut written = self.written;
        for frame in &self.frames {
            let mut header = [0; MAX_HEADER];
            for part in [frame.write_header(&mut header), frame.payload()] {
                let skipped = written.min(part.len());
                written -= skipped;
                let rest = &part[skipped..];
                buffer.put_slice(&rest[..rest.len().min(buffer.remaining())]);
            }
            if buffer.remaining() == 0 {
                break;
            }
        }
        Pin::new(stream).poll_write(cx, buffer.filled())
    }

    /// Notes that so many bytes are written.
    fn advance(&mut self, mut count: usize) {
        self.waiting -= count;
        self.blocked = None;
        while let Some(front) = self.frames.front() {
            let rest = front.size() - self.written;
            if count < rest {
                self.written += count;
                return;
            }
            count -= rest;
            self.written = 0;
            self.owned -= front.owned();
            self.frames.pop_front();
        }
    }
}

#[cfg(test)]
impl Output {
    pub(crate) fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.waiting -= frame.size();
        self.owned -= frame.owned();
        Some(frame)
    }
}

#[cfg(test)]
mod tests;
