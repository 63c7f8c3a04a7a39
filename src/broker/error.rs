//! Why the broker refuses.

use crate::budget::SPENT;
use crate::engine::{EngineError, RegisterError};
use crate::grant::Denied;
use crate::message::{BackendName, Epoch, Seq, UserId};

/// Why a call was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The payload exceeds the limit.
    #[error("field `payload` is {size} bytes long; at most {limit} are allowed")]
    PayloadTooLarge {
        /// Its size, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The time to live exceeds the limit.
    #[error("field `ttl` is longer than {limit} seconds, the most allowed here (see --max-ttl)")]
    TtlTooLong {
        /// The limit, in seconds.
        limit: u64,
    },
    /// A receipt was asked for where there can be none.
    #[error("field `receipt` {0}")]
    NoReceipt(&'static str),
    /// A receipt was asked for by somebody without a mailbox.
    #[error(
        "field `receipt` needs a mailbox, which the receipt is put into: say which session sends, or use an API key with `mailbox = true`"
    )]
    ReceiptForNobody,
    /// A request where there can be no answer.
    #[error("field `request` {0}")]
    NoRequest(&'static str),
    /// A request of somebody without a mailbox.
    #[error(
        "field `request` needs a mailbox, which the reply is put into: say which session sends, or use an API key with `mailbox = true`"
    )]
    RequestOfNobody,
    /// The time to answer a request is over.
    #[error("the time to answer this request is over")]
    RequestExpired,
    /// The session that asked has ended, or belongs to another user.
    #[error("the session that made this request has ended")]
    RequesterGone,
    /// Nobody registered a session of this user.
    #[error("user `{0}` has no registered session")]
    NoSuchUser(UserId),
    /// No API key gives the backend a mailbox.
    #[error("no backend `{0}` has a mailbox here; its API key needs `mailbox = true`")]
    NoSuchBackend(BackendName),
    /// No session is known to this sender under that name.
    #[error(
        "no session is known here under this name; sessions of others are reached by their handle, or by their user"
    )]
    NoSuchSession,
    /// It is not allowed.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The session was not registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The session was ended.
    #[error("this session was ended; begin another one")]
    Ended,
    /// The session has too many readers.
    #[error(
        "this mailbox has {limit} readers already, the most allowed (see --connections-per-session); close some first"
    )]
    TooManyReaders {
        /// The limit.
        limit: usize,
    },
    /// A volatile message has no room on its way to its readers.
    #[error("{SPENT}")]
    NoMemory,
    /// An acknowledgement of something never handed out.
    #[error("field `seq` is {seq}, but nothing above {newest} was ever stored")]
    AckBeyond {
        /// What was acknowledged.
        seq: Seq,
        /// The newest seq there is.
        newest: Seq,
    },
    /// An acknowledgement from another incarnation of the store.
    #[error("field `epoch` is not the epoch of this store ({0}); read again from the start", epoch.as_str())]
    WrongEpoch {
        /// The store's epoch.
        epoch: Epoch,
    },
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
