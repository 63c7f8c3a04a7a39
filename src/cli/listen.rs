//! `listen`: prints messages as they arrive, reconnects and resumes.

use std::io::{ErrorKind, IsTerminal};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Error as WsError;

use crate::cli::credential::CredentialArgs;
use crate::cli::frame::{ReceivedFrame, ignored_token, next_frame, send_frame, session_or_generated};
use crate::cli::say::{note, print};
use crate::cli::target::{Socket, Target};

/// Shortest pause between two attempts to connect, after the first.
const MIN_PAUSE: Duration = Duration::from_millis(200);

/// Longest pause between two attempts to connect.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Settings of `listen`.
#[derive(Debug, Clone, Args)]
pub struct ListenArgs {
    /// Session whose messages to read. With an API key that has a mailbox, the mailbox of the backend is read
    #[arg(long, allow_hyphen_values = true, value_name = "SESSION")]
    session: Option<String>,

    /// Topic to read; may be given several times
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<String>,

    /// Acknowledge nothing, so that every message is delivered again
    #[arg(long)]
    no_ack: bool,

    /// Stop after this many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Print payloads only, not whole messages
    #[arg(long)]
    payload: bool,

    #[command(flatten)]
    credential: CredentialArgs,

    #[command(flatten)]
    target: Target,
}

/// How far a listener has read. It survives a reconnect.
#[derive(Debug, Default)]
struct ListenState {
    session: Option<String>,
    /// The backend whose mailbox is read.
    backend: Option<String>,
    epoch: Option<String>,
    after: Option<u64>,
    topics: Vec<(String, Option<u64>)>,
    printed: u64,
    welcomes: u64,
}

impl ListenState {
    fn on_welcome(&mut self, session: Option<String>, epoch: Option<String>) {
        self.welcomes += 1;
        if self.epoch.is_some() && self.epoch != epoch {
            // Positions of another epoch mean nothing in this one.
            self.after = None;
            self.topics.iter_mut().for_each(|(_, after)| *after = None);
        }
        self.epoch = epoch;
        // A session that was created for a token is kept over a reconnect.
        self.session = session.or(self.session.take());
    }

    /// A new reader of a topic begins at the topic's newest message.
    fn on_subscribed(&mut self, topic: &str, newest: u64) {
        if let Some(after) = self.topic(topic) {
            *after = after.or(Some(newest));
        }
    }

    fn on_printed(&mut self, topic: Option<&str>, seq: Option<u64>) {
        self.printed += 1;
        let position = match topic {
            Some(topic) => self.topic(topic),
            None => Some(&mut self.after),
        };
        if let (Some(position), Some(_)) = (position, seq) {
            *position = seq;
        }
    }

    fn topic(&mut self, topic: &str) -> Option<&mut Option<u64>> {
        self.topics.iter_mut().find(|(name, _)| name == topic).map(|(_, after)| after)
    }
}

/// Whether the listener goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Continue,
    /// Enough messages are printed, or nobody reads the output.
    Stop,
}

/// Prints messages as they arrive, one line each. Reconnects and resumes by itself.
///
/// # Errors
/// There is nothing to listen to, the address is wrong, or the broker refuses.
pub async fn listen(args: ListenArgs) -> Result<()> {
    let token = args.credential.read()?;
    if args.session.is_none() && args.topic.is_empty() && token.is_none() {
        bail!("nothing to listen to: name a --session or a --topic");
    }
    let session = session_or_generated(args.session.clone(), token.as_deref())?;
    let topics = args.topic.iter().map(|topic| (topic.clone(), None)).collect();
    let mut state = ListenState { session, topics, ..ListenState::default() };
    let mut pause = Duration::ZERO;
    let mut socket = match args.target.connect().await {
        // It may be about to start.
        Err(error) if is_refused(&error) => {
            note(format_args!("{error:#}; trying again"));
            pause = MIN_PAUSE;
            reconnect(&args.target, &mut pause).await?
        }
        connected => connected?,
    };
    loop {
        let welcomes = state.welcomes;
        let mut connection = ListenConnection { socket, args: &args, state: &mut state, welcomes };
        match connection.run().await {
            Ok(Flow::Stop) => return Ok(()),
            Ok(Flow::Continue) => note("the broker closed the connection; connecting again"),
            Err(error) if error.is::<WsError>() => {
                note(format_args!("connection lost ({error}); connecting again"));
            }
            Err(error) => return Err(error),
        }
        if state.welcomes > welcomes {
            pause = Duration::ZERO;
        }
        socket = reconnect(&args.target, &mut pause).await?;
    }
}

/// Whether nobody listens at an address. Everything else may be a wrong address.
fn is_refused(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    })
}

/// Connects again, with growing pauses.
async fn reconnect(target: &Target, pause: &mut Duration) -> Result<Socket> {
    loop {
        // Half fixed and half random, so that clients that lost the broker together do not return together.
        let jitter = f64::from(getrandom::u32()?) / f64::from(u32::MAX);
        sleep(pause.mul_f64(0.5 + jitter / 2.0)).await;
        *pause = (*pause * 2).clamp(MIN_PAUSE, MAX_PAUSE);
        if let Ok(socket) = target.connect().await {
            return Ok(socket);
        }
    }
}

/// One connection of a listener.
struct ListenConnection<'a> {
    socket: Socket,
    args: &'a ListenArgs,
    state: &'a mut ListenState,
    /// The number of `welcome` frames before this connection.
    welcomes: u64,
}

impl ListenConnection<'_> {
    /// Listens until the broker closes the connection, or enough is printed.
    async fn run(&mut self) -> Result<Flow> {
        // Read for each connection, since the file may hold a newer token.
        let mut token = self.args.credential.read()?;
        self.hello(token.as_deref()).await?;
        while let Some(text) = next_frame(&mut self.socket).await? {
            let frame: ReceivedFrame<'_> = serde_json::from_str(&text)?;
            match frame.r#type.as_str() {
                "welcome" => self.on_welcome(frame, token.as_deref())?,
                "subscribed" => {
                    if let (Some(topic), Some(seq)) = (frame.topic, frame.seq) {
                        self.state.on_subscribed(&topic, seq);
                    }
                }
                "gap" => note(format_args!("gap: {text}")),
                // An expired token may have been renewed in its file.
                "error" if frame.code.as_deref() == Some("unauthorized") && self.is_welcome() => {
                    token = self.renew_token(token, &text).await?;
                }
                "error" => return Err(frame.refusal()),
                "message" | "receipt" | "reply" => match self.on_message(&frame, &text).await? {
                    Flow::Continue => {}
                    Flow::Stop => return Ok(Flow::Stop),
                },
                _ => {}
            }
        }
        Ok(Flow::Continue)
    }

    async fn hello(&mut self, token: Option<&str>) -> Result<()> {
        let ListenState { session, epoch, after, topics, .. } = &*self.state;
        let hello =
            json!({ "type": "hello", "session": session, "token": token, "after": after, "epoch": epoch });
        send_frame(&mut self.socket, &hello).await?;
        for (topic, after) in topics {
            let frame = json!({ "type": "subscribe", "topic": topic, "after": after, "epoch": epoch });
            send_frame(&mut self.socket, &frame).await?;
        }
        Ok(())
    }

    fn has_nothing_to_read(&self) -> bool {
        let ListenState { session, backend, topics, .. } = &*self.state;
        session.is_none() && backend.is_none() && topics.is_empty()
    }

    /// Whether this connection got its `welcome`.
    fn is_welcome(&self) -> bool {
        self.state.welcomes > self.welcomes
    }

    fn on_welcome(&mut self, frame: ReceivedFrame<'_>, token: Option<&str>) -> Result<()> {
        if let (0, Some(text)) = (self.state.welcomes, ignored_token(token, &frame)) {
            if self.has_nothing_to_read() {
                bail!("{text}; name a --session or a --topic");
            }
            note(text);
        }
        self.state.backend = frame.mailbox_of_backend().map(str::to_owned);
        self.state.on_welcome(frame.session, frame.epoch);
        if self.has_nothing_to_read() {
            bail!(
                "nothing to listen to: this API key has no mailbox (`mailbox = true`); name a --topic, or show a token of \
                 a session"
            );
        }
        if std::io::stderr().is_terminal() {
            let reader = match (&self.state.backend, &self.state.session) {
                (Some(backend), _) => format!("backend {backend}"),
                (None, session) => format!("session {}", session.as_deref().unwrap_or("of none")),
            };
            note(format_args!("listening as {reader}; Ctrl-C stops"));
        }
        Ok(())
    }

    /// Shows the token again if its file holds another one by now. Answers the token that was shown last.
    async fn renew_token(&mut self, token: Option<String>, error: &str) -> Result<Option<String>> {
        // The file may be being written.
        let fresh = self.args.credential.read().unwrap_or_else(|_| token.clone());
        match fresh == token {
            true => note(error),
            false => send_frame(&mut self.socket, &json!({ "type": "hello", "token": fresh })).await?,
        }
        Ok(fresh)
    }

    /// Prints a message or a receipt, and acknowledges it.
    async fn on_message(&mut self, frame: &ReceivedFrame<'_>, text: &str) -> Result<Flow> {
        let line = match frame.payload {
            Some(payload) if self.args.payload => payload.get(),
            _ => text,
        };
        if !print_line(line) {
            return Ok(Flow::Stop);
        }
        self.state.on_printed(frame.topic.as_deref(), frame.seq);
        if let (None, Some(seq), false) = (&frame.topic, frame.seq, self.args.no_ack) {
            send_frame(&mut self.socket, &json!({ "type": "ack", "seq": seq })).await?;
        }
        if self.args.count.is_none_or(|count| self.state.printed < count) {
            return Ok(Flow::Continue);
        }
        self.socket.close(None).await?;
        while next_frame(&mut self.socket).await?.is_some() {}
        Ok(Flow::Stop)
    }
}

/// Prints a message as one line, also if its JSON has several. `false` if nobody reads the output, as behind `head`.
fn print_line(text: &str) -> bool {
    print(text.replace(['\n', '\r'], " ")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ListenState {
        let mut state = ListenState { topics: vec![("news".to_owned(), None)], ..ListenState::default() };
        state.on_welcome(Some("A".to_owned()), Some("e-1".to_owned()));
        state
    }

    #[test]
    fn a_listener_resumes_where_it_printed_last() {
        let mut state = state();
        state.on_subscribed("news", 7);
        state.on_printed(None, Some(3));
        assert_eq!((state.after, state.topics[0].1), (Some(3), Some(7)));
        state.on_printed(Some("news"), Some(8));
        state.on_printed(Some("news"), None);
        assert_eq!((state.after, state.topics[0].1, state.printed), (Some(3), Some(8), 3));
    }

    #[test]
    fn a_resumed_topic_keeps_its_position() {
        let mut state = state();
        state.on_printed(Some("news"), Some(8));
        state.on_subscribed("news", 20);
        assert_eq!(state.topics[0].1, Some(8));
    }

    #[test]
    fn positions_are_forgotten_with_their_epoch() {
        let mut state = state();
        state.on_printed(None, Some(3));
        state.on_printed(Some("news"), Some(8));
        state.on_welcome(None, Some("e-1".to_owned()));
        assert_eq!((state.after, state.topics[0].1), (Some(3), Some(8)), "the same epoch");
        state.on_welcome(None, Some("e-2".to_owned()));
        assert_eq!((state.after, state.topics[0].1), (None, None), "another epoch");
        assert_eq!(state.session.as_deref(), Some("A"), "the session is kept");
    }
}
