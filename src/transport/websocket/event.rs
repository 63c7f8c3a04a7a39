//! The events of a connection.

use crate::broker::BrokerError;
use crate::edge::Refusal;
use crate::engine::EngineError;
use crate::grant::Grant;
use crate::message::{Item, MessageId, TopicName};
use crate::protocol::SendResult;
use crate::transport::websocket::socket::{ReadError, Received};

/// What happens on a connection.
pub(super) enum Event {
    /// A message from the peer; `None` at the end of the stream.
    Read(Option<Result<Received, ReadError>>),
    /// The output cannot be written.
    Unwritable,
    /// It is known who said `hello`, or why it is refused.
    Identified(Result<Grant, Refusal>),
    /// The mailbox has an item, or cannot be read now; `None` when the session is ended.
    Mailbox(Option<Result<Item, EngineError>>),
    /// A topic has an item, or cannot be read now.
    Topic(TopicName, Result<Item, EngineError>),
    /// The oldest send is stored, or refused.
    Stored(Option<MessageId>, Result<SendResult, BrokerError>),
    /// A deadline of the connection is reached.
    Tick,
    /// The server stops.
    Shutdown,
}
