//! `/v1/messages` and `/v1/ack`: sending and acknowledging.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::broker::Sending;
use crate::budget::Holder;
use crate::edge::{
    BodyLimit, Caller, ErrorBody, ErrorFields, Gateway, NamedSession, Query, Refusal, Refused, RequestHead,
    SessionPolicy, Shown, client_address, encode, json,
};
use crate::grant::Grant;
use crate::message::{BackendName, MessageId, Seq, SessionId, SharedText};
use crate::metrics::{self, SentBy};
use crate::protocol::{AckBody, Code, ENVELOPE, Malformed, SendRequest, SendResult, Sender, parse};

/// Most messages in one call.
const MAX_MESSAGES: usize = 1_000;

/// The answer to one message.
#[derive(Serialize, ToSchema)]
struct SendAnswer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a MessageId>,
    #[serde(flatten)]
    result: SendResult,
    /// In an array: why this message was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorFields<'a>>,
}

/// The answer to a call: one for each message.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum SendAnswers<'a> {
    One(SendAnswer<'a>),
    Many(Vec<SendAnswer<'a>>),
}

/// A message that is being stored or was refused, with its sender's id.
struct PendingSend {
    id: Option<MessageId>,
    sending: Result<Sending, Refusal>,
}

impl PendingSend {
    async fn start(gateway: &Gateway, caller: &Caller, object: &str) -> Self {
        match SendRequest::decode(object) {
            Ok(send) => Self { id: send.id.clone(), sending: gateway.send(caller, send).await },
            Err(bad) => Self { id: bad.id, sending: Err(bad.reason.into()) },
        }
    }

    async fn finish(self) -> (Option<MessageId>, Result<SendResult, Refusal>) {
        let result = match self.sending {
            Ok(sending) => sending.await.map_err(Refusal::from),
            Err(refusal) => Err(refusal),
        };
        count_answer(result.as_ref().err());
        (self.id, result)
    }
}

/// Counts a message whose sender is answered.
fn count_answer(refusal: Option<&Refusal>) {
    metrics::count_answer(SentBy::Http, refusal.map(|refusal| refusal.code));
}

/// Send one message, or up to 1,000
#[utoipa::path(
    post, path = "/v1/messages", tag = "messages",
    params(("session" = Option<SessionId>, Query, description = "The session that sends. A token that names its session, and a backend, need none")),
    request_body = SendRequest,
    responses(
        (status = 200, description = "Stored, at the server's level of durability. In an array each message has its own answer", body = SendAnswers<'_>),
        (status = 404, description = "No such receiver", body = ErrorBody<'_>),
        Refusal,
        Refused<413>,
        Refused<507>,
    )
)]
pub(super) async fn send(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    let holder = gateway.holder(&head).await?;
    let body = gateway.body_text(body, BodyLimit::Message, holder).await?;
    let caller = sender(&gateway, &head, &body).await?;
    if body.trim_start().starts_with('[') {
        return send_many(&gateway, &caller, &body).await;
    }
    let pending = PendingSend::start(&gateway, &caller, &body).await;
    // While the message waits for the disk it counts in the queue.
    drop(body);
    let (id, result) = pending.finish().await;
    let answer = SendAnswer { id: id.as_ref(), result: result?, error: None };
    Ok(json(StatusCode::OK, encode(&SendAnswers::One(answer))))
}

/// A message that has its place in the order. Resolves to the answer when it is stored: JSON with a newline behind it.
#[derive(Debug)]
pub(crate) struct Accepted {
    id: Option<MessageId>,
    sending: Sending,
}

impl Future for Accepted {
    type Output = Result<SharedText, Refusal>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(Pin::new(&mut self.sending).poll(cx)).map_err(Refusal::from);
        count_answer(result.as_ref().err());
        let result = result?;
        let answer = SendAnswer { id: self.id.as_ref(), result, error: None };
        Poll::Ready(Ok((encode(&SendAnswers::One(answer)) + "\n").into()))
    }
}

/// Sends one message, of which all has come and which is small. `None` says nothing: such a request has to be read.
pub(crate) fn send_small(
    gateway: &Arc<Gateway>,
    head: RequestHead<'_>,
    body: &[u8],
) -> Option<impl Future<Output = Result<Accepted, Refusal>> + Send + use<>> {
    let (access, RequestHead { query, check, .. }) = (&gateway.access(), head);
    let body = gateway.small_body(body, BodyLimit::Message)?;
    let (Sender { session, token }, send) = SendRequest::decode_with_sender(body).ok()?;
    let in_address = Query::of(query).ok()?.session().ok()?.map(NamedSession::InAddress);
    let (send, session) = (send.ok()?, in_address.or(session.map(NamedSession::Hidden)));
    let bearer = match (token, gateway.bearer(check.headers).ok()?) {
        // Both are checked.
        (Some(_), Some(_)) => return None,
        (Some(token), None) => Some(token),
        (None, bearer) => bearer.map(str::to_owned),
    };
    let address = client_address(access, check.peer, check.headers);
    let gateway = Arc::clone(gateway);
    Some(async move {
        let id = send.id.clone();
        let shown = Shown { bearer: bearer.as_deref().map(str::trim), session, address };
        let grant = gateway.identify(shown, SessionPolicy::Require).await?;
        let sending = gateway.send(&Caller { grant, address }, send).await;
        let sending = sending.inspect_err(|refusal| count_answer(Some(refusal)))?;
        Ok(Accepted { id, sending })
    })
}

/// The caller that sends. A send object may name its session and hold its proof: no proxy logs a body.
async fn sender(gateway: &Gateway, head: &Parts, body: &str) -> Result<Caller, Refusal> {
    let named = match body.trim_start().starts_with('[') {
        true => Ok(Sender::default()),
        false => Sender::decode(body),
    };
    let (session, token) =
        named.as_ref().map(|sender| (sender.session.clone(), sender.token.as_deref())).unwrap_or_default();
    let in_address = Query::parse(&head.uri)?.session()?.map(NamedSession::InAddress);
    let session = in_address.or(session.map(NamedSession::Hidden));
    let caller = gateway.authenticate_as(head, (session, token), SessionPolicy::Require).await?;
    named?;
    Ok(caller)
}

async fn send_many(gateway: &Gateway, caller: &Caller, body: &str) -> Result<Response, Refusal> {
    let items: Vec<&RawValue> = parse(body)?;
    if items.len() > MAX_MESSAGES {
        let text = format!("{} messages in one call; at most {MAX_MESSAGES} are allowed", items.len());
        return Err(Refusal::new(Code::TooLarge, text));
    }
    // All are in the queue before the first one is awaited, so that one commit stores them together.
    let mut pending = Vec::with_capacity(items.len());
    for item in items {
        pending.push(PendingSend::start(gateway, caller, item.get()).await);
    }
    let mut finished = Vec::with_capacity(pending.len());
    for send in pending {
        let (id, result) = send.finish().await;
        if let Err(refusal) = &result {
            refusal.note(("http", SentBy::Http), caller.address);
        }
        finished.push((id, result));
    }
    let answers = finished.iter().map(|(id, result)| SendAnswer {
        id: id.as_ref(),
        result: result.as_ref().copied().unwrap_or_default(),
        error: result.as_ref().err().map(Refusal::fields),
    });
    Ok(json(StatusCode::OK, encode(&SendAnswers::Many(answers.collect()))))
}

/// The answer to an acknowledgement.
#[derive(Serialize, ToSchema)]
struct Acknowledged<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a SessionId>,
    /// The backend whose mailbox it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<&'a BackendName>,
    /// The ack floor.
    seq: Seq,
}

/// Acknowledge everything up to a seq
#[utoipa::path(
    post, path = "/v1/ack", tag = "messages",
    request_body = AckBody,
    responses(
        (status = 200, description = "Acknowledged", body = Acknowledged<'_>),
        (status = 404, description = "No message with this seq was ever stored, or not in this epoch", body = ErrorBody<'_>),
        Refusal,
        Refused<413>,
    )
)]
pub(super) async fn ack(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    let body =
        AckBody::decode(&gateway.body_text(body, BodyLimit::Bytes(ENVELOPE), Holder::Unproved).await?)?;
    let AckBody { session, token, .. } = &body;
    let shown = (session.clone().map(NamedSession::Hidden), token.as_deref());
    let caller = gateway.authenticate_as(&head, shown, SessionPolicy::Require).await?;
    Ok(json(StatusCode::OK, acknowledge(&gateway, &caller, &body).await?))
}

/// The same of a call of which all has come. The answer is JSON with a newline behind it. `None` says nothing: such a request has to be
/// read.
pub(crate) fn ack_small(
    gateway: &Arc<Gateway>,
    head: RequestHead<'_>,
    body: &[u8],
) -> Option<impl Future<Output = Result<SharedText, Refusal>> + Send + use<>> {
    let (access, check) = (&gateway.access(), head.check);
    let body = AckBody::decode(gateway.small_body(body, BodyLimit::Bytes(ENVELOPE))?).ok()?;
    let bearer = match &body.token {
        Some(token) => Some(token.clone()),
        None => gateway.bearer(check.headers).ok()?.map(str::to_owned),
    };
    let address = client_address(access, check.peer, check.headers);
    let gateway = Arc::clone(gateway);
    Some(async move {
        let session = body.session.clone().map(NamedSession::Hidden);
        let shown = Shown { bearer: bearer.as_deref().map(str::trim), session, address };
        let grant = gateway.identify(shown, SessionPolicy::Require).await?;
        Ok((acknowledge(&gateway, &Caller { grant, address }, &body).await? + "\n").into())
    })
}

/// Acknowledges for this caller; the answer as JSON.
async fn acknowledge(gateway: &Gateway, caller: &Caller, body: &AckBody) -> Result<String, Refusal> {
    let mailbox = match &caller.grant {
        Grant::Open { session: None, .. } => return Err(Malformed::Missing("session").into()),
        _ => caller.mailbox()?,
    };
    let seq = gateway.broker.ack(&mailbox, body.seq, body.epoch.as_ref()).await?;
    Ok(encode(&Acknowledged { session: mailbox.session(), backend: mailbox.backend(), seq }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> MessageId {
        MessageId::new("c-1").unwrap()
    }

    #[test]
    fn an_answer_has_only_the_fields_that_are_known() {
        let id = id();
        let stored = SendResult { seq: Some(Seq(7)), sessions: None };
        let answer = SendAnswers::One(SendAnswer { id: Some(&id), result: stored, error: None });
        assert_eq!(encode(&answer), r#"{"id":"c-1","seq":7}"#);
        let answer = SendAnswers::One(SendAnswer { id: None, result: SendResult::default(), error: None });
        assert_eq!(encode(&answer), "{}");
    }

    #[test]
    fn in_an_array_each_message_has_its_answer_or_its_error() {
        let (id, refusal) = (id(), Refusal::new(Code::NotFound, "no such session"));
        let sent = SendResult { seq: None, sessions: Some(2) };
        let answers = SendAnswers::Many(vec![
            SendAnswer { id: None, result: sent, error: None },
            SendAnswer { id: Some(&id), result: SendResult::default(), error: Some(refusal.fields()) },
        ]);
        let expected =
            r#"[{"sessions":2},{"id":"c-1","error":{"code":"not_found","message":"no such session"}}]"#;
        assert_eq!(encode(&answers), expected);
    }
}
