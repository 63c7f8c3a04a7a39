//! What one read finds in a log, before the disk is read.

use std::sync::Arc;

use crate::budget::{Budget, Holder, Permit, SMALL};
use crate::engine::embedded::index::address_log::{AddressLog, Holes};
use crate::engine::embedded::index::queue::frame_of;
use crate::engine::{Batch, Position};
use crate::message::{Address, Gap, GapReason, Item, Publication, Seq};

/// A read is complete once it has this many bytes.
const READ_BYTES: usize = 1 << 20;

/// What a read found: messages and gaps, in order.
#[derive(Debug, Default)]
pub(crate) struct ReadPlan {
    pub(crate) slots: Vec<ReadSlot>,
    /// How far the read got.
    pub(crate) cursor: Seq,
    /// Whether the limit ended the read.
    pub(crate) more: bool,
    /// The share of the small messages together in the memory budget, once it is reserved.
    pub(crate) room: Option<Permit>,
}

/// One item of a read.
#[derive(Debug)]
pub(crate) enum ReadSlot {
    Ready(Item),
    /// A message with its body on the disk.
    OnDisk {
        seq: Seq,
        /// The size of its frame.
        bytes: usize,
        /// Its share of the memory budget, once it is reserved.
        permit: Option<Permit>,
    },
}

impl ReadSlot {
    /// Takes room in the memory budget for a message. `acquire` takes a permit for so many bytes; `None` if there is no room.
    ///
    /// # Errors
    /// The missing bytes.
    fn reserve(&mut self, acquire: impl FnOnce(usize) -> Option<Permit>) -> Result<(), usize> {
        match self {
            Self::Ready(Item::Gap(_)) => {}
            Self::Ready(Item::Message(publication)) => {
                let delivery = publication.delivery(acquire);
                *publication = delivery.ok_or_else(|| publication.frame().len())?;
            }
            Self::OnDisk { bytes, permit, .. } => *permit = Some(acquire(*bytes).ok_or(*bytes)?),
        }
        Ok(())
    }

    /// The bytes of a message that is too small for a permit of its own.
    fn small_bytes(&self) -> usize {
        let bytes = match self {
            Self::Ready(Item::Message(publication)) => publication.frame().len(),
            Self::Ready(Item::Gap(_)) => 0,
            Self::OnDisk { bytes, .. } => *bytes,
        };
        if bytes > SMALL { 0 } else { bytes }
    }

    /// How far a reader is that has read it.
    fn end(&self) -> Option<Seq> {
        match self {
            Self::Ready(item) => item.seq(),
            Self::OnDisk { seq, .. } => Some(*seq),
        }
    }
}

/// What a reader asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadRequest<'a> {
    pub(super) address: &'a Address,
    pub(super) after: Seq,
    /// Items at most.
    pub(super) limit: usize,
    /// Messages above this cannot be seen.
    pub(super) committed: Seq,
    /// Messages that expire until then are told as a gap. Unix milliseconds.
    pub(super) now: u64,
    /// Messages up to here may be missing, without a trace of them.
    pub(super) lost: Seq,
}

impl ReadRequest<'_> {
    /// Why messages below the floor are gone.
    fn below_floor(&self) -> GapReason {
        match self.address {
            Address::Session(_) | Address::Backend(_) => GapReason::Acknowledged,
            Address::Topic(_) => GapReason::Expired,
        }
    }
}

impl ReadPlan {
    /// The messages with their bodies on the disk.
    pub(crate) fn on_disk(&self) -> Vec<Seq> {
        let on_disk = self.slots.iter().filter_map(|slot| match slot {
            ReadSlot::OnDisk { seq, .. } => Some(*seq),
            ReadSlot::Ready(_) => None,
        });
        on_disk.collect()
    }

    /// Takes room in the memory budget for each message, before any body is read. The first message may use a permit that
    /// was waited for. The plan ends before the first message for which there is no room.
    ///
    /// # Errors
    /// The bytes of the first message, if there is no room even for that.
    pub(crate) fn reserve(&mut self, budget: &Budget, mut granted: Option<Permit>) -> Result<(), usize> {
        let mut acquire = |bytes| {
            let granted = granted.take().filter(|permit| permit.covers(bytes));
            granted.or_else(|| budget.acquire_now(Holder::Proved, bytes))
        };
        let (mut room, mut small) = (budget.permit(Holder::Proved), 0);
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            small += slot.small_bytes();
            let reserved = if room.grow(small) { slot.reserve(&mut acquire) } else { Err(small) };
            if let Err(missing) = reserved {
                if at == 0 {
                    return Err(missing);
                }
                self.slots.truncate(at);
                self.cursor = self.slots[at - 1].end().unwrap_or(self.cursor);
                self.more = true;
                break;
            }
        }
        self.room = Some(room);
        Ok(())
    }

    /// The batch of a read after `after`, with the bodies fetched for [`Self::on_disk`].
    ///
    /// A body that is missing although the index `holds` the message is lost. `None` if a message was acknowledged while
    /// it was fetched: the read must be planned again.
    pub(crate) fn into_batch(
        self,
        after: Seq,
        fetched: Vec<Option<Publication>>,
        holds: impl Fn(Seq) -> bool,
    ) -> Option<Batch> {
        let mut fetched = fetched.into_iter();
        let mut items = Vec::with_capacity(self.slots.len());
        let mut at = after;
        for slot in self.slots {
            let item = match slot {
                ReadSlot::Ready(item) => item,
                ReadSlot::OnDisk { seq, permit, .. } => match fetched.next().flatten() {
                    Some(publication) => Item::Message(Arc::new(publication.on_its_way(permit))),
                    None if holds(seq) => Item::Gap(Gap { from: at, to: seq, reason: GapReason::Lost }),
                    None => return None,
                },
            };
            at = match &item {
                Item::Message(message) => message.seq().unwrap_or(at),
                Item::Gap(gap) => gap.to,
            };
            items.push(item);
        }
        Some(Batch { items, cursor: self.cursor, more: self.more, room: self.room })
    }

    /// Nothing is stored; everything up to `forgotten` may have been.
    pub(super) fn nothing(request: &ReadRequest<'_>, forgotten: Seq) -> Self {
        let mut plan = Self { cursor: request.after, ..Self::default() };
        // One gap is told, not two.
        plan.skip(request.lost, GapReason::Lost);
        plan.skip(forgotten, GapReason::Acknowledged);
        plan
    }

    /// Reads a log; `at_hand` finds bodies that are in memory.
    pub(super) fn of<'a>(
        log: &AddressLog,
        holes: &Holes,
        request: &ReadRequest<'_>,
        at_hand: impl Fn(Seq) -> Option<&'a Arc<Publication>>,
    ) -> Self {
        let mut plan = Self { cursor: request.after, ..Self::default() };
        plan.skip_deleted(log, request.below_floor());
        let mut expired = Seq::START;
        let mut bytes = 0;
        let from = log.through(plan.cursor);
        for entry in log.entries().range(from..log.committed(request.committed).max(from)) {
            expired = holes.before(entry).map_or(expired, |hole| hole.max(expired));
            if entry.expires_at <= request.now {
                expired = entry.seq;
                continue;
            }
            if plan.slots.len() >= request.limit || bytes >= READ_BYTES {
                plan.more = true;
                return plan;
            }
            plan.skip(expired, GapReason::Expired);
            if entry.seq > request.lost {
                plan.skip(request.lost, GapReason::Lost);
            }
            bytes += entry.bytes as usize;
            plan.slots.push(match at_hand(entry.seq) {
                Some(publication) => ReadSlot::Ready(Item::Message(Arc::clone(publication))),
                None => {
                    let bytes = frame_of(entry.bytes as usize);
                    ReadSlot::OnDisk { seq: entry.seq, bytes, permit: None }
                }
            });
            plan.cursor = entry.seq;
        }
        plan.skip(expired.max(log.expired_since_last()), GapReason::Expired);
        plan.skip(request.lost, GapReason::Lost);
        plan
    }

    /// Skips what was deleted before the first entry, in the order in which it was stored.
    fn skip_deleted(&mut self, log: &AddressLog, below_floor: GapReason) {
        let Position { floor, expired, .. } = log.position();
        let first = log.entries().front().map_or(Seq(u64::MAX), |first| first.seq);
        if expired < floor && expired < first {
            self.skip(expired, GapReason::Expired);
        }
        self.skip(floor, below_floor);
    }

    /// Moves on to `to` and reports a gap, unless the reader is new: without a cursor it misses nothing.
    fn skip(&mut self, to: Seq, reason: GapReason) {
        if to > self.cursor {
            if self.cursor > Seq::START {
                self.slots.push(ReadSlot::Ready(Item::Gap(Gap { from: self.cursor, to, reason })));
            }
            self.cursor = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::embedded::index::address_log::LogEntry;
    use crate::message::SessionId;

    fn log(entries: &[(u64, u64)], holes: &mut Holes) -> AddressLog {
        let mut log = AddressLog::after_forgotten(Seq::START);
        for (seq, expires_at) in entries {
            let (seq, expires_at) = (Seq(*seq), *expires_at);
            log.push(LogEntry::new(seq, expires_at, 400_000), holes);
        }
        log
    }

    fn read(log: &AddressLog, holes: &Holes, after: u64, limit: usize) -> (Vec<String>, u64, bool) {
        let request = ReadRequest {
            address: &mailbox(),
            after: Seq(after),
            limit,
            committed: Seq(8),
            now: 10,
            lost: Seq::START,
        };
        describe(&ReadPlan::of(log, holes, &request, |_| None))
    }

    fn describe(plan: &ReadPlan) -> (Vec<String>, u64, bool) {
        let told = plan.slots.iter().map(|slot| match slot {
            ReadSlot::OnDisk { seq, .. } => seq.to_string(),
            ReadSlot::Ready(Item::Gap(gap)) => format!("{}-{} {:?}", gap.from, gap.to, gap.reason),
            ReadSlot::Ready(Item::Message(_)) => unreachable!("no body is at hand"),
        });
        (told.collect(), plan.cursor.0, plan.more)
    }

    fn mailbox() -> Address {
        Address::Session(SessionId::new("A").unwrap())
    }

    fn strings(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    #[test]
    fn expired_messages_are_told_as_gaps_whether_they_were_removed_or_not() {
        let mut holes = Holes::default();
        let mut log = log(&[(1, 99), (2, 10), (3, 99), (4, 5), (5, 99), (9, 99)], &mut holes);
        let expected = (strings(&["1-2 Expired", "3", "3-4 Expired", "5"]), 5, false);
        assert_eq!(read(&log, &holes, 1, 9), expected);
        log.expire(10, Seq(8), &mut holes);
        assert_eq!(read(&log, &holes, 1, 9), expected, "9 is not committed");
    }

    #[test]
    fn a_reader_without_a_cursor_does_not_hear_of_what_was_deleted_before() {
        let mut holes = Holes::default();
        let mut log = log(&[(1, 99), (2, 5), (3, 99)], &mut holes);
        log.trim(Seq(1), &mut holes);
        assert_eq!(read(&log, &holes, 0, 9), (strings(&["1-2 Expired", "3"]), 3, false));
        log.trim(Seq(3), &mut holes);
        assert_eq!(read(&log, &holes, 0, 9), (vec![], 3, false));
        assert_eq!(read(&log, &holes, 2, 9), (strings(&["2-3 Acknowledged"]), 3, false));
    }

    #[test]
    fn what_may_be_lost_is_told_once_after_what_is_intact() {
        let mut holes = Holes::default();
        let told = |log: &AddressLog, holes: &Holes, after| {
            let request = ReadRequest {
                address: &mailbox(),
                after: Seq(after),
                limit: 9,
                committed: Seq(8),
                now: 10,
                lost: Seq(5),
            };
            describe(&ReadPlan::of(log, holes, &request, |_| None)).0
        };
        let mut log = log(&[(1, 99), (3, 99)], &mut holes);
        assert_eq!(told(&log, &holes, 1), strings(&["3", "3-5 Lost"]));
        assert_eq!(told(&log, &holes, 4), strings(&["4-5 Lost"]));
        log.push(LogEntry::new(Seq(7), 99, 1), &mut holes);
        assert_eq!(told(&log, &holes, 1), strings(&["3", "3-5 Lost", "7"]));
        assert_eq!(told(&log, &holes, 5), strings(&["7"]));
    }

    #[test]
    fn a_limit_ends_the_read_before_a_message_and_before_its_gap() {
        let mut holes = Holes::default();
        let log = log(&[(1, 99), (2, 99), (3, 5), (4, 99)], &mut holes);
        assert_eq!(read(&log, &holes, 0, 2), (strings(&["1", "2"]), 2, true));
        assert_eq!(read(&log, &holes, 2, 2), (strings(&["2-3 Expired", "4"]), 4, false));
    }

    #[test]
    fn a_read_is_bounded_in_bytes() {
        let mut holes = Holes::default();
        let log = log(&[(1, 99), (2, 99), (3, 99), (4, 99)], &mut holes);
        assert_eq!(read(&log, &holes, 0, 9), (strings(&["1", "2", "3"]), 3, true));
    }

    #[test]
    fn room_is_taken_by_size_and_the_plan_ends_where_there_is_none() {
        let (mut holes, budget) = (Holes::default(), Budget::new(1_000_000));
        let log = log(&[(1, 99), (2, 99), (3, 5), (4, 99)], &mut holes);
        let request = ReadRequest {
            address: &mailbox(),
            after: Seq::START,
            limit: 9,
            committed: Seq(8),
            now: 10,
            lost: Seq::START,
        };
        let plan = || ReadPlan::of(&log, &holes, &request, |_| None);
        let (mut first, mut second) = (plan(), plan());
        assert_eq!((first.reserve(&budget, None), budget.used()), (Ok(()), 2 * (400_000 - 256)));
        assert_eq!((first.on_disk(), first.cursor, first.more), (vec![Seq(1), Seq(2)], Seq(3), true));
        assert_eq!(second.reserve(&budget, None), Err(400_000 - 256));
        drop(first);
        // With a permit that was waited for, for the first message.
        let held = budget.try_acquire(Holder::Proved, 600_000).unwrap();
        let granted = budget.try_acquire(Holder::Proved, 400_000);
        assert_eq!(second.reserve(&budget, granted), Ok(()));
        assert_eq!((second.on_disk(), second.cursor, second.more), (vec![Seq(1)], Seq(1), true));
        drop((held, second));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn small_messages_take_room_together() {
        let (mut holes, budget) = (Holes::default(), Budget::new(100_000));
        let held = budget.try_acquire(Holder::Proved, 70_000);
        let mut log = AddressLog::after_forgotten(Seq::START);
        (1..=20).for_each(|seq| _ = log.push(LogEntry::new(Seq(seq), 99, 3_000), &mut holes));
        let request = ReadRequest {
            address: &mailbox(),
            after: Seq::START,
            limit: 99,
            committed: Seq(99),
            now: 10,
            lost: Seq::START,
        };
        let plan = || ReadPlan::of(&log, &holes, &request, |_| None);
        let (mut first, mut second) = (plan(), plan());
        assert_eq!(first.reserve(&budget, None), Ok(()));
        assert!(first.more && (5..11).contains(&first.slots.len()), "{}", first.slots.len());
        // One that needs no room is always read.
        assert_eq!((second.reserve(&budget, None), second.slots.len()), (Ok(()), 1));
        drop((held, first.into_batch(Seq::START, vec![], |_| true)));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_was_forgotten_is_told_as_acknowledged() {
        let request = ReadRequest {
            address: &mailbox(),
            after: Seq(3),
            limit: 1,
            committed: Seq(9),
            now: 1,
            lost: Seq::START,
        };
        let plan = ReadPlan::nothing(&request, Seq(5));
        assert_eq!((plan.slots.len(), plan.cursor, plan.more), (1, Seq(5), false));
        assert_eq!(ReadPlan::nothing(&request, Seq(2)).slots.len(), 0);
    }

    #[test]
    fn a_lost_body_is_a_gap_and_an_acknowledged_message_restarts_the_read() {
        let plan = || ReadPlan {
            slots: [5, 7].map(|seq| ReadSlot::OnDisk { seq: Seq(seq), bytes: 9, permit: None }).into(),
            cursor: Seq(7),
            ..ReadPlan::default()
        };
        assert_eq!(plan().on_disk(), [Seq(5), Seq(7)]);
        let batch = plan().into_batch(Seq(3), vec![None, None], |_| true).unwrap();
        let gaps: Vec<_> = batch
            .items
            .iter()
            .map(|item| match item {
                Item::Gap(gap) => (gap.from.0, gap.to.0, gap.reason),
                Item::Message(_) => unreachable!("no body was fetched"),
            })
            .collect();
        assert_eq!(gaps, [(3, 5, GapReason::Lost), (5, 7, GapReason::Lost)]);
        assert_eq!((batch.cursor, batch.more), (Seq(7), false));
        assert!(plan().into_batch(Seq(3), vec![None, None], |seq| seq < Seq(7)).is_none());
    }
}
