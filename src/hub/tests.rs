use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::task::{Context, Poll, Wake, Waker};

use serde_json::value::RawValue;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::*;
use crate::message::{Kind, Message, SessionId};

fn address(name: &str) -> Address {
    Address::Session(SessionId::new(name).unwrap())
}

fn publication(seq: u64) -> Arc<Publication> {
    let payload = RawValue::from_string(seq.to_string()).unwrap();
    let message = Message { kind: Kind::Message, from: None, payload, ts: 0, reference: None };
    let seq = (seq > 0).then_some(Seq(seq));
    Arc::new(Publication::encode(&address("A"), seq, &message))
}

fn join(hubs: &Hubs, position: u64) -> (ReaderHandle, HubReceiver) {
    hubs.join(&address("A"), Seq(position), Transport::Websocket, usize::MAX).unwrap()
}

/// An event as text.
fn text(event: Result<HubEvent, TryRecvError>) -> String {
    match event {
        Ok(HubEvent::Stored { prev, publication }) => format!("{} after {prev}", publication.seq().unwrap()),
        Ok(HubEvent::Volatile(publication)) => format!("volatile {}", publication.payload()),
        Ok(HubEvent::Available(seq)) => format!("available {seq}"),
        Ok(other) => format!("{other:?}"),
        Err(error) => format!("{error:?}"),
    }
}

#[test]
fn what_is_published_goes_to_whoever_reads_the_address() {
    let hubs = Hubs::new(4);
    // Nobody reads: nothing is kept.
    hubs.publish(&address("A"), &publication(1), Seq::START);
    let (_one, mut first) = join(&hubs, 0);
    let (_other, mut second) = join(&hubs, 0);
    hubs.publish(&address("A"), &publication(5), Seq(1));
    hubs.publish_volatile(&address("A"), &publication(0));
    hubs.publish(&address("B"), &publication(6), Seq::START);
    hubs.wake(&address("A"), Seq(9));
    hubs.change_epoch();
    for live in [&mut first, &mut second] {
        let told: Vec<String> = (0..5).map(|_| text(live.try_recv())).collect();
        assert_eq!(told, ["5 after 1", "volatile 0", "available 9", "EpochChanged", "Empty"]);
    }
}

#[test]
fn a_reader_that_is_too_slow_loses_the_oldest_and_is_told() {
    let hubs = Hubs::new(4);
    let (_handle, mut live) = join(&hubs, 0);
    for seq in 1..=6 {
        hubs.publish(&address("A"), &publication(seq), Seq(seq - 1));
    }
    assert_eq!(text(live.try_recv()), "Lagged(2)");
    assert_eq!(text(live.try_recv()), "3 after 2");
}

#[test]
fn an_ack_deletes_at_once_where_nobody_reads() {
    let hubs = Hubs::new(4);
    assert_eq!(hubs.acknowledge(&address("A"), Seq(7)), Some(Seq(7)));
    assert_eq!(hubs.acknowledged(&address("A")), Seq::START, "the engine knows it");
}

#[test]
fn an_ack_deletes_no_further_than_the_slowest_reader() {
    let hubs = Hubs::new(4);
    let a = address("A");
    let ((fast, _), (slow, _)) = (join(&hubs, 0), join(&hubs, 2));
    assert_eq!(hubs.acknowledge(&a, Seq(5)), None, "the first one has sent nothing");
    assert_eq!(fast.advance(Seq(9)), Some(Seq(2)));
    assert_eq!(fast.advance(Seq(10)), None, "it is not waited for any more");
    assert_eq!(slow.advance(Seq(3)), Some(Seq(3)));
    assert_eq!(slow.advance(Seq(8)), Some(Seq(5)), "only what is acknowledged");
    assert_eq!(slow.advance(Seq(9)), None);
    assert_eq!(hubs.acknowledge(&a, Seq(9)), Some(Seq(9)));
    assert_eq!((fast.position(), slow.position()), (Seq(10), Seq(9)));
}

#[test]
fn what_a_slower_reader_holds_back_can_be_released() {
    let hubs = Hubs::new(4);
    let a = address("A");
    assert_eq!((hubs.held(&a), hubs.release(&a, Seq(5))), (None, None), "nobody reads");
    let ((fast, _), (slow, _)) = (join(&hubs, 9), join(&hubs, 2));
    assert_eq!(hubs.held(&a), None, "nothing is acknowledged");
    assert_eq!(hubs.acknowledge(&a, Seq(8)), Some(Seq(2)));
    assert_eq!(hubs.held(&a), Some(Seq(8)));
    assert_eq!(hubs.release(&a, Seq(5)), Some(Seq(5)));
    assert_eq!(hubs.release(&a, Seq(4)), None, "deleted once");
    assert_eq!(slow.advance(Seq(4)), None);
    assert_eq!(slow.advance(Seq(6)), Some(Seq(6)));
    assert_eq!(hubs.release(&a, Seq(100)), Some(Seq(8)), "only what is acknowledged");
    assert_eq!((hubs.held(&a), fast.position()), (None, Seq(9)));
    assert_eq!((slow.released(), join(&hubs, 0).0.released()), (Some(Seq(8)), None));
}

#[test]
fn acks_and_positions_do_not_go_back() {
    let hubs = Hubs::new(4);
    let a = address("A");
    let (handle, _live) = join(&hubs, 10);
    assert_eq!(hubs.acknowledge(&a, Seq(5)), Some(Seq(5)));
    assert_eq!(hubs.acknowledge(&a, Seq(3)), None);
    assert_eq!(hubs.acknowledge(&a, Seq(5)), None, "deleted once");
    assert_eq!(hubs.acknowledged(&a), Seq(5));
    assert_eq!(handle.advance(Seq(4)), None);
    assert_eq!(handle.position(), Seq(10));
}

#[test]
fn a_reader_that_leaves_is_not_waited_for() {
    let hubs = Hubs::new(4);
    let a = address("A");
    let ((fast, _), (slow, _)) = (join(&hubs, 8), join(&hubs, 1));
    assert_eq!(hubs.acknowledge(&a, Seq(5)), Some(Seq(1)));
    assert_eq!(slow.detach(), Some(Seq(5)));
    // The hub knows the acknowledgement until its last handle is gone.
    fast.leave();
    assert_eq!(hubs.acknowledged(&a), Seq(5));
    slow.leave();
    assert!(hubs.is_empty());
    assert_eq!(hubs.acknowledged(&a), Seq::START);
}

#[test]
fn readers_are_limited_and_counted_by_transport() {
    let hubs = Hubs::new(4);
    let a = address("A");
    let join = |transport| hubs.join(&a, Seq::START, transport, 3);
    let (websocket, _) = join(Transport::Websocket).unwrap();
    let (_poll, _) = join(Transport::Poll).unwrap();
    let (_legacy, _) = join(Transport::Legacy).unwrap();
    assert!(join(Transport::Sse).is_none());
    assert_eq!(hubs.presence(&a), Connections { websocket: 1, sse: 0, poll: 1, legacy: 1 });
    _ = websocket.detach();
    assert_eq!(hubs.presence(&a), Connections { websocket: 0, sse: 0, poll: 1, legacy: 1 });
    assert!(join(Transport::Sse).is_none(), "it has not left yet");
    websocket.leave();
    assert!(join(Transport::Sse).is_some());
    assert_eq!(hubs.presence(&address("B")), Connections::default());
}

#[test]
fn who_joins_after_the_end_joins_another_hub() {
    let hubs = Hubs::new(4);
    let a = address("A");
    let (before, mut live) = join(&hubs, 0);
    assert_eq!(hubs.acknowledge(&a, Seq(5)), None);
    hubs.end(&a, EndReason::SessionEnded);
    hubs.end(&a, EndReason::SessionEnded);
    assert!(before.ended() == Some(EndReason::SessionEnded) && !hubs.is_read(&a));
    assert_eq!(text(live.try_recv()), "Ended(SessionEnded)");
    let (after, mut anew) = join(&hubs, 0);
    assert!(after.ended().is_none());
    assert_eq!(hubs.acknowledged(&a), Seq::START);
    hubs.publish(&a, &publication(6), Seq::START);
    assert_eq!((text(live.try_recv()), text(anew.try_recv())), ("Empty".into(), "6 after 0".into()));
    // The old reader takes nothing along.
    before.leave();
    assert!(hubs.is_read(&a));
    after.leave();
    assert!(!hubs.is_read(&a));
}

#[test]
fn a_new_epoch_knows_no_acks() {
    let hubs = Hubs::new(4);
    let a = address("A");
    let (handle, mut live) = join(&hubs, 9);
    assert_eq!(hubs.acknowledge(&a, Seq(5)), Some(Seq(5)));
    hubs.change_epoch();
    assert_eq!(text(live.try_recv()), "EpochChanged");
    assert_eq!(hubs.acknowledged(&a), Seq::START);
    // Its seqs are above all that were before.
    assert_eq!(handle.advance(Seq(100)), None);
    assert_eq!(hubs.acknowledge(&a, Seq(100)), Some(Seq(100)));
}

/// Notes the calls.
#[derive(Debug, Default)]
struct Noted(Mutex<Vec<String>>);

impl Interest for Noted {
    fn first_reader(&self, address: &Address) {
        lock(&self.0).push(format!("+{address}"));
    }

    fn last_reader_left(&self, address: &Address) {
        lock(&self.0).push(format!("-{address}"));
    }
}

#[test]
fn an_engine_hears_of_the_first_reader_and_of_the_last() {
    let noted = Arc::new(Noted::default());
    let hubs = Hubs::watched(4, noted.clone());
    let calls = || std::mem::take(&mut *lock(&noted.0));
    let (one, _) = join(&hubs, 0);
    assert_eq!(calls(), ["+session A"], "before it can read");
    let (other, _) = join(&hubs, 0);
    let (b, _) = hubs.join(&address("B"), Seq::START, Transport::Sse, 9).unwrap();
    assert_eq!(calls(), ["+session B"]);
    one.leave();
    assert_eq!(calls(), [""; 0]);
    other.leave();
    b.leave();
    assert_eq!(calls(), ["-session A", "-session B"]);
    let (ended, _) = join(&hubs, 0);
    hubs.end(&address("A"), EndReason::SessionEnded);
    let (anew, _) = join(&hubs, 0);
    ended.leave();
    assert_eq!(calls(), ["+session A", "-session A", "+session A"]);
    anew.leave();
    assert_eq!(calls(), ["-session A"]);
}

/// Against a plain model: what is deleted is acknowledged, and every attached reader has sent it; once all have, all
/// that is acknowledged is deleted.
#[test]
fn deletions_follow_acks_and_readers() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let hubs = Hubs::new(4);
        let a = address("A");
        let (mut readers, mut acked, mut deleted) = (vec![join(&hubs, 0).0], 0, 0);
        for _ in 0..60 {
            let through = match random.u8(..4) {
                0 => {
                    acked = acked.max(random.u64(..50));
                    hubs.acknowledge(&a, Seq(acked))
                }
                1 if readers.len() < 4 => {
                    readers.push(join(&hubs, deleted + random.u64(..5)).0);
                    None
                }
                2 if readers.len() > 1 => {
                    let reader = readers.swap_remove(random.usize(..readers.len()));
                    let through = reader.detach();
                    reader.leave();
                    through
                }
                _ => random.choice(&readers).unwrap().advance(Seq(random.u64(..60))),
            };
            let slowest = readers.iter().map(|reader| reader.position().0).min().unwrap();
            if let Some(through) = through {
                assert!(through.0 > deleted, "seed {seed}");
                deleted = through.0;
                assert_eq!(deleted, acked.min(slowest), "seed {seed}");
            }
            assert_eq!(deleted.max(acked.min(slowest)), deleted, "seed {seed}: nothing waits in vain");
        }
    }
}

/// Notes whether the map of hubs is free when a reader is woken.
struct FreeLock(Hubs, AtomicBool);

impl Wake for FreeLock {
    fn wake(self: Arc<Self>) {
        self.1.store(self.0.hubs.are_free(), Ordering::SeqCst);
    }
}

#[test]
fn readers_are_woken_without_a_lock_of_the_map_of_hubs() {
    let hubs = Hubs::new(4);
    let (_reader, mut receiver) = join(&hubs, 0);
    let is_free = Arc::new(FreeLock(hubs.clone(), AtomicBool::new(false)));
    let (waker, mut waiting) = (Waker::from(Arc::clone(&is_free)), pin!(receiver.recv()));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    hubs.publish(&address("A"), &publication(1), Seq::START);
    assert!(is_free.1.load(Ordering::SeqCst));
}

/// Counts how often it is called.
#[derive(Default)]
struct Calls(AtomicU64);

impl Wake for Calls {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Polls with a waker that counts its calls.
fn poll(receiver: &mut HubReceiver, calls: &Arc<Calls>) -> Option<String> {
    let waker = Waker::from(Arc::clone(calls));
    match receiver.poll_recv(&mut Context::from_waker(&waker)) {
        Poll::Ready(event) => Some(text(event.map_err(|_| TryRecvError::Lagged(0)))),
        Poll::Pending => None,
    }
}

#[test]
fn who_waits_is_woken_once_with_the_waker_of_its_last_poll() {
    let hubs = Hubs::new(4);
    let (_handle, mut receiver) = join(&hubs, 0);
    let (first, last) = (Arc::default(), Arc::default());
    assert_eq!(poll(&mut receiver, &first), None);
    assert_eq!(poll(&mut receiver, &last), None);
    for seq in 1..=2 {
        hubs.publish(&address("A"), &publication(seq), Seq(seq - 1));
    }
    assert_eq!([&first, &last].map(|calls| calls.0.load(Ordering::SeqCst)), [0, 1]);
    let polled: Vec<_> = (0..3).map(|_| poll(&mut receiver, &last)).collect();
    assert_eq!(polled, [Some("1 after 0".to_owned()), Some("2 after 1".to_owned()), None]);
    hubs.wake(&address("A"), Seq(9));
    assert_eq!(last.0.load(Ordering::SeqCst), 2, "it waited again");
}

#[test]
fn all_readers_are_woken_however_many_and_none_that_has_left() {
    let hubs = Hubs::new(4);
    let mut readers: Vec<_> = (0..100).map(|_| join(&hubs, 0)).collect();
    let calls: Vec<Arc<Calls>> = readers.iter().map(|_| Arc::default()).collect();
    for ((_, receiver), calls) in readers.iter_mut().zip(&calls) {
        assert_eq!(poll(receiver, calls), None);
    }
    _ = readers[40].0.detach();
    readers[40].0.leave();
    hubs.publish(&address("A"), &publication(1), Seq::START);
    let woken = |at: usize| calls[at].0.load(Ordering::SeqCst);
    assert!((0..100).all(|at| woken(at) == u64::from(at != 40)));
    // Another one at its place.
    let (_handle, mut receiver) = join(&hubs, 0);
    assert_eq!(poll(&mut receiver, &calls[40]), None, "what was sent before");
    hubs.publish(&address("A"), &publication(2), Seq(1));
    assert_eq!((woken(40), text(receiver.try_recv())), (1, "2 after 1".to_owned()));
}

#[test]
fn a_hub_has_no_channel_before_its_first_event() {
    let hubs = Hubs::new(4);
    let (reader, mut receiver) = join(&hubs, 0);
    let has_channel = || lock(&reader.hub.readers).end().is_some();
    assert!(poll(&mut receiver, &Arc::default()).is_none() && receiver.is_empty() && !has_channel());
    hubs.publish(&address("A"), &publication(1), Seq::START);
    assert!(!receiver.is_empty() && has_channel());
    assert_eq!(text(receiver.try_recv()), "1 after 0");
}

/// Nobody waits for ever while others send.
#[test]
fn no_event_is_missed_between_two_threads() {
    const EVENTS: u64 = 20_000;
    let hubs = Hubs::new(16);
    let (_handle, mut receiver) = join(&hubs, 0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let reading = std::thread::spawn(move || {
        let mut seen = 0;
        while seen < 2 * EVENTS {
            seen += match runtime.block_on(receiver.recv()) {
                Ok(_) => 1,
                Err(RecvError::Lagged(lost)) => lost,
                Err(RecvError::Closed) => panic!("it is read"),
            };
        }
    });
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..EVENTS).for_each(|seq| hubs.wake(&address("A"), Seq(seq))));
        }
    });
    reading.join().unwrap();
}
