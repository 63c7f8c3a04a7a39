//! What one message costs in each part of the broker, without sockets.
//!
//!     cargo bench --bench core [-- FILTER]
//!
//! - `encode`: a message becomes a frame, of 128 bytes and of 64 KiB.
//! - `hub`: a publication goes to 1, 100 and 10,000 subscribers of a topic, and each takes it.
//! - `mailbox`: append, read 64 and acknowledge, at level `memory`; and a commit of 64 messages at level `os`.
//! - `user`: a message to a user of 10 sessions, at level `memory`: stored and acknowledged.
//! - `legacy`: the object that an x0 page gets for a payload.
//!
//! To compare two builds, save the figures of one and run the other against them:
//!
//!     cargo bench --bench core -- --save-baseline before
//!     cargo bench --bench core -- --baseline before

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use serde_json::value::RawValue;
use tokio::runtime::{Builder, Runtime};
use x0_msg_server::clock::Clock;
use x0_msg_server::config::Config;
use x0_msg_server::engine::embedded::{Durability, Embedded};
use x0_msg_server::engine::{Append, Settings};
use x0_msg_server::fuzzing::x0_object;
use x0_msg_server::hub::{Hubs, Transport};
use x0_msg_server::message::{
    Address, Author, Kind, Message, Publication, SenderName, Seq, SessionId, TopicName,
};
use x0_msg_server::server::engine_settings;

/// Messages that are committed or read together.
const GROUP: u64 = 64;

fn mailbox(name: &str) -> Address {
    Address::Session(SessionId::new(name).expect("a name"))
}

/// A message whose payload has so many bytes.
fn message(size: usize) -> Message {
    let payload = format!(r#"{{"text":"{}","n":1}}"#, "x".repeat(size - 17));
    let payload = RawValue::from_string(payload).expect("JSON");
    Message { payload, ..with_sender(SenderName::new("sender").expect("a name")) }
}

fn with_sender(from: SenderName) -> Message {
    let payload = RawValue::NULL.to_owned();
    Message { kind: Kind::Message, from: Some(from), payload, ts: 1_763_886_000_000, reference: None }
}

fn append(address: &Address, message: &Message) -> Append {
    Append::new(address.clone(), message.clone(), Author::Anonymous)
}

/// Bounds that no benchmark meets.
fn settings() -> Settings {
    let mut settings = engine_settings(&Config::default(), Clock::Wall);
    settings.mailbox.messages = usize::MAX;
    settings.mailbox.bytes = usize::MAX;
    settings
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    let address = mailbox("A");
    for size in [128, 64 << 10] {
        let message = message(size);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| Publication::encode(&address, Some(Seq(1_000_000)), black_box(&message)));
        });
    }
    group.finish();
}

fn hub(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hub");
    let topic = Address::Topic(TopicName::new("news").expect("a name"));
    for subscribers in [1, 100, 10_000_u64] {
        let hubs = Hubs::new(None);
        let join = |_| hubs.join(&topic, Seq::START, Transport::Websocket, usize::MAX).expect("a reader");
        let mut readers: Vec<_> = (0..subscribers).map(join).collect();
        let publication = Arc::new(Publication::encode(&topic, Some(Seq(1)), &message(128)));
        group.throughput(Throughput::Elements(subscribers));
        group.bench_function(BenchmarkId::from_parameter(subscribers), |bencher| {
            bencher.iter(|| {
                hubs.publish(&topic, &publication, Seq::START);
                for (_, receiver) in &mut readers {
                    black_box(receiver.try_recv().expect("an event"));
                }
            });
        });
        readers.iter().for_each(|(handle, _)| handle.leave());
    }
    group.finish();
}

fn mailbox_in_memory(criterion: &mut Criterion) {
    let (runtime, address, message) = (runtime(), mailbox("A"), message(128));
    let engine = Embedded::in_memory(settings(), Hubs::new(None));
    let store = || runtime.block_on(engine.append(append(&address, &message))).expect("it is stored");
    let mut group = criterion.benchmark_group("mailbox");
    group.bench_function("append, acknowledge", |bencher| {
        bencher.iter(|| engine.trim(&address, store()));
    });
    let last = (0..GROUP).map(|_| store()).max().expect("some");
    let count = usize::try_from(GROUP).expect("small");
    group.throughput(Throughput::Elements(GROUP));
    group.bench_function("read", |bencher| {
        bencher.iter(|| {
            let batch = runtime.block_on(engine.read(&address, Seq::START, count)).expect("it is read");
            assert_eq!(batch.cursor, last);
        });
    });
    group.finish();
}

fn user(criterion: &mut Criterion) {
    let (runtime, mailboxes) = (runtime(), (0..10).map(|n| mailbox(&n.to_string())).collect::<Vec<_>>());
    let engine = Embedded::in_memory(settings(), Hubs::new(None));
    let mut group = criterion.benchmark_group("user");
    group.throughput(Throughput::Elements(10));
    for size in [128, 64 << 10] {
        let message = message(size);
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| {
                let append = append(&mailboxes[0], &message);
                let commits = engine.append_each(append, mailboxes[1..].to_vec());
                for (mailbox, commit) in mailboxes.iter().zip(commits) {
                    engine.trim(mailbox, runtime.block_on(commit).expect("it is stored"));
                }
            });
        });
    }
    group.finish();
}

fn mailbox_on_disk(criterion: &mut Criterion) {
    let (runtime, message, dir) = (runtime(), message(128), tempfile::tempdir().expect("a directory"));
    let (engine, mut writer) =
        Embedded::open_stepped(settings(), Hubs::new(None), dir.path(), Durability::Os).expect("a store");
    let addresses: Vec<_> = (0..GROUP).map(|n| mailbox(&n.to_string())).collect();
    let mut group = criterion.benchmark_group("commit");
    group.throughput(Throughput::Elements(GROUP));
    group.bench_function("of 64, acknowledged", |bencher| {
        bencher.iter_batched(
            || addresses.iter().map(|address| append(address, &message)).collect::<Vec<_>>(),
            |appends| {
                let commits: Vec<_> = appends.into_iter().map(|append| engine.append(append)).collect();
                writer.turn();
                for (address, commit) in addresses.iter().zip(commits) {
                    engine.trim(address, runtime.block_on(commit).expect("it is stored"));
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
    writer.finish();
}

fn legacy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("legacy");
    let from = SenderName::new("sender").expect("a name");
    for size in [128, 64 << 10] {
        let payload = message(size).payload;
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| x0_object(black_box(payload.get()), Some(&from)));
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    encode(&mut criterion);
    hub(&mut criterion);
    mailbox_in_memory(&mut criterion);
    mailbox_on_disk(&mut criterion);
    user(&mut criterion);
    legacy(&mut criterion);
    criterion.final_summary();
}
