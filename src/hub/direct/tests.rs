use crate::budget::SMALL;
use crate::hub::Hubs;
use crate::hub::fanout::tests::{Reader, address, publication, publish};
use crate::message::Seq;
use crate::sync::lock;

/// A reader that takes the next message.
fn reader(hubs: &Hubs, read: u64) -> Reader {
    let reader = Reader::new(hubs, read);
    reader.handle.set_takes_one(true);
    reader
}

fn has_channel(reader: &Reader) -> bool {
    lock(&reader.handle.hub.readers).end().is_some()
}

#[tokio::test]
async fn a_message_is_written_to_a_reader_that_is_not_woken_and_the_next_one_wakes_it() {
    let hubs = Hubs::new(4);
    let mut reader = reader(&hubs, 0);
    publish(&hubs, 1);
    assert_eq!((reader.taken().as_str(), reader.calls(), has_channel(&reader)), ("1 ", 0, false));
    publish(&hubs, 2);
    publish(&hubs, 3);
    assert_eq!((reader.taken().as_str(), reader.calls()), ("", 1));
    assert_eq!((reader.receiver.moved_on(), reader.handle.position()), (Some(Seq(1)), Seq(1)));
    assert!(reader.handle.take_written().is_some() && reader.handle.take_written().is_none());
    assert_eq!([reader.poll(), reader.poll(), reader.poll()], [Some(Some(Seq(2))), Some(Some(Seq(3))), None]);
    reader.receiver.note_read(Seq(3));
    reader.handle.set_takes_one(true);
    publish(&hubs, 4);
    assert_eq!((reader.taken().as_str(), reader.calls()), ("4 ", 1));
}

#[tokio::test]
async fn each_of_a_few_readers_is_written_to_and_only_the_others_need_the_channel() {
    let hubs = Hubs::new(4);
    let mut readers = [reader(&hubs, 0), reader(&hubs, 0)];
    publish(&hubs, 1);
    assert!(readers.iter().all(|reader| reader.taken() == "1 " && reader.calls() == 0));
    assert!(!has_channel(&readers[0]));
    readers[0].handle.set_takes_one(true);
    publish(&hubs, 2);
    assert_eq!((readers[0].taken().as_str(), readers[1].taken().as_str()), ("2 ", ""));
    assert_eq!(readers.each_mut().map(|reader| reader.receiver.moved_on()), [Some(Seq(2)), Some(Seq(1))]);
    assert_eq!(readers.each_mut().map(Reader::poll), [None, Some(Some(Seq(2)))]);
}

#[tokio::test]
async fn what_the_peer_does_not_take_is_left_to_the_reader() {
    let hubs = Hubs::new(4);
    let mut reader = reader(&hubs, 0);
    reader.set_room(1);
    publish(&hubs, 1);
    assert_eq!((reader.taken().as_str(), reader.left().as_str(), reader.calls()), ("1", " ", 1));
    assert_eq!((reader.receiver.moved_on(), reader.poll()), (Some(Seq(1)), None));
}

#[tokio::test]
async fn a_reader_that_misses_something_is_woken() {
    let hubs = Hubs::new(4);
    let mut reader = reader(&hubs, 0);
    hubs.publish(&address(), &publication(Some(3), "3"), Seq(2));
    assert_eq!((reader.taken().as_str(), reader.calls(), reader.poll()), ("", 1, Some(Some(Seq(3)))));
}

#[tokio::test]
async fn a_large_message_is_not_written() {
    let hubs = Hubs::new(4);
    let mut reader = reader(&hubs, 0);
    let large = format!("\"{}\"", "x".repeat(2 * SMALL));
    hubs.publish(&address(), &publication(Some(1), &large), Seq::START);
    assert_eq!((reader.taken().as_str(), reader.calls(), reader.poll()), ("", 1, Some(Some(Seq(1)))));
}

#[tokio::test]
async fn a_volatile_message_is_written_and_does_not_count() {
    let hubs = Hubs::new(4);
    let mut reader = reader(&hubs, 0);
    assert!(hubs.publish_volatile(&address(), &publication(None, "0")));
    assert_eq!((reader.taken().as_str(), reader.calls()), ("0 ", 0));
    assert_eq!((reader.handle.take_written(), reader.handle.position()), (None, Seq::START));
    assert_eq!(reader.receiver.moved_on(), Some(Seq::START));
}

/// Another tab has read the message from the engine, and acknowledged it, before it is written here.
#[tokio::test]
async fn what_is_acknowledged_already_is_deleted_once_the_slower_reader_runs() {
    let hubs = Hubs::new(4);
    let reader = reader(&hubs, 0);
    assert_eq!(hubs.acknowledge(&address(), Seq(1)), None, "this reader has not sent it");
    publish(&hubs, 1);
    assert_eq!((reader.taken().as_str(), reader.calls()), ("1 ", 1));
    assert_eq!((reader.handle.settle(), reader.handle.settle()), (Some(Seq(1)), None));
}

#[tokio::test]
async fn what_is_written_can_be_acknowledged_though_the_reader_has_not_run() {
    let hubs = Hubs::new(4);
    let reader = reader(&hubs, 0);
    publish(&hubs, 1);
    assert_eq!(hubs.acknowledge(&address(), Seq(1)), Some(Seq(1)));
    assert_eq!((reader.calls(), reader.handle.settle()), (0, None));
}

#[tokio::test]
async fn a_reader_that_joins_later_begins_behind_what_was_written() {
    let hubs = Hubs::new(4);
    let first = reader(&hubs, 0);
    publish(&hubs, 1);
    let mut second = Reader::new(&hubs, 1);
    publish(&hubs, 2);
    assert_eq!((second.poll(), second.poll()), (Some(Some(Seq(2))), None));
    assert_eq!((first.taken().as_str(), first.calls()), ("1 ", 1));
}
