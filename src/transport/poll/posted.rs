//! `POST /v1/messages/poll`: one poll, or several of one browser, in a body. No proxy logs it, and it fits any number of topics.

use std::net::IpAddr;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures::future::join_all;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::broker::BrokerError;
use crate::edge::{
    BodyLimit, Caller, ErrorBody, Gateway, NamedSession, Refusal, Refused, RequestHead, SessionPolicy, Shown,
    TopicRequest, client_address, json_line,
};
use crate::grant::Grant;
use crate::message::SharedText;
use crate::protocol::{Code, Malformed, PollBody, PollTopic, parse};
use crate::transport::poll::answer::{PollAnswer, TopicError};
use crate::transport::poll::polling::{Polls, answer};
use crate::transport::poll::request::{DEFAULT_WAIT, MAX_WAIT, PollRequest};

/// The address of these polls.
pub(crate) const PATH: &str = "/v1/messages/poll";

/// Most bytes of the body.
const MAX_BODY: usize = 256 * 1024;

/// Most polls of one call.
const MAX_POLLS: usize = 16;

/// The answer to one of several polls.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum PollResult<'a> {
    #[schema(title = "PollAnswered")]
    Answer(PollAnswer<'a>),
    #[schema(title = "PollRefused")]
    Error(ErrorBody<'a>),
}

/// The answers of the call.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum PollAnswers<'a> {
    One(PollAnswer<'a>),
    Many(Vec<PollResult<'a>>),
}

/// Read mailboxes and topics, with a long-poll
#[utoipa::path(
    post, path = "/v1/messages/poll", tag = "messages",
    request_body = PollBody,
    responses(
        (status = 200, description = "Messages; none if none came in time. In an array each poll has its own answer, and all are answered when one has something", body = PollAnswers<'_>),
        Refusal,
        Refused<413>,
    )
)]
pub(super) async fn post_poll(State(polls): State<Polls>, request: Request) -> Result<Response, Refusal> {
    let (head, body) = request.into_parts();
    let gateway = &polls.gateway;
    let holder = gateway.holder(&head).await?;
    let body = gateway.body_text(body, BodyLimit::Bytes(MAX_BODY), holder).await?;
    let sender = Sender::of(gateway, (&head).into())?;
    let mut answer = match is_array(&body) {
        false => {
            let request = sender.prepare(gateway, PollBody::decode(&body)).await?;
            drop(body);
            poll_one(&polls, &request).await?
        }
        true => Box::pin(poll_many(&polls, &sender, &body)).await?,
    };
    answer.push_str("\n");
    Ok(json_line(StatusCode::OK, answer.into()))
}

impl Polls {
    /// Answers a POST of [`PATH`] whose body has come and is small, with JSON and a newline behind it. `None` says nothing: such a
    /// request has to be read.
    pub(crate) fn answer_small(
        &self,
        head: RequestHead<'_>,
        body: &[u8],
    ) -> Option<impl Future<Output = Result<SharedText, Refusal>> + Send + use<>> {
        let (polls, body) = (self.clone(), self.gateway.small_body(body, BodyLimit::Bytes(MAX_BODY))?);
        let sender = Sender::of(&polls.gateway, head).ok()?;
        let body = match is_array(body) {
            true => Err(body.to_owned()),
            false => Ok(PollBody::decode(body).ok()?),
        };
        // A bearer in the header is checked first, and then what the body says.
        if sender.bearer.is_some() && body.as_ref().map_or(true, |poll| poll.token.is_some()) {
            return None;
        }
        Some(async move {
            let mut answer = match body {
                Ok(poll) => {
                    let request = Box::pin(sender.prepare(&polls.gateway, Ok(poll))).await?;
                    poll_one(&polls, &request).await?
                }
                Err(body) => Box::pin(poll_many(&polls, &sender, &body)).await?,
            };
            answer.push_str("\n");
            Ok(answer)
        })
    }
}

/// Whether a body has several polls.
fn is_array(body: &str) -> bool {
    body.trim_start().starts_with('[')
}

/// Answers one poll.
async fn poll_one(Polls { gateway, readers }: &Polls, request: &PollRequest) -> Result<SharedText, Refusal> {
    let _permit = gateway.connection_permit(request.caller.address)?;
    Box::pin(answer(gateway, readers, request, &gateway.shutdown)).await
}

/// Answers several polls as soon as one of them has something. A refused one does not end the others.
async fn poll_many(polls: &Polls, sender: &Sender, body: &str) -> Result<SharedText, Refusal> {
    let Polls { gateway, readers } = polls;
    let items: Vec<&RawValue> = parse(body)?;
    if items.len() > MAX_POLLS || items.is_empty() {
        let text = format!("{} polls in one call; 1 to {MAX_POLLS} are allowed", items.len());
        return Err(Refusal::new(Code::BadRequest, text));
    }
    let stop = gateway.shutdown.child_token();
    let (stop, mut permit) = (&stop, None);
    let mut requests = Vec::with_capacity(items.len());
    for item in items {
        let request = sender.prepare(gateway, PollBody::decode(item.get())).await;
        if let (None, Ok(request)) = (&permit, &request) {
            permit = Some(gateway.connection_permit(request.caller.address)?);
        }
        if request.is_err() {
            stop.cancel();
        }
        requests.push(request);
    }
    let answers = join_all(requests.into_iter().map(|request| async move {
        let answered = match request {
            Ok(request) => answer(gateway, readers, &request, stop).await,
            Err(refusal) => Err(refusal),
        };
        // It had something, or its time is over.
        stop.cancel();
        answered
    }));
    let mut text = SharedText::default();
    for (n, answered) in answers.await.into_iter().enumerate() {
        text.push_str(if n > 0 { "," } else { "[" });
        match answered {
            Ok(answer) => text.push_text(answer),
            Err(refusal) => text.push_str(&refusal.body()),
        }
    }
    text.push_str("]");
    Ok(text)
}

/// Where a call comes from.
struct Sender {
    bearer: Option<String>,
    address: Option<IpAddr>,
}

impl Sender {
    /// What the head of a call says of it.
    ///
    /// # Errors
    /// `unauthorized` if the header `Authorization` holds no bearer.
    fn of(gateway: &Gateway, RequestHead { check, .. }: RequestHead<'_>) -> Result<Self, Refusal> {
        let bearer = gateway.bearer(check.headers)?.map(str::to_owned);
        let address = client_address(&gateway.access(), check.peer, check.headers);
        Ok(Self { bearer, address })
    }

    /// What a poll asks for, with its caller.
    async fn prepare(
        &self,
        gateway: &Gateway,
        poll: Result<PollBody, Malformed>,
    ) -> Result<PollRequest, Refusal> {
        let (session, token) = match &poll {
            Ok(poll) => (poll.session.clone().map(NamedSession::Hidden), poll.token.as_deref()),
            Err(_) => (None, None),
        };
        let (names_session, address) = (session.is_some(), self.address);
        let bearer = token.map(str::trim).or(self.bearer.as_deref());
        let shown = Shown { bearer, session, address };
        let grant = Box::pin(gateway.identify(shown, SessionPolicy::Create)).await?;
        let (caller, poll) = (Caller { grant, address }, poll?);
        let (topics, errors) = topics(&poll.topics, &caller.grant, gateway.config.max_topics);
        let (resume, wait) = (poll.resume(), wait(poll.wait)?);
        Ok(PollRequest { caller, names_session, resume, acknowledges: poll.ack, topics, errors, wait })
    }
}

/// How long the poll waits.
fn wait(seconds: Option<f64>) -> Result<Duration, Refusal> {
    let wait = match seconds {
        None => Ok(DEFAULT_WAIT),
        Some(seconds) => Duration::try_from_secs_f64(seconds),
    };
    let wait = wait.ok().filter(|wait| *wait <= MAX_WAIT);
    Ok(wait.ok_or(Malformed::Wrong { field: "wait", wanted: "a number of seconds from 0 to 60" })?)
}

/// The topics that the poll reads, and those that are refused.
fn topics(wanted: &[PollTopic], grant: &Grant, limit: usize) -> (Vec<TopicRequest>, Vec<TopicError>) {
    let (mut topics, mut errors) = (Vec::<TopicRequest>::new(), Vec::new());
    for topic in wanted {
        let result = match topic.position() {
            Err(reason) => Err(Malformed::Name { field: "topic", reason }.into()),
            Ok((name, _)) if topics.iter().any(|known| known.topic == name) => continue,
            Ok(_) if topics.len() >= limit => Err(Refusal::too_many_topics(limit)),
            Ok((name, resume)) => {
                let request = TopicRequest { topic: name, resume, presence: topic.presence };
                let allowed = request.check(grant).map_err(BrokerError::from);
                allowed.map(|()| request).map_err(Refusal::from)
            }
        };
        match result {
            Ok(topic) => topics.push(topic),
            Err(Refusal { code, message, .. }) => {
                errors.push(TopicError { topic: topic.topic.clone(), code, message });
            }
        }
    }
    (topics, errors)
}
