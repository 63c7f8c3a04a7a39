//! What authors have in the mailboxes that clients of this node send to.
//!
//! NATS counts the messages of a mailbox, and not whose they are. A share counts only while a mailbox is more than half full. Up to
//! there a node keeps two numbers of it; beyond, whose message is at each seq. It reads the mailbox for that, and then only what is new.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::engine::{Append, Bounds, EngineError, Share, Usage};
use crate::message::{Address, SenderName, Seq};
use crate::sync::lock;

/// A node counts a mailbox again after it has added one of so many parts.
const PARTS: usize = 16;

/// A refusal holds for so long without another count.
const COUNTED: Duration = Duration::from_millis(250);

/// Mailboxes of one generation; two are remembered. What is forgotten is counted from nothing until it is counted again.
const MAILBOXES: usize = 50_000;

/// Who pays for a message; nobody for one of a backend.
pub(super) type Payer = Option<SenderName>;

/// What is known of the mailboxes.
#[derive(Debug)]
pub(super) struct Tallies {
    /// Most messages of a mailbox.
    most: usize,
    known: Mutex<[HashMap<Address, Known>; 2]>,
}

/// What is known of a mailbox.
#[derive(Debug)]
enum Known {
    /// It was at most half full: the messages at the last count, and those that this node has sent since.
    Some { counted: usize, since: usize },
    /// It was more than half full.
    Each(Box<Tally>),
}

/// What a node has to find out before it knows whether there is room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    /// How many messages there are.
    Number,
    /// Whose the messages after this seq are.
    Each(Seq),
    /// Nothing: that was found out a moment ago.
    Nothing,
}

/// Whose messages there are. Invariants: `authors` counts `messages`; all messages up to `complete` are known.
#[derive(Debug)]
struct Tally {
    /// Each message with the time when it expires, in Unix milliseconds.
    messages: BTreeMap<Seq, (Payer, u64)>,
    authors: HashMap<Payer, usize>,
    /// What this node has sent and has no answer to.
    in_flight: HashMap<Payer, usize>,
    complete: Seq,
    /// Messages that this node has sent since the last count.
    added: usize,
    counted: Instant,
}

fn decrease(counts: &mut HashMap<Payer, usize>, payer: &Payer) {
    if let Some(count) = counts.get_mut(payer) {
        *count -= 1;
        if *count == 0 {
            counts.remove(payer);
        }
    }
}

impl Tally {
    fn new() -> Self {
        Self {
            messages: BTreeMap::new(),
            authors: HashMap::new(),
            in_flight: HashMap::new(),
            complete: Seq::START,
            added: 0,
            counted: Instant::now(),
        }
    }

    fn add(&mut self, seq: Seq, payer: Payer, expires_at: u64) {
        match self.messages.insert(seq, (payer.clone(), expires_at)) {
            Some((before, _)) if before == payer => {}
            before => {
                if let Some((before, _)) = before {
                    decrease(&mut self.authors, &before);
                }
                *self.authors.entry(payer).or_default() += 1;
            }
        }
    }

    /// Forgets what is acknowledged, and what has expired.
    fn drop_gone(&mut self, floor: Seq, now: u64) {
        let Self { messages, authors, .. } = self;
        messages.retain(|seq, (payer, expires_at)| {
            let stays = *seq > floor && *expires_at > now;
            if !stays {
                decrease(authors, payer);
            }
            stays
        });
    }

    fn used(&self) -> usize {
        self.messages.len() + self.in_flight.values().sum::<usize>()
    }

    fn own(&self, payer: &Payer) -> usize {
        [&self.authors, &self.in_flight].iter().filter_map(|counts| counts.get(payer)).sum()
    }
}

impl Known {
    fn used(&self) -> usize {
        match self {
            Self::Some { counted, since } => counted + since,
            Self::Each(tally) => tally.used(),
        }
    }

    /// Notes a message that is sent now.
    fn sent(&mut self, payer: &Payer) {
        match self {
            Self::Some { since, .. } => *since += 1,
            Self::Each(tally) => {
                tally.added += 1;
                *tally.in_flight.entry(payer.clone()).or_default() += 1;
            }
        }
    }
}

impl Tallies {
    /// Mailboxes of at most so many messages.
    pub(super) fn new(most: usize) -> Self {
        Self { most, known: Mutex::default() }
    }

    fn with<T>(&self, address: &Address, on: impl FnOnce(&mut Known) -> T) -> Option<T> {
        lock(&self.known).iter_mut().find_map(|known| known.get_mut(address)).map(on)
    }

    fn set(&self, address: &Address, known: Known) {
        let [young, old] = &mut *lock(&self.known);
        old.remove(address);
        young.insert(address.clone(), known);
        if young.len() > MAILBOXES {
            *old = std::mem::take(young);
        }
    }

    fn half(&self) -> usize {
        self.most / 2
    }

    fn part(&self) -> usize {
        (self.most / PARTS).max(1)
    }

    /// Notes that a message is sent, if there is room for it for sure. `floor`: up to there everything is acknowledged.
    pub(super) fn send_if_sure(&self, append: &Append, (floor, now): (Seq, u64)) -> bool {
        let sent = self.with(&append.address, |known| {
            let is_sure = match &mut *known {
                _ if append.payer.is_none() => true,
                Known::Some { since, .. } if *since >= self.part() => false,
                Known::Each(tally) if tally.added >= self.part() => false,
                Known::Each(tally) => {
                    tally.drop_gone(floor, now);
                    self.check(known, &append.payer).is_ok()
                }
                Known::Some { .. } => known.used() < self.half(),
            };
            if is_sure {
                known.sent(&append.payer);
            }
            is_sure
        });
        match sent {
            Some(sent) => sent,
            None => {
                if append.payer.is_some() {
                    self.set(&append.address, Known::Some { counted: 0, since: 1 });
                }
                true
            }
        }
    }

    /// What has to be found out of a mailbox.
    pub(super) fn to_count(&self, address: &Address) -> Count {
        let count = self.with(address, |known| match known {
            Known::Some { .. } => Count::Number,
            Known::Each(tally) if tally.added >= self.part() || tally.counted.elapsed() > COUNTED => {
                Count::Each(tally.complete)
            }
            Known::Each(_) => Count::Nothing,
        });
        count.unwrap_or(Count::Number)
    }

    /// Notes how many messages a mailbox has. Answers whether it has to be known whose they are.
    pub(super) fn counted(&self, address: &Address, messages: usize) -> bool {
        let is_much = messages >= self.half();
        let known = match is_much {
            true => Known::Each(Box::new(Tally::new())),
            false => Known::Some { counted: messages, since: 0 },
        };
        self.set(address, known);
        is_much
    }

    /// Notes messages of a mailbox in which nothing else is up to `complete`.
    pub(super) fn add(&self, address: &Address, messages: Vec<(Seq, Payer, u64)>, complete: Seq) {
        self.with(address, |known| {
            if let Known::Each(tally) = known {
                messages.into_iter().for_each(|(seq, payer, expires_at)| tally.add(seq, payer, expires_at));
                tally.complete = tally.complete.max(complete);
            }
        });
    }

    /// Notes that all messages of a mailbox were counted.
    pub(super) fn complete(&self, address: &Address, (floor, now): (Seq, u64)) {
        self.with(address, |known| {
            let Known::Each(tally) = known else { return };
            tally.drop_gone(floor, now);
            (tally.added, tally.counted) = (0, Instant::now());
            if tally.used() < self.half() / 2 {
                *known = Known::Some { counted: tally.used(), since: 0 };
            }
        });
    }

    /// Whether there is room for a message, as far as is known. Notes that it is sent, if so.
    ///
    /// # Errors
    /// [`EngineError::QuotaExceeded`], [`EngineError::MailboxFull`].
    pub(super) fn send(&self, append: &Append) -> Result<(), EngineError> {
        let sent = self.with(&append.address, |known| {
            self.check(known, &append.payer).map(|()| known.sent(&append.payer))
        });
        sent.unwrap_or(Ok(()))
    }

    fn check(&self, known: &Known, payer: &Payer) -> Result<(), EngineError> {
        if payer.is_none() {
            return Ok(());
        }
        let whole = Usage { messages: self.most, bytes: usize::MAX };
        let (used, authors) = (known.used(), whole.for_authors().messages);
        if let Known::Each(tally) = known {
            let usage = |messages| Usage { messages, bytes: 0 };
            Share::Mailbox.check(whole, usage(used), usage(tally.own(payer)), usage(1))?;
        }
        if used >= authors {
            let bounds = Bounds { messages: authors, bytes: usize::MAX, age: Duration::ZERO };
            return Err(EngineError::MailboxFull { messages: used, bytes: 0, bounds });
        }
        Ok(())
    }

    /// Notes that a message that was sent is stored at this seq, or is not stored.
    pub(super) fn decided(&self, (address, payer): (&Address, &Payer), stored: Option<Seq>) {
        self.with(address, |known| {
            let Known::Each(tally) = known else { return };
            decrease(&mut tally.in_flight, payer);
            if let Some(seq) = stored.filter(|seq| *seq > tally.complete) {
                // Until it is read.
                tally.add(seq, payer.clone(), u64::MAX);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::OverShare;
    use crate::message::{Author, Kind, Message, SessionId};

    fn append(payer: Option<&str>) -> Append {
        let payload = serde_json::value::RawValue::from_string("1".to_owned()).unwrap();
        let message = Message { kind: Kind::Message, from: None, payload, reference: None, ts: 0 };
        let address = Address::Session(SessionId::new("A").unwrap());
        let payer = payer.map(|payer| SenderName::new(payer).unwrap());
        Append { payer, ..Append::new(address, message, Author::Anonymous) }
    }

    fn payer(name: &str) -> Payer {
        SenderName::new(name).ok()
    }

    const NOW: (Seq, u64) = (Seq::START, 0);

    #[tokio::test(start_paused = true)]
    async fn a_mailbox_is_counted_after_a_part_of_it_and_each_of_its_messages_beyond_the_half() {
        let (tallies, ann) = (Tallies::new(64), append(Some("ann")));
        let sends = |most: usize| (0..most).take_while(|_| tallies.send_if_sure(&ann, NOW)).count();
        assert_eq!((sends(9), tallies.to_count(&ann.address)), (4, Count::Number), "a sixteenth");
        assert!(!tallies.counted(&ann.address, 31));
        assert_eq!(sends(9), 1, "up to the half");
        assert!(tallies.counted(&ann.address, 32));
        let read = (1..=32).map(|seq| (Seq(seq), payer("bob"), 9)).collect();
        tallies.add(&ann.address, read, Seq(32));
        tallies.complete(&ann.address, NOW);
        assert_eq!(tallies.to_count(&ann.address), Count::Nothing, "it was counted now");
        assert_eq!((sends(9), tallies.to_count(&ann.address)), (4, Count::Each(Seq(32))));
    }

    #[tokio::test(start_paused = true)]
    async fn an_author_has_a_quarter_and_a_tenth_is_kept() {
        let (tallies, ann) = (Tallies::new(40), append(Some("ann")));
        tallies.counted(&ann.address, 25);
        let read = (1..=25).map(|seq| (Seq(seq), payer("bob"), if seq == 1 { 5 } else { 9 })).collect();
        tallies.add(&ann.address, read, Seq(25));
        for seq in 26..=35 {
            tallies.send(&ann).unwrap();
            tallies.decided((&ann.address, &ann.payer), Some(Seq(seq)));
        }
        let refused = |payer: &str| tallies.send(&append(Some(payer))).unwrap_err();
        let EngineError::QuotaExceeded(OverShare { used, limit, .. }) = refused("ann") else { panic!() };
        assert_eq!((used.messages, limit.messages), (10, 10));
        tallies.send(&append(Some("cid"))).unwrap();
        assert!(matches!(refused("cid"), EngineError::MailboxFull { messages: 36, .. }));
        tallies.send(&append(None)).unwrap();
        // One has expired, and ten are acknowledged. What is read again counts once.
        tallies.add(&ann.address, (26..=30).map(|seq| (Seq(seq), payer("ann"), 9)).collect(), Seq(30));
        tallies.complete(&ann.address, (Seq(10), 5));
        tallies.decided((&ann.address, &payer("cid")), None);
        let used = tallies.with(&ann.address, |known| known.used());
        assert_eq!(used, Some(26), "15 of bob, 10 of ann, and one that a backend has sent");
        tallies.complete(&ann.address, (Seq(10), 10));
        assert_eq!(tallies.to_count(&ann.address), Count::Number, "little is left");
    }

    #[test]
    fn what_was_not_used_for_long_is_forgotten() {
        let tallies = Tallies::new(40);
        let to = |n: usize| Append {
            address: Address::Session(SessionId::new(&n.to_string()).unwrap()),
            ..append(Some("ann"))
        };
        for n in 0..=2 * MAILBOXES + 2 {
            tallies.send_if_sure(&to(n), NOW);
        }
        let known = |n| tallies.with(&to(n).address, |_| ()).is_some();
        assert!(!known(0) && known(2 * MAILBOXES) && lock(&tallies.known)[1].len() == MAILBOXES + 1);
    }
}
