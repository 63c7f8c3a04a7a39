use serde_json::value::RawValue;

use super::*;
use crate::directory::IdScope;
use crate::engine::{
    Bounds, Cluster, Embedded, EngineError, Lookup, Node, QueueBounds, Register, RegisterError, Registrar,
    RegistrationSource, Settings,
};
use crate::grant::{Client, Grant, Proof};
use crate::hub::{Connections, Transport};
use crate::message::{Gap, GapReason, Item, MessageId, Seq, TopicName, UserId};
use crate::protocol::{Resume, SendRequest, SendResult, To};
use crate::subscriber::Subscriber;

mod directory;
mod presence;

mod requests;

const PAYLOAD: usize = 100;
const TTL: Duration = Duration::from_secs(1000);
const READERS: usize = 2;

fn settings(clock: Clock) -> Settings {
    let bounds = Bounds { messages: 3, bytes: 1 << 20, age: TTL };
    Settings {
        mailbox: bounds,
        history: bounds,
        total_bytes: 1 << 20,
        dedup_window: TTL,
        dedup_ids: 100,
        sessions_per_user: 3,
        shares: false,
        queue: QueueBounds { messages: 100, bytes: 1 << 20 },
        clock,
    }
}

fn limits(secret_ids: bool) -> Limits {
    let revoked_for = if secret_ids { TTL } else { Duration::ZERO };
    let reply_window = TTL;
    Limits { payload: PAYLOAD, ttl: TTL, readers: READERS, revoked_for, reply_window, secret_ids }
}

/// A broker in memory, where session ids are secrets or not, and its clock.
fn broker(secret_ids: bool) -> (Broker, Clock) {
    let clock = Clock::manual();
    let hubs = Hubs::new(4);
    let engine = Embedded::in_memory(settings(clock), hubs.clone()).into();
    (Broker::new(engine, hubs, limits(secret_ids), clock), clock)
}

/// A broker on a node of several machines, whose network has this seed.
fn on_a_node(seed: u64) -> Broker {
    let clock = Clock::manual();
    let cluster = Cluster::new(settings(clock));
    let (node, hubs) = Node::start(&cluster, settings(clock), 4, seed);
    Broker::new(Engine::Replicated(node), hubs, limits(true), clock)
}

fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn to(name: &str) -> To {
    To::Session(session(name))
}

fn open(name: &str) -> Grant {
    Grant::Open { session: Some(session(name)), manages: false }
}

fn client(broker: &Broker, name: &str, of: &str) -> Grant {
    let (session, user) = (session(name), Some(user(of)));
    let handle = broker.handle(&session);
    Grant::Client(Client::new(session, handle, user, Proof::SessionId).into())
}

fn request(to: To, payload: &str) -> SendRequest {
    let payload = RawValue::from_string(payload.to_owned()).unwrap();
    SendRequest { id: None, to, payload, ttl: None, volatile: false, receipt: false, request: false }
}

async fn send(broker: &Broker, grant: &Grant, request: SendRequest) -> Result<SendResult, BrokerError> {
    broker.send(grant, request).await?.await
}

async fn put(broker: &Broker, name: &str, payload: &str) -> Seq {
    send(broker, &open("S"), request(to(name), payload)).await.unwrap().seq.unwrap()
}

async fn mailbox(broker: &Broker, name: &str, after: Option<Seq>) -> (Subscriber, Opening) {
    let resume = Resume { after, epoch: None };
    broker.mailbox(&session(name), &resume, Transport::Websocket).await.unwrap()
}

async fn next(subscriber: &mut Subscriber) -> String {
    match subscriber.next().await {
        Some(Item::Message(message)) => message.payload().to_owned(),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_too_large_or_kept_too_long_is_refused() {
    let (broker, _) = broker(false);
    let payload = |size: usize| format!("\"{}\"", "x".repeat(size - 2));
    assert!(send(&broker, &open("S"), request(to("A"), &payload(PAYLOAD))).await.is_ok());
    let large = send(&broker, &open("S"), request(to("A"), &payload(PAYLOAD + 1))).await.unwrap_err();
    assert_eq!(large, BrokerError::PayloadTooLarge { size: PAYLOAD + 1, limit: PAYLOAD });
    let ttl = |ttl| SendRequest { ttl: Some(ttl), ..request(to("A"), "1") };
    assert!(send(&broker, &open("S"), ttl(TTL)).await.is_ok());
    let long = send(&broker, &open("S"), ttl(TTL + Duration::from_millis(1))).await.unwrap_err();
    assert_eq!(long, BrokerError::TtlTooLong { limit: TTL.as_secs() });
    assert_eq!(broker.register(&session("A"), None, TTL * 2, false).await.unwrap_err(), long);
}

#[tokio::test]
async fn a_receipt_has_its_conditions() {
    let (broker, _) = broker(false);
    let id = Some(MessageId::new("c-1").unwrap());
    let good = SendRequest { id, receipt: true, ..request(to("A"), "1") };
    let topic = To::Topic(TopicName::new("news").unwrap());
    for (bad, why) in [
        (SendRequest { to: topic, ..good.clone() }, "nobody acknowledges a topic"),
        (SendRequest { to: To::User(user("ann")), ..good.clone() }, "a user may have several"),
        (SendRequest { volatile: true, ..good.clone() }, "exclude each other"),
        (SendRequest { id: None, ..good.clone() }, "needs an `id`"),
    ] {
        let refused = send(&broker, &open("S"), bad).await.unwrap_err();
        assert!(
            matches!(refused, BrokerError::NoReceipt(_)) && refused.to_string().contains(why),
            "{refused}"
        );
    }
    let nobody = Grant::Open { session: None, manages: false };
    assert_eq!(send(&broker, &nobody, good.clone()).await.unwrap_err(), BrokerError::ReceiptForNobody);
    let seq = send(&broker, &open("S"), good).await.unwrap().seq.unwrap();
    broker.ack(&session("A"), seq, None).await.unwrap();
    let (mut sender, _) = mailbox(&broker, "S", None).await;
    let Some(Item::Message(receipt)) = sender.next().await else { panic!("no receipt") };
    assert!(receipt.frame().contains(r#""id":"c-1","state":"acknowledged""#), "{}", receipt.frame());
}

#[tokio::test]
async fn a_message_to_a_user_goes_to_all_sessions() {
    let (broker, _) = broker(false);
    let to_ann = || request(To::User(user("ann")), "1");
    let unknown = send(&broker, &open("S"), to_ann()).await.unwrap_err();
    assert_eq!(unknown, BrokerError::NoSuchUser(user("ann")));
    for name in ["A", "B"] {
        broker.register(&session(name), Some(user("ann")), TTL, false).await.unwrap();
    }
    let sent = send(&broker, &open("S"), to_ann()).await.unwrap();
    assert_eq!((sent.seq, sent.sessions), (None, Some(2)));
    let volatile = SendRequest { volatile: true, ..to_ann() };
    assert_eq!(send(&broker, &open("S"), volatile).await.unwrap().sessions, Some(2));
    for name in ["A", "B"] {
        assert_eq!(broker.session(&session(name)).await.waiting, 1);
        assert_eq!(next(&mut mailbox(&broker, name, None).await.0).await, "1");
    }
    // A full mailbox of one is not the fault of the other.
    for n in 0..2 {
        put(&broker, "A", &n.to_string()).await;
    }
    assert_eq!(send(&broker, &open("S"), to_ann()).await.unwrap().sessions, Some(1));
    assert!(matches!(
        send(&broker, &open("S"), request(to("A"), "1")).await,
        Err(BrokerError::Engine(EngineError::MailboxFull { messages: 3, .. }))
    ));
}

#[tokio::test]
async fn clients_reach_sessions_of_others_by_handle_or_user() {
    let (broker, _) = broker(true);
    for (name, of) in [("A", "ann"), ("B", "bob"), ("B2", "bob")] {
        broker.register(&session(name), Some(user(of)), TTL, false).await.unwrap();
    }
    let bob = client(&broker, "B", "bob");
    let by = async |to: To| send(&broker, &bob, request(to, "1")).await.map(|sent| sent.sessions);
    assert_eq!(by(to("A")).await, Err(BrokerError::NoSuchSession));
    assert_eq!(by(to(&broker.handle(&session("A")).to_string())).await, Ok(None));
    assert_eq!(by(to("B2")).await, Ok(None), "a session of its own user");
    // x0's pages name anything.
    for (name, sessions) in [("ann", Some(1)), ("B2", None), ("bob", Some(2))] {
        assert_eq!(by(To::Peer(session(name))).await, Ok(sessions), "{name}");
    }
    assert_eq!(by(To::Peer(session("nobody"))).await, Err(BrokerError::NoSuchSession));
    assert_eq!(broker.session(&session("A")).await.waiting, 2);
}

#[tokio::test]
async fn an_ack_is_for_what_was_stored_in_this_epoch() {
    let (broker, _) = broker(false);
    let a = session("A");
    let first = put(&broker, "A", "1").await;
    let second = put(&broker, "A", "2").await;
    let beyond = Seq(second.0 + 1);
    let refused = broker.ack(&a, beyond, None).await.unwrap_err();
    assert_eq!(refused, BrokerError::AckBeyond { seq: beyond, newest: second });
    let other = Epoch::new("other");
    let refused = broker.ack(&a, first, Some(&other)).await.unwrap_err();
    assert_eq!(refused, BrokerError::WrongEpoch { epoch: broker.epoch() });
    assert_eq!(broker.ack(&a, first, Some(&broker.epoch())).await, Ok(first));
    assert_eq!(broker.ack(&a, Seq::START, None).await, Ok(first), "the floor does not sink");
    assert!(
        broker.is_ours(&a, second, None).await.unwrap()
            && broker.is_ours(&a, Seq::START, None).await.unwrap()
    );
    assert!(
        !broker.is_ours(&a, beyond, None).await.unwrap() && !broker.is_ours(&a, Seq(1), None).await.unwrap()
    );
    assert!(!broker.is_ours(&a, second, Some(&other)).await.unwrap());
}

#[tokio::test]
async fn what_is_acknowledged_is_below_the_floor_though_a_slower_reader_needs_it() {
    let (broker, _) = broker(false);
    let a = session("A");
    let (mut slow, _) = mailbox(&broker, "A", None).await;
    let seq = put(&broker, "A", "1").await;
    assert_eq!(broker.ack(&a, seq, None).await, Ok(seq));
    assert_eq!(broker.floor(&a).await, seq);
    assert_eq!(broker.session(&a).await.waiting, 1, "kept for the slower one");
    let (_, opening) = mailbox(&broker, "A", None).await;
    assert_eq!(opening, Opening { seq, recovered: true });
    assert_eq!(next(&mut slow).await, "1");
    slow.mark_sent(slow.delivered());
    assert_eq!(broker.session(&a).await.waiting, 0);
}

#[tokio::test]
async fn a_slower_reader_never_fills_the_mailbox_and_is_told_a_gap() {
    let (broker, _) = broker(false);
    let a = session("A");
    let ((mut slow, _), (mut fast, _)) =
        (mailbox(&broker, "A", None).await, mailbox(&broker, "A", None).await);
    let mut seqs = Vec::new();
    for n in 0..9 {
        // The mailbox has room for three.
        let seq = put(&broker, "A", &n.to_string()).await;
        assert_eq!(next(&mut fast).await, n.to_string());
        fast.mark_sent(seq);
        assert_eq!(broker.ack(&a, seq, None).await, Ok(seq));
        assert_eq!(broker.session(&a).await.waiting, 1, "half of the mailbox");
        seqs.push(seq);
    }
    let gap = Gap { from: Seq::START, to: seqs[7], reason: GapReason::Acknowledged };
    assert_eq!(next(&mut slow).await, format!("{:?}", Some(Item::Gap(gap))));
    assert_eq!(next(&mut slow).await, "8");
    slow.mark_sent(slow.delivered());
    assert_eq!(broker.session(&a).await.waiting, 0);
}

#[tokio::test]
async fn a_foreign_cursor_begins_at_the_floor_and_is_told() {
    let (broker, _) = broker(false);
    let seq = put(&broker, "A", "1").await;
    let foreign = Resume { after: Some(seq), epoch: Some(Epoch::new("other")) };
    let (mut reader, opening) = broker.mailbox(&session("A"), &foreign, Transport::Websocket).await.unwrap();
    assert!(!opening.recovered);
    assert!(next(&mut reader).await.contains("reason: Epoch"));
    assert_eq!(next(&mut reader).await, "1");
    let (_, opening) = mailbox(&broker, "A", Some(Seq::START)).await;
    assert!(opening.recovered, "0 is where every mailbox starts");
}

#[tokio::test]
async fn a_topic_says_whether_its_history_reaches_back() {
    let (broker, _) = broker(false);
    let news = TopicName::new("news").unwrap();
    let mut seqs = Vec::new();
    for n in 0..5 {
        let sent = send(&broker, &open("S"), request(To::Topic(news.clone()), &n.to_string())).await.unwrap();
        seqs.push(sent.seq.unwrap());
    }
    for (after, recovered) in [(None, true), (Some(seqs[0]), false), (Some(seqs[1]), true)] {
        let resume = Resume { after, epoch: None };
        let (_, opening) = broker.topic(&news, &resume, Transport::Sse).await;
        assert_eq!(opening, Opening { seq: seqs[4], recovered }, "{after:?}");
    }
}

#[tokio::test]
async fn a_session_that_is_ended_has_no_readers_and_no_new_ones_by_token() {
    let (broker, clock) = broker(true);
    let (a, ann) = (session("A"), user("ann"));
    broker.register(&a, Some(ann.clone()), TTL, false).await.unwrap();
    let (mut reader, _) = mailbox(&broker, "A", None).await;
    put(&broker, "A", "1").await;
    broker.end(&a).await.unwrap();
    assert_eq!(next(&mut reader).await, "None");
    let refused = broker.mailbox(&a, &Resume::default(), Transport::Poll).await.unwrap_err();
    assert_eq!(refused, BrokerError::Ended);
    let by_token = || broker.register_from_token(&a, &ann, (TTL, 0)).decided();
    assert_eq!(by_token().await, Err(RegisterError::Ended));
    let state = broker.session(&a).await;
    assert_eq!((state.registration, state.waiting, state.connections), (None, 0, Connections::default()));
    clock.advance(TTL);
    assert_eq!(by_token().await, Ok(()));
    let taken = broker.register(&a, Some(user("bob")), TTL, false).await.unwrap_err();
    assert_eq!(taken, BrokerError::Register(RegisterError::Taken));
}

#[tokio::test]
async fn readers_of_a_session_are_limited() {
    let (broker, _) = broker(false);
    let _readers = [mailbox(&broker, "A", None).await, mailbox(&broker, "A", None).await];
    let refused = broker.mailbox(&session("A"), &Resume::default(), Transport::Poll).await.unwrap_err();
    assert_eq!(refused, BrokerError::TooManyReaders { limit: READERS });
    assert_eq!(broker.session(&session("A")).await.connections.websocket, READERS);
    assert_eq!(broker.hubs(), 1);
}

#[tokio::test]
async fn a_generated_session_belongs_to_its_user() {
    let (broker, _) = broker(true);
    let (ann, bob) = (user("ann"), user("bob"));
    let (one, other) = (broker.make_session(&ann), broker.make_session(&ann));
    assert_ne!(one, other);
    assert!(broker.is_made_for(&one, &ann) && broker.is_made_for(&other, &ann));
    assert!(!broker.is_made_for(&one, &bob) && !broker.is_made_for(&session("A"), &ann));
    let mut forged = one.as_str().to_owned();
    let last = if forged.ends_with('A') { "B" } else { "A" };
    forged.replace_range(forged.len() - 1.., last);
    assert!(!broker.is_made_for(&session(&forged), &ann));
}

#[test]
fn logs_name_a_secret_session_by_its_handle() {
    let a = session("A");
    assert_eq!(broker(false).0.public_name(&a), "A");
    let (secret, _) = broker(true);
    assert_eq!(secret.public_name(&a), secret.handle(&a).to_string());
}

/// This node's copy of the directory is behind: nothing is refused for that.
#[tokio::test]
async fn what_a_node_does_not_know_yet_is_asked_before_it_is_refused() {
    for seed in 0..6 {
        println!("seed {seed}");
        let broker = on_a_node(seed);
        let (a, ann) = (session("A"), user("ann"));
        let by_backend = || Register {
            session: a.clone(),
            user: Some(ann.clone()),
            ttl: TTL,
            by: Registrar::Backend { proof: false },
        };
        // Past the broker, which asks by itself after a registration.
        broker.engine.register(&by_backend()).await.unwrap();
        assert_eq!(broker.directory().user_of(&a).await, Some(ann.clone()));
        broker.engine.end(&a, TTL).await.unwrap();
        broker.engine.confirm(Lookup::Session(&a)).await;
        assert_eq!(
            broker.mailbox(&a, &Resume::default(), Transport::Poll).await.unwrap_err(),
            BrokerError::Ended
        );
        broker.engine.register(&by_backend()).await.unwrap();
        assert!(broker.mailbox(&a, &Resume::default(), Transport::Poll).await.is_ok());
        assert!(broker.directory().holder(&a, IdScope::X0).await.is_some());
        assert_eq!(broker.directory().sessions_of(&ann).await, std::slice::from_ref(&a));
        let to_ann = send(&broker, &open("S"), request(To::User(ann), "1")).await.unwrap();
        assert_eq!(to_ann.sessions, Some(1));
        let to_handle = request(to(&broker.handle(&a).to_string()), "2");
        let seq = send(&broker, &client(&broker, "B", "bob"), to_handle).await.unwrap().seq.unwrap();
        assert!(broker.is_ours(&a, seq, None).await.unwrap());
        assert_eq!(broker.ack(&a, seq, None).await, Ok(seq));
        let beyond = Seq(seq.0 + 1);
        assert!(matches!(broker.ack(&a, beyond, None).await, Err(BrokerError::AckBeyond { .. })));
    }
}
