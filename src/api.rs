//! `/v1` for senders: messages and acknowledgements.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::broker::Sending;
use crate::edge::{Edge, ErrorFields, Query, Refusal, body_text, encode, json};
use crate::identity::Grant;
use crate::message::{MessageId, Seq, SessionId};
use crate::protocol::{AckBody, Code, ENVELOPE, Send, parse};

/// Messages in one call.
const MOST_MESSAGES: usize = 1_000;

/// The routes.
pub fn routes(edge: Edge) -> Router {
    Router::new().route("/v1/messages", post(send)).route("/v1/ack", post(ack)).with_state(edge)
}

#[derive(Serialize)]
struct Sent<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a MessageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<Seq>,
}

#[derive(Serialize)]
struct NotSent<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a MessageId>,
    error: ErrorFields<'a>,
}

/// A message on its way: its id, and its place in the store or why it has none.
type OnItsWay = (Option<MessageId>, Result<Sending, Refusal>);

fn start(edge: &Edge, grant: &Grant, object: &str) -> OnItsWay {
    match Send::decode(object) {
        Ok(send) => {
            let id = send.id.clone();
            (id, edge.broker.send(grant, send).map_err(Refusal::from))
        }
        Err(bad) => (bad.id, Err(bad.reason.into())),
    }
}

async fn finish(sending: Result<Sending, Refusal>) -> Result<Option<Seq>, Refusal> {
    Ok(sending?.done().await?)
}

async fn send(State(edge): State<Edge>, request: Request) -> Result<Response, Refusal> {
    let session = Query::of(request.uri()).session()?;
    let grant = session.map_or_else(Grant::anonymous, Grant::session);
    let body = body_text(request, edge.config.max_payload + ENVELOPE).await?;
    if !body.trim_start().starts_with('[') {
        let (id, sending) = start(&edge, &grant, &body);
        let seq = finish(sending).await?;
        return Ok(json(StatusCode::OK, encode(&Sent { id: id.as_ref(), seq })));
    }
    let items: Vec<&RawValue> = parse(&body)?;
    if items.len() > MOST_MESSAGES {
        let text = format!("{} messages in one call; at most {MOST_MESSAGES} are allowed", items.len());
        return Err(Refusal::new(Code::TooLarge, text));
    }
    // All take their places before any is waited for, so that they are stored together.
    let sends: Vec<OnItsWay> = items.iter().map(|item| start(&edge, &grant, item.get())).collect();
    let mut answers = Vec::with_capacity(sends.len());
    for (id, sending) in sends {
        let id = id.as_ref();
        answers.push(match finish(sending).await {
            Ok(seq) => encode(&Sent { id, seq }),
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

async fn ack(State(edge): State<Edge>, request: Request) -> Result<Response, Refusal> {
    let body = AckBody::decode(&body_text(request, ENVELOPE).await?)?;
    let seq = edge.broker.ack(&body.session, body.seq, body.epoch.as_ref())?;
    Ok(json(StatusCode::OK, encode(&Acknowledged { session: &body.session, seq })))
}
