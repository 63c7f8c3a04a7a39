//! Clients over the wire: `send`, `listen` and `health` know the protocol, and nothing of the server. `check`
//! looks at a store that need not be in use.

use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::http::header;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

mod check;
mod target;
mod token;

pub use check::{CheckArgs, check};
pub use target::{Target, TokenSource};
pub use token::{TokenArgs, token};

use target::{Socket, Verify};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// The longest pause between two attempts to connect.
const MOST_BACKOFF: Duration = Duration::from_secs(10);

/// Settings of `send`.
#[derive(Debug, Clone, Args)]
#[group(id = "receiver", required = true, multiple = false)]
pub struct Receiver {
    /// Session to send to
    #[arg(long, value_name = "SESSION")]
    to: Option<String>,
    /// User to send to: to all registered sessions
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Topic to send to
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
}

/// Settings of `send`.
#[derive(Debug, Clone, Args)]
pub struct SendArgs {
    #[command(flatten)]
    receiver: Receiver,

    /// Session to send as; receivers see it as `from`
    #[arg(long, value_name = "SESSION")]
    from: Option<String>,

    /// The message, any JSON value; read from standard input when it is -
    #[arg(value_name = "JSON")]
    payload: String,

    /// How many seconds the message is kept unread
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<f64>,

    /// Your own name for the message: sending it again with the same one stores nothing
    #[arg(long, value_name = "ID")]
    id: Option<String>,

    /// Reach only those who listen now, and store nothing
    #[arg(long)]
    volatile: bool,

    #[command(flatten)]
    proof: TokenSource,

    #[command(flatten)]
    target: Target,
}

/// Settings of `listen`.
#[derive(Debug, Clone, Args)]
pub struct ListenArgs {
    /// Session whose messages to read
    #[arg(long, value_name = "SESSION")]
    session: Option<String>,

    /// Topic to read; may be given several times
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<String>,

    /// Look only: acknowledge nothing, so that everything is delivered again
    #[arg(long)]
    no_ack: bool,

    /// Stop after this many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,

    /// Print payloads only, not whole messages
    #[arg(long)]
    payload: bool,

    #[command(flatten)]
    proof: TokenSource,

    #[command(flatten)]
    target: Target,
}

/// Settings of `health`.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    #[command(flatten)]
    target: Target,
}

/// A frame from the server.
#[derive(Deserialize)]
struct Frame<'a> {
    r#type: String,
    #[serde(default)]
    seq: Option<u64>,
    #[serde(default)]
    sessions: Option<u64>,
    #[serde(default)]
    session: Option<String>,
    #[serde(default)]
    topic: Option<String>,
    #[serde(default)]
    epoch: Option<String>,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

impl Frame<'_> {
    fn refused(&self) -> anyhow::Error {
        let (code, text) = (self.code.as_deref(), self.message.as_deref());
        anyhow!("{}: {}", code.unwrap_or("error"), text.unwrap_or("refused"))
    }
}

/// A name that tells this run from others, for who does not say who he is.
fn own_name() -> Result<String> {
    Ok(format!("cli-{:08x}", getrandom::u32()?))
}

async fn send_frame(socket: &mut Socket, frame: &impl serde::Serialize) -> Result<()> {
    Ok(socket.send(Message::text(serde_json::to_string(frame)?)).await?)
}

/// The next text frame; `None` when the server closed.
async fn next_frame(socket: &mut Socket) -> Result<Option<String>> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Ok(Some(text.as_str().to_owned())),
            Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) >= 4500 => {
                bail!("the broker closed for good: {} {}", frame.code, frame.reason)
            }
            Some(Ok(Message::Close(_))) | None => return Ok(None),
            Some(Ok(_)) => {}
            Some(Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) => return Ok(None),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

/// Sends one message and waits until it is stored.
///
/// # Errors
/// The broker cannot be reached, or refuses.
pub async fn send(args: SendArgs) -> Result<()> {
    let mut payload = args.payload;
    if payload == "-" {
        payload.clear();
        std::io::stdin().read_to_string(&mut payload).context("cannot read the message")?;
    }
    let payload = RawValue::from_string(payload)
        .context("the message must be JSON; quote it for the shell, like '{\"a\":1}' or '\"text\"'")?;
    let to = match (&args.receiver.to, &args.receiver.user, &args.receiver.topic) {
        (Some(session), ..) => json!({ "session": session }),
        (None, Some(user), _) => json!({ "user": user }),
        (None, None, topic) => json!({ "topic": topic }),
    };
    #[derive(serde::Serialize)]
    struct Send<'a> {
        r#type: &'static str,
        id: &'a str,
        to: Value,
        payload: Box<RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        ttl: Option<f64>,
        volatile: bool,
    }
    let token = args.proof.token()?;
    let session = own_session(args.from, token.as_deref())?;
    let id = args.id.map_or_else(own_name, Ok)?;
    let (ttl, volatile) = (args.ttl, args.volatile);
    let talk = async {
        let mut socket = args.target.connect().await?;
        send_frame(&mut socket, &json!({ "type": "hello", "session": session, "token": token })).await?;
        send_frame(&mut socket, &Send { r#type: "send", id: &id, to, payload, ttl, volatile }).await?;
        while let Some(text) = next_frame(&mut socket).await? {
            let frame: Frame<'_> = serde_json::from_str(&text)?;
            match frame.r#type.as_str() {
                "sent" => {
                    match (frame.seq, frame.sessions) {
                        (Some(seq), _) => println!("sent, seq {seq}"),
                        (None, Some(sessions)) => println!("sent to {sessions} sessions"),
                        (None, None) => println!("sent to whoever listens now"),
                    }
                    _ = socket.close(None).await;
                    return Ok(());
                }
                "error" => return Err(frame.refused()),
                _ => {}
            }
        }
        bail!("the broker closed before it confirmed the message; send it again with --id {id}")
    };
    let no_answer = |_| anyhow!("no confirmation within {} s; send again with --id {id}", PATIENCE.as_secs());
    timeout(PATIENCE, talk).await.map_err(no_answer)?
}

/// Who to be: a token says that by itself; where there is none, a name of one's own will do.
fn own_session(named: Option<String>, token: Option<&str>) -> Result<Option<String>> {
    match (named, token) {
        (None, None) => own_name().map(Some),
        (named, _) => Ok(named),
    }
}

/// Where a listener is.
#[derive(Default)]
struct ListenState {
    session: Option<String>,
    epoch: Option<String>,
    after: Option<u64>,
    topics: Vec<(String, Option<u64>)>,
    printed: u64,
    welcomes: u64,
}

/// Prints messages as they come, one line each; reconnects and resumes by itself.
///
/// # Errors
/// The broker cannot be reached at the first attempt, or refuses.
pub async fn listen(args: ListenArgs) -> Result<()> {
    let token = args.proof.token()?;
    if args.session.is_none() && args.topic.is_empty() && token.is_none() {
        bail!("nothing to listen to: name a --session or a --topic");
    }
    let session = own_session(args.session.clone(), token.as_deref())?;
    let topics = args.topic.iter().map(|topic| (topic.clone(), None)).collect();
    let mut state = ListenState { session, topics, ..ListenState::default() };
    let mut socket = args.target.connect().await?;
    let mut pause = Duration::ZERO;
    loop {
        let welcomed = state.welcomes;
        match listen_on(socket, &args, &mut state).await {
            Ok(true) => return Ok(()),
            Ok(false) => eprintln!("the broker closed the connection; connecting again"),
            Err(error) if error.is::<WsError>() => eprintln!("connection lost ({error}); connecting again"),
            Err(error) => return Err(error),
        }
        if state.welcomes > welcomed {
            pause = Duration::ZERO;
        }
        socket = loop {
            // Half fixed, half random: those who lost the broker together do not come back together.
            let jitter = f64::from(getrandom::u32()?) / f64::from(u32::MAX);
            sleep(pause.mul_f64(0.5 + jitter / 2.0)).await;
            pause = (pause * 2).clamp(Duration::from_millis(200), MOST_BACKOFF);
            if let Ok(socket) = args.target.connect().await {
                break socket;
            }
        };
    }
}

/// Listens on one socket; answers whether enough was printed.
async fn listen_on(mut socket: Socket, args: &ListenArgs, state: &mut ListenState) -> Result<bool> {
    // Read anew each time: whoever renews the file renews the token.
    let (session, mut token) = (&state.session, args.proof.token()?);
    let (after, epoch) = (state.after, &state.epoch);
    let hello =
        json!({ "type": "hello", "session": session, "token": token, "after": after, "epoch": epoch });
    send_frame(&mut socket, &hello).await?;
    let welcomed = state.welcomes;
    for (topic, after) in &state.topics {
        let frame = json!({ "type": "subscribe", "topic": topic, "after": after, "epoch": state.epoch });
        send_frame(&mut socket, &frame).await?;
    }
    while let Some(text) = next_frame(&mut socket).await? {
        let frame: Frame<'_> = serde_json::from_str(&text)?;
        match frame.r#type.as_str() {
            "welcome" => {
                state.welcomes += 1;
                if state.epoch.is_some() && state.epoch != frame.epoch {
                    // Positions in another incarnation of the store mean nothing here.
                    state.after = None;
                    state.topics.iter_mut().for_each(|(_, after)| *after = None);
                }
                state.epoch = frame.epoch;
                // A session that was made for a token is held on to.
                state.session = frame.session.or(state.session.take());
                if std::io::stderr().is_terminal() {
                    let session = state.session.as_deref().unwrap_or("of none");
                    eprintln!("listening as session {session}; Ctrl-C stops");
                }
            }
            "subscribed" => {
                if let (Some(topic), Some(seq)) = (frame.topic, frame.seq)
                    && let Some(known) = state.topics.iter_mut().find(|(name, _)| *name == topic)
                {
                    known.1 = known.1.or(Some(seq));
                }
            }
            "gap" => eprintln!("gap: {text}"),
            // A token that has expired may have been renewed in its file.
            "error" if frame.code.as_deref() == Some("unauthorized") && state.welcomes > welcomed => {
                let fresh = args.proof.token()?;
                match fresh == token {
                    true => eprintln!("{text}"),
                    false => send_frame(&mut socket, &json!({ "type": "hello", "token": fresh })).await?,
                }
                token = fresh;
            }
            "error" => return Err(frame.refused()),
            "message" | "receipt" => {
                let mut out = std::io::stdout().lock();
                let line = match frame.payload {
                    Some(payload) if args.payload => payload.get(),
                    _ => &text,
                };
                // One line for each message, also when a sender wrote its JSON over several.
                let line = line.replace(['\n', '\r'], " ");
                if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
                    return Ok(true); // Nobody reads any more, as behind `head`.
                }
                drop(out);
                state.printed += 1;
                if let Some(seq) = frame.seq {
                    match frame.topic {
                        Some(topic) => {
                            if let Some(known) = state.topics.iter_mut().find(|(name, _)| *name == topic) {
                                known.1 = Some(seq);
                            }
                        }
                        None => {
                            state.after = Some(seq);
                            if !args.no_ack {
                                send_frame(&mut socket, &json!({ "type": "ack", "seq": seq })).await?;
                            }
                        }
                    }
                }
                if args.count.is_some_and(|count| state.printed >= count) {
                    socket.close(None).await?;
                    while next_frame(&mut socket).await?.is_some() {}
                    return Ok(true);
                }
            }
            _ => {}
        }
    }
    Ok(false)
}

/// Asks a broker how it is; for health checks where there is no curl.
///
/// # Errors
/// The broker cannot be reached, or is not well.
pub async fn health(args: HealthArgs) -> Result<()> {
    let authority = &args.target.authority()?;
    let ask = async {
        let stream = args.target.stream(Verify::NotLoopback).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = hyper::Request::get("/healthz").header(header::HOST, authority);
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        println!("{}", String::from_utf8_lossy(&body));
        if !status.is_success() {
            bail!("the broker answered {status}");
        }
        Ok(())
    };
    let answer = timeout(PATIENCE, ask).await;
    answer
        .map_err(|_| anyhow!("no answer within {} s", PATIENCE.as_secs()))?
        .with_context(|| format!("the broker at {authority} is not well"))
}
