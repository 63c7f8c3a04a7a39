//! The logs of the addresses of one shard, and what is derived from them: holes, the next expiry, empty logs.

#[cfg(test)]
use std::collections::HashMap;
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use crate::engine::embedded::index::address_log::{AddressLog, Holes, LogEntry};
use crate::engine::embedded::index::expiry::{ExpiryIndex, NEVER};
#[cfg(test)]
use crate::engine::embedded::index::payers::PayerId;
use crate::engine::embedded::index::pending_writes::Floor;
use crate::engine::embedded::index::tallies::{charge, discharge, drop_needless_tally};
#[cfg(test)]
use crate::engine::embedded::index::tallies::{is_tallied, tally_of};
use crate::engine::embedded::index::totals::Totals;
use crate::engine::{Bounds, Contents, Oldest, Position, Usage};
use crate::message::{Address, NameRange, Seq, SessionId, TopicName};
use crate::sync::shrink;
use crate::table::Table;

/// Notes the name of a topic that gets a log.
fn note_topic(topics: &mut BTreeSet<TopicName>, address: &Address) {
    if let Address::Topic(topic) = address {
        topics.insert(topic.clone());
    }
}

/// The logs of the addresses of one shard.
///
/// Invariants: `totals` has the sums over the logs of all shards, and those for each author, from the reservation of a
/// message on; every empty log is listed in `empty`; `topics` names those of `logs` that are histories. Histories have a tally of their authors, and so have mailboxes beyond `tallied`, so that the small
/// ones cost nothing.
#[derive(Debug, Default)]
pub(super) struct AddressLogs {
    logs: Table<Address, AddressLog>,
    topics: BTreeSet<TopicName>,
    holes: Holes,
    expiry: ExpiryIndex,
    /// Empty logs, longest empty first. A listed log may hold messages again.
    empty: VecDeque<Address>,
    /// No log that was forgotten reached beyond this.
    forgotten: Seq,
    totals: Arc<Totals>,
    /// What a mailbox holds from which on a share of it counts.
    tallied: Usage,
}

impl AddressLogs {
    /// No logs. Everything up to `forgotten` may have been stored and forgotten. A share of a mailbox counts once the
    /// mailbox holds more than `tallied`.
    pub(super) fn new(forgotten: Seq, tallied: Usage, totals: Arc<Totals>) -> Self {
        Self { forgotten, tallied, totals, ..Self::default() }
    }

    pub(super) fn get(&self, address: &Address) -> Option<&AddressLog> {
        self.logs.get(address)
    }

    /// Counts what these addresses hold.
    pub(super) fn add_to(&self, contents: &mut Contents) {
        for (address, log) in &self.logs {
            let Some(first) = log.entries().front() else { continue };
            let messages = log.entries().len();
            if !address.is_mailbox() {
                contents.topics += 1;
                contents.history += messages;
                continue;
            }
            contents.mailboxes += 1;
            contents.unread += messages;
            if !matches!(contents.oldest, Oldest::Is(_, oldest) if oldest <= first.seq) {
                contents.oldest = Oldest::Is(address.clone(), first.seq);
            }
        }
    }

    pub(super) fn holes(&self) -> &Holes {
        &self.holes
    }

    #[cfg(test)]
    pub(super) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// How many addresses have a log.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.logs.len()
    }

    pub(super) fn forgotten(&self) -> Seq {
        self.forgotten
    }

    /// Positions up to `seq` may have been forgotten.
    pub(super) fn forget_through(&mut self, seq: Seq) {
        self.forgotten = self.forgotten.max(seq);
    }

    /// Appends an entry to the log of an address, for which room was reserved. `make` makes it, from the seq before it.
    ///
    /// # Errors
    /// Those of `make`: then nothing is changed.
    pub(super) fn push<E>(
        &mut self,
        address: &Address,
        make: impl FnOnce(Seq) -> Result<LogEntry, E>,
    ) -> Result<(), E> {
        self.append(address, make, |_, _| ())
    }

    /// Appends an entry that is committed at once; see [`Self::push`] and [`Self::commit`].
    pub(super) fn push_committed(&mut self, address: &Address, entry: LogEntry) -> (Seq, Seq) {
        let Ok(before) =
            self.append(address, |_| Ok::<_, Infallible>(entry), |log, entry| commit(log, entry.seq));
        before
    }

    fn append<T, E>(
        &mut self,
        address: &Address,
        make: impl FnOnce(Seq) -> Result<LogEntry, E>,
        then: impl FnOnce(&mut AddressLog, &LogEntry) -> T,
    ) -> Result<T, E> {
        // Only the first message of a log costs a copy of its name.
        let (log, entry) = match self.logs.get_mut(address) {
            Some(log) => {
                let entry = make(log.last())?;
                (log, entry)
            }
            None => {
                let new = AddressLog::after_forgotten(self.forgotten);
                let entry = make(new.last())?;
                note_topic(&mut self.topics, address);
                (self.logs.entry(address.clone()).or_insert(new), entry)
            }
        };
        log.push(entry, &mut self.holes);
        charge(&self.totals, log, address, &entry, self.tallied);
        if entry.expires_at < log.due {
            self.expiry.reschedule(address, &mut log.due, entry.expires_at);
        }
        Ok(then(log, &entry))
    }

    /// A message is committed. Returns the newest seq committed at its address before, and the log's floor.
    pub(super) fn commit(&mut self, address: &Address, seq: Seq) -> (Seq, Seq) {
        commit(self.logs.get_mut(address).expect("a queued message is in its log"), seq)
    }

    /// Raises the floor of an address to `through` and removes the entries below it. `None` if it is there already, or has
    /// no log.
    pub(super) fn trim(&mut self, address: &Address, through: Seq) -> Option<Vec<LogEntry>> {
        self.change(address, |log, holes| (through > log.position().floor).then(|| log.trim(through, holes)))
    }

    /// Ends what was stored up to `through` at an address. Returns whether it has a log.
    pub(super) fn end(&mut self, address: &Address, through: Seq) -> bool {
        self.logs.get_mut(address).map(|log| log.end(through)).is_some()
    }

    /// Removes committed entries of an ended address.
    pub(super) fn remove_ended(&mut self, address: &Address, committed: Seq) -> Vec<LogEntry> {
        self.change(address, |log, holes| Some(log.remove_ended(committed, holes))).unwrap_or_default()
    }

    /// Removes the oldest entries of a history that is beyond its bounds.
    pub(super) fn remove_oldest(
        &mut self,
        address: &Address,
        bounds: &Bounds,
        committed: Seq,
    ) -> Vec<LogEntry> {
        self.change(address, |log, holes| Some(log.remove_oldest(bounds, committed, holes)))
            .unwrap_or_default()
    }

    /// Removes one entry that could not be stored.
    pub(super) fn remove(&mut self, address: &Address, seq: Seq) -> Option<LogEntry> {
        let removed =
            self.change(address, |log, holes| Some(log.remove(seq, holes).into_iter().collect()))?;
        removed.into_iter().next()
    }

    /// Removes what has expired at the address that is due first, if one is due.
    pub(super) fn expire_next(&mut self, now: u64, committed: Seq) -> Option<(Address, Vec<LogEntry>)> {
        let address = self.expiry.first_due(now)?;
        let expired = self.expire(&address, now, committed);
        Some((address, expired))
    }

    /// Removes what has expired at an address. Takes no time if nothing is due there.
    pub(super) fn expire(&mut self, address: &Address, now: u64, committed: Seq) -> Vec<LogEntry> {
        if self.logs.get(address).is_none_or(|log| log.due > now) {
            return Vec::new();
        }
        let expired =
            self.change(address, |log, holes| Some(log.expire(now, committed, holes))).unwrap_or_default();
        if let Some(log) = self.logs.get_mut(address) {
            let next = log.next_expiry(now);
            self.expiry.reschedule(address, &mut log.due, next);
        }
        expired
    }

    fn change(
        &mut self,
        address: &Address,
        remove: impl FnOnce(&mut AddressLog, &mut Holes) -> Option<Vec<LogEntry>>,
    ) -> Option<Vec<LogEntry>> {
        let log = self.logs.get_mut(address)?;
        let removed = remove(log, &mut self.holes)?;
        for entry in &removed {
            discharge(&self.totals, log, address, entry);
        }
        drop_needless_tally(log, address, self.tallied);
        self.totals.release_bytes(removed.iter().map(|entry| entry.bytes as usize).sum());
        Some(removed)
    }

    /// Lists a log that has become empty, so that it is forgotten one day. Returns whether it is empty.
    ///
    /// Its due time stays: a mailbox that is filled and emptied again and again is scheduled once.
    pub(super) fn list_if_empty(&mut self, address: &Address) -> bool {
        let Some(log) = self.logs.get_mut(address).filter(|log| log.is_empty()) else { return false };
        log.release_memory();
        if !std::mem::replace(&mut log.listed, true) {
            self.empty.push_back(address.clone());
        }
        true
    }

    /// Forgets the longest empty logs beyond `keep`, except those that someone reads.
    ///
    /// Looks at `most_looks` logs only, because the caller holds the shard's lock.
    pub(super) fn forget_empty(
        &mut self,
        keep: usize,
        most_looks: usize,
        is_read: impl Fn(&Address) -> bool,
    ) {
        for _ in 0..self.empty.len().saturating_sub(keep).min(most_looks) {
            let Some(address) = self.empty.pop_front() else { return };
            let Some(log) = self.logs.get_mut(&address) else { continue };
            if !log.is_empty() {
                log.listed = false;
            } else if is_read(&address) {
                self.empty.push_back(address);
            } else {
                let Position { floor, expired, .. } = log.position();
                self.expiry.reschedule(&address, &mut log.due, NEVER);
                self.forget_through(floor.max(expired));
                self.logs.remove(&address);
                if let Address::Topic(topic) = &address {
                    self.topics.remove(topic);
                }
            }
        }
        shrink(&mut self.logs);
    }

    /// The position of an address, where everything up to `committed` can be seen.
    pub(super) fn position(&self, address: &Address, committed: Seq) -> Position {
        match (self.logs.get(address), address) {
            (Some(log), _) => log.position(),
            (None, Address::Session(_) | Address::Backend(_)) => Position::default(),
            // A cursor to come back with: everything published from here on is above it.
            (None, Address::Topic(_)) => {
                Position { floor: self.forgotten, newest: committed, ..Position::default() }
            }
        }
    }

    /// The first `limit` topics in this range with stored messages.
    pub(super) fn topics(&self, range: NameRange<'_>, limit: usize) -> Vec<TopicName> {
        let is_stored = |topic: &TopicName| {
            self.logs.get(&Address::Topic(topic.clone())).is_some_and(|log| !log.is_empty())
        };
        range.names_of(&self.topics).filter(|topic| is_stored(topic)).take(limit).cloned().collect()
    }

    /// The sessions with stored messages, in no order.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &SessionId> {
        self.logs.iter().filter(|(_, log)| !log.is_empty()).filter_map(|(address, _)| address.session())
    }

    /// The floor of an address as the disk has to know it, unless nothing was ever committed there.
    pub(super) fn floor(&self, address: &Address) -> Option<Floor> {
        let Position { floor, expired, newest } = self.logs.get(address)?.position();
        (newest > Seq::START).then_some(Floor { floor, expired })
    }

    /// A floor that was read back from the disk. Comes before the messages.
    pub(super) fn restore_floor(&mut self, address: &Address, Floor { floor, expired }: Floor) {
        let log = AddressLog::at(Position { floor, expired, newest: floor.max(expired) });
        note_topic(&mut self.topics, address);
        self.logs.insert(address.clone(), log);
    }

    /// What is stored up to `through` has ended, as the directory on the disk says. Comes before the messages.
    pub(super) fn restore_end(&mut self, address: &Address, through: Seq) {
        note_topic(&mut self.topics, address);
        let log = self.logs.entry(address.clone());
        log.or_insert_with(|| AddressLog::after_forgotten(Seq::START)).raise_floor(through);
    }

    /// A message that was read back from the disk, in seq order; see [`AddressLog::restore`].
    pub(super) fn restore(&mut self, address: &Address, entry: LogEntry, prev: Seq) -> bool {
        // Only the first message of a log costs a copy of its name.
        let log = match self.logs.get_mut(address) {
            Some(log) => log,
            None => {
                note_topic(&mut self.topics, address);
                self.logs.entry(address.clone()).or_insert_with(|| AddressLog::after_forgotten(Seq::START))
            }
        };
        let is_waiting = log.restore(entry, prev, &mut self.holes);
        if is_waiting {
            charge(&self.totals, log, address, &entry, self.tallied);
            log.due = log.due.min(entry.expires_at);
        }
        is_waiting
    }

    /// Marks the message that was restored last at this address: its sender gets a receipt for it.
    pub(super) fn restore_receipt(&mut self, address: &Address) {
        if let Some(log) = self.logs.get_mut(address) {
            log.restore_receipt();
        }
    }

    /// Everything is restored: builds the list of empty logs and the expiry index.
    pub(super) fn restored(&mut self) {
        let mut due = Vec::with_capacity(self.logs.len());
        for (address, log) in &mut self.logs {
            if log.is_empty() {
                log.listed = true;
                self.empty.push_back(address.clone());
            } else {
                due.push((log.due, address.clone()));
            }
        }
        self.expiry = ExpiryIndex::of(due);
    }

    /// Panics unless holes, due times and the list of empty logs agree with the logs.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        let entries = || self.logs.values().flat_map(AddressLog::entries);
        let bytes = entries().map(|entry| entry.bytes as usize).sum::<usize>();
        assert_eq!(bytes, self.logs.values().map(AddressLog::bytes).sum::<usize>());
        assert_eq!(self.holes.len(), entries().filter(|entry| self.holes.before(entry).is_some()).count());
        let mut listed = 0;
        for (address, log) in &self.logs {
            assert!(log.entries().iter().is_sorted_by(|a, b| a.seq < b.seq), "{address}");
            let first = log.entries().iter().map(|entry| entry.expires_at).min();
            assert!(first.is_none_or(|first| log.due <= first || log.due < NEVER), "{address}");
            assert_eq!(log.due < NEVER, self.expiry.contains(log.due, address), "{address}");
            listed += usize::from(log.due < NEVER);
            assert!(!log.is_empty() || log.listed, "{address} is empty and not listed");
            assert!(!log.listed || self.empty.contains(address), "{address}");
        }
        assert_eq!(listed, self.expiry.len(), "every due time belongs to a log");
    }

    /// Adds the bytes of this shard, and what each author has in it. Panics unless the tallies agree with the logs.
    #[cfg(test)]
    pub(super) fn count(&self, bytes: &mut usize, paid: &mut HashMap<PayerId, (Usage, usize)>) {
        *bytes += self.logs.values().map(AddressLog::bytes).sum::<usize>();
        for (address, log) in &self.logs {
            let here = tally_of(log);
            for entry in log.entries() {
                let usage = &mut paid.entry(entry.payer()).or_default().0;
                usage.messages += 1;
                usage.bytes += entry.bytes as usize;
            }
            let is_topic = matches!(address, Address::Topic(_));
            if is_topic {
                here.payers().for_each(|payer| paid.entry(payer).or_default().1 += 1);
            }
            match &log.tally {
                Some(tally) => assert_eq!(**tally, here, "{address}"),
                None => assert!(
                    if is_topic { here.is_empty() } else { !is_tallied(log, self.tallied) },
                    "{address}"
                ),
            }
        }
    }
}

fn commit(log: &mut AddressLog, seq: Seq) -> (Seq, Seq) {
    (log.commit(seq), log.position().floor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::SessionId;

    fn mailbox(name: &str) -> Address {
        Address::Session(SessionId::new(name).unwrap())
    }

    fn entry(seq: u64, expires_at: u64) -> LogEntry {
        LogEntry::new(Seq(seq), expires_at, 10)
    }

    /// Reserves room for an entry and pushes it. Returns the seq before it.
    fn push(logs: &mut AddressLogs, address: &Address, entry: LogEntry) -> Seq {
        logs.totals().add(entry.bytes as usize, None);
        let mut before = Seq::START;
        let Ok(()) = logs.push(address, |prev| {
            before = prev;
            Ok::<_, Infallible>(entry)
        });
        before
    }

    fn three() -> AddressLogs {
        let mut logs = AddressLogs::new(Seq(1), Usage::default(), Arc::default());
        for (name, seq, expires_at) in [("a", 2, 30), ("b", 3, 20), ("a", 4, 10)] {
            push(&mut logs, &mailbox(name), entry(seq, expires_at));
        }
        logs.assert_consistent();
        logs
    }

    #[test]
    fn totals_follow_what_comes_and_goes() {
        let mut logs = three();
        assert_eq!(logs.totals().bytes(), 30);
        assert_eq!(logs.trim(&mailbox("a"), Seq(3)).map(|removed| removed.len()), Some(1));
        assert_eq!(logs.trim(&mailbox("a"), Seq(3)), None);
        logs.assert_consistent();
        assert!(logs.remove(&mailbox("b"), Seq(3)).is_some());
        assert!(logs.list_if_empty(&mailbox("b")));
        logs.assert_consistent();
        assert_eq!(logs.totals().bytes(), 10);
    }

    #[test]
    fn an_entry_that_is_refused_leaves_nothing() {
        let mut logs = AddressLogs::new(Seq(1), Usage::default(), Arc::default());
        assert_eq!(logs.push(&mailbox("a"), Err), Err(Seq(1)));
        assert_eq!(logs.len(), 0);
    }

    #[test]
    fn addresses_expire_in_the_order_of_their_times() {
        let mut logs = three();
        assert!(logs.expire_next(9, Seq(4)).is_none());
        let (address, expired) = logs.expire_next(10, Seq(4)).unwrap();
        assert_eq!((address, expired.len()), (mailbox("a"), 1));
        assert!(!logs.list_if_empty(&mailbox("a")));
        logs.assert_consistent();
        let (address, _) = logs.expire_next(30, Seq(4)).unwrap();
        assert_eq!(address, mailbox("b"));
        assert!(logs.list_if_empty(&address));
        logs.assert_consistent();
    }

    #[test]
    fn a_log_that_is_emptied_keeps_its_due_time_until_it_is_looked_at_or_forgotten() {
        let mut logs = three();
        logs.trim(&mailbox("b"), Seq(3));
        assert!(logs.list_if_empty(&mailbox("b")));
        assert_eq!(push(&mut logs, &mailbox("b"), entry(5, 25)), Seq(3));
        logs.trim(&mailbox("b"), Seq(5));
        logs.list_if_empty(&mailbox("b"));
        logs.assert_consistent();
        assert_eq!(logs.expiry.len(), 2, "one due time for each log");
        assert_eq!(logs.expire_next(10, Seq(5)).unwrap().1.len(), 1, "a");
        assert_eq!(logs.expire_next(20, Seq(5)).unwrap(), (mailbox("b"), vec![]));
        assert!(logs.expire_next(29, Seq(5)).is_none());
        push(&mut logs, &mailbox("b"), entry(6, 40));
        logs.trim(&mailbox("b"), Seq(6));
        logs.list_if_empty(&mailbox("b"));
        logs.forget_empty(0, 9, |_| false);
        logs.assert_consistent();
        assert_eq!((logs.len(), logs.expiry.len()), (1, 1), "nothing is left of it");
    }

    #[test]
    fn what_is_not_committed_does_not_expire_and_is_looked_at_again() {
        let mut logs = three();
        let (_, expired) = logs.expire_next(10, Seq(3)).unwrap();
        assert_eq!(expired.len(), 0);
        assert!(logs.expire_next(10, Seq(3)).is_none(), "not in the same millisecond");
        let (_, expired) = logs.expire_next(11, Seq(4)).unwrap();
        assert_eq!(expired.len(), 1);
        logs.assert_consistent();
    }

    #[test]
    fn empty_logs_are_forgotten_in_turn_unless_they_are_read() {
        let mut logs = three();
        for (name, seq) in [("a", 4), ("b", 3)] {
            logs.trim(&mailbox(name), Seq(seq));
            assert!(logs.list_if_empty(&mailbox(name)));
        }
        logs.forget_empty(1, 9, |_| false);
        assert!(logs.get(&mailbox("a")).is_none() && logs.get(&mailbox("b")).is_some());
        assert_eq!(logs.forgotten(), Seq(4));
        logs.forget_empty(0, 9, |_| true);
        logs.assert_consistent();
        assert_eq!(logs.len(), 1, "it is read");
        // A new log continues above what was forgotten.
        assert_eq!(push(&mut logs, &mailbox("a"), entry(9, 50)), Seq(4));
        logs.assert_consistent();
    }

    #[test]
    fn a_log_that_is_filled_again_is_not_forgotten() {
        let mut logs = three();
        logs.trim(&mailbox("b"), Seq(3));
        logs.list_if_empty(&mailbox("b"));
        push(&mut logs, &mailbox("b"), entry(5, 50));
        logs.forget_empty(0, 9, |_| false);
        assert_eq!(logs.get(&mailbox("b")).unwrap().entries().len(), 1);
        logs.trim(&mailbox("b"), Seq(5));
        assert!(logs.list_if_empty(&mailbox("b")), "and listed again once it is empty");
        logs.assert_consistent();
    }

    #[test]
    fn restored_logs_are_listed_by_expiry_or_as_empty() {
        let mut logs = AddressLogs::new(Seq::START, Usage::default(), Arc::default());
        logs.restore_floor(&mailbox("a"), Floor { floor: Seq(4), expired: Seq(2) });
        logs.totals().add(20, None);
        assert!(logs.restore(&mailbox("b"), entry(5, 50), Seq::START));
        assert!(!logs.restore(&mailbox("a"), entry(3, 50), Seq::START), "below the floor");
        assert!(logs.restore(&mailbox("b"), entry(6, 20), Seq(5)));
        logs.restore_receipt(&mailbox("b"));
        logs.restored();
        logs.assert_consistent();
        assert_eq!(logs.expire_next(20, Seq(6)).unwrap().1[0].seq, Seq(6));
        assert_eq!(logs.floor(&mailbox("a")), Some(Floor { floor: Seq(4), expired: Seq(2) }));
    }
}
