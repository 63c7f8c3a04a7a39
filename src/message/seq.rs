//! Positions of messages, and what they belong to.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

/// A position in a mailbox or history: strictly increasing, may skip, opaque to clients.
///
/// A seq means something only within its [`Epoch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(
    description = "A position in a mailbox or history. It grows, may skip numbers, and belongs to an epoch",
    minimum = 0,
    maximum = 9_007_199_254_740_991_u64
)]
pub struct Seq(pub u64);

impl Seq {
    /// Before every message.
    pub const START: Self = Self(0);

    /// How many digits it has.
    pub(crate) fn width(self) -> usize {
        self.0.checked_ilog10().map_or(1, |log| log as usize + 1)
    }

    /// Its digits, in this buffer. Takes no memory, as formatting it would.
    pub(crate) fn digits(self, buffer: &mut [u8; 20]) -> &str {
        let digits = &mut buffer[..self.width()];
        let mut left = self.0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + u8::try_from(left % 10).expect("below ten");
            left /= 10;
        }
        std::str::from_utf8(digits).expect("digits are text")
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifies the incarnation of the store: it changes when stored messages were lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// The epoch with this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// The epoch as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_are_those_that_are_shown() {
        for seq in [0, 1, 9, 10, 99, 100, 8_256_129_536, u64::MAX] {
            assert_eq!(Seq(seq).digits(&mut [0; 20]), seq.to_string());
        }
    }
}
