//! The transports: each decodes requests, reads its subscribers in one loop, and encodes answers.

pub mod lease;
pub mod legacy;
pub mod poll;
pub mod sse;
pub mod websocket;

mod topics;

#[cfg(test)]
mod testing;
