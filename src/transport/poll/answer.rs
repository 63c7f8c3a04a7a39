//! The answer to a poll.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::edge::{encode, with_frames};
use crate::grant::Client;
use crate::message::{Epoch, Gap, Handle, Item, Publication, Seq, SessionId, SharedText, TopicName};
use crate::metrics;
use crate::protocol::{Code, Presence, Transport};

/// Most messages of one answer.
pub(super) const MAX_MESSAGES: usize = 100;

/// Bytes after which an answer takes no more messages.
pub(super) const ENOUGH_BYTES: usize = 1 << 20;

/// The answer to a poll.
#[derive(Serialize, ToSchema)]
pub(super) struct PollAnswer<'a> {
    /// With a token: the session, if the call did not name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a SessionId>,
    /// The public name of that session.
    #[serde(skip_serializing_if = "Option::is_none")]
    handle: Option<Handle>,
    epoch: &'a Epoch,
    /// The frames that subscribers get over WebSocket.
    #[schema(value_type = Vec<Publication>)]
    messages: Vec<&'a RawValue>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gaps: Vec<TopicGap>,
    /// The `after` of the next call; 0 without a mailbox.
    seq: Seq,
    /// The `after.<topic>` of the next call.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    topics: &'a BTreeMap<TopicName, Seq>,
    /// The topics whose members are told from this poll on. Read the list of members then.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(required = false)]
    presence: BTreeMap<TopicName, Presence>,
    /// Topics that are not read. The others are.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<TopicError>, required = false)]
    errors: &'a [TopicError],
    /// For how many seconds a repeated send is recognised.
    dedup_window: u64,
}

/// Why a topic is not read.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TopicError {
    pub(super) topic: String,
    pub(super) code: Code,
    pub(super) message: String,
}

/// What an answer tells besides its items.
#[derive(Clone, Copy)]
pub(super) struct Told<'a> {
    pub(super) errors: &'a [TopicError],
    pub(super) dedup_window: u64,
    /// The client, if it does not know its session.
    pub(super) client: Option<&'a Client>,
}

#[derive(Serialize, ToSchema)]
struct TopicGap {
    /// Absent for a gap in the mailbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<TopicName>,
    #[serde(flatten)]
    gap: Gap,
}

/// What one answer carries.
#[derive(Default)]
pub(super) struct PollItems {
    messages: Vec<Arc<Publication>>,
    gaps: Vec<TopicGap>,
    /// The topics whose members are watched from this poll on.
    pub(super) presence: BTreeMap<TopicName, Presence>,
    /// Bytes of the messages.
    size: usize,
}

impl PollItems {
    pub(super) fn push(&mut self, topic: Option<TopicName>, item: Item) {
        match item {
            Item::Message(message) => {
                self.size += message.frame().len();
                self.messages.push(message);
            }
            Item::Gap(gap) => self.gaps.push(TopicGap { topic, gap }),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.gaps.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.messages.len() + self.gaps.len() >= MAX_MESSAGES || self.size >= ENOUGH_BYTES
    }

    /// The answer as JSON.
    pub(super) fn encode(
        self,
        Told { errors, dedup_window, client }: Told<'_>,
        (epoch, seq): (&Epoch, Seq),
        topics: &BTreeMap<TopicName, Seq>,
    ) -> SharedText {
        let answer = encode(&PollAnswer {
            session: client.map(|client| &client.session),
            handle: client.map(|client| client.handle),
            epoch,
            messages: Vec::new(),
            gaps: self.gaps,
            seq,
            topics,
            presence: self.presence,
            errors,
            dedup_window,
        });
        metrics::count_delivered(Transport::Poll, self.messages.len() as u64);
        // With large messages it is not copied into one piece.
        let size = Some(self.size).filter(|size| *size < ENOUGH_BYTES);
        with_frames(&answer, &self.messages, size)
    }
}
