//! How much something holds: messages, and their bytes.

use std::fmt;

/// Messages, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Messages; [`usize::MAX`] is no limit.
    pub messages: usize,
    /// Bytes, each message counted with its envelope; [`usize::MAX`] is no limit.
    pub bytes: usize,
}

impl Usage {
    fn map(self, each: impl Fn(usize) -> usize) -> Self {
        Self { messages: each(self.messages), bytes: each(self.bytes) }
    }

    /// What authors may take together; the rest is kept for backends.
    #[must_use]
    pub(in crate::engine) fn for_authors(self) -> Self {
        self.map(|whole| whole - whole / 10)
    }

    /// Half of it.
    #[must_use]
    pub(in crate::engine) fn half(self) -> Self {
        self.map(|whole| whole / 2)
    }

    /// Whether messages or bytes exceed this limit.
    #[must_use]
    pub(in crate::engine) fn exceeds(self, limit: Self) -> bool {
        self.messages > limit.messages || self.bytes > limit.bytes
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.messages, self.bytes) {
            (usize::MAX, bytes) => f.write_str(&size_text(bytes)),
            (messages, usize::MAX) => write!(f, "{messages} messages"),
            (messages, bytes) => write!(f, "{messages} messages and {}", size_text(bytes)),
        }
    }
}

/// A number of bytes for people, in the unit that suits it.
pub(crate) fn size_text(bytes: usize) -> String {
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit {
            let tenths = u128::try_from(bytes).unwrap_or_default() * 10 / unit as u128;
            let (whole, tenth) = (tenths / 10, tenths % 10);
            return if tenth == 0 { format!("{whole} {name}") } else { format!("{whole}.{tenth} {name}") };
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(messages: usize, bytes: usize) -> Usage {
        Usage { messages, bytes }
    }

    #[test]
    fn a_tenth_is_kept() {
        assert_eq!(usage(160, 1600).for_authors(), usage(144, 1440));
        assert_eq!(usage(3, 19).for_authors(), usage(3, 18));
    }

    #[test]
    fn sizes_have_one_digit_after_the_point() {
        let sizes = [0, 1023, 1024, 1536, 267_386_880, 3 << 30].map(size_text);
        assert_eq!(sizes, ["0 bytes", "1023 bytes", "1 KiB", "1.5 KiB", "255 MiB", "3 GiB"]);
    }
}
