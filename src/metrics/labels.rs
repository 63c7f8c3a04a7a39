//! The values of labels. Each label has few of them, whatever clients do: no id is one.

/// How a message, or another request, came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SentBy {
    /// A frame over WebSocket.
    Websocket,
    /// An HTTP call.
    Http,
    /// A request of today's x0 client.
    Legacy,
}

impl SentBy {
    pub(crate) const ALL: [Self; 3] = [Self::Websocket, Self::Http, Self::Legacy];

    /// The value of the label `transport`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Websocket => "websocket",
            Self::Http => "http",
            Self::Legacy => "legacy",
        }
    }
}

/// Why credentials are not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// Neither a known API key, nor a token that a known key signed, nor the id of a session.
    Unknown,
    /// A token of a known key that has expired, or has wrong claims.
    Invalid,
    /// The keys of tokens could not be fetched.
    NoKeys,
    /// Its address has shown too many wrong ones.
    TooMany,
}

impl Rejected {
    pub(crate) const ALL: [Self; 4] = [Self::Unknown, Self::Invalid, Self::NoKeys, Self::TooMany];

    /// The value of the label `reason`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Invalid => "invalid",
            Self::NoKeys => "no_keys",
            Self::TooMany => "too_many",
        }
    }
}

/// A limit that refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// `--max-payload`.
    Payload,
    /// `--max-ttl`.
    Ttl,
    /// `--mailbox-messages` and `--mailbox-bytes`.
    Mailbox,
    /// `--topic-bytes`, for one message.
    Topic,
    /// `--store-limit`.
    Store,
    /// `--append-queue`.
    Queue,
    /// `--memory-budget`.
    Memory,
    /// The share of one author in the store.
    StoreShare,
    /// The share of one author in the queue.
    QueueShare,
    /// The share of one author in a mailbox.
    MailboxShare,
    /// In how many topics one author may have messages.
    TopicsOfAuthor,
    /// `--send-rate`.
    SendRate,
    /// `--send-bytes-rate`.
    SendBytesRate,
    /// `--connections-per-address`.
    ConnectionsOfAddress,
    /// `--connections-per-session`.
    ConnectionsOfSession,
    /// `--sessions-per-user`.
    SessionsOfUser,
    /// `--max-topics`.
    TopicsOfConnection,
}

impl Limit {
    pub(crate) const ALL: [Self; 17] = [
        Self::Payload,
        Self::Ttl,
        Self::Mailbox,
        Self::Topic,
        Self::Store,
        Self::Queue,
        Self::Memory,
        Self::StoreShare,
        Self::QueueShare,
        Self::MailboxShare,
        Self::TopicsOfAuthor,
        Self::SendRate,
        Self::SendBytesRate,
        Self::ConnectionsOfAddress,
        Self::ConnectionsOfSession,
        Self::SessionsOfUser,
        Self::TopicsOfConnection,
    ];

    /// The value of the label `limit`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Payload => "max_payload",
            Self::Ttl => "max_ttl",
            Self::Mailbox => "mailbox",
            Self::Topic => "topic",
            Self::Store => "store",
            Self::Queue => "append_queue",
            Self::Memory => "memory_budget",
            Self::StoreShare => "share_of_store",
            Self::QueueShare => "share_of_append_queue",
            Self::MailboxShare => "share_of_mailbox",
            Self::TopicsOfAuthor => "topics_per_author",
            Self::SendRate => "send_rate",
            Self::SendBytesRate => "send_bytes_rate",
            Self::ConnectionsOfAddress => "connections_per_address",
            Self::ConnectionsOfSession => "connections_per_session",
            Self::SessionsOfUser => "sessions_per_user",
            Self::TopicsOfConnection => "max_topics",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::protocol::{Code, Transport};

    #[test]
    fn each_value_has_its_number_and_its_own_label() {
        let check = |pairs: Vec<(usize, &str)>| {
            assert!(pairs.iter().enumerate().all(|(at, (number, _))| at == *number), "{pairs:?}");
            assert_eq!(pairs.iter().map(|(_, label)| label).collect::<BTreeSet<_>>().len(), pairs.len());
        };
        check(Transport::ALL.map(|value| (value as usize, value.label())).to_vec());
        check(SentBy::ALL.map(|value| (value as usize, value.label())).to_vec());
        check(Rejected::ALL.map(|value| (value as usize, value.label())).to_vec());
        check(Limit::ALL.map(|value| (value as usize, value.label())).to_vec());
        check(Code::ALL.map(|value| (value as usize, value.name())).to_vec());
    }
}
