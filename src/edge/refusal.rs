//! Refusals: one table from errors to codes, HTTP statuses and close codes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use crate::broker::BrokerError;
use crate::edge::answer::{encode, json};
use crate::edge::refusal_log::{RefusalNote, log_refusal};
use crate::engine::{EngineError, OverShare, RegisterError, Share};
use crate::identity::CredentialError;
use crate::message::MessageId;
use crate::metrics::{self, Limit, SentBy};
use crate::protocol::{Close, Code, Malformed, ServerFrame};

/// Tells a browser that a token is expected (RFC 6750 section 3).
const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"x0-msg-server\"");

/// A refused call: a code for programs and a text for people. Only this type knows HTTP statuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The code for programs.
    pub code: Code,
    /// The text for people. It names the field, the limit and the remedy.
    pub message: String,
    /// The close code of a WebSocket that cannot go on after this refusal.
    pub close: Close,
    /// The client for the log, if it is known to be another one than the peer of the connection.
    pub client: Option<IpAddr>,
}

impl Refusal {
    /// A refusal with this code and text.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        let close = match code {
            Code::BadRequest | Code::TooLarge | Code::NotFound => Close::NotThisProtocol,
            Code::Unauthorized | Code::Forbidden => Close::Unauthorized,
            Code::MailboxFull
            | Code::RateLimited
            | Code::QuotaExceeded
            | Code::Overloaded
            | Code::Unavailable => Close::Overloaded,
        };
        Self { code, message: message.into(), close, client: None }
    }

    /// A `bad_request` for one query parameter; the text says what is wrong with it.
    pub(crate) fn bad_param(name: &str, problem: impl std::fmt::Display) -> Self {
        Self::new(Code::BadRequest, format!("parameter `{name}` {problem}"))
    }

    /// The refusal of a reader that asks for more topics than one connection may read.
    pub(crate) fn too_many_topics(limit: usize) -> Self {
        metrics::limited(Limit::TopicsOfConnection).count();
        let text = format!("one connection may read at most {limit} topics; unsubscribe from some first");
        Self::new(Code::Forbidden, text)
    }

    /// The same refusal with another close code.
    #[must_use]
    pub(crate) fn closing(self, close: Close) -> Self {
        Self { close, ..self }
    }

    /// The same refusal of this client.
    #[must_use]
    pub(crate) fn of_client(self, client: Option<IpAddr>) -> Self {
        Self { client, ..self }
    }

    /// Counts it, and logs it as one of this client, unless the client is known to be another one. For a refusal that is not the
    /// answer to a whole request of HTTP: that is noted with its response.
    pub(crate) fn note(&self, (door, by): (&'static str, SentBy), client: Option<IpAddr>) {
        log_refusal(door, self.code, self.client.or(client));
        metrics::refused(by, self.code).count();
    }

    /// The answer with another status than that of the code.
    pub(crate) fn with_status(self, status: StatusCode) -> Response {
        let mut response = self.into_response();
        *response.status_mut() = status;
        response
    }

    /// What the log says of it.
    #[must_use]
    pub(crate) fn for_log(&self) -> RefusalNote {
        RefusalNote { code: self.code, client: self.client }
    }

    /// The HTTP status of each code.
    #[must_use]
    pub(crate) fn status(&self) -> StatusCode {
        match self.code {
            Code::BadRequest => StatusCode::BAD_REQUEST,
            Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::Unauthorized => StatusCode::UNAUTHORIZED,
            Code::Forbidden => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::MailboxFull => StatusCode::INSUFFICIENT_STORAGE,
            Code::RateLimited | Code::QuotaExceeded => StatusCode::TOO_MANY_REQUESTS,
            Code::Overloaded | Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The error frame of the native protocol.
    #[must_use]
    pub(crate) fn frame(&self, id: Option<&MessageId>) -> String {
        ServerFrame::Error { id, code: self.code, message: &self.message }.encode()
    }
}

impl From<BrokerError> for Refusal {
    /// Counts the limit that has refused.
    fn from(error: BrokerError) -> Self {
        if let Some(limit) = limit_of(&error) {
            metrics::limited(limit).count();
        }
        let code = match &error {
            BrokerError::PayloadTooLarge { .. } => Code::TooLarge,
            BrokerError::TtlTooLong { .. } | BrokerError::NoReceipt(_) | BrokerError::NoRequest(_) => {
                Code::BadRequest
            }
            BrokerError::NoSuchUser(_)
            | BrokerError::NoSuchBackend(_)
            | BrokerError::NoSuchSession
            | BrokerError::RequestExpired
            | BrokerError::RequesterGone
            | BrokerError::AckBeyond { .. }
            | BrokerError::WrongEpoch { .. } => Code::NotFound,
            BrokerError::Denied(_)
            | BrokerError::Register(RegisterError::Taken | RegisterError::TooMany { .. }) => Code::Forbidden,
            BrokerError::ReceiptForNobody
            | BrokerError::RequestOfNobody
            | BrokerError::Ended
            | BrokerError::Register(RegisterError::Ended) => Code::Unauthorized,
            BrokerError::TooManyReaders { .. } => Code::RateLimited,
            BrokerError::NoMemory => Code::Overloaded,
            BrokerError::Engine(error) | BrokerError::Register(RegisterError::Engine(error)) => {
                engine_code(error)
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

/// The limit that has refused, if one has.
fn limit_of(error: &BrokerError) -> Option<Limit> {
    Some(match error {
        BrokerError::PayloadTooLarge { .. } => Limit::Payload,
        BrokerError::TtlTooLong { .. } => Limit::Ttl,
        BrokerError::TooManyReaders { .. } => Limit::ConnectionsOfSession,
        BrokerError::NoMemory => Limit::Memory,
        BrokerError::Register(RegisterError::TooMany { .. }) => Limit::SessionsOfUser,
        BrokerError::Engine(error) | BrokerError::Register(RegisterError::Engine(error)) => match error {
            EngineError::MailboxFull { .. } | EngineError::NoRoomForReceipt { .. } => Limit::Mailbox,
            EngineError::HistoryTooSmall { .. } => Limit::Topic,
            EngineError::StoreFull { .. } => Limit::Store,
            EngineError::Overloaded { .. } => Limit::Queue,
            EngineError::TooManyTopics { .. } => Limit::TopicsOfAuthor,
            EngineError::QuotaExceeded(OverShare { share, .. }) => match share {
                Share::Store | Share::Stored => Limit::StoreShare,
                Share::Queue => Limit::QueueShare,
                Share::Mailbox => Limit::MailboxShare,
            },
            EngineError::AnotherUser
            | EngineError::IdReused { .. }
            | EngineError::Unavailable { .. }
            | EngineError::Unreadable { .. } => return None,
        },
        _ => return None,
    })
}

fn engine_code(error: &EngineError) -> Code {
    match error {
        EngineError::MailboxFull { .. }
        | EngineError::NoRoomForReceipt { .. }
        | EngineError::HistoryTooSmall { .. } => Code::MailboxFull,
        EngineError::AnotherUser => Code::NotFound,
        EngineError::IdReused { .. } => Code::BadRequest,
        EngineError::QuotaExceeded(_) | EngineError::TooManyTopics { .. } => Code::QuotaExceeded,
        EngineError::Overloaded { .. } => Code::Overloaded,
        EngineError::StoreFull { .. } | EngineError::Unavailable { .. } | EngineError::Unreadable { .. } => {
            Code::Unavailable
        }
    }
}

impl From<Malformed> for Refusal {
    fn from(reason: Malformed) -> Self {
        Self::new(Code::BadRequest, reason.to_string())
    }
}

impl From<CredentialError> for Refusal {
    fn from(error: CredentialError) -> Self {
        match error {
            CredentialError::Unknown(text) | CredentialError::Invalid(text) => {
                Self::new(Code::Unauthorized, text)
            }
            CredentialError::Unavailable(text) => Self::new(Code::Unavailable, text),
        }
    }
}

/// The body of a refused HTTP call.
#[derive(Serialize, ToSchema)]
pub(crate) struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

/// A refusal as a field of a JSON answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorFields<'a> {
    code: Code,
    /// For people: the field, the limit and the remedy.
    message: &'a str,
}

impl Refusal {
    /// The refusal as a field of a larger JSON answer.
    #[must_use]
    pub(crate) fn fields(&self) -> ErrorFields<'_> {
        ErrorFields { code: self.code, message: &self.message }
    }

    /// The refusal as a complete JSON answer.
    #[must_use]
    pub(crate) fn body(&self) -> String {
        encode(&ErrorBody { error: self.fields() })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        metrics::refused(SentBy::Http, self.code).count();
        let mut response = json(self.status(), self.body());
        response.extensions_mut().insert(self.for_log());
        match self.status() {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
            }
            _ => {}
        }
        response
    }
}

type Responses = BTreeMap<String, RefOr<utoipa::openapi::Response>>;

/// The description of a refusal with this HTTP status.
pub(crate) struct Refused<const STATUS: u16>;

impl<const STATUS: u16> Refused<STATUS> {
    const DESCRIPTION: &str = match STATUS {
        400 => "The request is invalid; the text names the field",
        401 => "The credentials are missing or invalid, or the session was ended",
        403 => "Not allowed",
        413 => "Larger than the limit",
        421 => "An open broker on loopback does not serve this host; `--host` allows it",
        429 => "Too many; try again later",
        503 => "Not now; try again later, with the same id",
        507 => "The receiver has too much unread",
        _ => panic!("no refusal has this status"),
    };
}

impl<const STATUS: u16> IntoResponses for Refused<STATUS> {
    fn responses() -> Responses {
        let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
        let response =
            ResponseBuilder::new().description(Self::DESCRIPTION).content("application/json", body);
        BTreeMap::from([(STATUS.to_string(), response.build().into())])
    }
}

/// The refusals that each authenticated call may answer.
impl IntoResponses for Refusal {
    fn responses() -> Responses {
        let common = [
            Refused::<400>::responses(),
            Refused::<401>::responses(),
            Refused::<403>::responses(),
            Refused::<421>::responses(),
            Refused::<429>::responses(),
            Refused::<503>::responses(),
        ];
        common.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn each_code_has_its_status_and_close_code() {
        for (code, status, close) in [
            (Code::BadRequest, 400, Close::NotThisProtocol),
            (Code::TooLarge, 413, Close::NotThisProtocol),
            (Code::Unauthorized, 401, Close::Unauthorized),
            (Code::Forbidden, 403, Close::Unauthorized),
            (Code::NotFound, 404, Close::NotThisProtocol),
            (Code::MailboxFull, 507, Close::Overloaded),
            (Code::RateLimited, 429, Close::Overloaded),
            (Code::QuotaExceeded, 429, Close::Overloaded),
            (Code::Overloaded, 503, Close::Overloaded),
            (Code::Unavailable, 503, Close::Overloaded),
        ] {
            let refusal = Refusal::new(code, "why");
            assert_eq!((refusal.status().as_u16(), refusal.close), (status, close), "{code:?}");
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
        }
    }

    #[test]
    fn errors_of_the_broker_have_codes() {
        let code = |error: BrokerError| Refusal::from(error).code;
        assert_eq!(code(BrokerError::PayloadTooLarge { size: 2, limit: 1 }), Code::TooLarge);
        assert_eq!(code(BrokerError::TtlTooLong { limit: 1 }), Code::BadRequest);
        assert_eq!(code(BrokerError::NoSuchSession), Code::NotFound);
        assert_eq!(code(BrokerError::TooManyReaders { limit: 1 }), Code::RateLimited);
        assert_eq!(code(BrokerError::Register(RegisterError::Taken)), Code::Forbidden);
        assert_eq!(code(BrokerError::ReceiptForNobody), Code::Unauthorized);
    }

    #[test]
    fn an_ended_session_has_a_close_code_of_its_own() {
        for error in [BrokerError::Ended, BrokerError::Register(RegisterError::Ended)] {
            let refusal = Refusal::from(error);
            assert_eq!((refusal.code, refusal.close), (Code::Unauthorized, Close::SessionEnded));
        }
    }

    #[test]
    fn credentials_that_cannot_be_checked_are_no_fault_of_the_client() {
        let refusal = |error: CredentialError| Refusal::from(error).code;
        assert_eq!(refusal(CredentialError::Invalid(String::new())), Code::Unauthorized);
        assert_eq!(refusal(CredentialError::Unavailable(String::new())), Code::Unavailable);
    }

    #[tokio::test]
    async fn the_answer_is_json_and_says_what_to_do() {
        let response = Refusal::new(Code::Unauthorized, "show a \"token\"").into_response();
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], CHALLENGE);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
        let body = to_bytes(response.into_body(), 1024).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body, json!({ "error": { "code": "unauthorized", "message": "show a \"token\"" } }));
        for code in [Code::RateLimited, Code::Overloaded, Code::Unavailable] {
            assert_eq!(Refusal::new(code, "").into_response().headers()[header::RETRY_AFTER], "1");
        }
        assert!(
            !Refusal::new(Code::NotFound, "").into_response().headers().contains_key(header::RETRY_AFTER)
        );
    }

    #[test]
    fn a_described_refusal_has_its_status_and_body() {
        let responses = Refused::<413>::responses();
        let response = serde_json::to_value(&responses["413"]).unwrap();
        let schema = &response["content"]["application/json"]["schema"]["$ref"];
        assert_eq!(schema, "#/components/schemas/ErrorBody");
        assert_eq!(
            Refusal::responses().into_keys().collect::<Vec<_>>(),
            ["400", "401", "403", "421", "429", "503"]
        );
    }
}
