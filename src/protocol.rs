//! The native protocol, version 1: frames in both directions, error codes, close codes, and how received JSON is
//! parsed.
//!
//! Each frame is a JSON object with a `type`. Unknown fields are ignored.

mod client_frame;
mod code;
mod json;
mod server_frame;
mod transport;

pub(crate) use client_frame::Sender;
pub use client_frame::{
    AckBody, BadFrame, ClientFrame, PollBody, PollTopic, ReplyTo, Resume, SendRequest, SessionBody, To,
};
pub use code::{Close, Code};
pub(crate) use json::present;
pub(crate) use json::{MAX_SEQ, MAX_WINDOW, parse_object};
pub use json::{Malformed, parse};
pub use server_frame::{Presence, SendResult, ServerFrame};
pub use transport::Transport;

/// The WebSocket subprotocol of this version.
pub(crate) const SUBPROTOCOL: &str = "x0-msg.v1";

/// The name and version of this server, as told by `welcome` and `/healthz`.
pub(crate) const SERVER: &str = concat!("x0-msg-server/", env!("CARGO_PKG_VERSION"));

/// Most bytes of a frame besides its payload.
pub(crate) const ENVELOPE: usize = 8 * 1024;
