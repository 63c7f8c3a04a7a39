//! What the server sends over a WebSocket, besides messages and receipts.

use serde::Serialize;
use utoipa::ToSchema;

use crate::message::{
    BackendName, Epoch, Gap, GapReason, Handle, MessageId, Seq, SessionId, TopicName, UserId,
};
use crate::protocol::Code;

/// The result of a send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct SendResult {
    /// The position of the message; absent for a volatile message and for a send to a user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<Seq>,
    /// For a send to a user: the number of mailboxes that got the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<usize>,
}

/// Who reads a topic, as a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Presence {
    /// How many members the topic has.
    pub count: usize,
}

/// A frame from the server. [`crate::message::Publication`] encodes `message` and `receipt` frames.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame<'a> {
    /// The answer to `hello`.
    Welcome {
        /// The session of the mailbox; absent on a backend's connection.
        #[serde(skip_serializing_if = "Option::is_none")]
        session: Option<&'a SessionId>,
        /// The backend of the mailbox; absent for a session, and for an API key without a mailbox.
        #[serde(skip_serializing_if = "Option::is_none")]
        backend: Option<&'a BackendName>,
        /// The user that the session belongs to, if proved.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<&'a UserId>,
        /// The public name of the session, if its id is secret.
        #[serde(skip_serializing_if = "Option::is_none")]
        handle: Option<Handle>,
        /// The incarnation of the store.
        epoch: &'a Epoch,
        /// The ack floor.
        seq: Seq,
        /// What "sent" means: `fsync`, `os` or `memory`; on several machines `replicated` or `unreplicated`.
        durability: &'static str,
        /// Seconds between pings. The server closes a connection after two of them without a frame.
        heartbeat: u64,
        /// Largest payload, in bytes.
        max_payload: usize,
        /// For how many seconds a repeated send is recognised.
        dedup_window: u64,
        /// Name and version of the server.
        server: &'static str,
        /// The name of the node; absent with one machine.
        #[serde(skip_serializing_if = "Option::is_none")]
        node: Option<&'a str>,
    },
    /// A message is accepted.
    Sent {
        /// The sender's id of the message.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a MessageId>,
        /// The result.
        #[serde(flatten)]
        result: SendResult,
    },
    /// A subscription to a topic begins.
    Subscribed {
        /// The topic.
        topic: &'a TopicName,
        /// The newest seq of its history.
        seq: Seq,
        /// Whether its history still holds everything after the requested position.
        recovered: bool,
        /// The members, if the client asked to be told of them.
        #[serde(skip_serializing_if = "Option::is_none")]
        presence: Option<Presence>,
    },
    /// A subscription to a topic ends.
    Unsubscribed {
        /// The topic.
        topic: &'a TopicName,
    },
    /// Messages that will not be delivered.
    Gap {
        /// The topic; absent for the mailbox.
        #[serde(skip_serializing_if = "Option::is_none")]
        topic: Option<&'a TopicName>,
        /// The range and the reason.
        #[serde(flatten)]
        gap: Gap,
        /// The epoch that `to` belongs to, if it is another one than that of `from`.
        #[serde(skip_serializing_if = "Option::is_none")]
        epoch: Option<Epoch>,
    },
    /// A frame was refused. The connection stays open, unless a close frame follows.
    Error {
        /// The sender's id of the refused message.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a MessageId>,
        /// The code, for programs.
        code: Code,
        /// The text, for people.
        message: &'a str,
    },
    /// The answer to `ping`.
    Pong,
}

impl<'a> ServerFrame<'a> {
    /// A gap. `epoch` is the one in which reading goes on.
    #[must_use]
    pub fn gap(topic: Option<&'a TopicName>, gap: Gap, epoch: impl FnOnce() -> Epoch) -> Self {
        Self::Gap { topic, gap, epoch: (gap.reason == GapReason::Epoch).then(epoch) }
    }

    /// The frame as JSON text.
    #[must_use]
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and booleans always encode")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_welcome_leaves_out_what_is_unknown() {
        let (session, epoch) = (SessionId::new("A").unwrap(), Epoch::new("e1"));
        let welcome = ServerFrame::Welcome {
            session: Some(&session),
            backend: None,
            user: None,
            handle: None,
            epoch: &epoch,
            seq: Seq(17),
            durability: "fsync",
            heartbeat: 25,
            max_payload: 1024,
            dedup_window: 900,
            server: "x0",
            node: None,
        };
        assert_eq!(
            welcome.encode(),
            r#"{"type":"welcome","session":"A","epoch":"e1","seq":17,"durability":"fsync","heartbeat":25,"max_payload":1024,"dedup_window":900,"server":"x0"}"#
        );
    }

    #[test]
    fn a_sent_frame_has_a_seq_or_a_number_of_sessions() {
        let id = MessageId::new("c-42").unwrap();
        let sent = |result| ServerFrame::Sent { id: Some(&id), result }.encode();
        assert_eq!(
            sent(SendResult { seq: Some(Seq(18)), sessions: None }),
            r#"{"type":"sent","id":"c-42","seq":18}"#
        );
        assert_eq!(
            sent(SendResult { seq: None, sessions: Some(2) }),
            r#"{"type":"sent","id":"c-42","sessions":2}"#
        );
        assert_eq!(sent(SendResult::default()), r#"{"type":"sent","id":"c-42"}"#);
    }

    #[test]
    fn frames_of_topics_name_the_topic() {
        let topic = TopicName::new("news").unwrap();
        let subscribed = |presence| {
            ServerFrame::Subscribed { topic: &topic, seq: Seq(130), recovered: true, presence }.encode()
        };
        assert_eq!(subscribed(None), r#"{"type":"subscribed","topic":"news","seq":130,"recovered":true}"#);
        assert_eq!(
            subscribed(Some(Presence { count: 2 })),
            r#"{"type":"subscribed","topic":"news","seq":130,"recovered":true,"presence":{"count":2}}"#
        );
        let unsubscribed = ServerFrame::Unsubscribed { topic: &topic };
        assert_eq!(unsubscribed.encode(), r#"{"type":"unsubscribed","topic":"news"}"#);
        let gap = Gap { from: Seq(12), to: Seq(17), reason: GapReason::Expired };
        let epoch = || Epoch::new("e2");
        assert_eq!(
            ServerFrame::gap(Some(&topic), gap, epoch).encode(),
            r#"{"type":"gap","topic":"news","from":12,"to":17,"reason":"expired"}"#
        );
        assert_eq!(
            ServerFrame::gap(None, gap, epoch).encode(),
            r#"{"type":"gap","from":12,"to":17,"reason":"expired"}"#
        );
        let gap = Gap { from: Seq(12), to: Seq(3), reason: GapReason::Epoch };
        assert_eq!(
            ServerFrame::gap(None, gap, epoch).encode(),
            r#"{"type":"gap","from":12,"to":3,"reason":"epoch","epoch":"e2"}"#
        );
    }

    #[test]
    fn errors_and_pongs() {
        let error = ServerFrame::Error { id: None, code: Code::MailboxFull, message: "full" };
        assert_eq!(error.encode(), r#"{"type":"error","code":"mailbox_full","message":"full"}"#);
        assert_eq!(ServerFrame::Pong.encode(), r#"{"type":"pong"}"#);
    }
}
