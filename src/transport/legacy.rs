//! Today's x0 client, unmodified: its polls and sends, translated to the same hubs and mailboxes.
//!
//! That client polls again at once after any 200, and stops for good after anything else. So a poll it could
//! have sent is always answered 200, and never at once when there is nothing to say. A send that fails is
//! answered 200 with an `error` key: only then does its page show the failure.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep_until};

use crate::config::Auth;
use crate::edge::{Caller, Gateway, Query, Refusal, body_text, client_address, encode, peer_of};
use crate::grant::Grant;
use crate::link::Link;
use crate::message::{Item, Kind, MAX_NAME, MessageId, Publication, Seq, SessionId};
use crate::protocol::{Code, ENVELOPE, SendRequest, To};
use crate::transport::lease::Claim;

mod receipt;
pub(crate) mod shape;

pub(crate) use receipt::{LegacyReader, LegacyReceipts};

use receipt::{PATIENCE, Poll};
use shape::{LegacyError, LegacyPath, LegacyRequest};

/// Beyond this many waiting messages, an answer carries more than one.
const ONE_BY_ONE: usize = 8;

/// Messages in one answer.
const MOST_MESSAGES: usize = 64;

/// An answer is complete once it has this many bytes.
const ENOUGH_BYTES: usize = 1 << 20;

/// The answer when there is nothing to say.
const NOTHING: &str = r#"{"messages":null}"#;

#[derive(Clone)]
struct Legacy {
    gateway: Arc<Gateway>,
    pages: Arc<LegacyReceipts>,
}

/// The routes of this transport.
pub(crate) fn routes(gateway: Arc<Gateway>, pages: Arc<LegacyReceipts>) -> Router {
    let path = |path: LegacyPath| any(move |state, request| handle(state, path, request));
    Router::new()
        .route("/python/MsgHandler.py", path(LegacyPath::Handler))
        .route("/get", path(LegacyPath::Get))
        .route("/set", path(LegacyPath::Set))
        .with_state(Legacy { gateway, pages })
}

/// An answer of this path; [`LegacyCors`] puts the CORS headers onto it.
fn answer(status: StatusCode, body: impl Into<Body>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (status, headers, body.into()).into_response()
}

#[derive(Serialize)]
struct Failed<'a> {
    messages: (),
    error: bool,
    exception_id: Code,
    exception: &'a str,
}

/// A failure that the x0 page shows.
fn failed(refusal: &Refusal) -> Response {
    let Refusal { code, message, .. } = refusal;
    let body = Failed { messages: (), error: true, exception_id: *code, exception: message };
    answer(StatusCode::OK, encode(&body))
}

/// Where a request came from: what tells repeats and receipts.
#[derive(Debug)]
struct Origin {
    /// The client's address.
    address: Option<IpAddr>,
    link: Arc<Link>,
    /// The `a__` of its address.
    a: Option<String>,
    /// Whether a live page would use the connection again: it is a browser's, and kept alive.
    reused: bool,
    /// Whether the connection carries one request after the other: over HTTP/2 they come side by side, and say
    /// nothing about each other.
    in_turn: bool,
}

impl Origin {
    fn of(gateway: &Gateway, request: &Request) -> Self {
        let headers = request.headers();
        let close = headers
            .get(header::CONNECTION)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
        Self {
            address: client_address(&gateway.config.access, peer_of(request.extensions()), headers),
            in_turn: request.version() < Version::HTTP_2,
            link: request.extensions().get::<Arc<Link>>().map_or_else(Link::new, Arc::clone),
            a: Query::of(request.uri()).get("a__").filter(|a| a.len() <= MAX_NAME).map(str::to_owned),
            reused: request.version() == Version::HTTP_11 && headers.contains_key(header::ORIGIN) && !close,
        }
    }
}

/// Whose pages may read an answer, as its headers say.
struct LegacyCors {
    /// Everybody's.
    any: bool,
    /// Those of this origin.
    origin: Option<HeaderValue>,
    /// Those of the one that asks may not, nor is what it asks to be done.
    foreign: bool,
}

impl LegacyCors {
    fn by(gateway: &Gateway, headers: &HeaderMap) -> Self {
        let allowed = &gateway.config.access.legacy_allow_origin;
        let any = allowed.iter().any(|origin| origin == "*");
        let named = headers.get(header::ORIGIN);
        let is_allowed = |origin: &&HeaderValue| {
            allowed.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
        };
        let origin = if any { None } else { named.filter(is_allowed).cloned() };
        let cross = || headers.get("sec-fetch-site").is_some_and(|site| site.as_bytes() == b"cross-site");
        let foreign = !any && origin.is_none() && (named.is_some() || cross());
        Self { any, origin, foreign }
    }

    /// The two CORS headers stand on every answer: without them the browser hides it, and the page stops polling.
    fn mark(self, mut response: Response) -> Response {
        const ANY: HeaderValue = HeaderValue::from_static("*");
        let headers = response.headers_mut();
        if let Some(origin) = if self.any { Some(ANY) } else { self.origin } {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ANY);
        }
        if !self.any {
            headers.insert(header::VARY, HeaderValue::from_static("origin"));
        }
        response
    }
}

/// Reads a request, then acts on it: boxed one after the other, so that a poll that waits does not keep the room in
/// which its request was read. For the same reason this is no async function.
fn handle(
    State(legacy): State<Legacy>,
    path: LegacyPath,
    request: Request,
) -> impl Future<Output = Response> {
    let cors = LegacyCors::by(&legacy.gateway, request.headers());
    let reading = Box::pin(read(legacy.gateway.clone(), path, request));
    async move {
        let response = match reading.await {
            Err(response) => response,
            Ok((asked, origin)) => {
                let asked = if cors.foreign { demote_foreign(asked) } else { asked };
                Box::pin(legacy.act(asked, &origin)).await
            }
        };
        cors.mark(response)
    }
}

/// What a request asks, or its answer if it asks for nothing.
async fn read(
    gateway: Arc<Gateway>,
    path: LegacyPath,
    request: Request,
) -> Result<(Result<LegacyRequest, LegacyError>, Origin), Response> {
    let origin = Origin::of(&gateway, &request);
    match *request.method() {
        Method::POST => {
            let limit = gateway.config.max_payload + ENVELOPE;
            match body_text(request.into_body(), limit, gateway.config.header_timeout).await {
                Ok(body) => Ok((shape::body(path, &body), origin)),
                // Only a send can be too large.
                Err(refusal) if refusal.code == Code::TooLarge => Err(failed(&refusal)),
                Err(refusal) => Ok((Err(LegacyError::NotX0(refusal.message)), origin)),
            }
        }
        Method::GET => match shape::query(&Query::of(request.uri())) {
            Some(asked) => Ok((asked, origin)),
            None => Err(answer(StatusCode::OK, Body::empty())),
        },
        Method::HEAD => Err(answer(StatusCode::OK, Body::empty())),
        Method::OPTIONS => Err(answer(StatusCode::NO_CONTENT, Body::empty())),
        _ => {
            let text = "poll and send with POST; net events come with GET";
            Err(answer(StatusCode::METHOD_NOT_ALLOWED, Refusal::new(Code::BadRequest, text).body()))
        }
    }
}

/// What a page asks whose origin is not let in: its polls are held, its sends refused.
fn demote_foreign(asked: Result<LegacyRequest, LegacyError>) -> Result<LegacyRequest, LegacyError> {
    match asked? {
        LegacyRequest::Poll { .. } => Ok(LegacyRequest::Poll { session: None, ack: None }),
        LegacyRequest::Del { .. } => Ok(LegacyRequest::Del { session: None }),
        LegacyRequest::Send { .. } => {
            let text = "pages of this origin are not let in; --legacy-allow-origin lets them";
            Err(LegacyError::Send(text.to_owned()))
        }
    }
}

impl Legacy {
    async fn act(&self, asked: Result<LegacyRequest, LegacyError>, origin: &Origin) -> Response {
        match asked {
            Ok(LegacyRequest::Poll { session: Some(session), ack }) => {
                let Origin { address, link, a, reused, in_turn } = origin;
                let poll = Poll { link, request: a.as_deref(), ack, reused: *reused, in_turn: *in_turn };
                answer(StatusCode::OK, self.poll(&session, *address, poll).await)
            }
            Ok(LegacyRequest::Poll { session: None, .. }) => {
                self.hold(Instant::now() + self.gateway.config.poll_timeout).await;
                answer(StatusCode::OK, NOTHING)
            }
            Ok(LegacyRequest::Send { from, to, payload }) => match self.send(from, to, payload, origin).await
            {
                Ok(()) => answer(StatusCode::OK, r#"{"messages":null,"status":"ok"}"#),
                Err(refusal) => failed(&refusal),
            },
            Ok(LegacyRequest::Del { session }) => {
                if let Some(session) = session
                    && self.may_read(&session).await
                {
                    self.pages.received_all(&self.gateway.broker, &session).await;
                }
                answer(StatusCode::OK, NOTHING)
            }
            Err(LegacyError::Send(text)) => failed(&Refusal::new(Code::BadRequest, text)),
            Err(LegacyError::NotX0(text)) => {
                answer(StatusCode::BAD_REQUEST, Refusal::new(Code::BadRequest, text).body())
            }
        }
    }

    /// Waits out a poll that has nothing to wait for.
    async fn hold(&self, until: Instant) {
        tokio::select! {
            () = sleep_until(until) => {}
            () = self.gateway.shutdown.cancelled() => {}
        }
    }

    /// Whether this session's id is enough to read its mailbox.
    async fn may_read(&self, session: &SessionId) -> bool {
        self.gateway.identity.auth() == Auth::Open
            || self.gateway.broker.directory().holder(session).await.is_some()
    }

    /// Who sends. Where sessions are proved, the id of one that a backend has registered is the delivery.
    async fn sender(&self, from: Option<SessionId>) -> Result<Grant, Refusal> {
        if self.gateway.identity.auth() == Auth::Open {
            return Ok(Grant::Open { session: from, manages: false });
        }
        let holder = match from {
            Some(session) => self.gateway.broker.directory().holder(&session).await,
            None => None,
        };
        let told =
            || Refusal::new(Code::Unauthorized, "the session of the sender is not registered; log in first");
        Ok(Grant::Client(holder.ok_or_else(told)?.into()))
    }

    async fn send(
        &self,
        from: Option<SessionId>,
        to: SessionId,
        payload: Box<RawValue>,
        origin: &Origin,
    ) -> Result<(), Refusal> {
        let request = origin.a.as_deref();
        let caller = Caller { grant: self.sender(from).await?, address: origin.address };
        let to = match caller.grant {
            Grant::Client(_) => To::Peer(to),
            Grant::Open { .. } | Grant::Backend(_) => To::Session(to),
        };
        let payload = shape::with_sender(payload.get(), caller.grant.from().as_ref());
        let payload = RawValue::from_string(payload).expect("an object with one member set is JSON");
        // A browser repeats a POST whose connection died, with the same `a__`. The prefix keeps these apart
        // from the ids of native senders.
        let id = request.and_then(|a| MessageId::new(&format!("a__={a}")).ok());
        let send = SendRequest { id, to, payload, ttl: None, volatile: false, receipt: false };
        // Too many are paced by holding, as long as a poll is held.
        let deadline = Instant::now() + self.gateway.config.poll_timeout;
        while let Err(wait) = self.gateway.charge(&caller, &send.to) {
            let until = Instant::now() + wait;
            if until > deadline || self.gateway.shutdown.is_cancelled() {
                return Err(self.gateway.too_fast(wait));
            }
            self.hold(until).await;
        }
        self.gateway.broker.send(&caller.grant, send).await?.await?;
        Ok(())
    }

    async fn poll(&self, session: &SessionId, address: Option<IpAddr>, poll: Poll<'_>) -> String {
        let mut deadline = Instant::now() + self.gateway.config.poll_timeout;
        if self.gateway.identity.auth() == Auth::Token {
            // Not registered, or not yet: that may come while it waits.
            let arrival = async {
                tokio::select! {
                    client = self.gateway.broker.directory().arrival(session) => Some(client),
                    () = self.hold(deadline) => None,
                }
            };
            let Some(client) = Box::pin(arrival).await else { return NOTHING.to_owned() };
            let left = client.expires.saturating_sub(self.gateway.broker.now());
            deadline = deadline.min(Instant::now() + Duration::from_millis(left));
        }
        // Too many from one address wait their time out.
        let Some(_place) = self.gateway.connection_limiter.try_acquire(address) else {
            self.hold(deadline).await;
            return NOTHING.to_owned();
        };
        let Some(mut claim) = Box::pin(self.pages.claim(&self.gateway.broker, session, poll)).await else {
            self.hold(deadline).await;
            return NOTHING.to_owned();
        };
        let first = self.first(&mut claim, deadline).await;
        let Some(first) = first else {
            claim.answered();
            return NOTHING.to_owned();
        };
        let end = match first.seq() {
            Some(seq) => tokio::select! {
                ahead = claim.wait_for_peers(seq, PATIENCE, deadline) => ahead,
                () = self.gateway.shutdown.cancelled() => None,
            },
            None => None,
        };
        let (subscriber, reader) = claim.parts();
        let mut messages = Messages::new();
        messages.push(&first);
        // One message for each answer: what throws in the page drops the rest of its batch.
        if subscriber.fill(MOST_MESSAGES) >= ONE_BY_ONE || end > first.seq() {
            while messages.count < MOST_MESSAGES
                && messages.json.len() < ENOUGH_BYTES
                && end.is_none_or(|end| subscriber.delivered() < end)
            {
                match subscriber.try_next() {
                    Some(Item::Message(message)) if message.kind() == Kind::Message => {
                        messages.push(&message)
                    }
                    Some(_) => {}
                    None => break,
                }
            }
        }
        let through = subscriber.delivered();
        reader.answered(through, poll);
        claim.set_position(through);
        claim.answered();
        messages.finish(through)
    }

    /// The next message, or `None` when the poll's time is over.
    async fn first(&self, claim: &mut Claim<LegacyReader>, deadline: Instant) -> Option<Arc<Publication>> {
        loop {
            let item = tokio::select! {
                biased;
                item = claim.subscriber().next() => item?,
                () = self.hold(deadline) => return None,
            };
            // The x0 client knows no gaps and no receipts.
            if let Item::Message(message) = item
                && message.kind() == Kind::Message
            {
                return Some(message);
            }
        }
    }
}

/// The body of an answer with messages.
struct Messages {
    json: String,
    count: usize,
}

impl Messages {
    fn new() -> Self {
        Self { json: r#"{"messages":["#.to_owned(), count: 0 }
    }

    fn push(&mut self, message: &Publication) {
        if self.count > 0 {
            self.json.push(',');
        }
        self.count += 1;
        self.json.push_str(&shape::with_sender(message.payload(), message.from()));
    }

    fn finish(mut self, through: Seq) -> String {
        self.json.push_str(&format!(r#"],"seq":{through}}}"#));
        self.json
    }
}
