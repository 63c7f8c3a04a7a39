//! The connection to NATS, and requests over it.
//!
//! Requests have an inbox of their own. So an answer that does not come leaves nothing behind, and one request may have many
//! answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::coop::unconstrained;
use tokio::time::timeout;

use crate::engine::nats::error::AskError;
use crate::sync::lock;

/// How long an answer is waited for.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// Requests to the servers' interface on their way at the same time. Their queue is bounded, and drops everything when it is full.
const API_REQUESTS: usize = 64;

/// The connection to NATS.
#[derive(Debug)]
pub(super) struct Link {
    client: Client,
    inbox: String,
    /// Where the answers to what is posted come.
    answers: String,
    waiting: Arc<Waiting>,
    next: AtomicU64,
    api: Semaphore,
}

/// The state of the connection to NATS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NatsConnection {
    /// Whether there is one now.
    pub(crate) is_up: bool,
    /// How often it was made.
    pub(crate) connects: u64,
    /// Bytes received, without those of the protocol.
    pub(crate) received: u64,
    /// Bytes sent, without those of the protocol.
    pub(crate) sent: u64,
}

/// Who waits for answers, by the number of the request.
type Waiting = Mutex<HashMap<u64, mpsc::Sender<Message>>>;

/// The answers to one request.
#[derive(Debug)]
pub(super) struct Answers {
    waiting: Arc<Waiting>,
    number: u64,
    receiver: mpsc::Receiver<Message>,
}

impl Answers {
    /// The next answer.
    ///
    /// # Errors
    /// [`AskError::Unknown`]: none came in time, or nobody answers.
    pub(super) async fn next(&mut self) -> Result<Message, AskError> {
        match timeout(ANSWER, self.receiver.recv()).await {
            Ok(Some(message)) if status(&message) == 503 => {
                Err(AskError::Unknown("no NATS server answers for it".into()))
            }
            Ok(Some(message)) => Ok(message),
            _ => Err(AskError::Unknown("NATS does not answer".into())),
        }
    }

    /// Whatever comes next, without a limit of time.
    pub(super) async fn recv(&mut self) -> Option<Message> {
        self.receiver.recv().await
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        lock(&self.waiting).remove(&self.number);
    }
}

/// The status of an answer; 0 if it has none.
pub(super) fn status(message: &Message) -> u16 {
    message.status.map_or(0, |status| status.as_u16())
}

/// A header of a message.
pub(super) fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str)
}

/// A header that is a number; 0 if there is none.
pub(super) fn number(message: &Message, name: &str) -> u64 {
    header(message, name).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// Where a message was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    /// Its seq.
    pub(super) seq: u64,
    /// Whether a message with this id was stored before, with this seq.
    pub(super) is_known: bool,
}

impl Link {
    /// Listens for answers on this connection.
    ///
    /// # Errors
    /// The connection is closed.
    pub(super) async fn new(client: Client) -> Result<Self, async_nats::SubscribeError> {
        let inbox = client.new_inbox();
        let waiting = Arc::<Waiting>::default();
        let mut answers = client.subscribe(format!("{inbox}.*")).await?;
        let to = Arc::clone(&waiting);
        tokio::spawn(async move {
            while let Some(message) = answers.next().await {
                let number = message.subject.rsplit('.').next().and_then(|token| token.parse().ok());
                let waiter = number.and_then(|number: u64| lock(&to).get(&number).cloned());
                if let Some(waiter) = waiter {
                    // More than was asked for, or nobody waits any more.
                    _ = waiter.try_send(message);
                }
            }
        });
        let (api, answers) = (Semaphore::new(API_REQUESTS), client.new_inbox());
        Ok(Self { client, inbox, answers, waiting, next: AtomicU64::new(0), api })
    }

    /// The client.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The state of the connection.
    pub(super) fn connection(&self) -> NatsConnection {
        let statistics = self.client.statistics();
        let [connects, received, sent] = [&statistics.connects, &statistics.in_bytes, &statistics.out_bytes]
            .map(|count| count.load(Ordering::Relaxed));
        NatsConnection { is_up: self.is_up(), connects, received, sent }
    }

    /// Whether there is a connection now.
    pub(super) fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Asks, and returns the answers, of which at most `most` wait to be taken.
    ///
    /// # Errors
    /// [`AskError::Unknown`]: there is no connection.
    pub(super) async fn ask(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        body: Bytes,
        most: usize,
    ) -> Result<Answers, AskError> {
        // The client would keep it, and send it later.
        if !self.is_up() {
            return Err(AskError::Unknown("there is no connection to NATS".into()));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel(most);
        lock(&self.waiting).insert(number, sender);
        let answers = Answers { waiting: Arc::clone(&self.waiting), number, receiver };
        let reply = format!("{}.{number}", self.inbox);
        let sent = match headers {
            Some(headers) => self.client.publish_with_reply_and_headers(subject, reply, headers, body).await,
            None => self.client.publish_with_reply(subject, reply, body).await,
        };
        sent.map_err(|error| AskError::Unknown(error.to_string().into()))?;
        Ok(answers)
    }

    /// The subject of all answers to what is posted.
    pub(super) fn all_answers(&self) -> String {
        format!("{}.*", self.answers)
    }

    /// Sends a message with a number, if that is possible at once. The last token of its answer's subject is the number.
    pub(super) fn post(&self, number: u64, subject: &str, headers: HeaderMap, body: Bytes) -> bool {
        let posted = self.post_when_ready(number, subject.to_owned(), headers, body);
        // A future that is not ready has sent nothing. What the task did before must not count.
        matches!(unconstrained(posted).now_or_never(), Some(Ok(())))
    }

    /// Sends a message with a number, as soon as the connection has room for it.
    ///
    /// # Errors
    /// [`AskError::Unknown`]: there is no connection. Nothing is sent.
    pub(super) async fn post_when_ready(
        &self,
        number: u64,
        subject: String,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(), AskError> {
        // The client would keep it, and send it later.
        if !self.is_up() {
            return Err(AskError::Unknown("there is no connection to NATS".into()));
        }
        let (subject, reply) = (Subject::from(subject), Subject::from(format!("{}.{number}", self.answers)));
        let sent = self.client.publish_with_reply_and_headers(subject, reply, headers, body).await;
        sent.map_err(|error| AskError::Unknown(error.to_string().into()))
    }

    /// Sends a message without an answer. `false` if that is not possible at once: then nothing is sent.
    pub(super) fn publish_now(&self, subject: String, body: Bytes) -> bool {
        // The client would keep it, and send it later.
        self.is_up()
            && matches!(
                unconstrained(self.client.publish(Subject::from(subject), body)).now_or_never(),
                Some(Ok(()))
            )
    }

    /// Stores a message.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn store(
        &self,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Stored, AskError> {
        let answer = self.ask(subject.to_owned(), Some(headers), body, 1).await?.next().await?;
        stored(&answer)
    }

    /// Asks JetStream, for which `what` is the end of the subject.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn api(&self, what: &str, request: &Value) -> Result<Value, AskError> {
        let _permit = self.api.acquire().await.expect("never closed");
        let body = if request.is_null() { Bytes::new() } else { request.to_string().into() };
        let answer = self.ask(format!("$JS.API.{what}"), None, body, 1).await?.next().await?;
        checked(&answer.payload)
    }

    /// Asks a stream for messages. The answers end with one that has a status.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn get(&self, stream: &str, request: &Value, most: usize) -> Result<Answers, AskError> {
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        self.ask(subject, None, request.to_string().into(), most + 1).await
    }

    /// One message of a stream; `None` if there is none.
    ///
    /// # Errors
    /// [`AskError`].
    pub(super) async fn get_one(&self, stream: &str, request: &Value) -> Result<Option<Message>, AskError> {
        let answer = self.get(stream, request, 1).await?.next().await?;
        match status(&answer) {
            0 => Ok(Some(answer)),
            404 => Ok(None),
            code => Err(AskError::Refused { code: code.into(), text: "NATS refuses to read".into() }),
        }
    }

    /// Listens to a subject.
    ///
    /// # Errors
    /// [`AskError::Unknown`]: the connection is closed.
    pub(super) async fn subscribe(&self, subject: String) -> Result<Subscriber, AskError> {
        self.client.subscribe(subject).await.map_err(|error| AskError::Unknown(error.to_string().into()))
    }
}

/// What a stream answers to a message.
#[derive(Deserialize)]
struct StreamAnswer {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: u64,
    err_code: Option<u64>,
    #[serde(default)]
    description: Box<str>,
}

/// Where a stream stored a message, by its answer.
///
/// # Errors
/// [`AskError`].
pub(super) fn stored(answer: &Message) -> Result<Stored, AskError> {
    if status(answer) == 503 {
        return Err(AskError::Unknown("no NATS server answers for it".into()));
    }
    match serde_json::from_slice(&answer.payload) {
        Ok(StreamAnswer { error: Some(ApiError { code, err_code, description }), .. }) => {
            Err(AskError::Refused { code: err_code.unwrap_or(code), text: description.into() })
        }
        Ok(StreamAnswer { seq, duplicate, .. }) if seq > 0 => Ok(Stored { seq, is_known: duplicate }),
        Ok(_) => Err(AskError::Unknown("the answer has no seq".into())),
        Err(error) => Err(unreadable(&error)),
    }
}

fn unreadable(error: &serde_json::Error) -> AskError {
    AskError::Unknown(format!("NATS' answer cannot be read: {error}").into())
}

/// The content of an answer that is no error.
fn checked(payload: &[u8]) -> Result<Value, AskError> {
    let answer: Value = serde_json::from_slice(payload).map_err(|error| unreadable(&error))?;
    match answer.get("error") {
        None => Ok(answer),
        Some(error) => Err(AskError::Refused {
            code: error["err_code"].as_u64().or(error["code"].as_u64()).unwrap_or_default(),
            text: error["description"].as_str().unwrap_or("refused").into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_in_an_answer_is_a_refusal_with_its_number() {
        let refused =
            checked(br#"{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}}"#);
        assert!(refused.unwrap_err().is(10077));
        assert!(matches!(checked(b"no"), Err(AskError::Unknown(_))));
        assert_eq!(checked(br#"{"seq":3}"#).unwrap()["seq"], 3);
    }
}
