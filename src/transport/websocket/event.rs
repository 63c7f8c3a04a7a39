//! The events of a connection.

use axum::extract::ws::Message;

use crate::broker::BrokerError;
use crate::message::{Item, MessageId, TopicName};
use crate::protocol::SendResult;

/// What happens on a connection.
pub(super) enum Event {
    /// A message from the peer; `None` at the end of the stream.
    Read(Option<Result<Message, axum::Error>>),
    /// What was written last is handed to the system.
    Flushed(Result<(), axum::Error>),
    /// The mailbox has an item; `None` when the session is ended.
    Mailbox(Option<Item>),
    /// A topic has an item.
    Topic(TopicName, Item),
    /// The oldest send is stored, or refused.
    Stored(Option<MessageId>, Result<SendResult, BrokerError>),
    /// A deadline of the connection is reached.
    Tick,
    /// The server stops.
    Shutdown,
}
