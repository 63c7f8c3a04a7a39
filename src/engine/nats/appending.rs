//! Appends: those to one address are sent one after the other, without waiting for the answers.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, Message, Subscriber};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::clock::millis;
use crate::engine::nats::envelope;
use crate::engine::nats::lanes::{Job, Outgoing, Pushed, Sent};
use crate::engine::nats::link::{ANSWER, Stored, stored};
use crate::engine::nats::names::Place;
use crate::engine::nats::node::Core;
use crate::engine::nats::owners::Owner;
use crate::engine::nats::streams::DAY;
use crate::engine::{Append, Commit, EngineError};
use crate::message::{Author, Seq};
use crate::metrics;

impl Outgoing {
    /// The headers that it is sent with.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", self.id.as_str());
        headers.insert("Nats-TTL", self.ttl.to_string());
        headers
    }
}

/// How long NATS keeps a message that a node ends after this time, in seconds. Part of a second counts as one.
pub(super) fn lifetime(age: Duration) -> u64 {
    (age + DAY).as_secs().saturating_add(1)
}

impl Core {
    /// See [`crate::engine::Engine::append`].
    pub(super) fn append(self: &Arc<Self>, append: Append) -> Commit {
        if let Err(refused) = self.check_ready() {
            return Commit::done(Err(refused));
        }
        let owner = self.owner_at_hand(&append);
        if let Some(known) = owner.and_then(|owner| self.stored_before_the_move(&append, owner)) {
            return Commit::done(known);
        }
        let outgoing = match owner.map(|owner| self.prepare(&append, owner)).transpose() {
            Ok(outgoing) => outgoing.map(|outgoing| {
                let after = self.known_newest(outgoing.place.stream);
                (outgoing, after)
            }),
            Err(refused) => return Commit::done(Err(refused)),
        };
        let (answer, stored) = oneshot::channel();
        let address = append.address.clone();
        let (bounds, since) = (self.settings.queue, Instant::now());
        let send = |number, append: &Append, outgoing: &Outgoing| {
            let (place, body) = (&outgoing.place, outgoing.body.clone());
            if !self.take_room(append, outgoing) {
                return false;
            }
            let is_sent = self.link.post(number, &place.stored, outgoing.headers(), body);
            if !is_sent {
                self.decided((&append.address, &append.payer), None);
            }
            is_sent
        };
        match self.lanes.push(Job { append, since, answer }, outgoing, (bounds, since + ANSWER), send) {
            Err(refused) => return Commit::done(Err(refused)),
            Ok(Pushed::Run) => drop(tokio::spawn(Arc::clone(self).run_lane(address))),
            Ok(Pushed::Queued) => {}
        }
        Commit::undecided(stored)
    }

    /// Whether appends can be sent now.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`].
    pub(super) fn check_ready(&self) -> Result<(), EngineError> {
        if self.stop.is_cancelled() {
            return Err(EngineError::Unavailable { reason: "the server is stopping".into() });
        }
        self.refusing().map_or(Ok(()), |reason| Err(EngineError::Unavailable { reason }))
    }

    /// Takes the answers to what was posted, and finds out to what none came in time. After the end of the node, until nothing is
    /// on its way any more.
    pub(super) async fn run_answers(self: Arc<Self>, mut answers: Subscriber) {
        let mut has_stopped = false;
        loop {
            let expiry = self.lanes.next_expiry();
            if has_stopped && expiry.is_none() {
                return;
            }
            let expired = async {
                match expiry {
                    Some(until) => sleep_until(until).await,
                    None => self.lanes.busy.notified().await,
                }
            };
            tokio::select! {
                biased;
                answer = answers.next() => {
                    let mut next = Some(answer);
                    while let Some(answer) = next {
                        let Some(answer) = answer else { return };
                        self.on_answer(&answer);
                        next = answers.next().now_or_never();
                    }
                }
                () = expired => {
                    for address in self.lanes.expire(Instant::now()) {
                        metrics::NATS_UNANSWERED.count();
                        tokio::spawn(Arc::clone(&self).run_lane(address));
                    }
                }
                () = self.stop.cancelled(), if !has_stopped => has_stopped = true,
            }
        }
    }

    fn on_answer(self: &Arc<Self>, answer: &Message) {
        let number = answer.subject.rsplit('.').next().and_then(|token| token.parse().ok());
        let Some(number) = number else { return };
        let answered = self.lanes.answered(number, stored(answer));
        if let Some((sent, stored)) = answered.stored {
            self.confirm(sent, stored);
        }
        if let Some(address) = answered.run {
            tokio::spawn(Arc::clone(self).run_lane(address));
        }
    }

    /// Tells who waits that its append is stored.
    fn confirm(self: &Arc<Self>, sent: Sent, stored: Stored) {
        let Sent { job: Job { append, since, answer }, outgoing, .. } = sent;
        self.note_stored((&append, since), &outgoing.place, stored);
        // Nobody may wait for it any more.
        if (!stored.is_known || append.id.is_none()) && !self.schedules(&append) {
            _ = answer.send(Ok(Seq(stored.seq)));
            return;
        }
        let core = Arc::clone(self);
        tokio::spawn(async move { _ = answer.send(core.as_known(&append, &outgoing, stored).await) });
    }

    /// Notes that an append, accepted at this time, is stored.
    pub(super) fn note_stored(&self, (append, since): (&Append, Instant), place: &Place, stored: Stored) {
        if !stored.is_known {
            metrics::observe_commit_wait(since.elapsed());
        }
        self.note_newest(place.stream, stored.seq);
        self.decided((&append.address, &append.payer), Some(Seq(stored.seq)));
        // A single copy is never behind.
        if self.options.replicas > 1 {
            self.recent.note(&append.address, Seq(stored.seq));
        }
    }

    /// The answer to a retry of what was sent before the store was moved here.
    pub(super) fn stored_before_the_move(
        &self,
        append: &Append,
        owner: Owner,
    ) -> Option<Result<Seq, EngineError>> {
        let moved = self.moved.as_ref().filter(|moved| moved.until() > self.now())?;
        let known = moved.find(append, self.place(&append.address).stream, owner.since, self.now())?;
        Some(known.ok_or(EngineError::IdReused { window: self.settings.dedup_window }))
    }

    /// Makes what is sent of an append to a mailbox that has this owner.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`]: there are no random numbers.
    pub(super) fn prepare(&self, append: &Append, owner: Owner) -> Result<Outgoing, EngineError> {
        let place = self.place(&append.address);
        let bounds = if append.address.is_mailbox() { self.settings.mailbox } else { self.settings.history };
        let age = append.ttl.unwrap_or(bounds.age);
        let age = if append.address.is_mailbox() { age } else { age.min(bounds.age) };
        let expires_at = self.now().saturating_add(millis(age));
        let id = self.message_id(append, &place, owner.since)?;
        let body = envelope::encode(append, expires_at, owner.registration());
        Ok(Outgoing { place, id, expires_at, ttl: lifetime(age), body })
    }

    /// What makes a retry known. A message without an id gets a random one, for the retries of this node.
    fn message_id(&self, append: &Append, place: &Place, since: Seq) -> Result<String, EngineError> {
        let Some(id) = &append.id else {
            let mut random = [0; 16];
            getrandom::fill(&mut random).map_err(|error| EngineError::Unavailable {
                reason: format!("no random numbers: {error}").into(),
            })?;
            return Ok(URL_SAFE_NO_PAD.encode(random));
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
}
