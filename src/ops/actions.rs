//! What operators do: end a session, send a test message. Each action is a line of the audit log.
//!
//! `ops = true` lets an API key see the state of the broker. What it may do beyond that its `sessions` and `send` say, as for
//! other calls.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};

use crate::api::{PathId, session_named};
use crate::broker::BrokerError;
use crate::budget::Holder;
use crate::edge::{
    BodyLimit, Caller, ErrorBody, Gateway, Operator, Refusal, Refused, SessionPolicy, encode, json,
};
use crate::message::SessionId;
use crate::ops::audit;
use crate::protocol::{Code, SendRequest, SendResult, To};

/// Longest body of a test message, in bytes.
const TEST_BYTES: usize = 16 * 1024;

/// End a session, as an operator
///
/// As `DELETE /v1/sessions/{id}`, and noted in the audit log.
#[utoipa::path(
    delete, path = "/v1/ops/sessions/{id}", tag = "operations",
    params(("id" = SessionId, Path, description = "The session, by its id or its handle")),
    responses(
        (status = 204, description = "Ended, if it existed"),
        (status = 404, description = "No registered session has this handle", body = ErrorBody<'_>),
        Refusal,
    )
)]
pub(super) async fn end_session(
    operator: Operator,
    State(gateway): State<Arc<Gateway>>,
    PathId(id): PathId,
    head: Parts,
) -> Result<Response, Refusal> {
    caller(&gateway, &head).await?.grant.may_manage().map_err(BrokerError::from)?;
    let session = session_named(&gateway, &id).await?;
    let before = gateway.broker.session(&session).await;
    gateway.broker.end(&session).await.map_err(BrokerError::from)?;
    audit::session_ended(&operator, gateway.broker.public_name(&session), before.waiting);
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Send a test message, as an operator
///
/// As `POST /v1/messages` with one message, and noted in the audit log without its payload.
#[utoipa::path(
    post, path = "/v1/ops/messages", tag = "operations",
    request_body = SendRequest,
    responses(
        (status = 200, description = "Stored, at the server's level of durability", body = SendResult),
        (status = 404, description = "No such receiver", body = ErrorBody<'_>),
        Refusal,
        Refused<413>,
        Refused<507>,
    )
)]
pub(super) async fn send_test_message(
    operator: Operator,
    State(gateway): State<Arc<Gateway>>,
    request: Request,
) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    let caller = caller(&gateway, &head).await?;
    let body = gateway.body_text(body, BodyLimit::Bytes(TEST_BYTES), Holder::Proved).await?;
    let send = SendRequest::decode(&body).map_err(|bad| bad.reason)?;
    let Some(to) = receiver(&gateway, &send.to).await else {
        let text =
            "field `to` names no session, user, topic or backend; replies are for those who were asked";
        return Err(Refusal::new(Code::NotFound, text));
    };
    let bytes = send.payload.get().len();
    let sent = gateway.send(&caller, send).await?.await?;
    audit::test_message_sent(&operator, to, bytes);
    Ok(json(StatusCode::OK, encode(&sent)))
}

/// What the operator may do beyond seeing.
async fn caller(gateway: &Gateway, head: &Parts) -> Result<Caller, Refusal> {
    gateway.authenticate_as(head, (None, None), SessionPolicy::BackendOnly).await
}

/// The receiver as the audit log names it; `None` for one that no operator may choose.
async fn receiver(gateway: &Gateway, to: &To) -> Option<String> {
    Some(match to {
        To::Session(name) => {
            let session = session_named(gateway, name.as_str()).await.ok()?;
            format!("session {}", gateway.broker.public_name(&session))
        }
        To::User(user) => format!("user {user}"),
        To::Topic(topic) => format!("topic {topic}"),
        To::Backend(backend) => format!("backend {backend}"),
        To::Reply(_) | To::Peer(_) => return None,
    })
}
