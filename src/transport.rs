//! The transports: each decodes requests, reads its subscribers in one loop, and encodes answers.

pub(crate) mod lease;
pub(crate) mod legacy;
pub(crate) mod poll;
pub(crate) mod sse;
pub(crate) mod websocket;

mod reading;
mod topics;

#[cfg(test)]
pub(crate) mod testing;
