//! `/v1/sessions` and `/v1/users`: backends register sessions, look them up, and end them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::path::{PathId, name, session_named};
use crate::broker::{BrokerError, SessionState};
use crate::budget::Holder;
use crate::edge::{BodyLimit, ErrorBody, Gateway, Proved, Refusal, Refused, SessionPolicy, encode, json};
use crate::engine::RegistrationSource;
use crate::hub::{Connections, ReaderState, Transport};
use crate::identity::{WeakId, check_id_strength};
use crate::message::{Address, Handle, Seq, SessionId, UserId, taken_name};
use crate::protocol::{Code, ENVELOPE, SessionBody};

/// A session, as backends see it.
#[derive(Serialize, ToSchema)]
struct SessionInfo<'a> {
    /// Absent where ids are secrets, and the caller may not manage sessions or named this one by its handle.
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a SessionId>,
    /// The public name of the session. Other clients may know it.
    handle: Handle,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a UserId>,
    /// When the registration ends, in Unix milliseconds. Absent if the session is not registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    /// Whether the id is a proof on every transport. Absent if not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    proof: bool,
    connections: Connections,
    /// Unread messages of the session.
    pending: usize,
}

impl<'a> SessionInfo<'a> {
    fn new(session: &'a SessionId, state: &'a SessionState) -> Self {
        let registration = state.registration.as_ref();
        Self {
            session: Some(session),
            handle: state.handle,
            user: registration.and_then(|registration| registration.user.as_ref()),
            expires: registration.map(|registration| registration.expires_at),
            proof: registration.is_some_and(|registration| {
                matches!(registration.source, RegistrationSource::Backend { proof: true, .. })
            }),
            connections: state.connections,
            pending: state.waiting,
        }
    }
}

/// A session, with what only its look-up says.
#[derive(Serialize, ToSchema)]
struct SessionDetails<'a> {
    #[serde(flatten)]
    session: SessionInfo<'a>,
    /// Bytes of the unread messages, each counted with its envelope. Absent in a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    /// Everything up to this seq is acknowledged.
    acknowledged: Seq,
    /// The newest seq of the mailbox.
    newest: Seq,
    /// The connections to the node that answers, 100 at most: up to where each has been sent messages.
    readers: Vec<SessionReader>,
}

/// One connection of a session.
#[derive(Serialize, ToSchema)]
struct SessionReader {
    /// `websocket`, `sse`, `poll` or `legacy`.
    transport: &'static str,
    /// Up to where it has been sent messages.
    sent: Seq,
}

impl From<ReaderState> for SessionReader {
    fn from(ReaderState { transport, sent }: ReaderState) -> Self {
        let transport = match transport {
            Transport::Websocket => "websocket",
            Transport::Sse => "sse",
            Transport::Poll => "poll",
            Transport::Legacy => "legacy",
        };
        Self { transport, sent }
    }
}

/// A user and its registered sessions.
#[derive(Serialize, ToSchema)]
struct UserInfo<'a> {
    user: &'a UserId,
    /// Of all sessions together.
    connections: Connections,
    sessions: Vec<SessionInfo<'a>>,
}

/// The refusal of a session whose id cannot be a proof.
fn weak_proof(reason: &WeakId) -> Refusal {
    let text = format!(
        "field `proof`: the id in the address {reason}. An id that is a proof needs 128 random bits, like the output of \
         `openssl rand -hex 16`"
    );
    Refusal::new(Code::BadRequest, text)
}

/// Refuses callers that may not manage sessions.
async fn authorize(gateway: &Gateway, head: &Parts) -> Result<(), Refusal> {
    let proved = gateway.prove(head).await?;
    may_manage(gateway, head, proved).await
}

/// Whether the caller with this proof may manage sessions.
///
/// # Errors
/// It may not.
async fn may_manage(gateway: &Gateway, head: &Parts, proved: Proved) -> Result<(), Refusal> {
    let grant = gateway.grant_of_proved((head, proved), None, SessionPolicy::BackendOnly).await?;
    Ok(grant.may_manage().map_err(BrokerError::from)?)
}

/// Register a session, or change its registration
#[utoipa::path(
    put, path = "/v1/sessions/{id}", tag = "sessions",
    params(("id" = SessionId, Path, description = "The session")),
    request_body(content = SessionBody, description = "The user that the session belongs to, and for how long. May be empty"),
    responses(
        (status = 200, description = "Registered", body = SessionInfo<'_>),
        Refused<413>,
        Refusal,
    )
)]
pub(super) async fn register(
    State(gateway): State<Arc<Gateway>>,
    PathId(id): PathId,
    request: Request,
) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    authorize(&gateway, &head).await?;
    let session = name(&id, |id| taken_name(id, SessionId::new))?;
    let body =
        SessionBody::decode(&gateway.body_text(body, BodyLimit::Bytes(ENVELOPE), Holder::Proved).await?)?;
    if body.proof {
        check_id_strength(session.as_str()).map_err(|reason| weak_proof(&reason))?;
    }
    let ttl = body.ttl.unwrap_or_else(|| gateway.config.access.session_ttl.min(gateway.config.max_ttl));
    gateway.broker.register(&session, body.user, ttl, body.proof).await?;
    let state = gateway.broker.session(&session).await;
    Ok(json(StatusCode::OK, encode(&SessionInfo::new(&session, &state))))
}

/// Look a session up
#[utoipa::path(
    get, path = "/v1/sessions/{id}", tag = "sessions",
    params(("id" = SessionId, Path, description = "The session, by its id or its handle")),
    responses(
        (status = 200, description = "The user, the connections and the unread messages", body = SessionDetails<'_>),
        (status = 404, description = "Not registered, not connected, and without unread messages", body = ErrorBody<'_>),
        Refusal,
    )
)]
pub(super) async fn look_up(
    State(gateway): State<Arc<Gateway>>,
    PathId(id): PathId,
    head: Parts,
) -> Result<Response, Refusal> {
    let proved = gateway.prove(&head).await?;
    let is_operator = gateway.operator_of_proved(&head, &proved).is_ok();
    let knows_ids = match may_manage(&gateway, &head, proved).await {
        Ok(()) => true,
        Err(_) if is_operator => false,
        Err(refusal) => return Err(refusal),
    };
    let session = session_named(&gateway, &id).await?;
    let state = gateway.broker.session(&session).await;
    let nothing =
        state.registration.is_none() && state.waiting == 0 && state.connections == Connections::default();
    if nothing {
        let text = "this session is not registered, not connected, and nothing waits for it";
        return Err(Refusal::new(Code::NotFound, text));
    }
    let mailbox = gateway.broker.mailbox_details(&Address::from(&session)).await;
    let mut info = SessionInfo::new(&session, &state);
    let shows_id = !gateway.broker.limits().secret_ids || knows_ids && session.as_str() == id;
    info.session = info.session.filter(|_| shows_id);
    // Of the same moment as the bytes.
    info.pending = mailbox.stored.messages;
    let details = SessionDetails {
        session: info,
        bytes: mailbox.stored.bytes,
        acknowledged: mailbox.acknowledged,
        newest: mailbox.newest,
        readers: mailbox.readers.into_iter().map(SessionReader::from).collect(),
    };
    Ok(json(StatusCode::OK, encode(&details)))
}

/// End a session: close its sockets, answer its polls, delete its mailbox
#[utoipa::path(
    delete, path = "/v1/sessions/{id}", tag = "sessions",
    params(("id" = SessionId, Path, description = "The session, by its id or its handle")),
    responses(
        (status = 204, description = "Ended, if it existed"),
        Refusal,
    )
)]
pub(super) async fn end(
    State(gateway): State<Arc<Gateway>>,
    PathId(id): PathId,
    head: Parts,
) -> Result<Response, Refusal> {
    authorize(&gateway, &head).await?;
    let session = session_named(&gateway, &id).await?;
    let before = gateway.broker.session(&session).await;
    gateway.broker.end(&session).await.map_err(BrokerError::from)?;
    tracing::debug!(session = %gateway.broker.public_name(&session), discarded = before.waiting, "session ended");
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Look a user up
#[utoipa::path(
    get, path = "/v1/users/{id}", tag = "sessions",
    params(("id" = UserId, Path, description = "The user")),
    responses(
        (status = 200, description = "The registered sessions and their connections", body = UserInfo<'_>),
        (status = 404, description = "The user has no registered session", body = ErrorBody<'_>),
        Refusal,
    )
)]
pub(super) async fn look_up_user(
    State(gateway): State<Arc<Gateway>>,
    PathId(id): PathId,
    head: Parts,
) -> Result<Response, Refusal> {
    authorize(&gateway, &head).await?;
    let user = name(&id, UserId::new)?;
    let sessions = gateway.broker.directory().sessions_of(&user).await;
    if sessions.is_empty() {
        return Err(BrokerError::NoSuchUser(user).into());
    }
    let mut states: Vec<SessionState> = Vec::with_capacity(sessions.len());
    for session in &sessions {
        states.push(gateway.broker.session(session).await);
    }
    let connections = states.iter().fold(Connections::default(), |all, state| all.with(state.connections));
    let sessions =
        sessions.iter().zip(&states).map(|(session, state)| SessionInfo::new(session, state)).collect();
    Ok(json(StatusCode::OK, encode(&UserInfo { user: &user, connections, sessions })))
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Method;
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;
    use crate::clock::Clock;
    use crate::config::{Config, Level};
    use crate::server::Server;

    /// Status and body of a call of a server in `open` mode.
    async fn call(server: &Server, method: Method, path: &str, body: &'static str) -> (u16, Value) {
        let request = Request::builder().method(method).uri(path).body(Body::from(body)).unwrap();
        let response = server.router().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 16).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    fn server() -> Server {
        Server::new(Config { durability: Level::Memory, ..Config::default() }, Clock::Wall).unwrap()
    }

    #[tokio::test]
    async fn a_session_is_registered_looked_up_and_ended() {
        let server = server();
        let (status, session) =
            call(&server, Method::PUT, "/v1/sessions/A", r#"{"user":"ann","ttl":60}"#).await;
        assert_eq!((status, &session["session"], &session["user"]), (200, &json!("A"), &json!("ann")));
        assert_eq!(
            (session["pending"].as_u64(), session["connections"]["poll"].as_u64()),
            (Some(0), Some(0))
        );
        let (status, found) = call(&server, Method::GET, "/v1/sessions/A", "").await;
        assert_eq!((status, &found["acknowledged"], &found["readers"]), (200, &json!(0), &json!([])));
        assert!(session.as_object().unwrap().iter().all(|(field, value)| found[field] == *value), "{found}");
        let (status, user) = call(&server, Method::GET, "/v1/users/ann", "").await;
        assert_eq!((status, &user["sessions"]), (200, &json!([session])));
        assert_eq!(call(&server, Method::DELETE, "/v1/sessions/A", "").await, (204, Value::Null));
        for path in ["/v1/sessions/A", "/v1/users/ann"] {
            let (status, refusal) = call(&server, Method::GET, path, "").await;
            assert_eq!((status, &refusal["error"]["code"]), (404, &json!("not_found")), "{path}");
        }
    }

    #[tokio::test]
    async fn a_registration_may_have_no_body_but_no_invalid_one() {
        let server = server();
        assert_eq!(call(&server, Method::PUT, "/v1/sessions/A", "").await.0, 200);
        for (body, names) in [
            (r#"{"user":7}"#, "`user`"),
            (r#"{"ttl":0}"#, "`ttl`"),
            (r#"{"ttl":1e9}"#, "--max-ttl"),
            ("[]", "object"),
        ] {
            let (status, refusal) = call(&server, Method::PUT, "/v1/sessions/A", body).await;
            let message = refusal["error"]["message"].as_str().unwrap();
            assert!(status == 400 && message.contains(names), "{body}: {status} {message}");
        }
        let (status, refusal) = call(&server, Method::GET, "/v1/sessions/a%0Ab", "").await;
        assert_eq!((status, &refusal["error"]["code"]), (400, &json!("bad_request")));
    }
}
