//! Frames to and from the broker, as a client sees them.

use anyhow::{Result, anyhow, bail};
use futures::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::cli::target::Socket;

/// Close codes from here on mean that connecting again is useless.
const CLOSED_FOR_GOOD: u16 = 4500;

/// A frame from the broker: the fields that a command looks at.
#[derive(Debug, Deserialize)]
pub(super) struct ReceivedFrame<'a> {
    pub(super) r#type: String,
    #[serde(default)]
    pub(super) id: Option<String>,
    #[serde(default)]
    pub(super) seq: Option<u64>,
    #[serde(default)]
    pub(super) sessions: Option<u64>,
    #[serde(default)]
    pub(super) session: Option<String>,
    #[serde(default)]
    pub(super) backend: Option<BackendField>,
    #[serde(default)]
    pub(super) user: Option<String>,
    #[serde(default)]
    pub(super) topic: Option<String>,
    #[serde(default)]
    pub(super) epoch: Option<String>,
    #[serde(default)]
    pub(super) code: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(borrow, default)]
    pub(super) payload: Option<&'a RawValue>,
}

/// Field `backend`: a name in `welcome`, and `true` in a message.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum BackendField {
    /// The backend whose mailbox is read.
    Mailbox(String),
    /// Whether a backend sent it.
    #[expect(dead_code, reason = "only the name is read")]
    Sender(bool),
}

impl ReceivedFrame<'_> {
    /// The backend whose mailbox a `welcome` names.
    pub(super) fn mailbox_of_backend(&self) -> Option<&str> {
        match &self.backend {
            Some(BackendField::Mailbox(name)) => Some(name),
            Some(BackendField::Sender(_)) | None => None,
        }
    }

    /// What an `error` frame says.
    pub(super) fn refusal(&self) -> anyhow::Error {
        let (code, text) = (self.code.as_deref(), self.message.as_deref());
        anyhow!("{}: {}", code.unwrap_or("error"), text.unwrap_or("refused"))
    }
}

pub(super) async fn send_frame(socket: &mut Socket, frame: &impl Serialize) -> Result<()> {
    Ok(socket.send(Message::text(serde_json::to_string(frame)?)).await?)
}

/// What to tell about a token that the broker did not look at. A broker that checks tokens names the user in `welcome`.
pub(super) fn ignored_token(token: Option<&str>, welcome: &ReceivedFrame<'_>) -> Option<&'static str> {
    let is_token = token.is_some_and(|token| token.split('.').count() == 3);
    (is_token && welcome.user.is_none()).then_some(
        "the broker ignores the token: it runs with --auth open, where whoever names a session holds it",
    )
}

/// The next text frame; `None` when the broker closed the connection.
pub(super) async fn next_frame(socket: &mut Socket) -> Result<Option<String>> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Ok(Some(text.as_str().to_owned())),
            Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) >= CLOSED_FOR_GOOD => {
                bail!("the broker closed for good: {} {}", frame.code, frame.reason)
            }
            Some(Ok(Message::Close(_))) | None => return Ok(None),
            Some(Ok(_)) => {}
            Some(Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) => return Ok(None),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

/// A name of this run, for commands that name no session.
pub(super) fn generated_name() -> Result<String> {
    Ok(format!("cli-{:08x}", getrandom::u32()?))
}

/// The session of `hello`. A token names its session itself. Without one, a generated name will do.
pub(super) fn session_or_generated(named: Option<String>, token: Option<&str>) -> Result<Option<String>> {
    match (named, token) {
        (None, None) => generated_name().map(Some),
        (named, _) => Ok(named),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_its_code_and_its_text() {
        let text =
            |frame: &str| serde_json::from_str::<ReceivedFrame<'_>>(frame).unwrap().refusal().to_string();
        assert_eq!(
            text(r#"{"type":"error","code":"forbidden","message":"not yours"}"#),
            "forbidden: not yours"
        );
        assert_eq!(text(r#"{"type":"error"}"#), "error: refused");
    }

    #[test]
    fn a_welcome_may_name_the_mailbox_of_a_backend() {
        let named = |frame: &str| {
            let frame: ReceivedFrame<'_> = serde_json::from_str(frame).unwrap();
            frame.mailbox_of_backend().map(str::to_owned)
        };
        assert_eq!(named(r#"{"type":"welcome","backend":"shop"}"#).as_deref(), Some("shop"));
        assert_eq!(named(r#"{"type":"message","backend":true,"payload":1}"#), None);
        assert_eq!(named(r#"{"type":"welcome"}"#), None);
    }

    #[test]
    fn an_ignored_token_is_reported() {
        let says = |token, welcome: &str| ignored_token(token, &serde_json::from_str(welcome).unwrap());
        let (open, token_mode) =
            (r#"{"type":"welcome","session":"A"}"#, r#"{"type":"welcome","user":"ann"}"#);
        assert!(says(Some("a.b.c"), open).unwrap().contains("--auth open"));
        assert_eq!(says(Some("a.b.c"), token_mode), None);
        assert_eq!(says(Some("an API key"), open), None);
        assert_eq!(says(None, open), None);
    }

    #[test]
    fn only_without_a_token_a_session_is_generated() {
        let session =
            |named: Option<&str>, token| session_or_generated(named.map(str::to_owned), token).unwrap();
        assert_eq!(session(Some("A"), None).as_deref(), Some("A"));
        assert_eq!(session(Some("A"), Some("a.b.c")).as_deref(), Some("A"));
        assert_eq!(session(None, Some("a.b.c")), None);
        assert!(session(None, None).unwrap().starts_with("cli-"));
        assert_ne!(session(None, None), session(None, None));
    }
}
