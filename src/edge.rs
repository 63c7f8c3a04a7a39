//! What all transports share: who asks, what was asked in bounds, and how a refusal is told.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{Broker, BrokerError, Sending};
use crate::config::Config;
use crate::engine::{EngineError, RegisterError};
use crate::identity::Identity;
use crate::limits::{Addresses, Rates};
use crate::message::{Epoch, MessageId, NameError, Seq, SessionId, TopicName};
use crate::protocol::{Close, Code, MAX_SEQ, Malformed, Resume, SERVER, Send, ServerFrame, To};

mod caller;

pub use caller::{
    ApiRequest, Caller, OriginCheck, Peer, SessionPolicy, bearer, check_origin, origin_refused, peer_of,
};

/// What every transport works with. Shared by reference count: each socket holds a reference.
#[derive(Debug)]
pub struct Gateway {
    /// The broker.
    pub broker: Broker,
    /// What proofs are checked against.
    pub identity: Identity,
    /// How much a session may send.
    pub rates: Rates,
    /// How many connections a client address may have.
    pub addresses: Addresses,
    /// The settings.
    pub config: Config,
    /// Fires when the server stops: polls are answered, sockets closed.
    pub shutdown: CancellationToken,
    /// What a graceful stop waits for besides HTTP connections: upgraded sockets.
    pub tasks: TaskTracker,
}

/// A refusal: the code for programs, the text for people. Statuses are known only here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people: which field, which limit, what to do.
    pub message: String,
    /// How a WebSocket is closed that cannot go on after it.
    pub close: Close,
}

impl Refusal {
    /// A refusal with this code and text.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let close = match code {
            Code::BadRequest | Code::TooLarge | Code::NotFound => Close::NotThisProtocol,
            Code::Unauthorized | Code::Forbidden => Close::Unauthorized,
            Code::MailboxFull | Code::RateLimited | Code::Overloaded | Code::Unavailable => Close::Overloaded,
        };
        Self { code, message: message.into(), close }
    }

    /// The same with another close code.
    #[must_use]
    pub fn closing(self, close: Close) -> Self {
        Self { close, ..self }
    }

    /// The HTTP status of each code.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self.code {
            Code::BadRequest => StatusCode::BAD_REQUEST,
            Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::Unauthorized => StatusCode::UNAUTHORIZED,
            Code::Forbidden => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::MailboxFull => StatusCode::INSUFFICIENT_STORAGE,
            Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Code::Overloaded | Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The error frame of the native protocol.
    #[must_use]
    pub fn frame(&self, id: Option<&MessageId>) -> String {
        ServerFrame::Error { id, code: self.code, message: &self.message }.encode()
    }
}

impl From<BrokerError> for Refusal {
    fn from(error: BrokerError) -> Self {
        let code = match &error {
            BrokerError::PayloadTooLarge { .. } => Code::TooLarge,
            BrokerError::TtlTooLong { .. } | BrokerError::NoReceipt(_) => Code::BadRequest,
            BrokerError::NoSuchUser(_)
            | BrokerError::NoSuchSession
            | BrokerError::AckBeyond { .. }
            | BrokerError::WrongEpoch { .. } => Code::NotFound,
            BrokerError::Denied(_)
            | BrokerError::Register(RegisterError::Taken | RegisterError::TooMany { .. }) => Code::Forbidden,
            BrokerError::ReceiptForNobody
            | BrokerError::Ended
            | BrokerError::Register(RegisterError::Ended) => Code::Unauthorized,
            BrokerError::TooManyReaders { .. } => Code::RateLimited,
            BrokerError::Engine(
                EngineError::MailboxFull { .. }
                | EngineError::NoRoomForReceipt { .. }
                | EngineError::HistoryTooSmall { .. },
            ) => Code::MailboxFull,
            BrokerError::Engine(EngineError::Overloaded { .. }) => Code::Overloaded,
            BrokerError::Engine(EngineError::StoreFull { .. } | EngineError::Unavailable { .. }) => {
                Code::Unavailable
            }
        };
        let refusal = Self::new(code, error.to_string());
        match error {
            BrokerError::Ended | BrokerError::Register(RegisterError::Ended) => {
                refusal.closing(Close::SessionEnded)
            }
            _ => refusal,
        }
    }
}

impl From<Malformed> for Refusal {
    fn from(reason: Malformed) -> Self {
        Self::new(Code::BadRequest, reason.to_string())
    }
}

impl Gateway {
    /// The `welcome` of whoever this is, whose mailbox was acknowledged up to `seq`.
    #[must_use]
    pub fn welcome(&self, caller: &Caller, seq: Seq) -> String {
        let client = caller.grant.client();
        ServerFrame::Welcome {
            session: caller.grant.session(),
            user: client.and_then(|client| client.user.as_ref()),
            handle: client.map(|client| client.handle),
            epoch: self.broker.epoch(),
            seq,
            durability: self.broker.durability(),
            heartbeat: self.config.heartbeat.as_secs(),
            max_payload: self.config.max_payload,
            server: SERVER,
        }
        .encode()
    }

    /// Takes a message from whoever this is, at its rate.
    ///
    /// # Errors
    /// `rate_limited`, or what is wrong with the message.
    pub fn send(&self, caller: &Caller, send: Send) -> Result<Sending, Refusal> {
        self.pay(caller, &send.to).map_err(|wait| self.too_fast(wait))?;
        Ok(self.broker.send(&caller.grant, send)?)
    }

    /// Counts one message of this sender, for each mailbox that it goes to.
    ///
    /// # Errors
    /// How long to wait until it may send.
    pub fn pay(&self, caller: &Caller, to: &To) -> Result<(), Duration> {
        let Some(payer) = Self::payer(caller).filter(|_| self.rates.rate() > 0) else { return Ok(()) };
        let mailboxes = match to {
            To::User(user) => self.broker.directory().sessions_of(user).len(),
            To::Session(_) | To::Topic(_) | To::Peer(_) => 1,
        };
        self.rates.take(&payer, mailboxes)
    }

    /// The refusal of what comes too soon.
    #[must_use]
    pub fn too_fast(&self, wait: Duration) -> Refusal {
        let (rate, seconds) = (self.rates.rate(), wait.as_secs_f32());
        let text = format!(
            "more than {rate} messages in a second (see --send-rate); try again in {seconds:.1} s, with the same id"
        );
        Refusal::new(Code::RateLimited, text)
    }
}

/// The body of a refused HTTP call.
#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

/// A refusal within a JSON answer.
#[derive(Debug, Serialize)]
pub struct ErrorFields<'a> {
    code: Code,
    message: &'a str,
}

/// A JSON answer that nobody may cache.
pub fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (status, headers, body.into()).into_response()
}

/// Encodes what is known to be encodable.
pub fn encode(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("names, numbers and raw JSON always encode")
}

impl Refusal {
    /// The refusal within a larger JSON answer.
    #[must_use]
    pub fn fields(&self) -> ErrorFields<'_> {
        ErrorFields { code: self.code, message: &self.message }
    }

    /// The refusal as a whole JSON answer.
    #[must_use]
    pub fn body(&self) -> String {
        encode(&ErrorBody { error: self.fields() })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = json(self.status(), self.body());
        match self.status() {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, caller::CHALLENGE);
            }
            _ => {}
        }
        response
    }
}

/// Reads a request's body as text of at most `limit` bytes, which must come within `patience` and a second for each
/// 16 KiB.
///
/// What is beyond the limit is read and thrown away up to a further bound, so that the sender reads the
/// refusal instead of a reset connection.
///
/// # Errors
/// `too_large`, or `bad_request` for a body that is cut off or not UTF-8.
pub async fn body_text(mut body: Body, limit: usize, patience: Duration) -> Result<String, Refusal> {
    const DRAIN: usize = 32 << 20;
    const SLOWEST: usize = 16 * 1024;
    let mut bytes = Vec::new();
    let mut size = 0;
    let begun = Instant::now();
    loop {
        // Who goes on sending gets more time, but not for a byte now and then.
        let until = begun + patience + Duration::from_secs((size / SLOWEST) as u64);
        let frame = timeout_at(until, body.frame()).await.map_err(|_| {
            let text = format!(
                "the request body did not come within {} s (see --header-timeout)",
                patience.as_secs_f32()
            );
            Refusal::new(Code::BadRequest, text)
        })?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| Refusal::new(Code::BadRequest, "the request body was cut off"))?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len();
        if size > limit + DRAIN {
            break;
        }
        if size <= limit {
            bytes.extend_from_slice(&data);
        } else {
            bytes = Vec::new();
        }
    }
    if size > limit {
        let text = format!("the request body is larger than {limit} bytes, the most allowed here");
        return Err(Refusal::new(Code::TooLarge, text));
    }
    String::from_utf8(bytes).map_err(|_| Refusal::new(Code::BadRequest, "the request body is not UTF-8"))
}

/// The query of a request, as pairs.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Takes the query of a URI apart.
    #[must_use]
    pub fn of(uri: &Uri) -> Self {
        axum::extract::Query::try_from_uri(uri).map(|query| Self(query.0)).unwrap_or_default()
    }

    /// The first value of a parameter.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn name<T>(&self, key: &str, new: impl Fn(&str) -> Result<T, NameError>) -> Result<Option<T>, Refusal> {
        let told = |reason| Refusal::new(Code::BadRequest, format!("parameter `{key}` {reason}"));
        self.get(key).map(|value| new(value).map_err(told)).transpose()
    }

    /// The session the request names.
    ///
    /// # Errors
    /// `bad_request` if it is not a name.
    pub fn session(&self) -> Result<Option<SessionId>, Refusal> {
        self.name("session", SessionId::new)
    }

    /// The seq in a parameter.
    ///
    /// # Errors
    /// `bad_request` if it is not a whole number.
    pub fn seq(&self, key: &str) -> Result<Option<Seq>, Refusal> {
        let told = || {
            let text = format!("parameter `{key}` must be a whole number from 0 to {MAX_SEQ}");
            Refusal::new(Code::BadRequest, text)
        };
        let parse = |value: &str| value.parse().ok().filter(|n| *n <= MAX_SEQ).map(Seq).ok_or_else(told);
        self.get(key).map(parse).transpose()
    }

    /// Where to resume: `after` (or another parameter) and `epoch`.
    ///
    /// # Errors
    /// `bad_request` if it is not a whole number.
    pub fn resume(&self, key: &str) -> Result<Resume, Refusal> {
        Ok(Resume { after: self.seq(key)?, epoch: self.get("epoch").map(Epoch::new) })
    }

    /// The topics to read, each resumed by its own `after.<topic>`.
    ///
    /// # Errors
    /// `bad_request` for a bad name or number, `forbidden` for a topic that may not be read, or more of them than one
    /// connection may read.
    pub fn topics(&self, caller: &Caller, most: usize) -> Result<Vec<(TopicName, Resume)>, Refusal> {
        let mut topics = Vec::new();
        for text in self.all("topic") {
            let topic = TopicName::new(text)
                .map_err(|reason| Refusal::new(Code::BadRequest, format!("parameter `topic` {reason}")))?;
            if topics.iter().any(|(known, _)| *known == topic) {
                continue;
            }
            if topics.len() >= most {
                return Err(too_many_topics(most));
            }
            caller.grant.may_read(&topic).map_err(BrokerError::from)?;
            topics.push((topic, self.resume(&format!("after.{text}"))?));
        }
        Ok(topics)
    }
}

/// The refusal of one topic too many.
#[must_use]
pub fn too_many_topics(most: usize) -> Refusal {
    let text = format!("one connection may read at most {most} topics; unsubscribe from some first");
    Refusal::new(Code::Forbidden, text)
}
