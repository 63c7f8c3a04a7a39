//! One suite of promises, run on every engine and level. Each test names the promise it keeps.
//!
//! The suite knows an engine only by [`Engine`], and moves time by hand. It expects no more than the contract promises:
//! publications may be late or only announced, and answers may come from a machine that is behind. The promises about
//! the memory of this process are a suite of their own, in `memory`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::time::timeout;

use super::*;
use crate::clock::Clock;
use crate::engine::embedded::{Durability, Storage};
use crate::hub::{EndReason, HubEvent, HubReceiver, Hubs, Transport};
use crate::message::{
    Author, GapReason, Item, Kind, Message, MessageId, SenderName, SessionId, TopicName, UserId,
};
use crate::subscriber::{Start, Subscriber};

mod backends;
mod chance;
mod crypt;
mod feed;
mod listing;
mod memory;
mod messages;
#[cfg(feature = "nats")]
mod nets;
mod node;
mod presence;
mod receipts;
mod registrations;
mod restart;
mod seam;
#[cfg(feature = "nats")]
mod server;
mod shares;
mod time;

pub(crate) use node::{Cluster, Node};

/// The slots of a hub: few, so that readers lag.
const SLOTS: usize = 4;

/// The suite runs on a node once for each of these seeds. A test that fails prints its seed.
const SEEDS: std::ops::Range<u64> = 0..6;

fn bounds() -> Bounds {
    Bounds { messages: 5, bytes: 1 << 20, age: Duration::from_secs(3600) }
}

fn settings(clock: Clock) -> Settings {
    Settings {
        mailbox: bounds(),
        history: bounds(),
        total_bytes: 16 << 20,
        dedup_window: Duration::from_secs(120),
        dedup_ids: 1000,
        sessions_per_user: 8,
        shares: false,
        queue: QueueBounds { messages: 10_000, bytes: 64 << 20 },
        clock,
    }
}

/// Makes engines of one kind.
#[derive(Debug)]
enum Factory {
    /// The embedded engine at this level.
    Embedded(Storage),
    /// Nodes of the cluster that was made last, with this seed.
    Node(u64, std::cell::RefCell<Option<Arc<Cluster>>>),
    /// Nodes on this server.
    #[cfg(feature = "nats")]
    Nats(server::NatsServer),
}

/// Gives a test its engines and its clock.
#[derive(Debug)]
struct Lab {
    factory: Factory,
    clock: Clock,
    _dir: Option<tempfile::TempDir>,
}

impl Lab {
    /// The embedded engine at this level; in memory if there is none.
    fn embedded(level: Option<Durability>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let storage = match level {
            None => Storage::Memory,
            Some(durability) => Storage::Directory(dir.path().join("store"), durability),
        };
        Self { factory: Factory::Embedded(storage), clock: Clock::manual(), _dir: Some(dir) }
    }

    /// Nodes whose network has this seed.
    fn nodes(seed: u64) -> Self {
        // Shown if the test fails.
        println!("seed {seed}");
        Self { factory: Factory::Node(seed, None.into()), clock: Clock::manual(), _dir: None }
    }

    /// Nodes on a NATS server.
    #[cfg(feature = "nats")]
    fn nats() -> Self {
        Self { factory: Factory::Nats(server::NatsServer::start("")), clock: Clock::manual(), _dir: None }
    }

    fn settings(&self) -> Settings {
        settings(self.clock)
    }

    /// An engine on what earlier engines stored.
    fn open(&self, settings: Settings) -> (Engine, Hubs) {
        match &self.factory {
            Factory::Embedded(storage) => {
                let hubs = Hubs::new(SLOTS);
                (Embedded::start(settings, hubs.clone(), storage).unwrap().into(), hubs)
            }
            Factory::Node(seed, cluster) => {
                let mut cluster = cluster.borrow_mut();
                let cluster = cluster.get_or_insert_with(|| Cluster::new(settings));
                let (node, hubs) = Node::start(cluster, settings, SLOTS, *seed);
                (Engine::Replicated(node), hubs)
            }
            #[cfg(feature = "nats")]
            Factory::Nats(server) => {
                let (node, hubs) = server.node(settings, SLOTS);
                (node.into(), hubs)
            }
        }
    }

    /// An engine on an empty store.
    fn engine_with(&self, settings: Settings) -> (Engine, Hubs) {
        match &self.factory {
            Factory::Embedded(Storage::Directory(dir, _)) if dir.exists() => {
                std::fs::remove_dir_all(dir).unwrap();
            }
            Factory::Embedded(_) => {}
            Factory::Node(_, cluster) => *cluster.borrow_mut() = None,
            #[cfg(feature = "nats")]
            Factory::Nats(server) => server.begin_cluster(),
        }
        self.open(settings)
    }

    fn engine(&self) -> (Engine, Hubs) {
        self.engine_with(self.settings())
    }

    /// Closes an engine, or lets it crash, and opens an engine on what it stored.
    fn again(&self, engine: Engine, crash: bool) -> Engine {
        self.again_with(self.settings(), engine, crash)
    }

    fn again_with(&self, settings: Settings, engine: Engine, crash: bool) -> Engine {
        match &engine {
            Engine::Embedded(embedded) if crash => embedded.abandon(),
            Engine::Replicated(_) if crash => {}
            #[cfg(feature = "nats")]
            Engine::Nats(_) if crash => {}
            engine => engine.close(),
        }
        drop(engine);
        self.open(settings).0
    }
}

/// Runs tests on engines: `on [engines] room: tests;`.
macro_rules! suite {
    ($(on $engines:tt $room:ident: $($name:ident)*;)*) => { $($(
        mod $name {
            suite!(@each $engines $room $name);
        }
    )*)* };
    (@each [$($engine:ident)*] $room:ident $name:ident) => { $(suite!(@one $engine $room $name);)* };
    (@one node $room:ident $name:ident) => {
        #[tokio::test]
        async fn node() {
            for seed in super::SEEDS {
                super::$room::$name(super::Lab::nodes(seed)).await;
            }
        }
    };
    (@one nats $room:ident $name:ident) => {
        #[cfg(feature = "nats")]
        #[tokio::test(flavor = "multi_thread")]
        async fn nats() {
            super::$room::$name(super::Lab::nats()).await
        }
    };
    (@one memory $room:ident $name:ident) => {
        #[tokio::test]
        async fn memory() {
            super::$room::$name(super::Lab::embedded(None)).await
        }
    };
    (@one os $room:ident $name:ident) => {
        #[tokio::test]
        async fn os() {
            super::$room::$name(super::Lab::embedded(Some(super::Durability::Os))).await
        }
    };
    (@one fsync $room:ident $name:ident) => {
        #[tokio::test]
        async fn fsync() {
            super::$room::$name(super::Lab::embedded(Some(super::Durability::Fsync))).await
        }
    };
}

suite! {
    on [memory os fsync node nats] messages:
        seqs_increase_and_reads_are_in_order
        a_place_in_the_order_is_taken_when_append_is_called
        a_message_for_several_mailboxes_is_an_append_in_each
        a_short_read_has_reached_the_end
        what_is_committed_is_published_or_announced
        a_mailbox_loses_only_what_is_trimmed_and_says_so
        trimming_beyond_the_end_does_not_touch_what_comes_later
        a_full_mailbox_refuses_and_keeps_what_it_has
        all_together_are_bounded_and_trimming_makes_room
        a_history_drops_its_oldest_and_says_so
        a_refused_message_is_not_remembered_as_sent
        a_reader_behind_everything_ends_even_if_what_it_waits_for_is_gone;
    on [memory os fsync node] messages:
        a_mailbox_is_bounded_in_bytes_too
        remembered_ids_are_bounded
        a_flood_pushes_out_only_the_ids_of_its_author;
    on [memory os fsync node nats] time:
        messages_end_with_their_time_and_every_hole_is_told_once_in_order
        a_topic_keeps_nothing_longer_than_its_age
        a_retry_with_the_same_id_is_stored_once
        an_id_of_another_message_is_refused
        a_hole_is_told_up_to_its_end;
    on [memory os fsync node] time:
        a_clock_that_is_set_ends_nothing_early_nor_late;
    on [memory os fsync node nats] receipts:
        a_sender_that_asks_is_told_what_became_of_its_message
        a_seq_is_given_once_when_receipts_come_in_between;
    on [memory os fsync node] receipts:
        a_receipt_has_its_room_kept_in_the_senders_mailbox;
    on [memory os fsync node nats] registrations:
        registered_sessions_are_found_by_their_user_until_they_end
        who_waits_for_a_session_is_woken_when_it_is_registered
        the_end_of_a_session_ends_its_readers
        what_waits_is_for_the_owner_only
        a_message_for_a_user_reaches_no_other_user
        a_message_for_a_registration_is_not_for_the_next_one
        a_session_that_gives_way_keeps_its_owner
        another_owner_ends_the_readers
        a_known_token_is_barred_for_as_long_as_it_is_good;
    on [memory os fsync node nats] shares:
        an_author_takes_its_share_of_a_mailbox_and_others_go_on
        a_retry_is_known_though_the_share_is_taken;
    on [memory os fsync node] shares:
        an_author_takes_its_share_of_the_store_and_others_go_on;
    on [nats] shares:
        a_node_counts_what_others_stored_in_a_mailbox
        an_author_stores_its_share_of_a_store_that_is_half_full;
    on [memory fsync] shares:
        an_author_has_messages_in_so_many_histories_at_most;
    on [os fsync] shares:
        shares_are_counted_over_restarts;
    on [memory os fsync node] crypt:
        an_encrypted_text_is_read_until_its_time_is_over;
    on [memory os fsync node nats] crypt:
        an_encrypted_text_is_read_by_its_own_store_only;
    on [os fsync node nats] crypt:
        an_encrypted_text_is_read_after_a_restart;
    on [memory os fsync node nats] backends:
        the_mailbox_of_a_backend_is_one_of_its_own
        the_end_of_a_session_of_the_same_name_leaves_a_backend_alone;
    on [os fsync node nats] backends:
        the_mailbox_of_a_backend_survives_restarts;
    on [memory os fsync node nats] seam:
        a_reader_gets_everything_once_and_in_order;
    on [os fsync node nats] restart:
        what_is_stored_is_there_after_a_crash
        registrations_survive_restarts
        a_backend_makes_an_id_a_proof
        former_owners_survive_restarts;
    on [os fsync node] restart:
        an_authors_last_ids_survive_a_flood_and_a_crash
        a_clock_that_is_set_ends_nothing_over_restarts;
    on [memory os fsync] memory:
        empty_addresses_cost_nothing_and_no_hole_goes_untold
        what_someone_reads_is_not_forgotten
        what_is_committed_is_published_at_once_and_in_order
        expired_messages_are_counted;
    on [os fsync] memory:
        a_reader_of_the_disk_sees_what_one_of_the_memory_sees;
    on [memory os fsync node nats] listing:
        registered_users_and_sessions_are_listed_in_order_until_they_end
        what_an_address_holds_is_counted;
    on [memory os fsync] listing:
        sessions_and_topics_with_messages_are_listed_until_they_have_none;
    on [memory node nats] presence:
        members_are_found_by_name_and_once;
    on [node nats] presence:
        a_node_knows_the_members_of_the_others_and_hears_of_changes;
    on [node nats] seam:
        an_address_is_subscribed_to_before_its_first_read_and_for_a_grace_after_its_last
        a_node_finds_what_another_one_registered
        the_end_of_a_session_ends_its_readers_on_every_node
        an_ack_at_one_node_is_seen_at_the_other;
    on [node] seam:
        a_new_epoch_is_told_and_reading_begins_at_the_floor;
}

/// Whether the engine has one order of all addresses, and its own clock decides how long ids are known.
fn is_one_store(engine: &Engine) -> bool {
    match engine {
        Engine::Embedded(_) | Engine::Replicated(_) => true,
        #[cfg(feature = "nats")]
        Engine::Nats(_) => false,
    }
}

fn mailbox(name: &str) -> Address {
    Address::Session(SessionId::new(name).unwrap())
}

fn topic(name: &str) -> Address {
    Address::Topic(TopicName::new(name).unwrap())
}

fn from(sender: &str, payload: &str) -> Message {
    Message {
        kind: Kind::Message,
        from: Some(SenderName::new(sender).unwrap()),
        payload: RawValue::from_string(payload.to_owned()).unwrap(),
        ts: 0,
        reference: None,
    }
}

fn author(name: &str) -> Author {
    Author::Session(SessionId::new(name).unwrap())
}

fn append(address: &Address, payload: &str) -> Append {
    Append::new(address.clone(), from("S", payload), author("S"))
}

fn publish_volatile(engine: &Engine, address: &Address, payload: &str) {
    let publication = Publication::encode(address, None, &from("S", payload));
    assert!(engine.publish_volatile(address, &publication.into()));
}

async fn put(engine: &Engine, address: &Address, payload: &str) -> Seq {
    engine.append(append(address, payload)).await.unwrap()
}

async fn put_id(engine: &Engine, address: &Address, sender: &str, id: &str, payload: &str) -> Seq {
    let id = Some(MessageId::new(id).unwrap());
    let append =
        Append { author: author(sender), message: from(sender, payload), id, ..append(address, payload) };
    engine.append(append).await.unwrap()
}

async fn put_ttl(engine: &Engine, address: &Address, payload: &str, seconds: u64) -> Seq {
    let ttl = Some(Duration::from_secs(seconds));
    engine.append(Append { ttl, ..append(address, payload) }).await.unwrap()
}

/// What a read finds, as text: payloads, and gaps as `from..to reason`.
async fn found(engine: &Engine, address: &Address, after: Seq) -> Vec<String> {
    engine.read(address, after, 100).await.unwrap().items.iter().map(text).collect()
}

fn text(item: &Item) -> String {
    match item {
        Item::Message(message) => message.payload().to_owned(),
        Item::Gap(gap) => format!("{}..{} {:?}", gap.from, gap.to, gap.reason),
    }
}

fn gap(from: Seq, to: Seq, reason: GapReason) -> String {
    format!("{from}..{to} {reason:?}")
}

async fn expire_all(engine: &Engine) {
    while engine.expire().more {
        tokio::task::yield_now().await;
    }
}

/// The items of an address, as soon as there are so many. The embedded engine has them at once.
async fn items(engine: &Engine, address: &Address, count: usize) -> Vec<Item> {
    loop {
        let items = engine.read(address, Seq::START, 100).await.unwrap().items;
        if items.len() >= count || matches!(engine, Engine::Embedded(_)) {
            return items;
        }
    }
}

/// Expects a read to find this, soon: another machine may be behind. The embedded engine finds it at once.
async fn expect(engine: &Engine, address: &Address, after: Seq, expected: &[&str]) {
    for _ in 0..100 {
        let found = found(engine, address, after).await;
        if found == expected {
            return;
        }
        assert!(!matches!(engine, Engine::Embedded(_)), "{found:?} instead of {expected:?}");
    }
    assert_eq!(found(engine, address, after).await, expected);
}

/// A reader of everything after a cursor.
fn reader(engine: &Engine, hubs: &Hubs, address: &Address, cursor: Seq) -> Subscriber {
    let start = Start { cursor, epoch: engine.epoch() };
    Subscriber::new(engine, hubs, address, start, (Transport::Websocket, usize::MAX)).unwrap()
}

async fn next_item(subscriber: &mut Subscriber) -> Item {
    timeout(Duration::from_secs(10), subscriber.next()).await.expect("in time").expect("not ended")
}

async fn next(subscriber: &mut Subscriber) -> String {
    text(&next_item(subscriber).await)
}

async fn event(live: &mut HubReceiver) -> HubEvent {
    timeout(Duration::from_secs(10), live.recv()).await.expect("in time").expect("no lag")
}
