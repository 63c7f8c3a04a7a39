//! The output of a connection that rests: who publishes writes to it, and need not wake up its task.

use std::fmt::{Debug, Formatter};

use bytes::Bytes;

use crate::message::Publication;

/// How messages are encoded on some connections.
#[derive(Debug)]
pub struct Encoding {
    /// Appends the bytes of one message.
    pub append: fn(&Publication, &mut Vec<u8>),
}

/// Messages as bytes.
pub struct Encoded<'a> {
    /// All of them.
    pub bytes: &'a [u8],
    /// The rest of them, from an offset on, to be kept.
    pub rest: &'a dyn Fn(usize) -> Bytes,
}

impl Debug for Encoded<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Encoded").field(&self.bytes.len()).finish()
    }
}

/// The output of one connection, which its task lends while it has nothing to write and waits.
pub trait Outlet: Debug + Send + Sync {
    /// How messages are encoded there. The same encoding is the same static.
    fn encoding(&self) -> &'static Encoding;

    /// Writes bytes from an offset on, if the output is lent now. `offset` is asked before, while nobody else writes; `None`
    /// means that nothing may be written. What the peer does not take now is left to the task.
    ///
    /// Returns whether nothing is left to the task.
    fn write(&self, encoded: Encoded<'_>, offset: &mut dyn FnMut() -> Option<usize>) -> bool;

    /// Nothing is written here any more when this returns.
    fn close(&self);
}
