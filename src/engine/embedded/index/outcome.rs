//! What becomes of appends: their seqs, and what a commit publishes.

use std::sync::Arc;

use crate::message::{Address, Publication, Seq};

/// Where an append was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appended {
    /// It has this new seq.
    New(Seq),
    /// The same message was appended before, with this seq, and is committed.
    Known(Seq),
    /// The same message was appended before, with this seq. The waiter is told when it is committed.
    Repeat(Seq),
}

impl Appended {
    /// The seq that the message has.
    pub(crate) fn seq(self) -> Seq {
        match self {
            Self::New(seq) | Self::Known(seq) | Self::Repeat(seq) => seq,
        }
    }
}

/// A committed message on its way to the hubs.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) address: Address,
    pub(crate) publication: Arc<Publication>,
    /// The seq published before it at this address; [`Seq::START`] if none is known.
    pub(crate) prev: Seq,
}
