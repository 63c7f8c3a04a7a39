//! Appends that were refused, or whose outcome is not known; and those that wait for them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::engine::nats::envelope;
use crate::engine::nats::error::AskError;
use crate::engine::nats::lanes::{Job, Outgoing, Sent, Step, Undecided};
use crate::engine::nats::link::{ANSWER, Stored, header};
use crate::engine::nats::names::Place;
use crate::engine::nats::nets::Net;
use crate::engine::nats::node::Core;
use crate::engine::nats::owners::Owner;
use crate::engine::{Append, Bounds, EngineError};
use crate::message::{Address, Seq};

/// How long an append is tried again whose outcome is unknown.
const TRIED: Duration = Duration::from_secs(15);

/// Pause before that, which doubles up to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// The number of NATS' errors for a stream and for a subject that are full. Only their texts tell them apart.
const FULL: u64 = 10_077;
const FULL_SUBJECT: &str = "per subject";

fn is_subject(text: &str) -> bool {
    text.contains(FULL_SUBJECT)
}

impl Core {
    /// Decides what is undecided in the lane of an address, and sends what waits there, until the lane is not held any more.
    pub(super) async fn run_lane(self: Arc<Self>, address: Address) {
        loop {
            match self.lanes.next(&address) {
                Step::Settle(undecided, newest) => {
                    for Undecided { number, sent, failure } in undecided {
                        let Sent { job, outgoing, after } = sent;
                        let overtaken =
                            newest.filter(|(stored, _)| *stored > number).map(|(_, seq)| (after, seq));
                        let settled = match overtaken {
                            Some(range) => self.settle(&outgoing, &failure, range).await,
                            None => self.send(&address, &outgoing).await,
                        };
                        self.finish(job, &outgoing, settled).await;
                    }
                }
                Step::Send(job) => self.send_waiting(&address, job).await,
                Step::Stop => return,
            }
        }
    }

    /// Tells who waits for an append what became of it.
    async fn finish(
        &self,
        Job { append, since, answer }: Job,
        outgoing: &Outgoing,
        outcome: Result<Stored, EngineError>,
    ) {
        let outcome = match outcome {
            Ok(stored) => {
                self.note_stored((&append, since), &outgoing.place, stored);
                self.as_known(&append, outgoing, stored).await
            }
            Err(refused) => {
                self.decided((&append.address, &append.payer), None);
                Err(refused)
            }
        };
        self.lanes.done(&append);
        // Nobody may wait for it any more.
        _ = answer.send(outcome);
    }

    /// The answer to an append that is stored, perhaps since an earlier one with the same id. Before it, what has to be done when
    /// the message expires is scheduled.
    pub(super) async fn as_known(
        &self,
        append: &Append,
        outgoing: &Outgoing,
        stored: Stored,
    ) -> Result<Seq, EngineError> {
        let seq = Seq(stored.seq);
        if self.schedules(append) {
            self.schedule(append, outgoing, stored).await;
        }
        match stored.is_known && append.id.is_some() && self.is_another(append, &outgoing.place, seq).await {
            true => Err(EngineError::IdReused { window: self.settings.dedup_window }),
            false => Ok(seq),
        }
    }

    /// Sends an append that waited for others.
    async fn send_waiting(self: &Arc<Self>, address: &Address, job: Job) {
        let prepared = async {
            self.check_ready().map_err(Err)?;
            let owner = match address.session() {
                Some(session) => self.check_owner(&job.append, session).await.map_err(Err)?,
                None => Owner::default(),
            };
            match self.stored_before_the_move(&job.append, owner) {
                Some(known) => Err(known),
                None => {
                    let outgoing = self.prepare(&job.append, owner).map_err(Err)?;
                    self.find_room(&job.append, &outgoing).await.map(|()| outgoing)
                }
            }
        };
        let outgoing = match prepared.await {
            Ok(outgoing) => outgoing,
            Err(known) => {
                self.lanes.done(&job.append);
                // Nobody may wait for it any more.
                _ = job.answer.send(known);
                return;
            }
        };
        let (subject, headers, body) =
            (outgoing.place.stored.clone(), outgoing.headers(), outgoing.body.clone());
        let after = self.known_newest(outgoing.place.stream);
        let payer = job.append.payer.clone();
        let sent = Sent { job, outgoing, after };
        let Some(number) = self.lanes.begin(sent, Instant::now() + ANSWER) else {
            self.decided((address, &payer), None);
            return;
        };
        if let Err(error) = self.link.post_when_ready(number, subject, headers, body).await {
            // It is tried again as others whose outcome is unknown.
            let answered = self.lanes.answered(number, Err(error));
            debug_assert!(answered.stored.is_none() && answered.run.is_none(), "the lane is run here");
        }
    }

    /// Decides an append after which later ones to its address were stored, the newest one at the end of this range. It is not
    /// stored any more: it would be behind them.
    ///
    /// # Errors
    /// It is not stored, or that cannot be found out.
    async fn settle(
        &self,
        outgoing: &Outgoing,
        failure: &AskError,
        range: (Seq, Seq),
    ) -> Result<Stored, EngineError> {
        match failure {
            AskError::Refused { code: FULL, text } => {
                return Err(self.full(is_subject(text), &outgoing.place).await);
            }
            AskError::Refused { .. } => return Err(Self::unavailable(failure)),
            AskError::Unknown(_) => {}
        }
        let until = Instant::now() + TRIED;
        let mut pause = FIRST_PAUSE;
        loop {
            match self.find(outgoing, range).await {
                Ok(Some(seq)) => return Ok(Stored { seq: seq.0, is_known: false }),
                Ok(None) => {
                    let reason = "NATS lost the message, and stored later ones of its address".into();
                    return Err(EngineError::Unavailable { reason });
                }
                Err(error) if Instant::now() + pause > until => return Err(Self::unavailable(&error)),
                Err(_) => {
                    sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    /// Where an append is stored within a range, of which the end is known to be stored.
    ///
    /// # Errors
    /// [`AskError`]; also if a copy of the stream answers that is behind.
    async fn find(&self, outgoing: &Outgoing, (after, through): (Seq, Seq)) -> Result<Option<Seq>, AskError> {
        let (stream, mut at) = (self.names.stream(outgoing.place.stream), after);
        while at < through {
            let page = self.page(&stream, &outgoing.place.stored, at, usize::MAX).await?;
            for (seq, message) in &page.messages {
                at = *seq;
                if header(message, "Nats-Msg-Id") == Some(outgoing.id.as_str()) {
                    return Ok(Some(at));
                }
            }
            if page.messages.is_empty() || page.pending == 0 {
                if at < through && self.leader_has(&stream, &outgoing.place.stored, at).await? {
                    return Err(AskError::Unknown("a copy of the stream is behind".into()));
                }
                break;
            }
        }
        Ok(None)
    }

    /// Sends it until there is an answer. The same id makes that harmless.
    ///
    /// # Errors
    /// It is refused, or its outcome stays unknown.
    pub(super) async fn send(
        self: &Arc<Self>,
        address: &Address,
        outgoing: &Outgoing,
    ) -> Result<Stored, EngineError> {
        let until = Instant::now() + TRIED;
        let (mut pause, mut purged) = (FIRST_PAUSE, false);
        loop {
            let place = &outgoing.place;
            match self.link.store(&place.stored, outgoing.headers(), outgoing.body.clone()).await {
                Ok(stored) => return Ok(stored),
                Err(AskError::Refused { code: FULL, text }) => {
                    let is_subject = is_subject(&text);
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
            if self.purge_acknowledged(&self.place(&address), floor.acknowledged()).await.is_err() {
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
        // NATS counts the messages of a mailbox, and not its bytes.
        let bounds = Bounds { bytes: usize::MAX, ..self.settings.mailbox };
        let counted = self.count(place).await.ok().and_then(|count| usize::try_from(count).ok());
        let messages = counted.unwrap_or(bounds.messages);
        EngineError::MailboxFull { messages, bytes: 0, bounds }
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
