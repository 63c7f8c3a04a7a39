//! Polls of the x0 client.

use std::fmt::Write as _;
use std::future::poll_fn;
use std::sync::Arc;

use tokio::time::Instant;

use crate::config::Auth;
use crate::directory::IdScope;
use crate::edge::Refusal;
use crate::message::{Handle, Item, Publication, Seq, SessionId, SharedText};
use crate::metrics::{self, WaitingPoll};
use crate::protocol::Transport;
use crate::subscriber::Subscriber;
use crate::transport::lease::Claim;
use crate::transport::legacy::Legacy;
use crate::transport::legacy::answer::NOTHING;
use crate::transport::legacy::payload::{Part, parts_with_sender};
use crate::transport::legacy::reader::{LegacyReader, PEER_TIMEOUT};
use crate::transport::legacy::source::{LOGGED, RequestSource};

/// From so many waiting messages on, an answer has more than one. An exception in the x0 page drops the rest of an
/// answer, so there is one message in each answer otherwise.
const BACKLOG: usize = 8;

/// Most messages of one answer.
const MAX_MESSAGES: usize = 64;

/// Bytes after which an answer takes no more messages.
const ENOUGH_BYTES: usize = 1 << 20;

/// Most bytes of the first message for which room is made at once: those of a larger one may be shared.
const COPIED: usize = 4 * 1024;

/// Bytes of most answers besides the payload: the sender, and what is around it.
const AROUND: usize = 128;

impl Legacy {
    /// Answers a poll: with messages as soon as there are some, else when its time is over.
    pub(super) async fn poll(
        &self,
        session: &SessionId,
        source: &RequestSource,
        ack: Option<Seq>,
        deadline: Instant,
    ) -> SharedText {
        let Some(deadline) = self.registered(session, source, deadline).await else {
            return nothing();
        };
        let permit = self.gateway.connection_permit(source.address);
        let claiming = async {
            permit.as_ref().map_err(Refusal::clone)?;
            self.receipts.claim(&self.gateway.broker, session, source, ack).await
        };
        // Boxed so that a waiting poll does not hold its memory.
        let mut claim = match Box::pin(claiming).await {
            Ok(claim) => claim,
            Err(refusal) => {
                // A client with too many connections or polls is paced by holding.
                refusal.note(LOGGED, source.address);
                drop(refusal);
                Box::pin(self.hold(deadline)).await;
                return nothing();
            }
        };
        let answer = match self.first_message(&mut claim, deadline).await {
            Some(first) => self.collect(first, &mut claim, source, deadline).await,
            None => nothing(),
        };
        claim.answered();
        answer
    }

    /// In `token` mode: waits until a backend has registered the session. Returns until when the poll may wait; `None`
    /// if its time is over. A name of the shape of a handle is never registered, in no mode.
    async fn registered(
        &self,
        session: &SessionId,
        source: &RequestSource,
        deadline: Instant,
    ) -> Option<Instant> {
        if self.gateway.identity.auth() == Auth::Open && !Handle::has_shape(session.as_str()) {
            return Some(deadline);
        }
        let directory = self.gateway.broker.directory();
        let arrived = Box::pin(async {
            tokio::select! {
                _ = directory.arrival(session) => true,
                () = self.hold(deadline) => false,
            }
        });
        if !arrived.await {
            return None;
        }
        source.prove(&self.gateway);
        Some(deadline.min(Instant::now() + directory.id_left(session, IdScope::X0)))
    }

    /// Waits for the next message; `None` when the time of the poll is over.
    async fn first_message(
        &self,
        claim: &mut Claim<LegacyReader>,
        deadline: Instant,
    ) -> Option<Arc<Publication>> {
        let _waiting = WaitingPoll::<true>::begin();
        loop {
            let (subscriber, reader) = claim.parts();
            let item = tokio::select! {
                biased;
                item = subscriber.next() => item?,
                () = poll_fn(|cx| reader.timer.poll(deadline, cx)) => return None,
                () = self.gateway.shutdown.cancelled() => return None,
            };
            if let Some(message) = message_of(item) {
                return Some(message);
            }
        }
    }

    /// Waits until the other tabs of the session can be answered with this message as well, and encodes the answer.
    async fn collect(
        &self,
        first: Arc<Publication>,
        claim: &mut Claim<LegacyReader>,
        source: &RequestSource,
        deadline: Instant,
    ) -> SharedText {
        let first_seq = first.seq();
        let end = match first_seq {
            Some(seq) => tokio::select! {
                biased;
                ahead = claim.wait_for_peers(seq, PEER_TIMEOUT, deadline) => ahead,
                () = self.gateway.shutdown.cancelled() => None,
            },
            None => None,
        };
        let (subscriber, reader) = claim.parts();
        let mut answer = AnswerBody::new(&first);
        if subscriber.fill(MAX_MESSAGES) >= BACKLOG || end > first_seq {
            answer.fill(subscriber, end);
        }
        metrics::count_delivered(Transport::Legacy, answer.messages as u64);
        let through = subscriber.delivered();
        reader.note_answer(through, source);
        claim.set_position(through);
        answer.finish(through)
    }
}

fn nothing() -> SharedText {
    NOTHING.to_owned().into()
}

/// The message in an item. The x0 client knows no gaps, no receipts and no replies.
fn message_of(item: Item) -> Option<Arc<Publication>> {
    match item {
        Item::Message(message) if message.kind().is_message() => Some(message),
        Item::Message(_) | Item::Gap(_) => None,
    }
}

/// The body of an answer with messages.
struct AnswerBody {
    json: SharedText,
    messages: usize,
}

impl AnswerBody {
    fn new(first: &Arc<Publication>) -> Self {
        let mut body = Self { json: SharedText::default(), messages: 0 };
        body.json.reserve(first.payload().len().min(COPIED) + AROUND);
        body.json.push_str(r#"{"messages":["#);
        body.push(first);
        body
    }

    fn push(&mut self, message: &Arc<Publication>) {
        if self.messages > 0 {
            self.json.push_str(",");
        }
        for part in parts_with_sender(message.payload(), message.from()) {
            match part {
                Part::Payload(range) => self.json.push_payload(message, range),
                Part::Text(text) => self.json.push_str(&text),
            }
        }
        self.messages += 1;
    }

    /// Adds what the subscriber has ready, up to position `end`.
    fn fill(&mut self, subscriber: &mut Subscriber, end: Option<Seq>) {
        while self.messages < MAX_MESSAGES
            && self.json.len() < ENOUGH_BYTES
            && end.is_none_or(|end| subscriber.delivered() < end)
        {
            let Some(item) = subscriber.try_next() else { break };
            if let Some(message) = message_of(item) {
                self.push(&message);
            }
        }
    }

    fn finish(mut self, through: Seq) -> SharedText {
        // Writing to memory does not fail.
        _ = write!(self.json.tail(), r#"],"seq":{through}}}"#);
        self.json
    }
}
