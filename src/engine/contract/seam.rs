//! What an engine of several machines needs of the seam, and readers on one.

use std::collections::HashSet;

use super::registrations::of_backend;
use super::*;

/// Stored messages come in order and once, however they are published; volatile ones at most once.
pub(super) async fn a_reader_gets_everything_once_and_in_order(lab: Lab) {
    const MESSAGES: usize = 60;
    let mailbox_bounds = Bounds { messages: 2 * MESSAGES, ..bounds() };
    let (engine, hubs) = lab.engine_with(Settings { mailbox: mailbox_bounds, ..lab.settings() });
    let a = mailbox("A");
    let mut subscriber = reader(&engine, &hubs, &a, Seq::START);
    let sender = tokio::spawn({
        let (engine, a) = (engine.clone(), a.clone());
        async move {
            for n in 0..MESSAGES {
                let commit = engine.append(append(&a, &n.to_string()));
                publish_volatile(&engine, &a, &format!("\"v{n}\""));
                // Some are on their way together.
                if n % 3 == 0 {
                    commit.await.unwrap();
                }
            }
        }
    });
    let (mut next_stored, mut volatile) = (0, HashSet::new());
    while next_stored < MESSAGES {
        let Item::Message(message) = next_item(&mut subscriber).await else { panic!("nothing is gone") };
        match message.seq() {
            Some(_) => {
                assert_eq!(message.payload(), next_stored.to_string());
                next_stored += 1;
                // An acknowledgement of some of it.
                if next_stored % 10 == 0 {
                    subscriber.mark_sent(message.seq().unwrap());
                    engine.trim(&a, message.seq().unwrap());
                }
            }
            None => assert!(volatile.insert(message.payload().to_owned()), "{}", message.payload()),
        }
    }
    sender.await.unwrap();
    put(&engine, &a, "\"last\"").await;
    loop {
        match next(&mut subscriber).await {
            last if last == "\"last\"" => break,
            one => assert!(one.starts_with("\"v") && volatile.insert(one.clone()), "{one} came twice"),
        }
    }
}

fn node(engine: &Engine) -> &Node {
    match engine {
        Engine::Replicated(node) => node,
        engine => panic!("{engine:?}"),
    }
}

fn is_subscribed(engine: &Engine, address: &Address) -> bool {
    match engine {
        #[cfg(feature = "nats")]
        Engine::Nats(nats) => nats.is_subscribed(address),
        engine => node(engine).is_subscribed(address),
    }
}

fn cluster(lab: &Lab) -> Arc<Cluster> {
    match &lab.factory {
        Factory::Node(_, cluster) => cluster.borrow().clone().expect("made with the first node"),
        factory => panic!("{factory:?}"),
    }
}

/// Waits until this holds.
async fn becomes(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

pub(super) async fn an_address_is_subscribed_to_before_its_first_read_and_for_a_grace_after_its_last(
    lab: Lab,
) {
    let (engine, hubs) = lab.engine();
    let a = mailbox("A");
    assert!(!is_subscribed(&engine, &a));
    let mut subscriber = reader(&engine, &hubs, &a, Seq::START);
    subscriber.ready().await.unwrap();
    assert!(is_subscribed(&engine, &a), "before the first read was answered");
    let second = reader(&engine, &hubs, &a, Seq::START);
    drop(subscriber);
    drop(second);
    assert!(is_subscribed(&engine, &a), "a reader that comes back soon finds it subscribed");
    let mut again = reader(&engine, &hubs, &a, Seq::START);
    again.ready().await.unwrap();
    put(&engine, &a, "1").await;
    assert_eq!(next(&mut again).await, "1");
    drop(again);
    becomes("nobody reads it any more", || !is_subscribed(&engine, &a)).await;
}

pub(super) async fn a_new_epoch_is_told_and_reading_begins_at_the_floor(lab: Lab) {
    let (engine, hubs) = lab.engine();
    let a = mailbox("A");
    let mut subscriber = reader(&engine, &hubs, &a, Seq::START);
    put(&engine, &a, "1").await;
    assert_eq!(next(&mut subscriber).await, "1");
    let (epoch, delivered) = (engine.epoch(), subscriber.delivered());
    put(&engine, &a, "2").await;
    lab.clock.advance(Duration::from_secs(10));
    cluster(&lab).recreate(lab.settings());
    // Stored anew before this node notices.
    let (other, _) = lab.open(lab.settings());
    let third = put(&other, &a, "3").await;
    node(&engine).notice_epoch();
    assert_ne!(engine.epoch(), epoch);
    // "2" may have come before; then the gap, and what there is now.
    let mut told = Vec::new();
    while told.last().is_none_or(|last| last != "3") {
        told.push(next(&mut subscriber).await);
    }
    let from = if told[0] == "2" { told.remove(0).len() as u64 + delivered.0 } else { delivered.0 };
    assert_eq!(told, [gap(Seq(from), Seq::START, GapReason::Epoch), "3".to_owned()]);
    assert_eq!((subscriber.epoch(), subscriber.delivered()), (&engine.epoch(), third));
    assert!(third > delivered, "seqs of a later epoch are above");
    put(&engine, &a, "4").await;
    assert_eq!(next(&mut subscriber).await, "4");
}

pub(super) async fn a_node_finds_what_another_one_registered(lab: Lab) {
    let (one, _) = lab.engine();
    let (other, _) = lab.open(lab.settings());
    for n in 0..20 {
        let session = SessionId::new(&format!("S{n}")).unwrap();
        let user = format!("u{n}");
        one.register(&of_backend(&session, &user)).await.unwrap();
        let user = UserId::new(&user).unwrap();
        other.confirm(Lookup::Session(&session)).await;
        assert_eq!(other.registration(&session).unwrap().user, Some(user.clone()));
        one.confirm(Lookup::User(&user)).await;
        assert_eq!(one.sessions_of(&user), [session]);
    }
}

pub(super) async fn the_end_of_a_session_ends_its_readers_on_every_node(lab: Lab) {
    let (one, _) = lab.engine();
    let (other, hubs) = lab.open(lab.settings());
    let (a, session) = (mailbox("A"), SessionId::new("A").unwrap());
    let mut subscriber = reader(&other, &hubs, &a, Seq::START);
    subscriber.ready().await.unwrap();
    one.end(&session, Duration::from_secs(100)).await.unwrap();
    assert!(timeout(Duration::from_secs(10), subscriber.next()).await.unwrap().is_none());
    other.confirm(Lookup::Session(&session)).await;
    assert!(other.is_revoked(&session));
}

pub(super) async fn an_ack_at_one_node_is_seen_at_the_other(lab: Lab) {
    let (one, _) = lab.engine();
    let (other, _) = lab.open(lab.settings());
    let a = mailbox("A");
    let first = put(&one, &a, "1").await;
    put(&one, &a, "2").await;
    expect(&other, &a, Seq::START, &["1", "2"]).await;
    other.trim(&a, first);
    // Acknowledgements may be collected for a moment.
    let seen = async {
        while one.position(&a).await.floor != first {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), seen).await.expect("the acknowledgement is seen");
    expect(&one, &a, Seq::START, &["2"]).await;
    assert!(other.newest(&a, first).await.unwrap() >= first);
}
