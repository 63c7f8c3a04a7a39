//! Fair shares: how much of something one author may take once that is more than half full.
//!
//! Authors pay where names are proved. Backends do not, and a tenth of everything is kept for them.

use std::fmt;

use crate::engine::Usage;

/// Most topics in whose histories one author has messages.
pub(crate) const MAX_TOPICS: usize = 1_000;

/// What one author has a share of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// All stored messages.
    Store,
    /// What one node of several stores of an author in an hour: it does not know what is left of that. In place of
    /// [`Self::Store`].
    Stored,
    /// What waits to be stored.
    Queue,
    /// The mailbox of the receiver.
    Mailbox,
}

impl Share {
    /// One author may take one of so many parts.
    fn parts(self) -> usize {
        match self {
            Self::Store | Self::Stored => 16,
            Self::Queue => 8,
            Self::Mailbox => 4,
        }
    }

    /// The share of one author.
    pub(super) fn of(self, whole: Usage) -> Usage {
        let part = |whole: usize| if whole == usize::MAX { whole } else { whole / self.parts() };
        Usage { messages: part(whole.messages).max(1), bytes: part(whole.bytes) }
    }

    /// Whether an author that has `own` of the `used` part of the whole may add `more`. Messages and bytes count each by
    /// themselves. A share is at least one message.
    ///
    /// # Errors
    /// It has taken its share.
    pub(super) fn check(self, whole: Usage, used: Usage, own: Usage, more: Usage) -> Result<(), OverShare> {
        let limit = self.of(whole);
        let (half, sum) = (whole.half(), |a: usize, b: usize| a.saturating_add(b));
        let messages = sum(used.messages, more.messages) > half.messages
            && sum(own.messages, more.messages) > limit.messages;
        let bytes = sum(used.bytes, more.bytes) > half.bytes && sum(own.bytes, more.bytes) > limit.bytes;
        match own.messages > 0 && (messages || bytes) {
            true => Err(OverShare { share: self, used: own, limit }),
            false => Ok(()),
        }
    }

    /// What is said of it in a refusal: its name, and what helps.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Store => {
                ("the store", "try again when messages of yours are read or expire (see --store-limit)")
            }
            Self::Stored => (
                "the store",
                "try again later, this node stores as much again in an hour (see --store-limit)",
            ),
            Self::Queue => {
                ("what waits to be stored", "try again in a moment, with the same id (see --append-queue)")
            }
            Self::Mailbox => (
                "this mailbox",
                "try again when its reader has acknowledged some (see --mailbox-messages and --mailbox-bytes)",
            ),
        }
    }
}

/// An author has taken its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct OverShare {
    /// Of what.
    pub share: Share,
    /// What the author has.
    pub used: Usage,
    /// The share.
    pub limit: Usage,
}

impl fmt::Display for OverShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { share, used, limit } = self;
        let (name, remedy) = share.words();
        // What is not limited means nothing.
        let shown = |limit, used| if limit == usize::MAX { limit } else { used };
        let used =
            Usage { messages: shown(limit.messages, used.messages), bytes: shown(limit.bytes, used.bytes) };
        write!(
            f,
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

    fn refusal(share: Share, used: Usage, limit: Usage) -> String {
        OverShare { share, used, limit }.to_string()
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
        let text = refusal(Share::Mailbox, usage(2_500, 1 << 20), usage(2_500, 16 << 20));
        assert!(
            text.starts_with(
                "your share of this mailbox is 2500 messages and 16 MiB, 2500 messages and 1 MiB used;"
            ),
            "{text}"
        );
        assert!(refusal(Share::Queue, usage(1, 1), usage(1, 1)).contains("--append-queue"));
    }

    #[test]
    fn a_whole_without_a_limit_of_bytes_counts_messages_only() {
        let whole = usage(40, usize::MAX);
        assert!(Share::Mailbox.check(whole, usage(30, 0), usage(9, 0), usage(1, 0)).is_ok());
        let refused = Share::Mailbox.check(whole, usage(30, 0), usage(10, 0), usage(1, 0));
        let text = refused.unwrap_err().to_string();
        assert!(text.starts_with("your share of this mailbox is 10 messages, 10 messages used;"), "{text}");
    }
}
