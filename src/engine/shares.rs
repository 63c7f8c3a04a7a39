//! Fair shares: how much of something one author may take once that is more than half full.
//!
//! Authors pay where names are proved. Backends do not, and a tenth of everything is kept for them.

use std::fmt;

use crate::engine::EngineError;

/// Most topics in whose histories one author has messages.
pub(crate) const MAX_TOPICS: usize = 1_000;

/// Messages, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Messages; [`usize::MAX`] is no limit.
    pub messages: usize,
    /// Bytes, each message counted with its envelope.
    pub bytes: usize,
}

impl Usage {
    fn map(self, each: impl Fn(usize) -> usize) -> Self {
        Self { messages: each(self.messages), bytes: each(self.bytes) }
    }

    /// What authors may take together; the rest is kept for backends.
    #[must_use]
    pub(super) fn for_authors(self) -> Self {
        self.map(|whole| whole - whole / 10)
    }

    /// Half of it.
    #[must_use]
    pub(super) fn half(self) -> Self {
        self.map(|whole| whole / 2)
    }

    /// Whether messages or bytes exceed this limit.
    #[must_use]
    pub(super) fn exceeds(self, limit: Self) -> bool {
        self.messages > limit.messages || self.bytes > limit.bytes
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.messages < usize::MAX {
            write!(f, "{} messages and ", self.messages)?;
        }
        f.write_str(&size(self.bytes))
    }
}

/// A number of bytes for people, in the unit that suits it.
fn size(bytes: usize) -> String {
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit {
            let tenths = u128::try_from(bytes).unwrap_or_default() * 10 / unit as u128;
            let (whole, tenth) = (tenths / 10, tenths % 10);
            return if tenth == 0 { format!("{whole} {name}") } else { format!("{whole}.{tenth} {name}") };
        }
    }
    format!("{bytes} bytes")
}

/// What one author has a share of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// All stored messages.
    Store,
    /// What waits to be stored.
    Queue,
    /// The mailbox of the receiver.
    Mailbox,
}

impl Share {
    /// One author may take one of so many parts.
    fn parts(self) -> usize {
        match self {
            Self::Store => 16,
            Self::Queue => 8,
            Self::Mailbox => 4,
        }
    }

    /// Whether an author that has `own` of the `used` part of the whole may add `more`. Messages and bytes count each by
    /// themselves. A share is at least one message.
    ///
    /// # Errors
    /// `QuotaExceeded`.
    pub(super) fn check(self, whole: Usage, used: Usage, own: Usage, more: Usage) -> Result<(), EngineError> {
        let limit =
            Usage { messages: (whole.messages / self.parts()).max(1), bytes: whole.bytes / self.parts() };
        let limit =
            if whole.messages == usize::MAX { Usage { messages: usize::MAX, ..limit } } else { limit };
        let (half, sum) = (whole.half(), |a: usize, b: usize| a.saturating_add(b));
        let messages = sum(used.messages, more.messages) > half.messages
            && sum(own.messages, more.messages) > limit.messages;
        let bytes = sum(used.bytes, more.bytes) > half.bytes && sum(own.bytes, more.bytes) > limit.bytes;
        match own.messages > 0 && (messages || bytes) {
            true => Err(EngineError::QuotaExceeded { share: self, used: own, limit }),
            false => Ok(()),
        }
    }

    /// What is said of it in a refusal: its name, and what helps.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Store => {
                ("the store", "try again when messages of yours are read or expire (see --store-limit)")
            }
            Self::Queue => {
                ("what waits to be stored", "try again in a moment, with the same id (see --append-queue)")
            }
            Self::Mailbox => (
                "this mailbox",
                "try again when its reader has acknowledged some (see --mailbox-messages and --mailbox-bytes)",
            ),
        }
    }

    /// The text of a refusal.
    pub(super) fn refusal(self, used: Usage, limit: Usage) -> String {
        let (name, remedy) = self.words();
        // The number of messages means nothing where only bytes are limited.
        let used =
            Usage { messages: if limit.messages == usize::MAX { usize::MAX } else { used.messages }, ..used };
        format!(
            "your share of {name} is {limit}, {used} used; it counts while more than half is taken: {remedy}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Usage = Usage { messages: 160, bytes: 1600 };

    fn usage(messages: usize, bytes: usize) -> Usage {
        Usage { messages, bytes }
    }

    fn check(used: Usage, own: Usage, more: Usage) -> bool {
        Share::Store.check(WHOLE, used, own, more).is_ok()
    }

    #[test]
    fn a_share_counts_only_while_more_than_half_is_taken() {
        assert!(check(usage(79, 0), usage(79, 0), usage(1, 0)), "half is not more than half");
        assert!(!check(usage(80, 0), usage(80, 0), usage(1, 0)));
        assert!(check(usage(0, 700), usage(0, 700), usage(0, 100)));
        assert!(!check(usage(1, 700), usage(1, 700), usage(0, 101)));
    }

    #[test]
    fn within_its_share_an_author_goes_on_and_beyond_it_does_not() {
        assert!(check(usage(100, 1000), usage(9, 90), usage(1, 10)));
        assert!(!check(usage(100, 1000), usage(10, 90), usage(1, 10)));
        assert!(!check(usage(100, 1000), usage(9, 91), usage(1, 10)));
        assert!(check(usage(100, 0), usage(1, 1000), usage(1, 10)), "bytes are not more than half");
    }

    #[test]
    fn a_share_is_at_least_one_message() {
        assert!(check(usage(100, 1000), usage(0, 0), usage(1, 500)));
        let tiny = usage(2, 20);
        assert!(Share::Mailbox.check(tiny, usage(1, 10), usage(0, 0), usage(1, 10)).is_ok());
        assert!(Share::Mailbox.check(tiny, usage(1, 10), usage(1, 10), usage(1, 10)).is_err());
    }

    #[test]
    fn a_whole_without_a_limit_of_messages_counts_bytes_only() {
        let whole = usage(usize::MAX, 4 << 30);
        let refused = Share::Store.check(whole, usage(9, 3 << 30), usage(7, 255 << 20), usage(1, 2 << 20));
        let text = refused.unwrap_err().to_string();
        assert!(text.starts_with("your share of the store is 256 MiB, 255 MiB used;"), "{text}");
        assert!(text.contains("--store-limit"), "{text}");
    }

    #[test]
    fn a_refusal_names_messages_and_bytes_where_both_count() {
        let text = Share::Mailbox.refusal(usage(2_500, 1 << 20), usage(2_500, 16 << 20));
        assert!(
            text.starts_with(
                "your share of this mailbox is 2500 messages and 16 MiB, 2500 messages and 1 MiB used;"
            ),
            "{text}"
        );
        assert!(Share::Queue.refusal(usage(1, 1), usage(1, 1)).contains("--append-queue"));
    }

    #[test]
    fn a_tenth_is_kept() {
        assert_eq!(WHOLE.for_authors(), usage(144, 1440));
        assert_eq!(usage(3, 19).for_authors(), usage(3, 18));
    }

    #[test]
    fn sizes_have_one_digit_after_the_point() {
        let sizes = [0, 1023, 1024, 1536, 267_386_880, 3 << 30].map(size);
        assert_eq!(sizes, ["0 bytes", "1023 bytes", "1 KiB", "1.5 KiB", "255 MiB", "3 GiB"]);
    }
}
