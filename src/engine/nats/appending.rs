//! Appends: one after the other for each address.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::clock::millis;
use crate::engine::nats::envelope;
use crate::engine::nats::error::AskError;
use crate::engine::nats::lanes::Job;
use crate::engine::nats::link::Stored;
use crate::engine::nats::names::Place;
use crate::engine::nats::nets::Net;
use crate::engine::nats::node::Core;
use crate::engine::nats::streams::DAY;
use crate::engine::{Append, Commit, EngineError};
use crate::message::{Address, Author, Seq, SessionId};

/// How long an append is tried again whose outcome is unknown.
const TRIED: Duration = Duration::from_secs(15);

/// Pause before that, which doubles up to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// The number of NATS' errors for a stream and for a subject that are full. Only their texts tell them apart.
const FULL: u64 = 10_077;
const FULL_SUBJECT: &str = "per subject";

/// What is made of an append before it is sent.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) place: Place,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Core {
    /// See [`crate::engine::Engine::append`].
    pub(super) fn append(self: &Arc<Self>, append: Append) -> Commit {
        let (answer, stored) = oneshot::channel();
        let address = append.address.clone();
        match self.lanes.push(Job { append, answer }, self.settings.queue) {
            Err(refused) => return Commit::done(Err(refused)),
            Ok(true) => drop(tokio::spawn(Arc::clone(self).run_lane(address))),
            Ok(false) => {}
        }
        Commit::undecided(stored)
    }

    /// Appends what waits in the lane of an address, until it is empty.
    async fn run_lane(self: Arc<Self>, address: Address) {
        while let Some(Job { append, answer }) = self.lanes.next(&address) {
            let stored = self.store(&append).await;
            // Nobody may wait for it any more.
            _ = answer.send(stored);
        }
    }

    /// Stores one message.
    async fn store(self: &Arc<Self>, append: &Append) -> Result<Seq, EngineError> {
        if self.stop.is_cancelled() {
            return Err(EngineError::Unavailable { reason: "the server is stopping".into() });
        }
        if let Some(reason) = self.failing() {
            return Err(EngineError::Unavailable { reason });
        }
        let since = match append.address.session() {
            Some(session) => self.check_owner(append, session).await?,
            None => Seq::START,
        };
        if let Some(known) = self.stored_before_the_move(append, since) {
            return known;
        }
        let prepared = self.prepare(append, since)?;
        let stored = self.send(&append.address, &prepared).await?;
        self.note_newest(prepared.place.stream, stored.seq);
        let seq = Seq(stored.seq);
        self.recent.note(&append.address, seq);
        match stored.is_known && append.id.is_some() && self.is_another(append, &prepared.place, seq).await {
            true => Err(EngineError::IdReused { window: self.settings.dedup_window }),
            false => Ok(seq),
        }
    }

    /// Checks for whom the message is, and answers since which seq the mailbox has its owner.
    async fn check_owner(&self, append: &Append, session: &SessionId) -> Result<Seq, EngineError> {
        let now = self.now();
        if self.directory.lock().table.has_expired(session, now) {
            // What comes now is not for the former owner.
            self.close_registration(session).await?;
        }
        let wanted = (append.user.as_ref(), append.since);
        let is_for = || self.directory.lock().table.is_for(&append.address, wanted, now);
        if !is_for() {
            self.catch_up().await.map_err(|error| Self::unavailable(&error))?;
            if !is_for() {
                return Err(EngineError::AnotherUser);
            }
        }
        Ok(self.directory.lock().since(session))
    }

    /// The answer to a retry of what was sent before the store was moved here.
    fn stored_before_the_move(&self, append: &Append, since: Seq) -> Option<Result<Seq, EngineError>> {
        let moved = self.moved.as_ref().filter(|moved| moved.until() > self.now())?;
        let known = moved.find(append, self.place(&append.address).stream, since, self.now())?;
        Some(known.ok_or(EngineError::IdReused { window: self.settings.dedup_window }))
    }

    fn prepare(&self, append: &Append, since: Seq) -> Result<Prepared, EngineError> {
        let place = self.place(&append.address);
        let bounds = if append.address.is_mailbox() { self.settings.mailbox } else { self.settings.history };
        let age = append.ttl.unwrap_or(bounds.age);
        let age = if append.address.is_mailbox() { age } else { age.min(bounds.age) };
        let expires_at = self.now().saturating_add(millis(age));
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", self.message_id(append, &place, since)?);
        // Part of a second counts as one. Not for ever, and not longer than the stream keeps it anyway.
        headers.insert("Nats-TTL", (age + DAY).as_secs().saturating_add(1).to_string());
        Ok(Prepared { place, headers, body: envelope::encode(append, expires_at) })
    }

    /// What makes a retry known. A message without an id gets a random one, for the retries of this node.
    fn message_id(&self, append: &Append, place: &Place, since: Seq) -> Result<String, EngineError> {
        let Some(id) = &append.id else {
            let mut random = [0; 16];
            getrandom::fill(&mut random).map_err(|error| EngineError::Unavailable {
                reason: format!("no random numbers: {error}").into(),
            })?;
            return Ok(self.names.message_id(&[b"random", &random]));
        };
        // Senders without a name cannot be told apart. Their retries have the same payload.
        let (kind, author): (&[u8], &[u8]) = match &append.author {
            Author::Session(session) => (b"s", session.as_str().as_bytes()),
            Author::Backend(name) => (b"b", name.as_bytes()),
            Author::Anonymous => (b"a", append.message.payload.get().as_bytes()),
        };
        let parts = [place.stored.as_bytes(), kind, author, id.as_str().as_bytes(), &since.0.to_le_bytes()];
        Ok(self.names.message_id(&parts))
    }

    /// Sends it until there is an answer. The same id makes that harmless.
    pub(super) async fn send(
        self: &Arc<Self>,
        address: &Address,
        prepared: &Prepared,
    ) -> Result<Stored, EngineError> {
        let until = Instant::now() + TRIED;
        let (mut pause, mut purged) = (FIRST_PAUSE, false);
        loop {
            let Prepared { place, headers, body } = prepared;
            match self.link.store(&place.stored, headers.clone(), body.clone()).await {
                Ok(stored) => return Ok(stored),
                Err(AskError::Refused { code: FULL, text }) => {
                    let is_subject = text.contains(FULL_SUBJECT);
                    if !purged && self.clear(address, place, is_subject).await {
                        purged = true;
                        continue;
                    }
                    return Err(self.full(is_subject, place).await);
                }
                Err(error @ AskError::Refused { .. }) => return Err(Self::unavailable(&error)),
                Err(error) if Instant::now() + pause > until => return Err(Self::unavailable(&error)),
                Err(_) => {
                    self.signals.may_have_missed(Net::Unanswered);
                    sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    /// Deletes what is acknowledged in this mailbox, or in all that this node knows of. Answers whether there may be room now.
    async fn clear(self: &Arc<Self>, address: &Address, place: &Place, is_subject: bool) -> bool {
        if is_subject {
            return place.floor.is_some() && self.make_room(address, place).await.is_ok();
        }
        for (address, floor) in self.floors.all() {
            if self.purge(&self.place(&address), floor.acknowledged()).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Why there is no room.
    async fn full(&self, is_subject: bool, place: &Place) -> EngineError {
        if !is_subject {
            return EngineError::StoreFull { limit: self.settings.total_bytes };
        }
        let bounds = self.settings.mailbox;
        let (mut messages, mut bytes, mut at) = (0, 0, Seq::START);
        let stream = self.names.stream(place.stream);
        while let Ok(page) = self.page(&stream, &place.stored, at, usize::MAX).await {
            for (seq, message) in &page.messages {
                (messages, bytes, at) = (messages + 1, bytes + message.payload.len(), *seq);
            }
            if page.messages.is_empty() || !page.more {
                break;
            }
        }
        EngineError::MailboxFull { messages, bytes, bounds }
    }

    /// Whether what is stored at this seq has another payload. What is gone counts as the same.
    async fn is_another(&self, append: &Append, place: &Place, seq: Seq) -> bool {
        match self.message(place, seq).await {
            Ok(Some(stored)) => envelope::payload(&stored.payload)
                .is_some_and(|payload| payload != append.message.payload.get().as_bytes()),
            _ => false,
        }
    }
}
