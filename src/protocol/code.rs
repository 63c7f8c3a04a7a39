//! Error codes and WebSocket close codes.

use serde::Serialize;
use utoipa::ToSchema;

/// Error codes, as sent in error frames and HTTP error bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is not valid; a retry fails as well.
    BadRequest,
    /// A size limit is exceeded.
    TooLarge,
    /// Proof of identity is missing or not valid.
    Unauthorized,
    /// The caller is known, and is not allowed to do this.
    Forbidden,
    /// The receiver does not exist.
    NotFound,
    /// The receiver's mailbox is full; retry when it has read some messages.
    MailboxFull,
    /// The sender sends too often; retry later.
    RateLimited,
    /// The sender has taken its share; retry when messages of its own have left.
    QuotaExceeded,
    /// The server is overloaded; retry soon.
    Overloaded,
    /// The store cannot take messages now; retry later.
    Unavailable,
}

impl Code {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 10] = [
        Self::BadRequest,
        Self::TooLarge,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MailboxFull,
        Self::RateLimited,
        Self::QuotaExceeded,
        Self::Overloaded,
        Self::Unavailable,
    ];

    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::TooLarge => "too_large",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::MailboxFull => "mailbox_full",
            Self::RateLimited => "rate_limited",
            Self::QuotaExceeded => "quota_exceeded",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
        }
    }
}

/// WebSocket close codes. After 4000-4499 the client reconnects, with jitter. After 4500-4999 it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Close {
    /// Restart or shutdown (RFC 6455 section 7.4.1).
    GoingAway = 1001,
    /// The peer violates the WebSocket protocol (RFC 6455 section 7.4.1).
    Protocol = 1002,
    /// A text frame is not UTF-8 (RFC 6455 section 8.1).
    NotUtf8 = 1007,
    /// A frame is larger than the limit.
    TooBig = 1009,
    /// An internal error.
    Internal = 1011,
    /// There are too many connections, or a dependency is unavailable.
    Overloaded = 1013,
    /// No `hello` before the deadline.
    NoHello = 4001,
    /// No frame from the peer for two heartbeats.
    Silent = 4002,
    /// The session belongs to another user now.
    OwnerChanged = 4004,
    /// The request is not valid in this protocol.
    NotThisProtocol = 4500,
    /// The token is missing, not valid or expired.
    Unauthorized = 4501,
    /// The session was ended.
    SessionEnded = 4502,
    /// The origin of the page is not allowed.
    OriginRefused = 4503,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_snake_case_on_the_wire() {
        for (code, text) in [
            (Code::BadRequest, "bad_request"),
            (Code::TooLarge, "too_large"),
            (Code::Unauthorized, "unauthorized"),
            (Code::Forbidden, "forbidden"),
            (Code::NotFound, "not_found"),
            (Code::MailboxFull, "mailbox_full"),
            (Code::RateLimited, "rate_limited"),
            (Code::QuotaExceeded, "quota_exceeded"),
            (Code::Overloaded, "overloaded"),
            (Code::Unavailable, "unavailable"),
        ] {
            assert_eq!(serde_json::to_value(code).unwrap(), text);
            assert_eq!(code.name(), text);
        }
    }
}
