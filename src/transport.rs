//! One file per way in: each decodes, runs one loop around a subscriber, and encodes.

pub mod legacy;
pub mod poll;
pub mod sse;
pub mod websocket;

pub mod lease;
mod topics;
