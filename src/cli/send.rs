//! `send`: sends one message and waits until it is stored.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::cli::credential::CredentialArgs;
use crate::cli::frame::{
    ReceivedFrame, generated_name, ignored_token, next_frame, send_frame, session_or_generated,
};
use crate::cli::say::{note, print};
use crate::cli::sender::account_name;
use crate::cli::target::{ANSWER_TIMEOUT, Target};
use crate::cli::time::seconds_or_units;

/// Where a message goes.
#[derive(Debug, Clone, Args)]
#[group(id = "receiver", required = true, multiple = false)]
struct Receiver {
    /// Session to send to
    #[arg(long, allow_hyphen_values = true, value_name = "SESSION")]
    to: Option<String>,
    /// User to send to; all registered sessions of the user get the message
    #[arg(long, allow_hyphen_values = true, value_name = "USER")]
    user: Option<String>,
    /// Topic to send to
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Backend to send to, by the name of its API key, which needs a mailbox
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Request to answer: the `reply_to` of the message
    #[arg(long, allow_hyphen_values = true, value_name = "REPLY_TO")]
    reply: Option<String>,
}

/// Settings of `send`.
#[derive(Debug, Clone, Args)]
pub struct SendArgs {
    #[command(flatten)]
    receiver: Receiver,

    /// Session to send as; receivers see it as `from`
    #[arg(long, allow_hyphen_values = true, value_name = "SESSION")]
    from: Option<String>,

    /// The message, any JSON value; - reads it from standard input
    #[arg(value_name = "JSON", allow_negative_numbers = true)]
    payload: String,

    /// How long the message is kept unread: seconds, or numbers with units, like 90, 12h or 1d
    #[arg(long, allow_negative_numbers = true, value_name = "TIME", value_parser = seconds_or_units)]
    ttl: Option<Duration>,

    /// Your own name for the message. Sent again with the same name and payload within the broker's dedup window, it is
    /// stored once; with another payload it is refused. This holds for one sender: one account on one machine, one
    /// --from, one API key, or one token that names a session
    #[arg(long, allow_hyphen_values = true, value_name = "ID")]
    id: Option<String>,

    /// Reach only who listens now, and store nothing
    #[arg(long)]
    volatile: bool,

    /// Ask for a reply, wait for it as long as --ttl says (15 s by default), and print its payload
    #[arg(long)]
    request: bool,

    #[command(flatten)]
    credential: CredentialArgs,

    #[command(flatten)]
    target: Target,
}

/// The `send` frame.
#[derive(Debug, Serialize)]
struct SendFrame<'a> {
    r#type: &'static str,
    id: &'a str,
    to: Value,
    payload: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<f64>,
    volatile: bool,
    request: bool,
}

impl SendArgs {
    /// Checks arguments against each other.
    ///
    /// # Errors
    /// Which arguments exclude each other, and why.
    pub fn validate(&self) -> Result<(), String> {
        // The reply to a volatile request is waited for as long as its `ttl` says.
        match self.volatile && self.ttl.is_some() && !self.request {
            true => {
                Err("--ttl has no effect with --volatile, which stores nothing; leave one of them out"
                    .to_owned())
            }
            false => Ok(()),
        }
    }
}

impl Receiver {
    fn address(&self) -> Value {
        let Self { to, user, topic, backend, reply } = self;
        let named = [("session", to), ("user", user), ("topic", topic), ("reply", reply)];
        match named.into_iter().find_map(|(kind, name)| Some((kind, name.as_ref()?))) {
            Some((kind, name)) => json!({ kind: name }),
            None => json!({ "backend": backend }),
        }
    }
}

/// Sends one message and waits until it is stored, or until its reply is here.
///
/// # Errors
/// The message is no JSON, the broker cannot be reached or does not answer in time, or it refuses the message. No reply comes.
pub async fn send(args: SendArgs) -> Result<()> {
    let payload = payload(args.payload.clone())?;
    let id = args.id.clone().map_or_else(generated_name, Ok)?;
    let wait = if args.request { args.ttl.unwrap_or(ANSWER_TIMEOUT) } else { ANSWER_TIMEOUT };
    let no_answer = |_| match args.request {
        true => anyhow!("no reply within {} s", wait.as_secs_f64()),
        false => anyhow!("no confirmation within {} s; send again with --id {id}", wait.as_secs()),
    };
    timeout(wait, send_and_confirm(&args, &id, payload)).await.map_err(no_answer)?
}

fn payload(mut text: String) -> Result<Box<RawValue>> {
    if text == "-" {
        text.clear();
        std::io::stdin().read_to_string(&mut text).context("cannot read the message")?;
    }
    RawValue::from_string(text).map_err(|error| {
        anyhow!("the message is not JSON: {error}; quote it for the shell, like '{{\"a\":1}}' or '\"text\"'")
    })
}

async fn send_and_confirm(args: &SendArgs, id: &str, payload: Box<RawValue>) -> Result<()> {
    let token = args.credential.read()?;
    // A retry comes from the sender of the first send.
    let from = match (&args.from, &args.id, &token) {
        (None, Some(_), None) => Some(account_name()),
        (from, ..) => from.clone(),
    };
    let session = session_or_generated(from, token.as_deref())?;
    let mut socket = args.target.connect().await?;
    send_frame(&mut socket, &json!({ "type": "hello", "session": session, "token": token })).await?;
    let SendArgs { receiver, volatile, request, .. } = args;
    let (to, volatile, request) = (receiver.address(), *volatile, *request);
    let ttl = args.ttl.or_else(|| request.then_some(ANSWER_TIMEOUT)).map(|ttl| ttl.as_secs_f64());
    send_frame(&mut socket, &SendFrame { r#type: "send", id, to, payload, ttl, volatile, request }).await?;
    while let Some(text) = next_frame(&mut socket).await? {
        let frame: ReceivedFrame<'_> = serde_json::from_str(&text)?;
        match frame.r#type.as_str() {
            "sent" if request => {}
            "sent" => {
                print(confirmation(&frame))?;
                _ = socket.close(None).await;
                return Ok(());
            }
            "reply" if frame.id.as_deref() == Some(id) => {
                print(frame.payload.map_or("null", RawValue::get))?;
                // A session that was named may have older messages, which this would acknowledge too.
                if let (None, Some(seq)) = (&args.from, frame.seq) {
                    send_frame(&mut socket, &json!({ "type": "ack", "seq": seq })).await?;
                }
                _ = socket.close(None).await;
                return Ok(());
            }
            "welcome" => ignored_token(token.as_deref(), &frame).into_iter().for_each(note),
            "error" => return Err(frame.refusal()),
            _ => {}
        }
    }
    bail!("the broker closed before it confirmed the message; send it again with --id {id}")
}

fn confirmation(sent: &ReceivedFrame<'_>) -> String {
    match (sent.seq, sent.sessions) {
        (Some(seq), _) => format!("sent, seq {seq}"),
        (None, Some(1)) => "sent to 1 session".to_owned(),
        (None, Some(sessions)) => format!("sent to {sessions} sessions"),
        (None, None) => "sent to whoever listens now".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_confirmation_says_what_is_known() {
        let text = |frame: &str| confirmation(&serde_json::from_str(frame).unwrap());
        assert_eq!(text(r#"{"type":"sent","seq":7}"#), "sent, seq 7");
        assert_eq!(text(r#"{"type":"sent","sessions":1}"#), "sent to 1 session");
        assert_eq!(text(r#"{"type":"sent","sessions":2}"#), "sent to 2 sessions");
        assert_eq!(text(r#"{"type":"sent"}"#), "sent to whoever listens now");
    }

    #[test]
    fn a_receiver_is_one_address() {
        let receiver = |kind: &str, name: &str| {
            let named = |wanted| (kind == wanted).then(|| name.to_owned());
            let (to, user) = (named("session"), named("user"));
            Receiver { to, user, topic: named("topic"), backend: named("backend"), reply: named("reply") }
                .address()
        };
        for (kind, name) in
            [("session", "A"), ("user", "ann"), ("topic", "news"), ("backend", "shop"), ("reply", "x")]
        {
            assert_eq!(receiver(kind, name), json!({ kind: name }));
        }
    }

    #[test]
    fn a_message_must_be_json() {
        assert_eq!(payload("{\"n\": 1e400}".to_owned()).unwrap().get(), "{\"n\": 1e400}");
        assert!(
            payload("hello".to_owned())
                .unwrap_err()
                .to_string()
                .contains("is not JSON: expected value at line 1 column 1; quote it")
        );
    }
}
