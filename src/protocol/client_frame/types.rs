//! What frames say, decoded.

use std::time::Duration;

use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::message::{BackendName, Epoch, MessageId, Seq, SessionId, TopicName, UserId};
use crate::protocol::client_frame::reply_to::ReplyTo;

/// The receiver of a message.
#[derive(Debug, Clone, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum To {
    /// The mailbox of a session, by the id or the handle of the session.
    #[schema(title = "ToSession")]
    Session(SessionId),
    /// The mailbox of every session of a user.
    #[schema(title = "ToUser")]
    User(UserId),
    /// A topic.
    #[schema(title = "ToTopic")]
    Topic(TopicName),
    /// The mailbox of a backend.
    #[schema(title = "ToBackend")]
    Backend(BackendName),
    /// The answer to a request: the `reply_to` of that.
    #[schema(title = "ToReply")]
    Reply(ReplyTo),
    /// A name from an x0 page in `token` mode: a handle, a session of the sender's own user, or a user.
    #[serde(skip)]
    Peer(SessionId),
}

/// A message to send.
#[derive(Debug, Clone, ToSchema)]
#[schema(as = Send)]
pub struct SendRequest {
    /// The sender's id of the message; it makes a retry harmless.
    pub id: Option<MessageId>,
    /// The receiver.
    pub to: To,
    /// Any JSON value, kept byte for byte.
    #[schema(value_type = Value)]
    pub payload: Box<RawValue>,
    /// How many seconds the message is stored unread; the server has a default.
    #[schema(value_type = Option<f64>, minimum = 0.001)]
    pub ttl: Option<Duration>,
    /// Skip the store: deliver to attached subscribers only, at most once.
    #[schema(value_type = Option<bool>)]
    pub volatile: bool,
    /// Put a receipt into the sender's mailbox when the message is acknowledged or expires.
    #[schema(value_type = Option<bool>)]
    pub receipt: bool,
    /// Ask for one answer, which comes as a frame of type `reply` with this `id`. The receiver gets a `reply_to`.
    #[schema(value_type = Option<bool>)]
    pub request: bool,
}

/// The position from which a client resumes reading.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resume {
    /// The last seq that the client has.
    pub after: Option<Seq>,
    /// The epoch of that seq.
    pub epoch: Option<Epoch>,
}

/// A frame from a WebSocket client.
#[derive(Debug, Clone)]
pub enum ClientFrame {
    /// Identify, and resume the mailbox.
    Hello {
        /// The session to read.
        session: Option<SessionId>,
        /// The proof of identity.
        token: Option<String>,
        /// The position in the mailbox.
        resume: Resume,
        /// How many messages the connection may have that it has not acknowledged.
        window: Option<u32>,
    },
    /// Send a message.
    Send(SendRequest),
    /// Acknowledge the mailbox up to and including this seq.
    Ack(Seq),
    /// Subscribe to a topic.
    Subscribe {
        /// The topic.
        topic: TopicName,
        /// The position in its history; without `after`, only new messages.
        resume: Resume,
        /// Tell how the members of the topic change.
        presence: bool,
    },
    /// Unsubscribe from a topic.
    Unsubscribe(TopicName),
    /// Answered by `pong`.
    Ping,
}
