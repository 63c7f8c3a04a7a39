//! Clients that send and receive all the time: each sends to its own session, waits until the message comes, and measures that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::broker::{Broker, KEY, Stream};
use crate::http::Http;

const ADDRESS: &str = "127.0.0.2";
const PAUSE: Duration = Duration::from_millis(200);

/// A message that has not come by then is lost.
const LOST: Duration = Duration::from_secs(30);

/// What they have seen.
#[derive(Default)]
pub(crate) struct Seen {
    lost: AtomicU64,
    /// Sends that were refused, and repeated.
    refused: AtomicU64,
    /// The first failure.
    failure: Mutex<Option<String>>,
    /// From the send to the message.
    times: Mutex<Vec<Duration>>,
}

impl Seen {
    /// Forgets everything so far.
    pub(crate) fn reset(&self) {
        self.times.lock().expect("not poisoned").clear();
        self.lost.store(0, Ordering::Relaxed);
        self.refused.store(0, Ordering::Relaxed);
    }

    /// A send is refused because the broker has too much to do: pauses, to send again.
    async fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        sleep(PAUSE).await;
    }

    fn note(&self, begun: Instant, result: Result<Result<()>, tokio::time::error::Elapsed>) {
        let failure = match result {
            Ok(Ok(())) => return self.times.lock().expect("not poisoned").push(begun.elapsed()),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "a message did not come".to_owned(),
        };
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.failure.lock().expect("not poisoned").get_or_insert(failure);
    }

    /// Messages that came, those that did not, refused sends, and p50 and p99 in milliseconds.
    pub(crate) fn report(&self) -> (usize, u64, u64, f64, f64) {
        if let Some(failure) = &*self.failure.lock().expect("not poisoned") {
            println!("  a good client: {failure}");
        }
        let mut times = self.times.lock().expect("not poisoned").clone();
        times.sort();
        let at = |percent: usize| {
            let time = times.get(times.len().saturating_sub(1) * percent / 100);
            time.map_or(0.0, |time| time.as_secs_f64() * 1000.0)
        };
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (times.len(), count(&self.lost), count(&self.refused), at(50), at(99))
    }
}

/// Starts so many: WebSockets, native polls and x0 pages.
pub(crate) async fn start(broker: &Arc<Broker>, count: usize, seen: &Arc<Seen>) -> Result<JoinSet<()>> {
    let mut clients = JoinSet::new();
    for n in 0..count {
        let (user, session) = (format!("good-{n}"), format!("good-{n}-{:032x}", fastrand::u128(..)));
        let bearer = broker.bearer(&user, &session);
        let client = match n % 3 {
            0 => Client::Socket(socket(broker, &session, bearer).await?),
            1 => Client::Poll(Pair::connect(broker, bearer).await?, 0),
            _ => {
                if bearer.is_some() {
                    let mut backend = Http::connect(broker, ADDRESS, Some(KEY.to_owned())).await?;
                    let body = json!({ "user": user, "ttl": 3600 }).to_string();
                    let (status, answer) =
                        backend.call("PUT", &format!("/v1/sessions/{session}"), body).await?;
                    ensure!(status == 200, "{status} {answer}");
                }
                Client::X0(Pair::connect(broker, None).await?)
            }
        };
        clients.spawn(run(client, session, Arc::clone(seen)));
    }
    Ok(clients)
}

enum Client {
    Socket(WebSocketStream<Box<dyn Stream>>),
    /// With its cursor.
    Poll(Pair, u64),
    X0(Pair),
}

/// A connection that polls, and one that sends.
struct Pair {
    poll: Http,
    send: Http,
}

impl Pair {
    async fn connect(broker: &Broker, bearer: Option<String>) -> Result<Self> {
        let poll = Http::connect(broker, ADDRESS, bearer.clone()).await?;
        Ok(Self { poll, send: Http::connect(broker, ADDRESS, bearer).await? })
    }
}

async fn run(mut client: Client, session: String, seen: Arc<Seen>) {
    for n in 0_u64.. {
        let begun = Instant::now();
        let turn = timeout(LOST, client.turn(&session, n, &seen)).await;
        let failed = !matches!(turn, Ok(Ok(())));
        seen.note(begun, turn);
        if failed {
            return;
        }
        sleep(PAUSE).await;
    }
}

impl Client {
    /// Sends a message and waits for it.
    async fn turn(&mut self, session: &str, n: u64, seen: &Seen) -> Result<()> {
        match self {
            Self::Socket(socket) => over_socket(socket, session, n, seen).await,
            Self::Poll(pair, cursor) => over_poll(pair, cursor, session, n, seen).await,
            Self::X0(pair) => of_x0(pair, session, n, seen).await,
        }
    }
}

/// A socket after its welcome.
pub(crate) async fn socket(
    broker: &Broker,
    session: &str,
    bearer: Option<String>,
) -> Result<WebSocketStream<Box<dyn Stream>>> {
    let request = "ws://localhost/ws".into_client_request()?;
    let stream = broker.connect(ADDRESS, "http/1.1").await?;
    let (mut socket, _) = client_async(request, stream).await?;
    let hello = match bearer {
        Some(token) => json!({ "type": "hello", "token": token }),
        None => json!({ "type": "hello", "session": session }),
    };
    socket.send(Message::text(hello.to_string())).await?;
    let welcome = frame(&mut socket).await?;
    ensure!(welcome["type"] == "welcome", "{welcome}");
    Ok(socket)
}

pub(crate) async fn frame<S: Stream>(socket: &mut WebSocketStream<S>) -> Result<Value> {
    loop {
        match socket.next().await.context("open")?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(reason) => anyhow::bail!("closed: {reason:?}"),
            _ => {}
        }
    }
}

async fn over_socket(
    socket: &mut WebSocketStream<Box<dyn Stream>>,
    session: &str,
    n: u64,
    seen: &Seen,
) -> Result<()> {
    let send = json!({ "type": "send", "id": n.to_string(), "to": { "session": session }, "payload": n });
    socket.send(Message::text(send.to_string())).await?;
    let (mut sent, mut came) = (false, false);
    while !(sent && came) {
        let frame = frame(socket).await?;
        match frame["type"].as_str() {
            Some("sent") => sent = true,
            Some("message") => {
                ensure!(frame["payload"] == n, "{frame}");
                let ack = json!({ "type": "ack", "seq": frame["seq"] });
                socket.send(Message::text(ack.to_string())).await?;
                came = true;
            }
            Some("error") if frame["code"] == "overloaded" => {
                seen.refused().await;
                socket.send(Message::text(send.to_string())).await?;
            }
            _ => anyhow::bail!("{frame}"),
        }
    }
    Ok(())
}

async fn over_poll(pair: &mut Pair, cursor: &mut u64, session: &str, n: u64, seen: &Seen) -> Result<()> {
    let Pair { poll, send } = pair;
    let receive = async {
        loop {
            let target = format!("/v1/messages?session={session}&after={cursor}&wait=10");
            let (status, answer) = poll.call("GET", &target, "").await?;
            ensure!(status == 200, "{status} {answer}");
            *cursor = answer["seq"].as_u64().context("a seq")?;
            if let Some(message) = answer["messages"].get(0) {
                ensure!(message["payload"] == n, "{answer}");
                return Ok(());
            }
        }
    };
    let sending = async {
        let body = json!({ "id": n.to_string(), "to": { "session": session }, "payload": n }).to_string();
        let target = format!("/v1/messages?session={session}");
        loop {
            let (status, answer) = send.call("POST", &target, body.clone()).await?;
            match status {
                200 => return Ok(()),
                503 => seen.refused().await,
                _ => anyhow::bail!("{status} {answer}"),
            }
        }
    };
    tokio::try_join!(receive, sending).map(|_| ())
}

async fn of_x0(pair: &mut Pair, session: &str, n: u64, seen: &Seen) -> Result<()> {
    let Pair { poll, send } = pair;
    let target = || format!("/python/MsgHandler.py?a__={:010}", fastrand::u64(..10_000_000_000));
    let receive = async {
        loop {
            let body = json!({ "session_src": session, "type": "GET" }).to_string();
            let (status, answer) = poll.call("POST", &target(), body).await?;
            ensure!(status == 200, "{status} {answer}");
            if let Some(message) = answer["messages"].get(0) {
                ensure!(message["n"] == n, "{answer}");
                return Ok(());
            }
        }
    };
    let sending = async {
        let payload = json!({ "n": n });
        let body =
            json!({ "type": "SET", "session_src": session, "session_dst": session, "payload": payload });
        loop {
            let (_, answer) = send.call("POST", &target(), body.to_string()).await?;
            match answer["exception_id"].as_str() {
                None if answer["status"] == "ok" => return Ok(()),
                Some("overloaded") => seen.refused().await,
                _ => anyhow::bail!("{answer}"),
            }
        }
    };
    tokio::try_join!(receive, sending).map(|_| ())
}
