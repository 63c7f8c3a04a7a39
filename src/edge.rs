//! What all transports share: who asks, what was asked in bounds, and how a refusal is told.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{Broker, BrokerError};
use crate::config::Config;
use crate::engine::EngineError;
use crate::message::{Epoch, MessageId, NameError, Seq, SessionId, TopicName};
use crate::protocol::{Code, Malformed, Resume, ServerFrame};

/// What every transport holds; cheap to clone.
#[derive(Debug, Clone)]
pub struct Edge {
    /// The one door.
    pub broker: Broker,
    /// The settings.
    pub config: Arc<Config>,
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
}

impl Refusal {
    /// A refusal with this code and text.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
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
            BrokerError::TtlTooLong { .. }
            | BrokerError::NoReceipt(_)
            | BrokerError::AckBeyond { .. }
            | BrokerError::WrongEpoch { .. } => Code::BadRequest,
            BrokerError::NoSuchUser(_) => Code::NotFound,
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
        Self::new(code, error.to_string())
    }
}

impl From<Malformed> for Refusal {
    fn from(reason: Malformed) -> Self {
        Self::new(Code::BadRequest, reason.to_string())
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
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Reads a request's body as text of at most `limit` bytes.
///
/// What is beyond the limit is read and thrown away up to a further bound, so that the sender reads the
/// refusal instead of a reset connection.
///
/// # Errors
/// `too_large`, or `bad_request` for a body that is cut off or not UTF-8.
pub async fn body_text(request: Request, limit: usize) -> Result<String, Refusal> {
    const DRAIN: usize = 32 << 20;
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
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

    /// The session the request must name.
    ///
    /// # Errors
    /// `unauthorized` if there is none, `bad_request` if it is not a name.
    pub fn required_session(&self) -> Result<SessionId, Refusal> {
        const HOW: &str = "say whose mailbox to read: add ?session=… to the address";
        self.session()?.ok_or_else(|| Refusal::new(Code::Unauthorized, HOW))
    }

    /// The seq in a parameter.
    ///
    /// # Errors
    /// `bad_request` if it is not a whole number.
    pub fn seq(&self, key: &str) -> Result<Option<Seq>, Refusal> {
        let told = || Refusal::new(Code::BadRequest, format!("parameter `{key}` must be a whole number"));
        self.get(key).map(|value| value.parse().map(Seq).map_err(|_| told())).transpose()
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
    /// `bad_request` for a bad name, number, or more topics than one connection may read.
    pub fn topics(&self, most: usize) -> Result<Vec<(TopicName, Resume)>, Refusal> {
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
