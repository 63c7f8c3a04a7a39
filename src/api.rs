//! `/v1` for senders and backends: messages, acknowledgements, sessions and users.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::broker::Sending;
use crate::edge::{
    ApiRequest, Caller, ErrorFields, Gateway, Refusal, SessionPolicy, body_text, encode, json,
};
use crate::grant::Grant;
use crate::message::{MessageId, Seq, SessionId};
use crate::ops::openapi::{self, Ack, ErrorBody, Name, SendAnswer, SendBody};
use crate::protocol::{AckBody, Code, ENVELOPE, Malformed, SendRequest, SendResult, parse};

pub(crate) mod sessions;

/// Messages in one call.
const MOST_MESSAGES: usize = 1_000;

/// The routes.
pub fn routes(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/v1/messages", post(send))
        .route("/v1/ack", post(ack))
        .with_state(gateway.clone())
        .merge(sessions::routes(gateway))
}

#[derive(Serialize)]
struct Sent<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a MessageId>,
    #[serde(flatten)]
    stored: SendResult,
}

#[derive(Serialize)]
struct NotSent<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a MessageId>,
    error: ErrorFields<'a>,
}

/// A message on its way: its id, and its place in the store or why it has none.
type OnItsWay = (Option<MessageId>, Result<Sending, Refusal>);

async fn start(gateway: &Gateway, caller: &Caller, object: &str) -> OnItsWay {
    match SendRequest::decode(object) {
        Ok(send) => {
            let id = send.id.clone();
            (id, gateway.send(caller, send).await)
        }
        Err(bad) => (bad.id, Err(bad.reason.into())),
    }
}

async fn finish(sending: Result<Sending, Refusal>) -> Result<SendResult, Refusal> {
    Ok(sending?.await?)
}

/// Send one message, or up to 1,000
#[utoipa::path(
    post, path = "/v1/messages", tag = "messages",
    params(("session" = Option<Name>, Query, description = "Who sends; may be left out with a token that names its session, and by backends")),
    request_body = SendBody,
    responses(
        (status = 200, description = "Stored, as durable as the server is set to; in an array, each by itself", body = SendAnswer),
        (status = 400, description = "Something in the request is wrong; the text says which field", body = ErrorBody),
        (status = 401, description = "No proof, or a wrong one", body = ErrorBody),
        (status = 403, description = "Not allowed", body = ErrorBody),
        (status = 404, description = "No such receiver", body = ErrorBody),
        (status = 413, description = "Larger than the limit", body = ErrorBody),
        (status = 429, description = "Too many; try again later", body = ErrorBody),
        (status = 507, description = "The receiver has too much unread", body = ErrorBody),
        (status = 503, description = "Not now; try again later, with the same id", body = ErrorBody),
    )
)]
pub(crate) async fn send(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    let ApiRequest { caller, .. } = gateway.authenticate(&head, SessionPolicy::Require).await?;
    let body = body_text(body, gateway.config.max_payload + ENVELOPE, gateway.config.header_timeout).await?;
    if !body.trim_start().starts_with('[') {
        let (id, sending) = start(&gateway, &caller, &body).await;
        let stored = finish(sending).await?;
        return Ok(json(StatusCode::OK, encode(&Sent { id: id.as_ref(), stored })));
    }
    let items: Vec<&RawValue> = parse(&body)?;
    if items.len() > MOST_MESSAGES {
        let text = format!("{} messages in one call; at most {MOST_MESSAGES} are allowed", items.len());
        return Err(Refusal::new(Code::TooLarge, text));
    }
    // All take their places before any is waited for, so that they are stored together.
    let mut sends: Vec<OnItsWay> = Vec::with_capacity(items.len());
    for item in items {
        sends.push(start(&gateway, &caller, item.get()).await);
    }
    let mut answers = Vec::with_capacity(sends.len());
    for (id, sending) in sends {
        let id = id.as_ref();
        answers.push(match finish(sending).await {
            Ok(stored) => encode(&Sent { id, stored }),
            Err(refusal) => encode(&NotSent { id, error: refusal.fields() }),
        });
    }
    Ok(json(StatusCode::OK, format!("[{}]", answers.join(","))))
}

#[derive(Serialize)]
struct Acknowledged<'a> {
    session: &'a SessionId,
    seq: Seq,
}

/// Acknowledge everything up to a seq
#[utoipa::path(
    post, path = "/v1/ack", tag = "messages",
    request_body = Ack,
    responses(
        (status = 200, description = "Acknowledged", body = openapi::Acknowledged),
        (status = 400, description = "Something in the request is wrong; the text says which field", body = ErrorBody),
        (status = 401, description = "No proof, or a wrong one", body = ErrorBody),
        (status = 403, description = "Not allowed", body = ErrorBody),
        (status = 404, description = "Nothing with this seq was ever stored, or not in this epoch", body = ErrorBody),
        (status = 413, description = "Larger than the limit", body = ErrorBody),
    )
)]
pub(crate) async fn ack(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    let body = AckBody::decode(&body_text(body, ENVELOPE, gateway.config.header_timeout).await?)?;
    let caller = gateway.authenticate_as(&head, body.session, SessionPolicy::Require).await?;
    let session = match &caller.grant {
        Grant::Open { session, .. } => session.as_ref().ok_or(Malformed::Missing("session"))?,
        Grant::Client(_) | Grant::Backend(_) => caller.session()?,
    };
    let seq = gateway.broker.ack(session, body.seq, body.epoch.as_ref()).await?;
    Ok(json(StatusCode::OK, encode(&Acknowledged { session, seq })))
}
