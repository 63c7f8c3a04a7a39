//! Who reads a topic, as watchers are told.

use std::time::Duration;

use futures::FutureExt;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::budget::Holder;
use crate::hub::Membership;
use crate::message::SenderName;

fn news() -> TopicName {
    TopicName::new("news").unwrap()
}

fn name(name: &str) -> SenderName {
    SenderName::new(name).unwrap()
}

fn join(broker: &Broker, one: &str) -> Membership {
    broker.join(&news(), name(one))
}

fn crowd(broker: &Broker, count: usize) -> Vec<Membership> {
    (0..count).map(|n| join(broker, &format!("n{n:04}"))).collect()
}

/// The next event without what it has in common with others, if there is one.
fn told(reader: &mut PresenceReader) -> Option<Value> {
    let event = reader.next().now_or_never()?;
    let mut event: Value = serde_json::from_str(event.frame().as_str()).unwrap();
    let fields = event.as_object_mut().unwrap();
    let common = ["type", "topic"].map(|field| fields.remove(field).unwrap());
    assert_eq!(common, [json!("presence"), json!("news")]);
    assert!(fields.remove("ts").unwrap().is_u64());
    Some(event)
}

#[tokio::test]
async fn what_changed_within_a_round_is_told_at_once() {
    let (broker, _) = broker(false);
    let ann = join(&broker, "ann");
    let (mut reader, count) = broker.watch(&news()).await;
    assert_eq!(count, 1);
    let _others = ["bob", "cid"].map(|one| join(&broker, one));
    drop(ann);
    assert_eq!(told(&mut reader), None, "not before the round");
    broker.tell_presence().await;
    assert_eq!(told(&mut reader).unwrap(), json!({ "count": 2, "joined": ["bob", "cid"], "left": ["ann"] }));
    drop(join(&broker, "dan"));
    broker.tell_presence().await;
    assert_eq!(told(&mut reader), None, "he joined and left within the round");
}

#[tokio::test]
async fn nobody_watches_and_nothing_is_kept() {
    let (broker, _) = broker(false);
    let _ann = join(&broker, "ann");
    broker.tell_presence().await;
    let (reader, _) = broker.watch(&news()).await;
    assert!(broker.watches.get(&news()).is_some());
    drop(reader);
    broker.tell_presence().await;
    assert!(broker.watches.get(&news()).is_none());
}

#[tokio::test]
async fn a_slow_watcher_is_told_the_number_as_it_is() {
    let (broker, _) = broker(false);
    let (mut slow, _) = broker.watch(&news()).await;
    let mut members = Vec::new();
    for n in 0..20 {
        members.push(join(&broker, &n.to_string()));
        broker.tell_presence().await;
    }
    assert_eq!(told(&mut slow).unwrap(), json!({ "count": 20 }));
    assert_eq!(told(&mut slow), None);
    members.pop();
    broker.tell_presence().await;
    assert_eq!(told(&mut slow).unwrap(), json!({ "count": 19, "joined": [], "left": ["19"] }));
}

#[tokio::test]
async fn who_comes_between_two_rounds_ends_with_the_same_list_as_the_others() {
    let (broker, _) = broker(false);
    let ann = join(&broker, "ann");
    let (mut first, _) = broker.watch(&news()).await;
    // She is away for a moment. The list that the second one reads does not have her, but has bob, who leaves.
    drop(ann);
    let bob = join(&broker, "bob");
    let (mut second, count) = broker.watch(&news()).await;
    let list = broker.members(&news(), None, 9).await;
    assert_eq!((count, list.members), (1, vec![name("bob")]));
    let _ann = join(&broker, "ann");
    drop(bob);
    broker.tell_presence().await;
    for reader in [&mut first, &mut second] {
        assert_eq!(told(reader).unwrap(), json!({ "count": 1, "joined": ["ann"], "left": ["bob"] }));
    }
}

#[tokio::test]
async fn above_a_thousand_only_the_number_is_told_and_the_list_has_pages() {
    let (broker, _) = broker(false);
    let mut members = crowd(&broker, 1000);
    let (mut reader, count) = broker.watch(&news()).await;
    assert_eq!(count, 1000);
    members.push(join(&broker, "zoe"));
    broker.tell_presence().await;
    assert_eq!(told(&mut reader).unwrap(), json!({ "count": 1001 }));
    let page = broker.members(&news(), Some(&name("n0998")), 2).await;
    assert_eq!((page.count, page.members), (1001, vec![name("n0999"), name("zoe")]));
    members.truncate(999);
    broker.tell_presence().await;
    assert_eq!(told(&mut reader).unwrap(), json!({ "count": 999 }), "now the list has to be read");
    members.pop();
    broker.tell_presence().await;
    assert_eq!(told(&mut reader).unwrap(), json!({ "count": 998, "joined": [], "left": ["n0998"] }));
}

#[tokio::test]
async fn names_that_have_no_room_in_the_memory_budget_are_left_out() {
    let clock = Clock::manual();
    let hubs = Hubs::new(4).within(Budget::new(10_000));
    let engine = Embedded::in_memory(settings(clock), hubs.clone()).into();
    let broker = Broker::new(engine, hubs, limits(false), clock);
    let (mut reader, _) = broker.watch(&news()).await;
    let members = crowd(&broker, 1000);
    let taken = broker.budget().try_acquire(Holder::Proved, 9_000).unwrap();
    broker.tell_presence().await;
    assert_eq!(told(&mut reader).unwrap(), json!({ "count": 1000 }));
    drop((taken, members));
    broker.tell_presence().await;
    let event = told(&mut reader).unwrap();
    assert_eq!((&event["count"], event["left"].as_array().unwrap().len()), (&json!(0), 1000));
    assert_eq!(broker.budget().used(), 0, "once it is read");
}

/// One node each for two brokers.
fn two_nodes(seed: u64) -> [Broker; 2] {
    let clock = Clock::manual();
    let cluster = Cluster::new(settings(clock));
    [seed, seed + 1].map(|seed| {
        let (node, hubs) = Node::start(&cluster, settings(clock), 4, seed);
        Broker::new(Engine::Replicated(node), hubs, limits(true), clock)
    })
}

#[tokio::test]
async fn a_watcher_on_one_node_sees_the_members_of_the_other() {
    let [here, there] = two_nodes(7);
    let _ann = [join(&here, "ann"), join(&there, "ann")];
    let (mut reader, count) = here.watch(&news()).await;
    assert_eq!(count, 1, "a name on two nodes is one member");
    let bob = join(&there, "bob");
    let next = async |reader: &mut PresenceReader| loop {
        there.tell_presence().await;
        here.tell_presence().await;
        match told(reader) {
            Some(event) => return event,
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    let in_time = Duration::from_secs(10);
    let event = timeout(in_time, next(&mut reader)).await.unwrap();
    assert_eq!(event, json!({ "count": 2, "joined": ["bob"], "left": [] }));
    drop(bob);
    let event = timeout(in_time, next(&mut reader)).await.unwrap();
    assert_eq!(event, json!({ "count": 1, "joined": [], "left": ["bob"] }));
    assert_eq!(here.members(&news(), None, 9).await.members, [name("ann")]);
}
