//! The attacks.

use std::sync::Arc;

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, SinkExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::broker::{Broker, KEY, Mode};
use crate::good::frame;
use crate::http::Http;
use crate::wire::{ADDRESS, endless, http_2, no_body, payload, pour, request, upgrade};

const MB: usize = 1_000_000;

/// What goes on until it is dropped.
pub(crate) type Attackers = JoinSet<()>;

/// One attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) mode: Mode,
    /// Settings of the broker besides the budget.
    pub(crate) args: &'static [&'static str],
    pub(crate) start: fn(Arc<Broker>) -> BoxFuture<'static, Result<Attackers>>,
}

macro_rules! attack {
    ($name:literal, $mode:ident, $args:expr, $start:ident) => {
        Attack { name: $name, mode: Mode::$mode, args: &$args, start: |broker| $start(broker).boxed() }
    };
}

const NO_RATE: [&str; 4] = ["--send-rate", "0", "--send-bytes-rate", "0"];

pub(crate) const ATTACKS: [Attack; 17] = [
    attack!("500 unfinished bodies of 1 MB, HTTP/2", Tls, [], bodies_over_http_2),
    attack!("300 unfinished bodies of 1 MB, HTTP/1.1", Open, [], bodies_over_http_1),
    attack!("200 sockets without hello, unfinished 1 MB", Open, [], frames_before_hello),
    attack!("100 polls of 1 MB, HTTP/2 with window 0", Tls, [], answers_nobody_takes),
    attack!("40 stuck sockets of a user, 60 volatile 1 MB", Token, NO_RATE, volatile_to_stuck_sockets),
    attack!("200 sockets: 1 MB in and out, then 20 small", Open, [], large_then_small),
    attack!(
        "one author fills the store",
        Token,
        ["--store-limit", "256MiB", "--send-rate", "0", "--send-bytes-rate", "0"],
        fill_store
    ),
    attack!("one author sends 1 MB to 100 sessions, again and again", Token, NO_RATE, fill_queue),
    attack!("one author sends 67 MB to an offline user", Token, NO_RATE, fill_mailbox),
    attack!("200 stuck event streams, a topic of 60 x 1 MB", Open, [], events_nobody_reads),
    attack!("400 event streams of one 1 MB topic, window 0", Tls, [], events_over_http_2),
    attack!("400 polls of one 1 MB topic, window 0", Tls, [], history_nobody_takes),
    attack!("1,000 streams of pages, window 0", Tls, [], pages_nobody_takes),
    attack!("20 arrays of 1,000 sends at once, again and again", Open, [], arrays),
    attack!("one author: 20 arrays of 1,000 sends at once, again and again", Token, NO_RATE, arrays),
    attack!("300 unfinished heads of 60 KB", Open, [], heads),
    attack!("500 stuck sockets with 1,000 messages of 4 KB each", Open, [], small_messages_nobody_reads),
];

async fn bodies_over_http_2(broker: Arc<Broker>) -> Result<Attackers> {
    let mut attackers = Attackers::new();
    for _ in 0..5 {
        let sender = http_2(&broker, &mut attackers, None).await?;
        for _ in 0..100 {
            let body = endless(Bytes::from(vec![b' '; MB]));
            request(&mut attackers, &sender, ("POST", "/python/MsgHandler.py"), body)?;
        }
    }
    Ok(attackers)
}

async fn bodies_over_http_1(broker: Arc<Broker>) -> Result<Attackers> {
    let mut attackers = Attackers::new();
    for target in ["/v1/messages?session=A", "/python/MsgHandler.py"].repeat(150) {
        let head = format!("POST {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n");
        let stream = broker.connect(ADDRESS, "").await?;
        pour(&mut attackers, stream, [head.into_bytes(), vec![b' '; 990_000]].concat().into());
    }
    Ok(attackers)
}

async fn frames_before_hello(broker: Arc<Broker>) -> Result<Attackers> {
    let mut attackers = Attackers::new();
    let header = [&[0x81, 0xff][..], &1_000_000_u64.to_be_bytes(), &[0; 4]].concat();
    let bytes = Bytes::from([header, vec![b' '; 990_000]].concat());
    for _ in 0..200 {
        let stream = upgrade(broker.connect(ADDRESS, "").await?, "", None).await?;
        pour(&mut attackers, stream, bytes.clone());
    }
    Ok(attackers)
}

/// Sends 1 MB to each of these addresses.
async fn send_large(broker: &Broker, to: impl Iterator<Item = Value>) -> Result<()> {
    let mut http = Http::connect(broker, ADDRESS, None).await?;
    for to in to {
        let send = format!(r#"{{"to":{to},"payload":{}}}"#, payload(MB));
        let (status, answer) = http.call("POST", "/v1/messages?session=attacker", send).await?;
        ensure!(status == 200, "{status} {answer}");
    }
    Ok(())
}

async fn answers_nobody_takes(broker: Arc<Broker>) -> Result<Attackers> {
    send_large(&broker, (0..100).map(|n| json!({ "session": format!("s{n}") }))).await?;
    let mut attackers = Attackers::new();
    let sender = http_2(&broker, &mut attackers, Some(0)).await?;
    for n in 0..100 {
        let target = format!("/v1/messages?session=s{n}&wait=60");
        request(&mut attackers, &sender, ("GET", &target), no_body())?;
    }
    Ok(attackers)
}

/// So many responses of one target that nobody takes, 100 on a connection.
async fn responses_nobody_takes(broker: &Broker, count: usize, target: &str) -> Result<Attackers> {
    let mut attackers = Attackers::new();
    for _ in 0..count / 100 {
        let sender = http_2(broker, &mut attackers, Some(0)).await?;
        for _ in 0..100 {
            request(&mut attackers, &sender, ("GET", target), no_body())?;
        }
    }
    Ok(attackers)
}

async fn history_nobody_takes(broker: Arc<Broker>) -> Result<Attackers> {
    send_large(&broker, std::iter::once(json!({ "topic": "news" }))).await?;
    responses_nobody_takes(&broker, 400, "/v1/messages?topic=news&after.news=0&wait=60").await
}

async fn events_over_http_2(broker: Arc<Broker>) -> Result<Attackers> {
    send_large(&broker, std::iter::once(json!({ "topic": "news" }))).await?;
    responses_nobody_takes(&broker, 400, "/v1/events?topic=news&after.news=0").await
}

async fn pages_nobody_takes(broker: Arc<Broker>) -> Result<Attackers> {
    let mut attackers = responses_nobody_takes(&broker, 500, "/openapi.json").await?;
    let mut pages = responses_nobody_takes(&broker, 500, "/docs/limits").await?;
    attackers.spawn(async move { while pages.join_next().await.is_some() {} });
    Ok(attackers)
}

async fn volatile_to_stuck_sockets(broker: Arc<Broker>) -> Result<Attackers> {
    let mut attackers = Attackers::new();
    for n in 0..40 {
        let bearer = broker.bearer("bob", &format!("bob-{n}"));
        let stream = upgrade(broker.connect_narrow(ADDRESS).await?, "", bearer.as_deref()).await?;
        pour(&mut attackers, stream, Bytes::new());
    }
    let mut http = Http::connect(&broker, ADDRESS, Some(KEY.to_owned())).await?;
    attackers.spawn(async move {
        let send = format!(r#"{{"to":{{"user":"bob"}},"payload":{},"volatile":true}}"#, payload(MB));
        for _ in 0..60 {
            _ = http.call("POST", "/v1/messages", send.clone()).await;
        }
    });
    Ok(attackers)
}

async fn large_then_small(broker: Arc<Broker>) -> Result<Attackers> {
    let mut attackers = Attackers::new();
    for n in 0..200 {
        let session = format!("s{n}");
        let stream =
            upgrade(broker.connect(ADDRESS, "").await?, &format!("?session={session}"), None).await?;
        attackers.spawn(async move {
            let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
            for size in [MB].into_iter().chain([20; 20]) {
                let send = format!(
                    r#"{{"type":"send","to":{{"session":"{session}"}},"payload":{}}}"#,
                    payload(size)
                );
                if socket.send(Message::text(send)).await.is_err() {
                    return;
                }
                for _ in 0..2 {
                    let Ok(frame) = frame(&mut socket).await else { return };
                    if frame["type"] == "message" {
                        let ack = json!({ "type": "ack", "seq": frame["seq"] });
                        _ = socket.send(Message::text(ack.to_string())).await;
                    }
                }
            }
            std::future::pending::<()>().await;
            drop(socket);
        });
    }
    Ok(attackers)
}

/// One author sends the same again and again on so many connections.
async fn repeat(broker: &Broker, connections: usize, send: String) -> Result<Attackers> {
    let mut attackers = Attackers::new();
    for _ in 0..connections {
        let bearer = broker.bearer("ann", "ann-0");
        let mut http = Http::connect(broker, ADDRESS, bearer).await?;
        let send = Bytes::from(send.clone());
        attackers.spawn(async move {
            while http.call("POST", "/v1/messages?session=ann-0", send.clone()).await.is_ok() {}
        });
    }
    Ok(attackers)
}

/// Registers so many sessions of a user.
async fn register(broker: &Broker, user: &str, count: usize) -> Result<()> {
    let mut backend = Http::connect(broker, ADDRESS, Some(KEY.to_owned())).await?;
    for n in 0..count {
        let body = json!({ "user": user, "ttl": 3600 }).to_string();
        let (status, answer) = backend.call("PUT", &format!("/v1/sessions/{user}-{n}"), body).await?;
        ensure!(status == 200, "{status} {answer}");
    }
    Ok(())
}

async fn fill_store(broker: Arc<Broker>) -> Result<Attackers> {
    register(&broker, "ann", 100).await?;
    let send = format!(r#"{{"to":{{"user":"ann"}},"payload":{}}}"#, payload(60_000));
    repeat(&broker, 4, send).await
}

async fn fill_queue(broker: Arc<Broker>) -> Result<Attackers> {
    register(&broker, "ann", 100).await?;
    repeat(&broker, 4, format!(r#"{{"to":{{"user":"ann"}},"payload":{}}}"#, payload(MB))).await
}

async fn fill_mailbox(broker: Arc<Broker>) -> Result<Attackers> {
    register(&broker, "bob", 1).await?;
    let send = format!(r#"{{"to":{{"user":"bob"}},"ttl":2592000,"payload":{}}}"#, payload(MB));
    let mut ann = Http::connect(&broker, ADDRESS, broker.bearer("ann", "ann-0")).await?;
    for _ in 0..67 {
        ann.call("POST", "/v1/messages", send.clone()).await?;
    }
    // Others reach it.
    for bearer in [Some(KEY.to_owned()), broker.bearer("carl", "carl-0")] {
        let mut other = Http::connect(&broker, ADDRESS, bearer).await?;
        let (status, answer) = other.call("POST", "/v1/messages", send.clone()).await?;
        ensure!(status == 200, "{status} {answer}");
    }
    Ok(Attackers::new())
}

async fn events_nobody_reads(broker: Arc<Broker>) -> Result<Attackers> {
    let mut attackers = Attackers::new();
    for _ in 0..200 {
        let stream = broker.connect_narrow(ADDRESS).await?;
        let head = "GET /v1/events?topic=news HTTP/1.1\r\nhost: localhost\r\n\r\n";
        pour(&mut attackers, stream, Bytes::from(head));
    }
    attackers.spawn(async move {
        _ = send_large(&broker, std::iter::repeat_n(json!({ "topic": "news" }), 60)).await;
    });
    Ok(attackers)
}

async fn arrays(broker: Arc<Broker>) -> Result<Attackers> {
    let one = format!(r#"{{"to":{{"topic":"news"}},"payload":{}}}"#, payload(900));
    repeat(&broker, 20, format!("[{}]", vec![one; 1000].join(","))).await
}

async fn heads(broker: Arc<Broker>) -> Result<Attackers> {
    let mut attackers = Attackers::new();
    let head = (0..60).fold("GET / HTTP/1.1\r\nhost: localhost\r\n".to_owned(), |head, n| {
        head + &format!("x-{n}: {}\r\n", "x".repeat(1_000))
    });
    for _ in 0..300 {
        pour(&mut attackers, broker.connect(ADDRESS, "").await?, Bytes::from(head.clone()));
    }
    Ok(attackers)
}

async fn small_messages_nobody_reads(broker: Arc<Broker>) -> Result<Attackers> {
    let mut http = Http::connect(&broker, ADDRESS, None).await?;
    for n in 0..500 {
        for _ in 0..5 {
            let one = format!(r#"{{"to":{{"session":"s{n}"}},"payload":{}}}"#, payload(3_900));
            let array = format!("[{}]", vec![one; 200].join(","));
            let (status, answer) = http.call("POST", "/v1/messages?session=attacker", array).await?;
            ensure!(status == 200 && answer[0]["seq"].is_u64(), "{status} {answer}");
        }
    }
    let mut attackers = Attackers::new();
    for n in 0..500 {
        let stream = broker.connect_narrow(ADDRESS).await?;
        let stream = upgrade(stream, &format!("?session=s{n}"), None).await?;
        pour(&mut attackers, stream, Bytes::new());
    }
    Ok(attackers)
}
