use std::sync::Mutex;
use std::task::{Context, Wake, Waker};

use serde_json::value::RawValue;
use tokio::sync::broadcast::error::TryRecvError;

use super::*;
use crate::budget::{Budget, SMALL};
use crate::hub::outlets::{FEWEST, OF_ONE_TASK};
use crate::hub::{Encoded, Encoding, EndReason, HubReceiver, Hubs, Outlet, ReaderHandle, Transport};
use crate::message::{Address, Kind, Message, Publication, Seq, TopicName};

/// Payloads, each with a space behind it.
static PAYLOADS: Encoding = Encoding {
    append: |publication, bytes| {
        assert_ne!(publication.payload(), "\"panic\"", "this panic is part of the test");
        bytes.extend_from_slice(format!("{} ", publication.payload()).as_bytes());
    },
};

/// An output that takes so many bytes.
#[derive(Debug)]
struct Output(Mutex<State>);

#[derive(Debug)]
struct State {
    is_lent: bool,
    room: usize,
    taken: String,
    left: String,
}

impl Outlet for Output {
    fn encoding(&self) -> &'static Encoding {
        &PAYLOADS
    }

    fn write(&self, encoded: Encoded<'_>, offset: &mut dyn FnMut() -> Option<usize>) -> bool {
        let mut state = lock(&self.0);
        if !state.is_lent {
            return false;
        }
        let Some(offset) = offset() else { return false };
        let bytes = String::from_utf8(encoded.bytes[offset..].to_vec()).unwrap();
        let (taken, left) = bytes.split_at(bytes.len().min(state.room));
        state.room -= taken.len();
        state.taken.push_str(taken);
        state.left.push_str(left);
        state.is_lent &= left.is_empty();
        left.is_empty()
    }

    fn close(&self) {
        lock(&self.0).is_lent = false;
    }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Calls(AtomicUsize);

impl Wake for Calls {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A reader that waits and lends its output.
pub(in crate::hub) struct Reader {
    pub(in crate::hub) handle: ReaderHandle,
    pub(in crate::hub) receiver: HubReceiver,
    output: Arc<Output>,
    calls: Arc<Calls>,
}

impl Reader {
    /// Has everything up to `read`.
    pub(in crate::hub) fn new(hubs: &Hubs, read: u64) -> Self {
        let (handle, receiver) = hubs.join(&address(), Seq(read), Transport::Websocket, usize::MAX).unwrap();
        let state = State { is_lent: true, room: usize::MAX, taken: String::new(), left: String::new() };
        let output = Arc::new(Output(Mutex::new(state)));
        handle.lend(|| output.clone());
        let mut reader = Self { handle, receiver, output, calls: Arc::default() };
        reader.receiver.note_read(Seq(read));
        assert_eq!(reader.poll(), None);
        reader
    }

    /// The next event that is there: the seq of a message.
    pub(in crate::hub) fn poll(&mut self) -> Option<Option<Seq>> {
        let waker = Waker::from(Arc::clone(&self.calls));
        match self.receiver.poll_recv(&mut Context::from_waker(&waker)) {
            std::task::Poll::Ready(Ok(HubEvent::Stored { publication, .. })) => Some(publication.seq()),
            std::task::Poll::Ready(_) => Some(None),
            std::task::Poll::Pending => None,
        }
    }

    pub(in crate::hub) fn taken(&self) -> String {
        std::mem::take(&mut lock(&self.output.0).taken)
    }

    pub(in crate::hub) fn calls(&self) -> usize {
        self.calls.0.load(Ordering::SeqCst)
    }

    /// The output takes so many bytes more.
    pub(in crate::hub) fn set_room(&self, room: usize) {
        lock(&self.output.0).room = room;
    }

    /// What the output has left to its task.
    pub(in crate::hub) fn left(&self) -> String {
        lock(&self.output.0).left.clone()
    }
}

pub(in crate::hub) fn address() -> Address {
    Address::Topic(TopicName::new("news").unwrap())
}

/// A message with this payload.
pub(in crate::hub) fn publication(seq: Option<u64>, payload: &str) -> Arc<Publication> {
    let payload = RawValue::from_string(payload.to_owned()).unwrap();
    let message = Message { kind: Kind::Message, from: None, payload, ts: 0, reference: None };
    Arc::new(Publication::encode(&address(), seq.map(Seq), &message))
}

/// Publishes a message whose payload is its seq.
pub(in crate::hub) fn publish(hubs: &Hubs, seq: u64) {
    hubs.publish(&address(), &publication(Some(seq), &seq.to_string()), Seq(seq - 1));
}

/// Waits until the task has nothing to do.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

/// Hubs, and as many readers as it takes.
fn begin() -> (Hubs, Vec<Reader>) {
    let hubs = Hubs::new(8).within(Budget::new(Budget::MOST));
    let readers = (0..FEWEST).map(|_| Reader::new(&hubs, 0)).collect();
    (hubs, readers)
}

#[tokio::test]
async fn readers_that_rest_are_written_to_and_not_woken() {
    let (hubs, mut readers) = begin();
    for seq in 1..=3 {
        publish(&hubs, seq);
    }
    hubs.publish_volatile(&address(), &publication(None, "0"));
    settle().await;
    publish(&hubs, 4);
    settle().await;
    for reader in &mut readers {
        assert_eq!((reader.taken().as_str(), reader.calls()), ("1 2 3 0 4 ", 0));
        assert_eq!((reader.receiver.moved_on(), reader.receiver.moved_on()), (Some(Seq(4)), None));
        assert_eq!((reader.poll(), reader.receiver.is_empty()), (None, true));
    }
}

/// What was written to the connection is still in the channel for the reader, which skips it.
#[tokio::test]
async fn a_reader_goes_on_behind_what_was_written_for_it() {
    for (written, channel) in [(3, "holds it"), (20, "has lost some of it")] {
        let (hubs, mut readers) = begin();
        for seq in 1..=written {
            publish(&hubs, seq);
            settle().await;
        }
        lock(&readers[1].output.0).is_lent = false;
        publish(&hubs, written + 1);
        settle().await;
        let reader = &mut readers[1];
        assert_eq!(reader.receiver.moved_on(), Some(Seq(written)), "{channel}");
        assert_eq!((reader.poll(), reader.poll()), (Some(Some(Seq(written + 1))), None), "{channel}");
    }
}

/// Of what was not written, so much is said to be lost.
#[tokio::test]
async fn a_reader_misses_only_what_was_not_written_for_it() {
    let (hubs, mut readers) = begin();
    publish(&hubs, 1);
    settle().await;
    lock(&readers[1].output.0).is_lent = false;
    for seq in 2..=12 {
        publish(&hubs, seq);
    }
    settle().await;
    let reader = &mut readers[1];
    assert!(matches!(reader.receiver.try_recv(), Err(TryRecvError::Lagged(3))));
    assert!(
        matches!(reader.receiver.try_recv(), Ok(HubEvent::Stored { publication, .. }) if publication.seq() == Some(Seq(5)))
    );
}

/// The task holds no large message, and no memory of the budget, when it has nothing to do.
#[tokio::test]
async fn nothing_is_held_once_all_readers_have_it() {
    let (hubs, mut readers) = begin();
    let large = format!("\"{}\"", "x".repeat(2 * SMALL));
    let large = publication(Some(1), &large);
    hubs.publish(&address(), &large, Seq::START);
    settle().await;
    assert_ne!(hubs.budget().used(), 0);
    readers.iter_mut().for_each(|reader| assert_eq!(reader.poll(), Some(Some(Seq(1)))));
    assert_eq!(hubs.budget().used(), 0);
}

#[tokio::test]
async fn a_reader_that_lends_nothing_is_woken_and_goes_on_where_it_is() {
    let (hubs, mut readers) = begin();
    publish(&hubs, 1);
    settle().await;
    lock(&readers[0].output.0).is_lent = false;
    publish(&hubs, 2);
    publish(&hubs, 3);
    settle().await;
    assert_eq!((readers[0].taken().as_str(), readers[0].calls()), ("1 ", 1));
    assert_eq!(readers[0].receiver.moved_on(), Some(Seq(1)));
    assert_eq!(readers[0].poll(), Some(Some(Seq(2))));
    // It rests again in the middle of what was sent.
    assert_eq!((readers[0].poll(), readers[0].poll()), (Some(Some(Seq(3))), None));
    readers[0].receiver.note_read(Seq(3));
    lock(&readers[0].output.0).is_lent = true;
    publish(&hubs, 4);
    settle().await;
    assert_eq!((readers[0].taken().as_str(), readers[1].taken().as_str()), ("4 ", "1 2 3 4 "));
}

#[tokio::test]
async fn what_a_peer_does_not_take_is_left_to_its_task() {
    let (hubs, mut readers) = begin();
    lock(&readers[2].output.0).room = 3;
    for seq in 1..=3 {
        publish(&hubs, seq);
    }
    settle().await;
    let left = lock(&readers[2].output.0).left.clone();
    assert_eq!((readers[2].taken().as_str(), left.as_str()), ("1 2", " 3 "));
    assert_eq!((readers[2].calls(), readers[2].poll()), (1, None), "it has all events");
    assert_eq!(readers[2].receiver.moved_on(), Some(Seq(3)));
    publish(&hubs, 4);
    settle().await;
    assert_eq!((readers[2].calls(), readers[2].poll()), (2, Some(Some(Seq(4)))));
}

#[tokio::test]
async fn what_does_not_follow_wakes_up_the_reader() {
    for (name, prev, seq) in [("a gap", 2, 3), ("a repetition", 0, 1)] {
        let (hubs, readers) = begin();
        publish(&hubs, 1);
        settle().await;
        hubs.publish(&address(), &publication(Some(seq), "7"), Seq(prev));
        settle().await;
        assert!(readers.iter().all(|reader| reader.calls() == 1 && reader.taken() == "1 "), "{name}");
    }
    // In the middle of a batch.
    let (hubs, readers) = begin();
    for (seq, prev) in [(1, 0), (3, 2), (4, 3)] {
        hubs.publish(&address(), &publication(Some(seq), "7"), Seq(prev));
    }
    settle().await;
    assert!(readers.iter().all(|reader| reader.calls() == 1 && reader.taken().is_empty()));
}

#[tokio::test]
async fn large_messages_and_other_events_wake_up_the_reader() {
    let large = format!("\"{}\"", "x".repeat(2 * SMALL));
    type Sends<'a> = &'a dyn Fn(&Hubs);
    let sends: [(&str, Sends<'_>); 4] = [
        ("large", &|hubs| hubs.publish(&address(), &publication(Some(2), &large), Seq(1))),
        ("available", &|hubs| hubs.wake(&address(), Seq(2))),
        ("epoch", &|hubs| hubs.change_epoch()),
        ("end", &|hubs| hubs.end(&address(), EndReason::SessionEnded)),
    ];
    for (name, send) in sends {
        let (hubs, mut readers) = begin();
        publish(&hubs, 1);
        send(&hubs);
        settle().await;
        for reader in &mut readers {
            let expected = if name == "end" { "" } else { "1 " };
            assert_eq!((reader.taken().as_str(), reader.calls()), (expected, 1), "{name}");
            assert!(reader.poll().is_some(), "{name}");
        }
    }
}

#[tokio::test]
async fn few_readers_and_those_that_have_left_are_not_written_to() {
    let (hubs, mut readers) = begin();
    let left = readers.pop().unwrap();
    _ = left.handle.detach();
    publish(&hubs, 1);
    assert!(readers.iter().all(|reader| reader.calls() == 1), "at once");
    settle().await;
    assert!(left.taken().is_empty() && readers.iter().all(|reader| reader.taken().is_empty()));
    left.handle.leave();
    drop(left.receiver);
    assert!(matches!(readers[0].receiver.try_recv(), Ok(HubEvent::Stored { .. })));
    assert!(matches!(readers[0].receiver.try_recv(), Err(TryRecvError::Empty)));
}

/// Readers that lend their output now and then get everything once and in order, with two threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_repeated_or_out_of_order() {
    const EVENTS: u64 = 5_000;
    // It drops nothing: no engine is here to be read.
    let hubs = Hubs::new(8_192);
    let reading: Vec<_> = (0..2 * FEWEST as u64)
        .map(|n| {
            let mut reader = Reader::new(&hubs, 0);
            tokio::spawn(async move {
                let (mut random, mut next) = (fastrand::Rng::with_seed(n), 1);
                while next <= EVENTS {
                    // The task has its output.
                    lock(&reader.output.0).is_lent = false;
                    let taken = reader.taken();
                    let moved = reader.receiver.moved_on();
                    for seq in taken.split_terminator(' ') {
                        assert_eq!(seq, next.to_string());
                        next += 1;
                    }
                    assert_eq!(moved, (!taken.is_empty()).then(|| Seq(next - 1)));
                    loop {
                        reader.receiver.note_read(Seq(next - 1));
                        let event = if random.bool() {
                            let event = std::future::poll_fn(|cx| {
                                std::task::Poll::Ready(reader.receiver.poll_recv(cx))
                            });
                            match event.await {
                                std::task::Poll::Ready(event) => event.ok(),
                                std::task::Poll::Pending => break,
                            }
                        } else {
                            reader.receiver.try_recv().ok()
                        };
                        if let Some(HubEvent::Stored { publication, .. }) = event {
                            assert_eq!(publication.seq(), Some(Seq(next)));
                            next += 1;
                        }
                    }
                    lock(&reader.output.0).is_lent = true;
                    yield_now().await;
                }
            })
        })
        .collect();
    let publishing = tokio::spawn(async move {
        for seq in 1..=EVENTS {
            publish(&hubs, seq);
            if seq % 8 == 0 {
                settle().await;
            }
        }
        hubs
    });
    let _hubs = publishing.await.unwrap();
    for reader in reading {
        reader.await.unwrap();
    }
}

/// Several tasks write.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn very_many_readers_get_everything_once_and_in_order() {
    let hubs = Hubs::new(64);
    let mut readers: Vec<_> = (0..3 * OF_ONE_TASK).map(|_| Reader::new(&hubs, 0)).collect();
    let hub = Arc::clone(&readers[0].handle.hub);
    assert_eq!(hub.outlets.get().unwrap().helpers(), 2);
    let mut expected = String::new();
    for seq in 1..=50 {
        publish(&hubs, seq);
        expected.push_str(&format!("{seq} "));
        while seq % 5 == 0 && readers.iter().any(|reader| !reader.receiver.is_empty()) {
            yield_now().await;
        }
    }
    for reader in &mut readers {
        assert_eq!((reader.taken(), reader.calls()), (expected.clone(), 0));
        assert_eq!(reader.receiver.moved_on(), Some(Seq(50)));
    }
}

#[tokio::test]
async fn after_a_panic_the_next_event_wakes_up_the_readers() {
    let (hubs, mut readers) = begin();
    hubs.publish(&address(), &publication(Some(1), "\"panic\""), Seq::START);
    settle().await;
    publish(&hubs, 2);
    settle().await;
    for reader in &mut readers {
        assert_eq!((reader.taken().as_str(), reader.calls()), ("", 1));
        assert_eq!((reader.poll(), reader.poll()), (Some(Some(Seq(1))), Some(Some(Seq(2)))));
    }
}
