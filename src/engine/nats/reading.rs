//! Reads of mailboxes and histories.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use serde_json::json;
use tokio::time::sleep;

use crate::budget::{Holder, Permit, SMALL};
use crate::engine::nats::envelope::{self, Letter};
use crate::engine::nats::error::{AskError, NO_MESSAGE};
use crate::engine::nats::floors::Floor;
use crate::engine::nats::link::{number, status};
use crate::engine::nats::names::Place;
use crate::engine::nats::node::Core;
use crate::engine::{Batch, EngineError};
use crate::message::{Address, Gap, GapReason, Item, Publication, Seq};

/// A read is complete once it has this many bytes.
const READ_BYTES: usize = 1 << 20;

/// Most messages of one answer.
pub(super) const READ_MESSAGES: usize = 256;

/// How often a read that failed is repeated, and after which pause.
const READ_AGAIN: u32 = 2;
const READ_PAUSE: Duration = Duration::from_millis(200);

/// Pause before a copy of a stream is read again that is behind.
const STALE_PAUSE: Duration = Duration::from_millis(20);

/// A part of what an address holds.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Messages as they are stored, in order.
    pub(super) messages: Vec<(Seq, Message)>,
    /// How many there are after these. Servers before 2.12 may count one too many.
    pub(super) pending: usize,
}

impl Core {
    /// The messages of a subject after a seq.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn page(
        &self,
        stream: &str,
        subject: &str,
        after: Seq,
        limit: usize,
    ) -> Result<Page, AskError> {
        let batch = limit.clamp(1, READ_MESSAGES);
        let request = json!({
            "seq": after.0 + 1, "next_by_subj": subject, "batch": batch, "max_bytes": READ_BYTES,
        });
        let mut answers = self.link.get(stream, &request, batch).await?;
        let mut page = Page::default();
        loop {
            let answer = answers.next().await?;
            match status(&answer) {
                0 => {
                    page.pending = usize::try_from(number(&answer, "Nats-Num-Pending")).unwrap_or(usize::MAX);
                    page.messages.push((Seq(number(&answer, "Nats-Sequence")), answer));
                    if page.messages.len() == batch {
                        return Ok(page);
                    }
                }
                204 => return Ok(page),
                404 => return Ok(Page::default()),
                code => {
                    let text = answer.description.as_deref().unwrap_or("NATS refuses to read").into();
                    return Err(AskError::Refused { code: code.into(), text });
                }
            }
        }
    }

    /// The floor of a mailbox, as all nodes know it.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn floor(&self, address: &Address, place: &Place) -> Result<Floor, AskError> {
        let Some(subject) = &place.floor else { return Ok(Floor::default()) };
        let record = self.floor_record(subject).await?.map(|(record, _)| record).unwrap_or_default();
        let since = address.session().map_or(Seq::START, |session| self.directory.lock().since(session));
        // After the other one: what this node stores meanwhile is known here until it is stored.
        Ok(record.max(&self.floors.of(address)).max(&Floor::acked(since)))
    }

    /// The record of a floor, and its seq.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn floor_record(&self, subject: &str) -> Result<Option<(Floor, u64)>, AskError> {
        let request = json!({ "last_by_subj": subject });
        let answer = self.link.get_one(&self.names.floors(), &request).await?;
        Ok(answer.and_then(|answer| {
            let record = serde_json::from_slice(&answer.payload).ok()?;
            Some((record, number(&answer, "Nats-Sequence")))
        }))
    }

    /// What is gone from an address, and why what is below its floor is.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn below(
        &self,
        address: &Address,
        place: &Place,
    ) -> Result<(Floor, GapReason), AskError> {
        if address.is_mailbox() {
            return Ok((self.floor(address, place).await?, GapReason::Acknowledged));
        }
        let stored = self.count(place).await?;
        // The oldest one is not shown: it tells where the others begin.
        let is_hidden = stored > self.settings.history.messages as u64;
        let hidden = if is_hidden { self.first(place).await? } else { Seq::START };
        Ok((Floor::acked(hidden), GapReason::Expired))
    }

    /// See [`crate::engine::Engine::read`].
    pub(super) async fn read(
        &self,
        address: &Address,
        after: Seq,
        limit: usize,
    ) -> Result<Batch, EngineError> {
        // What is stored from now on comes through the subscription.
        self.feeds.subscribed(address).await;
        let mut failures = 0;
        loop {
            match self.try_read(address, after, limit).await {
                Ok(batch) => return Ok(batch),
                Err(error) if failures == READ_AGAIN => {
                    return Err(EngineError::Unreadable { reason: error.reason() });
                }
                Err(_) => {
                    failures += 1;
                    sleep(READ_PAUSE).await;
                }
            }
        }
    }

    async fn try_read(&self, address: &Address, after: Seq, limit: usize) -> Result<Batch, AskError> {
        let place = self.place(address);
        let stream = self.names.stream(place.stream);
        let (floor, reason) = self.below(address, &place).await?;
        let mut plan = Plan::new(after, floor);
        plan.skip(plan.floor.acknowledged(), reason);
        loop {
            let permit = self.reads.acquire().await;
            let wanted = limit.saturating_sub(plan.items.len()).max(1);
            let page = self.page(&stream, &place.stored, plan.scanned, wanted).await?;
            drop(permit);
            for (seq, message) in &page.messages {
                self.note_newest(place.stream, seq.0);
                let letter = envelope::decode(address, *seq, &message.payload);
                if let Some(letter) = &letter {
                    self.note_read(address, (plan.scanned, *seq), letter);
                    if self.compare_owner(address, letter.owner) == Ordering::Greater {
                        // It is for a registration that this node has not heard of. Readers of an earlier one end.
                        self.catch_up().await?;
                    }
                }
                let letter = letter.filter(|letter| !self.is_for_former(address, letter));
                if !plan.add(*seq, letter, self.now(), limit) {
                    return Ok(self.admit(plan, true).await);
                }
            }
            if page.messages.is_empty() || page.pending == 0 {
                if self.is_behind(address, &place, plan.scanned).await? {
                    sleep(STALE_PAUSE).await;
                    continue;
                }
                plan.end(Seq(u64::MAX));
                return Ok(self.admit(plan, false).await);
            }
            if plan.bytes >= READ_BYTES || plan.items.len() >= limit {
                return Ok(self.admit(plan, true).await);
            }
        }
    }

    /// Whether a copy of the stream that is behind has answered: this node stored more, and the leader still has it.
    async fn is_behind(&self, address: &Address, place: &Place, scanned: Seq) -> Result<bool, AskError> {
        if self.options.replicas == 1 || self.recent.of(address) <= scanned {
            return Ok(false);
        }
        self.leader_has(&self.names.stream(place.stream), &place.stored, scanned).await
    }

    /// Whether the leader of a stream has something of a subject above a seq.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn leader_has(&self, stream: &str, subject: &str, after: Seq) -> Result<bool, AskError> {
        let request = json!({ "seq": after.0 + 1, "next_by_subj": subject });
        match self.link.api(&format!("STREAM.MSG.GET.{stream}"), &request).await {
            Ok(_) => Ok(true),
            Err(error) if error.is(NO_MESSAGE) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Notes a message that came here, by its seq and one before it. Between them there is none.
    pub(super) fn note_read(&self, address: &Address, seqs: (Seq, Seq), letter: &Letter) {
        if address.is_mailbox() {
            let (bytes, asks) = (letter.publication.frame().len(), letter.receipt.is_some());
            self.feeds.note(address, seqs, bytes, asks, self.settings.held().0);
        }
    }

    /// See [`crate::engine::Engine::held_too_long`].
    pub(super) fn held_too_long(&self, address: &Address, acknowledged: Seq) -> Seq {
        self.feeds.beyond(address, acknowledged, self.settings.held())
    }

    /// Takes room in the memory budget for what was read. The batch ends before the first message for which there is none.
    async fn admit(&self, plan: Plan, more: bool) -> Batch {
        let budget = self.hubs.budget();
        let mut room = budget.permit(Holder::Proved);
        let (mut items, mut small, mut cursor) = (Vec::with_capacity(plan.items.len()), 0, plan.after);
        let all = plan.items.len();
        for item in plan.items {
            let bytes = match &item {
                Item::Message(publication) => publication.frame().len(),
                Item::Gap(_) => 0,
            };
            let is_first = items.is_empty();
            let (granted, permit) = if bytes > SMALL {
                let permit = match budget.acquire_now(Holder::Proved, bytes) {
                    None if is_first => Some(budget.acquire(Holder::Proved, bytes).await),
                    permit => permit,
                };
                (permit.is_some(), permit)
            } else {
                small += bytes;
                if is_first && bytes > 0 && !room.grow(small) {
                    room = budget.acquire(Holder::Proved, small).await;
                }
                (room.grow(small), None)
            };
            if !granted {
                break;
            }
            cursor = item.seq().unwrap_or(cursor);
            items.push(on_its_way(item, permit));
        }
        let is_whole = items.len() == all;
        let cursor = if is_whole { plan.cursor } else { cursor };
        Batch { items, cursor, more: more || !is_whole, room: Some(room) }
    }
}

fn on_its_way(item: Item, permit: Option<Permit>) -> Item {
    match item {
        Item::Message(publication) if permit.is_some() => match Arc::try_unwrap(publication) {
            Ok(publication) => Item::Message(Arc::new(Publication::on_its_way(publication, permit))),
            Err(shared) => Item::Message(shared),
        },
        item => item,
    }
}

/// What a read has found so far.
#[derive(Debug)]
struct Plan {
    after: Seq,
    floor: Floor,
    items: Vec<Item>,
    /// How far the reader is with these items.
    cursor: Seq,
    /// How far the stream was read.
    scanned: Seq,
    /// The newest message that has expired since the last item.
    expired: Seq,
    bytes: usize,
}

impl Plan {
    fn new(after: Seq, floor: Floor) -> Self {
        let (items, expired) = (Vec::new(), Seq::START);
        Self { after, floor, items, cursor: after, scanned: after, expired, bytes: 0 }
    }

    /// Skips what is gone, and says so, unless the reader is new: without a cursor it misses nothing.
    fn skip(&mut self, to: Seq, reason: GapReason) {
        if to > self.cursor {
            if self.cursor > Seq::START {
                self.items.push(Item::Gap(Gap { from: self.cursor, to, reason }));
            }
            (self.cursor, self.scanned) = (to, self.scanned.max(to));
        }
    }

    /// Adds the next message. Answers false if the read is complete without it.
    fn add(&mut self, seq: Seq, letter: Option<Letter>, now: u64, limit: usize) -> bool {
        // What cannot be read is told as a gap.
        let Some(letter) = letter.filter(|letter| letter.expires_at > now) else {
            (self.expired, self.scanned) = (seq, seq);
            return true;
        };
        let is_full = self.items.len() >= limit || self.bytes >= READ_BYTES;
        if is_full && !self.items.is_empty() {
            return false;
        }
        self.end(seq);
        self.bytes += letter.publication.frame().len();
        self.items.push(Item::Message(letter.publication));
        (self.cursor, self.scanned) = (seq, seq);
        true
    }

    /// Tells what has expired between the last message and the next.
    fn end(&mut self, next: Seq) {
        let hole = self.floor.hole_between(self.cursor, next).unwrap_or_default();
        self.skip(self.expired.max(hole), GapReason::Expired);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(plan: &Plan) -> Vec<(u64, u64, GapReason)> {
        let gaps = plan.items.iter().filter_map(|item| match item {
            Item::Gap(gap) => Some((gap.from.0, gap.to.0, gap.reason)),
            Item::Message(_) => None,
        });
        gaps.collect()
    }

    #[test]
    fn what_is_gone_is_told_once_and_in_order() {
        let floor = Floor::acked(Seq(5)).max(&Floor::expired(&[Seq(9), Seq(12)]));
        let mut plan = Plan::new(Seq(3), floor);
        plan.skip(Seq(5), GapReason::Acknowledged);
        plan.skip(Seq(4), GapReason::Acknowledged);
        assert!(plan.add(Seq(7), None, 0, 9) && plan.add(Seq(8), None, 0, 9));
        plan.end(Seq(11));
        plan.end(Seq(u64::MAX));
        let told = told(&plan);
        let expired = [(5, 9, GapReason::Expired), (9, 12, GapReason::Expired)];
        assert_eq!(told[0], (3, 5, GapReason::Acknowledged));
        assert_eq!(told[1..], expired);
        assert_eq!((plan.cursor, plan.scanned), (Seq(12), Seq(12)));
    }

    #[test]
    fn a_new_reader_misses_nothing_that_was_there_before() {
        let mut plan = Plan::new(Seq::START, Floor::acked(Seq(5)));
        plan.skip(Seq(5), GapReason::Acknowledged);
        assert_eq!((told(&plan), plan.cursor), (vec![], Seq(5)));
    }
}
