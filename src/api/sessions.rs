//! `/v1/sessions` and `/v1/users`: backends register sessions, look them up, and end them.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use serde::Serialize;

use crate::broker::{BrokerError, SessionState};
use crate::edge::{Gateway, Refusal, SessionPolicy, body_text, encode, json};
use crate::hub::Connections;
use crate::message::{Handle, NameError, SessionId, UserId};
use crate::ops::openapi::{self, ErrorBody, Name, Registration};
use crate::protocol::{Code, ENVELOPE, SessionBody};

/// The routes.
pub(super) fn routes(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/v1/sessions/{id}", put(register).get(look_up).delete(end))
        .route("/v1/users/{id}", get(user))
        .with_state(gateway)
}

/// A session, as backends see it.
#[derive(Serialize)]
struct Session<'a> {
    session: &'a SessionId,
    /// Its public name, which other clients may know.
    handle: Handle,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a UserId>,
    /// When its registration ends, in Unix milliseconds; absent if it is not registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    connections: Connections,
    /// Messages that wait for it.
    pending: usize,
}

impl<'a> Session<'a> {
    fn of(session: &'a SessionId, state: &'a SessionState) -> Self {
        let registration = state.registration.as_ref();
        Self {
            session,
            handle: state.handle,
            user: registration.and_then(|registration| registration.user.as_ref()),
            expires: registration.map(|registration| registration.expires_at),
            connections: state.connections,
            pending: state.waiting,
        }
    }
}

/// A user and its registered sessions.
#[derive(Serialize)]
struct User<'a> {
    user: &'a UserId,
    /// Those of all sessions together.
    connections: Connections,
    sessions: Vec<Session<'a>>,
}

/// The id in the address.
pub(crate) struct Id(String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let told = |rejection: PathRejection| {
            Refusal::new(Code::BadRequest, format!("the id in the address: {}", rejection.body_text()))
        };
        Path::from_request_parts(parts, state).await.map(|Path(id)| Self(id)).map_err(told)
    }
}

fn name<T>(id: &str, new: impl Fn(&str) -> Result<T, NameError>) -> Result<T, Refusal> {
    new(id).map_err(|reason| Refusal::new(Code::BadRequest, format!("the id in the address {reason}")))
}

/// Whether whoever asks may manage sessions.
async fn check(gateway: &Gateway, head: &Parts) -> Result<(), Refusal> {
    let caller = gateway.authenticate_as(head, None, SessionPolicy::BackendOnly).await?;
    Ok(caller.grant.may_manage().map_err(BrokerError::from)?)
}

/// Register a session, or change its registration
#[utoipa::path(
    put, path = "/v1/sessions/{id}", tag = "sessions",
    params(("id" = Name, Path, description = "The session")),
    request_body(content = Registration, description = "Who it belongs to, and for how long; may be empty"),
    responses(
        (status = 200, description = "Registered", body = openapi::Session),
        (status = 400, description = "Something in the request is wrong; the text says which field", body = ErrorBody),
        (status = 401, description = "No proof, or a wrong one", body = ErrorBody),
        (status = 403, description = "Not allowed", body = ErrorBody),
        (status = 413, description = "Larger than the limit", body = ErrorBody),
        (status = 503, description = "Not now; try again later, with the same id", body = ErrorBody),
    )
)]
pub(crate) async fn register(
    State(gateway): State<Arc<Gateway>>,
    Id(id): Id,
    request: Request,
) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    check(&gateway, &head).await?;
    let session = name(&id, SessionId::new)?;
    let body = SessionBody::decode(&body_text(body, ENVELOPE, gateway.config.header_timeout).await?)?;
    let ttl = body.ttl.unwrap_or_else(|| gateway.config.access.session_ttl.min(gateway.config.max_ttl));
    gateway.broker.register(&session, body.user, ttl).await?;
    let state = gateway.broker.session(&session).await;
    Ok(json(StatusCode::OK, encode(&Session::of(&session, &state))))
}

/// Look a session up
#[utoipa::path(
    get, path = "/v1/sessions/{id}", tag = "sessions",
    params(("id" = Name, Path, description = "The session")),
    responses(
        (status = 200, description = "Who it belongs to, who is connected, and what waits for it", body = openapi::Session),
        (status = 400, description = "Something in the request is wrong; the text says which field", body = ErrorBody),
        (status = 401, description = "No proof, or a wrong one", body = ErrorBody),
        (status = 403, description = "Not allowed", body = ErrorBody),
        (status = 404, description = "Not registered, not connected, and nothing waits for it", body = ErrorBody),
    )
)]
pub(crate) async fn look_up(
    State(gateway): State<Arc<Gateway>>,
    Id(id): Id,
    head: Parts,
) -> Result<Response, Refusal> {
    check(&gateway, &head).await?;
    let session = name(&id, SessionId::new)?;
    let state = gateway.broker.session(&session).await;
    let nothing =
        state.registration.is_none() && state.waiting == 0 && state.connections == Connections::default();
    if nothing {
        let text = "this session is not registered, not connected, and nothing waits for it";
        return Err(Refusal::new(Code::NotFound, text));
    }
    Ok(json(StatusCode::OK, encode(&Session::of(&session, &state))))
}

/// End a session: its sockets are closed, its polls answered, its mailbox is deleted
#[utoipa::path(
    delete, path = "/v1/sessions/{id}", tag = "sessions",
    params(("id" = Name, Path, description = "The session")),
    responses(
        (status = 204, description = "Ended, if it was there"),
        (status = 400, description = "Something in the request is wrong; the text says which field", body = ErrorBody),
        (status = 401, description = "No proof, or a wrong one", body = ErrorBody),
        (status = 403, description = "Not allowed", body = ErrorBody),
        (status = 503, description = "Not now; try again later, with the same id", body = ErrorBody),
    )
)]
pub(crate) async fn end(
    State(gateway): State<Arc<Gateway>>,
    Id(id): Id,
    head: Parts,
) -> Result<Response, Refusal> {
    check(&gateway, &head).await?;
    let session = name(&id, SessionId::new)?;
    let before = gateway.broker.session(&session).await;
    gateway.broker.end(&session).await.map_err(BrokerError::from)?;
    tracing::debug!(session = %gateway.broker.public_name(&session), discarded = before.waiting, "session ended");
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Look a user up
#[utoipa::path(
    get, path = "/v1/users/{id}", tag = "sessions",
    params(("id" = Name, Path, description = "The user")),
    responses(
        (status = 200, description = "Its registered sessions, and who is connected", body = openapi::User),
        (status = 400, description = "Something in the request is wrong; the text says which field", body = ErrorBody),
        (status = 401, description = "No proof, or a wrong one", body = ErrorBody),
        (status = 403, description = "Not allowed", body = ErrorBody),
        (status = 404, description = "It has no registered session", body = ErrorBody),
    )
)]
pub(crate) async fn user(
    State(gateway): State<Arc<Gateway>>,
    Id(id): Id,
    head: Parts,
) -> Result<Response, Refusal> {
    check(&gateway, &head).await?;
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
    let sessions = sessions.iter().zip(&states).map(|(session, state)| Session::of(session, state)).collect();
    Ok(json(StatusCode::OK, encode(&User { user: &user, connections, sessions })))
}
