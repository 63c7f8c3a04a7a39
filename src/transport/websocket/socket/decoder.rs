//! Turns the bytes of a client into messages (RFC 6455 section 5).
//!
//! tungstenite parses the headers. Its reader is not used: it keeps a buffer of the size of the largest message that has
//! ever come, and reserves the size that a header announces. This one holds the received part of one message, and nothing
//! between messages.

use std::io::Cursor;

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::budget::SPENT;

/// Most bytes of a header.
const MAX_HEADER: usize = 14;

/// Most bytes of the payload of a control frame.
const MAX_CONTROL: usize = 125;

/// Bytes that are reserved for a message before so much of it has come.
const RESERVED: usize = 16 * 1024;

/// What a client has said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A text message.
    Text(String),
    /// A binary message. Its bytes are not kept.
    Binary,
    /// A ping, which wants a pong with the same payload.
    Ping(Vec<u8>),
    /// A pong.
    Pong,
    /// The payload of a close frame: a valid code and a reason, or nothing.
    Close(Vec<u8>),
}

/// Why a client cannot be read any more.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadError {
    /// A message has more bytes than this.
    #[error("message too big: at most {0} bytes are taken here")]
    TooBig(usize),
    /// There is no room for more of a message.
    #[error("{SPENT}")]
    NoRoom,
    /// Text that is not UTF-8.
    #[error("text frames must be UTF-8")]
    NotUtf8,
    /// A violation of the protocol.
    #[error("{0}")]
    Protocol(&'static str),
    /// The connection is broken.
    #[error("the connection is broken")]
    Disconnected,
}

/// A frame whose payload is not complete.
#[derive(Debug)]
struct OpenFrame {
    opcode: OpCode,
    is_final: bool,
    /// The mask of the next byte and of the three after it.
    mask: [u8; 4],
    /// Bytes that are still to come.
    left: usize,
}

/// A message whose last frame has not come.
#[derive(Debug)]
struct OpenMessage {
    is_text: bool,
    /// Bytes of its frames so far, of those that are announced too.
    size: usize,
}

/// The state between two reads.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The first bytes of a header that is not complete.
    header: [u8; MAX_HEADER],
    header_len: usize,
    frame: Option<OpenFrame>,
    message: Option<OpenMessage>,
    /// The text of the message so far.
    text: Vec<u8>,
    /// The payload of the control frame so far. It may come between the frames of a message.
    control: Vec<u8>,
}

impl Decoder {
    /// Bytes of a message that is not complete.
    pub(crate) fn held(&self) -> usize {
        self.text.len()
    }

    /// The next message. `None` if the input ends before it does. What is taken is cut off the input. A message may have
    /// at most `limit` bytes.
    ///
    /// # Errors
    /// The client violates the protocol. Nothing more can be decoded.
    pub(crate) fn decode(&mut self, input: &mut &[u8], limit: usize) -> Result<Option<Received>, ReadError> {
        loop {
            if self.frame.is_none() {
                self.frame = self.decode_header(input, limit)?;
            }
            let Some(frame) = &mut self.frame else { return Ok(None) };
            let (part, rest) = input.split_at(frame.left.min(input.len()));
            *input = rest;
            let is_text = self.message.as_ref().is_some_and(|message| message.is_text);
            match frame.opcode {
                OpCode::Control(_) => append(&mut self.control, part, frame),
                OpCode::Data(_) if is_text => append(&mut self.text, part, frame),
                OpCode::Data(_) => {}
            }
            frame.left -= part.len();
            if frame.left > 0 {
                return Ok(None);
            }
            if let Some(received) = self.complete_frame()? {
                return Ok(Some(received));
            }
        }
    }

    fn decode_header(&mut self, input: &mut &[u8], limit: usize) -> Result<Option<OpenFrame>, ReadError> {
        let held = self.header_len;
        let more = input.len().min(MAX_HEADER - held);
        self.header[held..held + more].copy_from_slice(&input[..more]);
        let mut cursor = Cursor::new(&self.header[..held + more]);
        let Ok(parsed) = FrameHeader::parse(&mut cursor) else {
            return Err(ReadError::Protocol("unknown opcode"));
        };
        let Some((header, length)) = parsed else {
            self.header_len += more;
            *input = &input[more..];
            return Ok(None);
        };
        let size = usize::try_from(cursor.position()).unwrap_or(MAX_HEADER);
        self.header_len = 0;
        *input = &input[size - held..];
        if size != header.len(length) {
            return Err(ReadError::Protocol("the length of a frame is not in its shortest form"));
        }
        self.open_frame(&header, length, limit).map(Some)
    }

    /// Checks a header against what came before it.
    fn open_frame(
        &mut self,
        header: &FrameHeader,
        length: u64,
        limit: usize,
    ) -> Result<OpenFrame, ReadError> {
        let FrameHeader { opcode, is_final, rsv1, rsv2, rsv3, mask } = *header;
        if rsv1 || rsv2 || rsv3 {
            return Err(ReadError::Protocol("a reserved bit is set, though no extension was agreed on"));
        }
        let mask = mask.ok_or(ReadError::Protocol("frames of a client must be masked"))?;
        let left = usize::try_from(length).unwrap_or(usize::MAX);
        match opcode {
            OpCode::Control(_) if !is_final => {
                return Err(ReadError::Protocol("a control frame must not be fragmented"));
            }
            OpCode::Control(_) if left > MAX_CONTROL => {
                return Err(ReadError::Protocol("a control frame has at most 125 bytes"));
            }
            OpCode::Control(_) => {}
            OpCode::Data(data) => self.open_message(data, left, limit)?,
        }
        Ok(OpenFrame { opcode, is_final, mask, left })
    }

    /// Begins a message, or goes on with one.
    fn open_message(&mut self, data: Data, left: usize, limit: usize) -> Result<(), ReadError> {
        let message = match (data, &mut self.message) {
            (Data::Continue, Some(message)) => message,
            (Data::Continue, None) => {
                return Err(ReadError::Protocol("there is no message that could be continued"));
            }
            (_, Some(_)) => return Err(ReadError::Protocol("the message before is not finished")),
            (data, message @ None) => message.insert(OpenMessage { is_text: data == Data::Text, size: 0 }),
        };
        message.size = message.size.saturating_add(left);
        if message.size > limit { Err(ReadError::TooBig(limit)) } else { Ok(()) }
    }

    /// Ends a frame. Returns the message that it completes.
    fn complete_frame(&mut self) -> Result<Option<Received>, ReadError> {
        let Some(OpenFrame { opcode, is_final, .. }) = self.frame.take() else { return Ok(None) };
        Ok(Some(match opcode {
            OpCode::Control(Control::Ping) => Received::Ping(std::mem::take(&mut self.control)),
            OpCode::Control(Control::Close) => {
                let payload = std::mem::take(&mut self.control);
                check_close(&payload)?;
                Received::Close(payload)
            }
            OpCode::Control(_) => {
                self.control = Vec::new();
                Received::Pong
            }
            OpCode::Data(_) if !is_final => return Ok(None),
            OpCode::Data(_) => match self.message.take() {
                Some(OpenMessage { is_text: true, .. }) => {
                    let text = String::from_utf8(std::mem::take(&mut self.text));
                    Received::Text(text.map_err(|_| ReadError::NotUtf8)?)
                }
                _ => Received::Binary,
            },
        }))
    }
}

/// Appends a part of a payload without its mask.
fn append(payload: &mut Vec<u8>, part: &[u8], frame: &mut OpenFrame) {
    if payload.capacity() - payload.len() < part.len() {
        // As much again as has come, but no more than is going to come.
        payload.reserve_exact(frame.left.min(payload.len().max(RESERVED)).max(part.len()));
    }
    let begin = payload.len();
    payload.extend_from_slice(part);
    unmask(&mut payload[begin..], frame.mask);
    frame.mask.rotate_left(part.len() % 4);
}

fn unmask(bytes: &mut [u8], [a, b, c, d]: [u8; 4]) {
    let mask = [a, b, c, d, a, b, c, d];
    let word = u64::from_ne_bytes(mask);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    rest.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

/// Checks the payload of a close frame (RFC 6455 sections 5.5.1 and 7.4).
fn check_close(payload: &[u8]) -> Result<(), ReadError> {
    let (code, reason) = match payload {
        [] => return Ok(()),
        [_] => return Err(ReadError::Protocol("a close frame has no code, or one of two bytes")),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !is_close_code(code) {
        return Err(ReadError::Protocol("this close code must not be sent"));
    }
    std::str::from_utf8(reason).map(drop).map_err(|_| ReadError::NotUtf8)
}

/// Whether a peer may send this code: one that RFC 6455 or IANA's registry defines for that, or one for libraries and
/// applications.
fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests;
