//! The index as a whole: rooms, receipts, refusals, and a seeded comparison with a plain list.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use serde_json::value::RawValue;

use super::directory::FORMER_RECHECK;
use super::leaving::EXPIRY_SLICE;
use super::read_plan::ReadSlot;
use super::room::held;
use super::*;
use crate::clock::Clock;
use crate::engine::embedded::dedup::DedupHasher;
use crate::engine::registrations::RegistrationChange;
use crate::engine::{Append, Bounds, QueueBounds, Register, Registrar, Registration, RegistrationSource};
use crate::hub::Hubs;
use crate::message::{Author, Item, Kind, Message, MessageId, SenderName, SessionId, TopicName};

const AGE: Duration = Duration::from_secs(60);

fn settings() -> Settings {
    let bounds = Bounds { messages: 5, bytes: 1 << 20, age: AGE };
    Settings {
        mailbox: bounds,
        history: bounds,
        total_bytes: 16 << 20,
        dedup_window: Duration::from_secs(120),
        dedup_ids: 1000,
        sessions_per_user: 8,
        shares: false,
        queue: QueueBounds { messages: 10_000, bytes: 64 << 20 },
        clock: Clock::follow_tokio(),
    }
}

fn builder(seqs: (Seq, Seq)) -> IndexBuilder {
    let settings = settings();
    IndexBuilder::new(settings, StoreClock::begin(settings.clock, None), &[7; 16], seqs)
}

fn on_disk(settings: Settings) -> Index {
    IndexBuilder::new(settings, StoreClock::begin(settings.clock, None), &[7; 16], (Seq(100), Seq::START))
        .finish()
}

fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

fn mailbox(name: &str) -> Address {
    Address::Session(session(name))
}

fn topic(name: &str) -> Address {
    Address::Topic(TopicName::new(name).unwrap())
}

fn message(to: &Address) -> Append {
    let payload = RawValue::from_string("7".to_owned()).unwrap();
    let message = Message { kind: Kind::Message, from: None, payload, ts: 1, reference: None };
    Append::new(to.clone(), message, Author::Anonymous)
}

/// A message with an id, whose author wants a receipt.
fn with_receipt(from: &str, id: &str, to: &Address) -> Append {
    let id = MessageId::new(id).unwrap();
    Append { author: Author::Session(session(from)), id: Some(id), receipt: true, ..message(to) }
}

fn prepare(append: Append) -> PreparedAppend {
    let key = DedupHasher::new(&[7; 16]).id_of(&append);
    PreparedAppend::new(append, key, Seq(100))
}

fn append(index: &Index, append: Append) -> Seq {
    try_append(index, append, None).unwrap().seq()
}

fn try_append(index: &Index, append: Append, waiter: Option<Waiter>) -> Result<Appended, EngineError> {
    index.append(prepare(append), waiter, &mut Filled::default())
}

fn take(index: &Index, most: (usize, usize)) -> Vec<Pending> {
    index.take_appends(&mut index.intake.lock().unwrap(), most)
}

fn trim(index: &Index, address: &Address, through: Seq) -> Filled {
    index.trim(address, through, (&Hubs::new(2), EMPTY_LOGS, 4))
}

fn refuse(index: &Index, group: Vec<Pending>) -> Vec<Waiter> {
    index.refuse(group).unwrap().0
}

fn queued(index: &Index) -> usize {
    index.intake.lock().unwrap().queued()
}

/// The registration of a session that is noted for the next commit.
fn noted(index: &Index, name: &str) -> Option<Registration> {
    index.intake.lock().unwrap().writes.registrations[&session(name)].clone()
}

/// Takes what has left, to be deleted.
fn deletes(index: &Index) -> Vec<PendingDelete> {
    let mut taken = index.take(&mut index.intake.lock().unwrap(), (0, 0), true);
    index.take_notes(&mut taken);
    taken.deletes
}

fn commit(index: &Index) -> Vec<Published> {
    let group = take(index, (usize::MAX, usize::MAX));
    let mut publications = Vec::new();
    index.commit(group, &mut publications);
    publications
}

/// Messages and receipts that a read from the start finds.
fn found(index: &Index, address: &Address) -> Vec<Seq> {
    let plan = index.read(address, Seq::START, usize::MAX).unwrap();
    plan.slots.iter().filter_map(message_seq).collect()
}

fn message_seq(slot: &ReadSlot) -> Option<Seq> {
    match slot {
        ReadSlot::OnDisk { seq, .. } => Some(*seq),
        ReadSlot::Ready(Item::Message(publication)) => publication.seq(),
        ReadSlot::Ready(Item::Gap(_)) => None,
    }
}

impl Index {
    /// Panics unless everything that is derived agrees with the logs.
    pub(in crate::engine::embedded) fn assert_consistent(&self) {
        let (mut bytes, mut paid) = (0, HashMap::new());
        let shards = self.shards.lock_all().unwrap();
        for shard in shards.iter() {
            shard.logs.assert_consistent();
            shard.logs.count(&mut bytes, &mut paid);
        }
        paid.remove(&PayerId::NONE);
        assert_eq!((self.totals.bytes(), self.totals.all_payers()), (bytes, paid));
        self.receipts.assert_consistent();
    }

    /// Panics unless nothing is stored, and nothing is counted.
    pub(in crate::engine::embedded) fn assert_empty(&self) {
        self.assert_consistent();
        assert_eq!((self.totals.bytes(), self.totals.all_payers()), (0, HashMap::new()));
    }
}

fn assert_consistent(index: &Index) {
    index.assert_consistent();
    let receipts = ["A", "B", "C"].map(|name| {
        let name = mailbox(name);
        held(&index.shards.lock(&name).unwrap().logs, &index.receipts, &name).0
    });
    assert!(receipts.iter().all(|held| *held <= index.settings.mailbox.messages), "{receipts:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_committed_names_the_message_published_before_it() {
    let index = on_disk(settings());
    let a = mailbox("A");
    let first = append(&index, message(&a));
    let second = append(&index, message(&a));
    assert_eq!(found(&index, &a), [], "nothing is committed");
    let prevs =
        |published: Vec<Published>| published.iter().map(|published| published.prev).collect::<Vec<_>>();
    assert_eq!(prevs(commit(&index)), [Seq::START, first]);
    trim(&index, &a, second);
    append(&index, message(&a));
    assert_eq!(prevs(commit(&index)), [second], "also when that is gone");
    assert_consistent(&index);
}

#[tokio::test(start_paused = true)]
async fn a_receipt_takes_the_room_that_was_reserved_for_it() {
    let index = on_disk(settings());
    let (a, b) = (mailbox("A"), mailbox("B"));
    for n in 0..3 {
        append(&index, with_receipt("A", &n.to_string(), &b));
    }
    append(&index, message(&a));
    append(&index, message(&a));
    commit(&index);
    let refused = try_append(&index, message(&a), None).unwrap_err();
    assert!(matches!(refused, EngineError::MailboxFull { messages: 5, .. }), "{refused}");
    let refused = try_append(&index, with_receipt("A", "4", &b), None).unwrap_err();
    assert!(matches!(refused, EngineError::NoRoomForReceipt { messages: 5, .. }), "{refused}");
    // Acknowledged messages become receipts in the same room.
    let through = index.committed();
    trim(&index, &b, through);
    assert_consistent(&index);
    let deletes = deletes(&index);
    assert!(deletes.len() == 3 && deletes.iter().all(|delete| delete.receipt > through), "{deletes:?}");
    assert_eq!(commit(&index).len(), 3);
    assert_eq!(found(&index, &a).len(), 5);
    assert_eq!(index.receipts.reserved(&mailbox("A")), 0);
}

#[tokio::test(start_paused = true)]
async fn an_ended_session_gets_no_receipts_and_reads_nothing() {
    let index = on_disk(settings());
    let (a, b) = (mailbox("A"), mailbox("B"));
    append(&index, with_receipt("A", "1", &b));
    append(&index, message(&a));
    commit(&index);
    let late = append(&index, message(&a));
    index.end(&session("A"), AGE);
    assert_eq!(found(&index, &a), []);
    commit(&index);
    assert_eq!(found(&index, &a), [], "what was on its way is ended too");
    assert!(deletes(&index).iter().any(|delete| delete.seq == late));
    trim(&index, &b, index.committed());
    assert_eq!(queued(&index), 0, "no receipt");
    assert_consistent(&index);
}

#[tokio::test(start_paused = true)]
async fn a_refused_group_is_as_if_it_had_never_come_and_receipts_stay() {
    let index = on_disk(settings());
    let (a, b) = (mailbox("A"), mailbox("B"));
    append(&index, with_receipt("A", "1", &b));
    commit(&index);
    trim(&index, &b, index.committed());
    let (waiter, mut told) = tokio::sync::oneshot::channel();
    try_append(&index, with_receipt("B", "2", &a), Some(waiter)).unwrap();
    assert_eq!(queued(&index), 2);
    let group = take(&index, (1, usize::MAX));
    let waiters = refuse(&index, group);
    assert_eq!((waiters.len(), queued(&index)), (1, 1), "the receipt stays");
    drop(waiters);
    assert!(told.try_recv().is_err());
    assert_eq!(index.receipts.reserved(&mailbox("B")), 0);
    assert_consistent(&index);
    // The same id is a first send again.
    let (waiter, _told) = tokio::sync::oneshot::channel();
    assert!(matches!(try_append(&index, with_receipt("B", "2", &a), Some(waiter)), Ok(Appended::New(_))));
    assert_eq!(commit(&index).len(), 2);
    assert_eq!(found(&index, &a).len(), 2);
    assert_consistent(&index);
}

/// How long refusing so many queued messages takes, behind as many stored ones of the same mailbox.
/// How long this thread has run.
fn run_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap()
}

fn time_to_refuse(messages: usize) -> Duration {
    let bounds = Bounds { messages: 1 << 20, bytes: 1 << 30, age: AGE };
    let queue = QueueBounds { messages: 1 << 20, bytes: 1 << 30 };
    let many = Settings { mailbox: bounds, total_bytes: 1 << 30, dedup_ids: 1 << 20, queue, ..settings() };
    let index = on_disk(many);
    let a = mailbox("A");
    (0..messages).for_each(|_| _ = append(&index, message(&a)));
    commit(&index);
    for n in 0..messages {
        let with_id = Append { id: Some(MessageId::new(&n.to_string()).unwrap()), ..message(&a) };
        try_append(&index, with_id, Some(tokio::sync::oneshot::channel().0)).unwrap();
    }
    let started = run_time();
    let waiters = refuse(&index, Vec::new());
    let took = run_time() - started;
    assert_eq!((waiters.len(), queued(&index), index.waiting(&mailbox("A"))), (messages, 0, messages));
    took
}

#[tokio::test(start_paused = true)]
async fn refusing_a_queue_takes_time_in_proportion_to_its_length() {
    // The shortest of some runs: others on the same core make a run longer.
    let shortest = |messages| (0..5).map(|_| time_to_refuse(messages)).min().unwrap();
    let (short, long) = (shortest(1000), shortest(16_000));
    assert!(long < 64 * short, "16 times as many took {long:?} instead of {short:?}");
}

#[tokio::test(start_paused = true)]
async fn expired_messages_make_room_for_new_ones() {
    let index = on_disk(settings());
    let a = mailbox("A");
    for _ in 0..5 {
        append(&index, message(&a));
    }
    commit(&index);
    assert!(try_append(&index, message(&a), None).is_err());
    tokio::time::advance(AGE).await;
    append(&index, message(&a));
    assert_eq!(index.take_expired(), 5);
    assert_consistent(&index);
}

#[tokio::test(start_paused = true)]
async fn a_rebuilt_index_continues_where_the_store_stopped() {
    let mut builder = builder((Seq(50), Seq(5)));
    let (a, b) = (mailbox("A"), mailbox("B"));
    builder.restore_floor(&b, Floor { floor: Seq(60), expired: Seq::START });
    let receipt = Some((mailbox("A"), MessageId::new("1").unwrap()));
    let stored = |seq, prev, receipt| RestoredMessage {
        seq: Seq(seq),
        prev: Seq(prev),
        expires_at: u64::MAX / 4,
        bytes: 300,
        receipt,
        payer: Some(SenderName::new("ann").unwrap()),
    };
    builder.restore(&a, stored(20, 10, None));
    builder.restore(&b, stored(30, 0, receipt.clone()));
    builder.restore(&b, stored(70, 60, receipt));
    assert_eq!(builder.newest(), Seq(60));
    builder.resume_after(Seq(80));
    let index = builder.finish();
    assert_eq!((found(&index, &a), found(&index, &b)), (vec![Seq(20)], vec![Seq(70)]));
    assert_eq!(index.position(&a).floor, Seq(10));
    // The message below the floor was deleted: its receipt comes first.
    let deletes = deletes(&index);
    assert_eq!((deletes[0].seq, deletes[0].receipt), (Seq(30), Seq(81)));
    commit(&index);
    assert_eq!(found(&index, &a), [Seq(20), Seq(81)]);
    assert_eq!(index.receipts.reserved(&mailbox("A")), 1, "for message 70");
    let ann = index.totals.find(&SenderName::new("ann").unwrap());
    assert_eq!(index.totals.usage(ann).messages, 2, "not for what was deleted");
    assert_consistent(&index);
}

#[tokio::test(start_paused = true)]
async fn a_registration_of_a_token_gives_way_and_is_written() {
    let index = on_disk(Settings { sessions_per_user: 1, ..settings() });
    let hubs = Hubs::new(2);
    let register = |name: &str| Register {
        session: session(name),
        user: Some(crate::message::UserId::new("u").unwrap()),
        ttl: AGE,
        by: Registrar::Token { until: 0 },
    };
    let changes = |name: &str| index.register(&register(name), &hubs).unwrap().0;
    assert!(changes("A"));
    assert!(!changes("A"), "nothing changes");
    assert!(changes("B"));
    assert!(noted(&index, "A").is_none() && noted(&index, "B").is_some());
    tokio::time::advance(2 * AGE).await;
    assert_eq!(index.expire_slice(&hubs).0, 1);
    assert_eq!(noted(&index, "B"), None);
}

fn owned(name: &str, user: &str) -> Register {
    let user = Some(crate::message::UserId::new(user).unwrap());
    Register { session: session(name), user, ttl: AGE / 2, by: Registrar::Backend { proof: false } }
}

/// What is left of a former owner is told by its registration, and nothing is kept once all of it is gone.
#[tokio::test(start_paused = true)]
async fn a_former_owner_is_known_as_long_as_something_is_left() {
    let (index, hubs) = (on_disk(settings()), Hubs::new(2));
    let source = |index: &Index| index.sessions.entry(&session("A")).map(|known| known.source);
    index.register(&owned("A", "u"), &hubs).unwrap();
    let first = append(&index, message(&mailbox("A")));
    let receipt_for = append(&index, with_receipt("A", "1", &mailbox("B")));
    commit(&index);
    tokio::time::advance(AGE / 2).await;
    // Nobody has looked yet: the next message finds that the registration has expired.
    let second = append(&index, message(&mailbox("A")));
    commit(&index);
    assert_eq!(source(&index), Some(RegistrationSource::Former { through: receipt_for }));
    assert!(noted(&index, "A").is_some());
    trim(&index, &mailbox("A"), second);
    tokio::time::advance(FORMER_RECHECK).await;
    index.expire_slice(&hubs);
    // The message to B expired too. Its receipt is for the former owner.
    let receipt = take(&index, (usize::MAX, usize::MAX)).pop().unwrap();
    assert_eq!(source(&index), Some(RegistrationSource::Former { through: receipt.seq }));
    index.commit(vec![receipt], &mut Vec::new());
    let RegistrationChange { takes_over, registration, .. } =
        index.plan(&owned("A", "v"), &hubs).unwrap().unwrap();
    assert_eq!(takes_over, Some(registration.since));
    trim(&index, &mailbox("A"), Seq(u64::MAX));
    tokio::time::advance(FORMER_RECHECK).await;
    index.expire_slice(&hubs);
    assert_eq!(source(&index), None);
    assert_eq!(noted(&index, "A"), None);
    assert!(first < second);
    assert_consistent(&index);
}

#[tokio::test(start_paused = true)]
async fn another_owner_gets_nothing_from_before_and_no_receipts() {
    let (index, hubs) = (on_disk(settings()), Hubs::new(2));
    index.register(&owned("A", "u"), &hubs).unwrap();
    append(&index, with_receipt("S", "1", &mailbox("A")));
    let sent = append(&index, with_receipt("A", "2", &mailbox("B")));
    commit(&index);
    // It is not committed yet when its receiver has another owner.
    let pending = append(&index, message(&mailbox("A")));
    tokio::time::advance(AGE / 2).await;
    index.register(&owned("A", "v"), &hubs).unwrap();
    assert_eq!(found(&index, &mailbox("A")), []);
    assert_eq!(index.receipts.reserved(&mailbox("A")), 0);
    assert_eq!(commit(&index).len(), 1, "the receipt for S");
    assert_eq!((found(&index, &mailbox("A")), found(&index, &mailbox("S")).len()), (vec![], 1));
    trim(&index, &mailbox("B"), sent);
    assert_eq!(queued(&index), 0, "no receipt for the former owner");
    let next = append(&index, message(&mailbox("A")));
    commit(&index);
    assert_eq!(found(&index, &mailbox("A")), [next]);
    assert!(next > pending);
    assert_consistent(&index);
}

/// A crash came after the commit of a registration, and before what was for the former owner was deleted.
#[tokio::test(start_paused = true)]
async fn what_was_for_a_former_owner_is_not_restored() {
    let mut builder = builder((Seq(60), Seq::START));
    let (source, expires_at) = (RegistrationSource::Token, u64::MAX >> 1);
    let user = Some(crate::message::UserId::new("v").unwrap());
    let registration = Registration { user, expires_at, source, tokens_until: 0, since: Seq(20) };
    builder.restore_registration(&session("A"), registration);
    let id = |id: &str| MessageId::new(id).unwrap();
    for (seq, to, receipt) in
        [(10, "A", Some((mailbox("S"), id("1")))), (15, "B", Some((mailbox("A"), id("2")))), (30, "A", None)]
    {
        let message =
            RestoredMessage { seq: Seq(seq), prev: Seq::START, expires_at, bytes: 9, receipt, payer: None };
        builder.restore(&mailbox(to), message);
    }
    let index = builder.finish();
    let published = commit(&index);
    assert!(published[0].publication.frame().as_str().contains("expired"));
    assert_eq!((published.len(), &published[0].address), (1, &mailbox("S")));
    assert_eq!((found(&index, &mailbox("A")), found(&index, &mailbox("B"))), (vec![Seq(30)], vec![Seq(15)]));
    assert!(!index.receipts.knows(&mailbox("A")));
    assert_consistent(&index);
}

/// An append that finds no room removes a bounded number of expired messages, and those of its own mailbox.
#[tokio::test(start_paused = true)]
async fn an_append_removes_no_more_expired_messages_than_one_slice() {
    let bounds = Bounds { messages: 5, ..settings().mailbox };
    let index = on_disk(Settings { mailbox: bounds, ..settings() });
    for n in 0..400 {
        for _ in 0..5 {
            append(&index, message(&mailbox(&n.to_string())));
        }
    }
    commit(&index);
    let full = || message(&mailbox("399"));
    assert!(matches!(try_append(&index, full(), None), Err(EngineError::MailboxFull { .. })));
    tokio::time::advance(AGE).await;
    try_append(&index, full(), None).unwrap();
    assert!((5..=EXPIRY_SLICE + 10).contains(&index.take_expired()));
    assert_consistent(&index);
}

/// What the model knows of one stored message.
#[derive(Debug, Clone, Copy)]
struct Known {
    seq: Seq,
    expires_at: u64,
}

/// A plain list for each address, against which the index is compared.
#[derive(Default)]
struct Model {
    /// Committed messages that are not deleted.
    stored: BTreeMap<Address, Vec<Known>>,
    /// Everything that was ever committed.
    ever: BTreeMap<Address, Vec<Seq>>,
    receipts_wanted: usize,
    receipts_seen: usize,
}

impl Model {
    fn commit(&mut self, index: &Index, group: Vec<Pending>) {
        let expiries: Vec<u64> = group.iter().map(|pending| pending.expires_at).collect();
        let mut publications = Vec::new();
        index.commit(group, &mut publications);
        publications
            .into_iter()
            .zip(expiries)
            .for_each(|(published, expires_at)| self.note(&published, expires_at));
    }

    /// Notes what was committed at level `memory`.
    fn note_outbox(&mut self, index: &Index) {
        let mut publications = Vec::new();
        let all = Mutex::new(&mut publications);
        index.outbox.publish(Filled::all(), |list| {
            let copy = |Published { address, publication, prev }: &Published| {
                let (address, publication, prev) = (address.clone(), Arc::clone(publication), *prev);
                Published { address, publication, prev }
            };
            all.lock().unwrap().extend(list.iter().map(copy));
        });
        for published in publications {
            let shard = index.shards.lock(&published.address).unwrap();
            let log = shard.logs.get(&published.address).unwrap();
            let entry = log.entries().iter().find(|entry| Some(entry.seq) == published.publication.seq());
            let expires_at = entry.expect("it was committed just now").expires_at;
            drop(shard);
            self.note(&published, expires_at);
        }
    }

    fn note(&mut self, published: &Published, expires_at: u64) {
        let seq = published.publication.seq().unwrap();
        self.receipts_seen += usize::from(published.publication.kind() == Kind::Receipt);
        let ever = self.ever.entry(published.address.clone()).or_default();
        assert_eq!(published.prev, ever.last().copied().unwrap_or_default());
        ever.push(seq);
        let stored = self.stored.entry(published.address.clone()).or_default();
        stored.push(Known { seq, expires_at });
        if matches!(published.address, Address::Topic(_)) && stored.len() > 5 {
            stored.remove(0);
        }
    }

    fn expire(&mut self, now: u64) {
        self.stored.values_mut().for_each(|stored| stored.retain(|known| known.expires_at > now));
    }

    fn trim(&mut self, address: &Address, through: Seq) {
        if let Some(stored) = self.stored.get_mut(address) {
            stored.retain(|known| known.seq > through);
        }
    }

    /// A read finds what is stored, and reports exactly what is gone as gaps.
    fn check(&self, index: &Index, address: &Address, after: Seq, limit: usize, now: u64) {
        let plan = index.read(address, after, limit).unwrap();
        let seen: Vec<Seq> = plan.slots.iter().filter_map(message_seq).collect();
        let stored = self.stored.get(address).into_iter().flatten();
        let expected: Vec<Seq> = stored
            .filter(|known| known.expires_at > now && known.seq > after && known.seq <= plan.cursor)
            .map(|known| known.seq)
            .collect();
        assert_eq!(seen, expected, "{address} after {after}");
        let ever = self.ever.get(address).into_iter().flatten();
        let mut missing: Vec<Seq> = ever
            .filter(|seq| **seq > after && **seq <= plan.cursor && !seen.contains(seq))
            .copied()
            .collect();
        let mut at = after;
        for slot in &plan.slots {
            match slot {
                ReadSlot::Ready(Item::Gap(gap)) => {
                    // A reader without a cursor is not told what was deleted before its first item.
                    let follows = gap.from == at || (at == Seq::START && after == Seq::START);
                    assert!(follows, "gaps and messages follow each other");
                    assert!(!seen.iter().any(|seq| (gap.from..=gap.to).contains(seq) && *seq > gap.from));
                    missing.retain(|seq| *seq <= gap.from || *seq > gap.to);
                    at = gap.to;
                }
                _ => at = message_seq(slot).unwrap(),
            }
        }
        assert!(
            after == Seq::START || missing.is_empty(),
            "{address}: nobody said that {missing:?} are gone"
        );
        // What expired before a message that is not committed yet is told together with that message.
        let last = self.ever.get(address).and_then(|ever| ever.last()).copied().unwrap_or_default();
        let reached = plan.cursor >= last || queued(index) > 0;
        assert!(plan.more || reached, "a read that is not cut reaches the end");
    }
}

async fn compare(seed: u64, steps: usize) {
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let bounds = Bounds { messages: 5, bytes: 1 << 20, age: Duration::from_secs(9) };
    let mailbox_bounds = Bounds { messages: 200, ..bounds };
    let settings = Settings { mailbox: mailbox_bounds, history: bounds, shares: true, ..settings() };
    let index = if random.bool() {
        on_disk(settings)
    } else {
        Index::in_memory(settings, StoreClock::begin(settings.clock, None), &[7; 16], Seq(100))
    };
    let (mut model, hubs) = (Model::default(), Hubs::new(2));
    let addresses = [mailbox("A"), mailbox("B"), topic("t")];
    for step in 0..steps {
        let now = settings.clock.now();
        let address = random.choice(&addresses).unwrap().clone();
        match random.u32(..100) {
            0..45 => {
                let ttl = random.bool().then(|| Duration::from_millis(random.u64(1..4000)));
                let wants = address.session().is_some() && random.u8(..4) == 0;
                let from = if random.bool() { "A" } else { "B" };
                let what =
                    if wants { with_receipt(from, &step.to_string(), &address) } else { message(&address) };
                let (waiter, told) = tokio::sync::oneshot::channel();
                let payer = random.choice([None, Some("ann"), Some("bob")]).unwrap();
                let payer = payer.map(|name| SenderName::new(name).unwrap());
                if try_append(&index, Append { ttl, payer, ..what }, Some(waiter)).is_ok() && wants {
                    model.receipts_wanted += 1;
                }
                drop(told);
            }
            45..65 => {
                let group = take(&index, (random.usize(1..9), usize::MAX));
                model.commit(&index, group);
            }
            65..68 => {
                let group = take(&index, (random.usize(..5), usize::MAX));
                let reserved = ["A", "B"].map(|name| index.receipts.reserved(&mailbox(name)));
                refuse(&index, group);
                let left = ["A", "B"].map(|name| index.receipts.reserved(&mailbox(name)));
                model.receipts_wanted -= reserved.iter().sum::<usize>() - left.iter().sum::<usize>();
            }
            68..78 => {
                let newest = index.committed().0;
                let through = Seq(random.u64(newest.saturating_sub(30)..=newest));
                trim(&index, &address, through);
                model.trim(&address, through);
            }
            78..86 => {
                // What was not committed when it was due is looked at again a millisecond later.
                tokio::time::advance(Duration::from_millis(1)).await;
                while index.expire_slice(&hubs).0 > 0 {}
                model.expire(settings.clock.now());
            }
            86..90 => tokio::time::advance(Duration::from_millis(random.u64(..1500))).await,
            _ => {
                let after = Seq(random.u64(100.min(index.committed().0)..=index.committed().0));
                let after = if random.bool() { after } else { Seq::START };
                model.check(&index, &address, after, random.usize(1..20), now);
            }
        }
        model.note_outbox(&index);
        assert_consistent(&index);
    }
    // Everything leaves in the end: every receipt comes, and nothing is kept.
    for _ in 0..3 {
        let group = take(&index, (usize::MAX, usize::MAX));
        model.commit(&index, group);
        tokio::time::advance(Duration::from_secs(10)).await;
        while index.expire_slice(&hubs).0 > 0 {}
        model.note_outbox(&index);
        model.expire(settings.clock.now());
    }
    assert_eq!(model.receipts_seen, model.receipts_wanted);
    assert_eq!((index.totals.bytes(), queued(&index)), (0, 0));
    assert_consistent(&index);
}

#[tokio::test(start_paused = true)]
async fn random_operations_agree_with_a_plain_list() {
    for seed in 0..60 {
        compare(seed, 600).await;
    }
}
