use futures::FutureExt;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::*;
use crate::clock::Clock;
use crate::engine::{Append, Bounds, Cluster, Embedded, Node, QueueBounds, Settings};
use crate::message::{Author, GapReason, Kind, Message, MessageId, Outcome, Publication, SessionId};
use crate::subscriber::held::HELD_BYTES;
use crate::subscriber::reading::READ;

/// An engine with hubs of four slots, and one address.
struct Bench {
    engine: Engine,
    hubs: Hubs,
    address: Address,
}

fn settings() -> Settings {
    let bounds = Bounds { messages: 1000, bytes: 1 << 20, age: Duration::from_secs(3600) };
    Settings {
        mailbox: bounds,
        history: bounds,
        total_bytes: 1 << 20,
        dedup_window: Duration::from_secs(60),
        dedup_ids: 100,
        sessions_per_user: 8,
        shares: false,
        queue: QueueBounds { messages: 100, bytes: 1 << 20 },
        clock: Clock::manual(),
    }
}

impl Bench {
    fn new() -> Self {
        let hubs = Hubs::new(4);
        let engine = Embedded::in_memory(settings(), hubs.clone()).into();
        Self { engine, hubs, address: Address::Session(SessionId::new("A").unwrap()) }
    }

    fn message(payload: u64) -> Message {
        let payload = RawValue::from_string(payload.to_string()).unwrap();
        Message { kind: Kind::Message, from: None, payload, ts: 0, reference: None }
    }

    async fn put(&self, payload: u64) -> Seq {
        self.store(Self::message(payload)).await
    }

    /// Stores a receipt. Its fields.
    async fn receipt(&self, id: &str) -> String {
        let receipt = Message::receipt(&MessageId::new(id).unwrap(), Outcome::Acknowledged, 0);
        let fields = receipt.payload.get().to_owned();
        self.store(receipt).await;
        fields
    }

    async fn store(&self, message: Message) -> Seq {
        let address = self.address.clone();
        let append = Append::new(address, message, Author::Anonymous);
        self.engine.append(append).await.unwrap()
    }

    fn put_volatile(&self, payload: u64) {
        let publication = Publication::encode(&self.address, None, &Self::message(payload));
        assert!(self.engine.publish_volatile(&self.address, &publication.into()));
    }

    fn reader(&self, cursor: Seq) -> Subscriber {
        self.reader_of(cursor, self.engine.epoch())
    }

    fn reader_of(&self, cursor: Seq, epoch: Epoch) -> Subscriber {
        let reader = (Transport::Websocket, usize::MAX);
        Subscriber::new(&self.engine, &self.hubs, &self.address, Start { cursor, epoch }, reader).unwrap()
    }

    /// Publishes what the engine does not find yet.
    fn announce(&self, seq: Seq, prev: Seq) {
        let publication = Publication::encode(&self.address, Some(seq), &Self::message(0));
        self.hubs.publish(&self.address, &publication.into(), prev);
    }
}

fn text(item: Option<Item>) -> String {
    match item {
        Some(Item::Message(message)) => message.payload().to_owned(),
        Some(Item::Gap(gap)) => format!("{}..{} {:?}", gap.from, gap.to, gap.reason),
        None => "ended".to_owned(),
    }
}

async fn next(subscriber: &mut Subscriber) -> String {
    text(timeout(Duration::from_secs(10), subscriber.next()).await.expect("in time"))
}

async fn take(subscriber: &mut Subscriber, count: usize) -> Vec<String> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(next(subscriber).await);
    }
    taken
}

#[tokio::test]
async fn what_is_stored_comes_before_what_is_live_and_nothing_twice() {
    let bench = Bench::new();
    let mut subscriber = bench.reader(Seq::START);
    // Joined first: these come from the hub as well as from the engine.
    let seqs = [bench.put(1).await, bench.put(2).await];
    assert_eq!(take(&mut subscriber, 2).await, ["1", "2"]);
    assert_eq!(subscriber.delivered(), seqs[1]);
    bench.put(3).await;
    assert_eq!(text(subscriber.try_next()), "3", "live");
    assert!(subscriber.try_next().is_none());
    assert_eq!(take(&mut bench.reader(seqs[0]), 2).await, ["2", "3"], "after a cursor");
}

#[tokio::test]
async fn a_lagging_reader_reads_the_engine() {
    let bench = Bench::new();
    let mut subscriber = bench.reader(Seq::START);
    bench.put(0).await;
    assert_eq!(next(&mut subscriber).await, "0");
    // More than a hub holds, and more than one read.
    for n in 1..=100 {
        bench.put(n).await;
    }
    bench.put_volatile(1000);
    let taken = take(&mut subscriber, 101).await;
    let (volatile, stored): (Vec<_>, Vec<_>) = taken.into_iter().partition(|payload| payload == "1000");
    assert_eq!(stored, (1..=100).map(|n: u64| n.to_string()).collect::<Vec<_>>());
    assert_eq!(volatile.len(), 1);
}

#[tokio::test]
async fn a_publication_is_delivered_only_with_everything_before_it() {
    let bench = Bench::new();
    let mut subscriber = bench.reader(Seq::START);
    let first = bench.put(1).await;
    assert_eq!(next(&mut subscriber).await, "1");
    let (second, third) = (bench.put(2).await, bench.put(3).await);
    // The hub gives again what it gave, out of order.
    bench.announce(third, second);
    bench.announce(second, first);
    bench.announce(first, Seq::START);
    assert_eq!(take(&mut subscriber, 2).await, ["2", "3"]);
    assert!(subscriber.next().now_or_never().is_none(), "nothing is repeated");
}

#[tokio::test(start_paused = true)]
async fn a_stale_engine_is_read_until_it_has_what_the_hub_announced() {
    let bench = Bench::new();
    let mut subscriber = bench.reader(Seq::START);
    let first = bench.put(1).await;
    assert_eq!(next(&mut subscriber).await, "1");
    // The next but one, before the engine has any of them.
    let announced = Seq(first.0 + 2);
    bench.announce(announced, Seq(first.0 + 1));
    assert!(timeout(Duration::from_secs(1), subscriber.next()).await.is_err());
    bench.put(2).await;
    assert_eq!(next(&mut subscriber).await, "2");
    assert!(timeout(Duration::from_secs(1), subscriber.next()).await.is_err());
    assert_eq!(bench.put(3).await, announced);
    assert_eq!(next(&mut subscriber).await, "3");
    assert!(subscriber.next().now_or_never().is_none());
}

#[tokio::test]
async fn what_is_only_announced_is_read() {
    let bench = Bench::new();
    let mut subscriber = bench.reader(Seq::START);
    subscriber.ready().await.unwrap();
    // Appended by an engine whose hub is another one.
    let seq = bench.put(1).await;
    let mut other = bench.reader(Seq::START);
    assert_eq!(next(&mut other).await, "1");
    bench.hubs.wake(&bench.address, seq);
    bench.hubs.wake(&bench.address, seq);
    assert_eq!(take(&mut subscriber, 1).await, ["1"]);
    assert!(subscriber.next().now_or_never().is_none());
    assert!(other.next().now_or_never().is_none(), "it has that already");
}

#[tokio::test]
async fn a_read_goes_on_when_its_future_is_dropped() {
    let settings = settings();
    let (node, hubs) = Node::start(&Cluster::new(settings), settings, 4, 0);
    let bench = Bench { engine: Engine::Replicated(node), hubs, ..Bench::new() };
    bench.put(1).await;
    let mut subscriber = bench.reader(Seq::START);
    // Polled once and dropped, as a select does. A node answers no read at once.
    assert!(subscriber.next().now_or_never().is_none());
    let mut polls = 1;
    let item = loop {
        assert!(subscriber.reading.is_some(), "after {polls} polls");
        tokio::time::sleep(Duration::from_millis(1)).await;
        polls += 1;
        if let Some(item) = subscriber.next().now_or_never() {
            break item;
        }
    };
    assert_eq!(text(item), "1");
}

#[tokio::test]
async fn gaps_are_told_in_their_place() {
    let bench = Bench::new();
    let (first, second) = (bench.put(1).await, bench.put(2).await);
    bench.put(3).await;
    bench.engine.trim(&bench.address, second);
    let mut subscriber = bench.reader(first);
    subscriber.push_gap(Gap { from: Seq(1), to: first, reason: GapReason::Epoch });
    let acknowledged = format!("{first}..{second} Acknowledged");
    assert_eq!(take(&mut subscriber, 3).await, [format!("1..{first} Epoch"), acknowledged, "3".into()]);
}

#[tokio::test]
async fn seeking_back_delivers_again_and_keeps_what_is_volatile() {
    let bench = Bench::new();
    let mut subscriber = bench.reader(Seq::START);
    let first = bench.put(1).await;
    bench.put(2).await;
    assert_eq!(take(&mut subscriber, 2).await, ["1", "2"]);
    bench.put_volatile(9);
    assert_eq!(subscriber.fill(10), 1);
    subscriber.seek(first);
    assert_eq!(take(&mut subscriber, 2).await, ["9", "2"]);
    let delivered = subscriber.delivered();
    subscriber.seek(delivered);
    assert!(subscriber.next().now_or_never().is_none(), "it is there already");
}

#[tokio::test]
async fn an_ack_waits_for_the_slower_reader_or_its_end() {
    let bench = Bench::new();
    let (mut fast, mut slow) = (bench.reader(Seq::START), bench.reader(Seq::START));
    let (first, second) = (bench.put(1).await, bench.put(2).await);
    let floor = async || bench.engine.position(&bench.address).await.floor;
    assert_eq!(take(&mut fast, 2).await, ["1", "2"]);
    fast.mark_sent(second);
    assert_eq!(bench.hubs.acknowledge(&bench.address, second), None);
    assert_eq!(next(&mut slow).await, "1");
    assert_eq!(floor().await, Seq::START, "delivered is not sent");
    slow.mark_sent(first);
    assert_eq!((floor().await, slow.sent_through()), (first, first));
    drop(slow);
    assert_eq!(floor().await, second);
    drop(fast);
    assert!(bench.hubs.is_empty());
}

#[tokio::test]
async fn an_address_that_ends_ends_its_readers() {
    let bench = Bench::new();
    let (mut waiting, mut full) = (bench.reader(Seq::START), bench.reader(Seq::START));
    bench.put(1).await;
    assert_eq!(next(&mut waiting).await, "1");
    full.ready().await.unwrap();
    bench.hubs.end(&bench.address, EndReason::SessionEnded);
    assert!(waiting.ended().is_some() && full.ended().is_some());
    assert_eq!(next(&mut waiting).await, "ended");
    assert_eq!(next(&mut full).await, "ended", "what it has read is not delivered any more");
}

#[tokio::test]
async fn a_cursor_of_another_epoch_is_told_and_reading_begins_at_the_floor() {
    let bench = Bench::new();
    let first = bench.put(1).await;
    bench.put(2).await;
    bench.engine.trim(&bench.address, first);
    let mut subscriber = bench.reader_of(Seq(7), Epoch::new("before"));
    assert_eq!(take(&mut subscriber, 2).await, [format!("7..{first} Epoch"), "2".to_owned()]);
    assert_eq!(subscriber.epoch(), &bench.engine.epoch());
    // Told once, and only if the epoch is another one.
    bench.hubs.change_epoch();
    bench.put(3).await;
    assert_eq!(take(&mut subscriber, 1).await, ["3"]);
}

#[tokio::test]
async fn an_address_has_no_more_readers_than_allowed() {
    let bench = Bench::new();
    let start = Start { cursor: Seq::START, epoch: bench.engine.epoch() };
    let join =
        || Subscriber::new(&bench.engine, &bench.hubs, &bench.address, start.clone(), (Transport::Sse, 1));
    let one = join().unwrap();
    assert!(join().is_none());
    drop(one);
    assert!(join().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_admitted_stays_in_its_order() {
    let bench = Bench::new();
    let mut subscriber = bench.reader(Seq::START);
    for n in 1..=20 {
        bench.put(n).await;
        assert!(subscriber.next_if(|_| false).now_or_never().is_none(), "{n}");
    }
    for n in 1..=20 {
        assert_eq!(next(&mut subscriber).await, n.to_string());
    }
    assert!(subscriber.next().now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_admitted_nothing_gives_back_what_is_large() {
    let bench = Bench::new();
    let mut subscriber = bench.reader(Seq::START);
    let large = |n: u64| 10_u64.pow(18) + n;
    for n in 0..READ as u64 {
        bench.put(large(n)).await;
    }
    subscriber.ready().await.unwrap();
    let read = subscriber.backlog.len();
    subscriber.give_back();
    assert_eq!(subscriber.backlog.len(), read, "all of it is small");
    let padding = RawValue::from_string(format!("\"{}\"", "x".repeat(HELD_BYTES))).unwrap();
    let message = Message { payload: padding, ..Bench::message(0) };
    let publication = Publication::encode(&bench.address, None, &message).into();
    subscriber.backlog.insert(3, Item::Message(publication));
    subscriber.give_back();
    assert_eq!(subscriber.backlog.len(), 3);
    for n in 0..READ as u64 {
        assert_eq!(next(&mut subscriber).await, large(n).to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_admitted_nothing_is_told_the_end() {
    let bench = Bench::new();
    let mut subscriber = bench.reader(Seq::START);
    bench.put(1).await;
    let mut held = Box::pin(subscriber.next_if(|_| false));
    assert!((&mut held).now_or_never().is_none());
    bench.hubs.end(&bench.address, EndReason::SessionEnded);
    assert!(held.await.is_none());
}

/// The text of what passes a reader that is admitted no message: a receipt's state, or a payload.
async fn passing(subscriber: &mut Subscriber) -> Option<String> {
    let item = timeout(Duration::from_secs(1), subscriber.next_if(|_| false)).await.ok()??.unwrap();
    let Item::Message(message) = item else { panic!("{item:?}") };
    assert_eq!(message.seq(), None);
    Some(message.stored_payload().into_owned())
}

#[tokio::test(start_paused = true)]
async fn receipts_and_volatile_messages_pass_what_is_not_admitted() {
    let bench = Bench::new();
    let mut subscriber = bench.reader(Seq::START);
    // Deep in the mailbox, beyond the first read.
    for n in 0..100 {
        bench.put(n).await;
    }
    let first = bench.receipt("c-1").await;
    assert_eq!(passing(&mut subscriber).await.as_deref(), Some(first.as_str()));
    assert_eq!(passing(&mut subscriber).await, None);
    // Live, after messages that lag the hub, and volatile.
    for n in 100..120 {
        bench.put(n).await;
    }
    let second = bench.receipt("c-2").await;
    assert_eq!(passing(&mut subscriber).await.as_deref(), Some(second.as_str()));
    let third = bench.receipt("c-3").await;
    assert_eq!(passing(&mut subscriber).await.as_deref(), Some(third.as_str()));
    bench.put_volatile(7);
    assert_eq!(passing(&mut subscriber).await.as_deref(), Some("7"));
    assert_eq!(passing(&mut subscriber).await, None);
    // Everything comes in its place.
    let mut all = Vec::new();
    while let Some(Some(item)) = subscriber.next().now_or_never() {
        let Item::Message(message) = item else { panic!("{item:?}") };
        assert!(message.seq().is_some());
        all.push(message.stored_payload().into_owned());
    }
    let numbers = |range: std::ops::Range<u64>| range.map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(all, [numbers(0..100), vec![first], numbers(100..120), vec![second, third]].concat());
}
